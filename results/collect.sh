#!/usr/bin/env bash
# Joins the evaluations of several runs into one tidy table: collect.sh RUN... > table.csv
set -euo pipefail
first=1
for run in "$@"; do
  name="$(sed -n 's/^name = "\(.*\)"/\1/p' "$run/config.toml" | head -n 1)"
  seed="$(sed -n 's/^seed = //p' "$run/config.toml" | head -n 1)"
  awk -v first="$first" -v name="$name" -v seed="$seed" 'NR == 1 { if (first) print "run,run_seed," $0; next } { print name "," seed "," $0 }' "$run/eval.csv"
  first=""
done
