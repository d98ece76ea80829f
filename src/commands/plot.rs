//! `steadfast plot`.

use std::path::{Path, PathBuf};

use super::print;
use crate::cli::{PlotArgs, PlotKind};
use crate::failure::Result;
use crate::plot::figure::Panel;
use crate::plot::table::{Column, RunData};
use crate::plot::{curve, robustness, save};
use crate::run::results::DEFAULT_METRIC;

/// Draws the runs.
pub fn run(arguments: &PlotArgs) -> Result<()> {
    let runs = RunData::read_all(&arguments.runs)?;
    let metric = arguments.metric.as_str();
    let panels = |kind: PlotKind| match kind {
        PlotKind::Learning => curve::panel(&runs, metric).map(|panel| vec![panel]),
        PlotKind::Robustness => robustness::panels(&runs, metric),
    };
    let mut written = Vec::new();
    match (&arguments.output, arguments.kind) {
        (Some(path), kind) => {
            save(panels(kind.unwrap_or(PlotKind::Learning))?.as_slice(), path)?;
            written.push(path.clone());
        }
        (None, Some(kind)) => written.extend(both_formats(&panels(kind)?, &arguments.runs[0], kind, metric)?),
        (None, None) => {
            written.extend(both_formats(&panels(PlotKind::Learning)?, &arguments.runs[0], PlotKind::Learning, metric)?);
            let is_swept = runs.iter().flat_map(|r| &r.evaluations).any(|r| r.perturbation != "none");
            if is_swept && Column::find(&runs, metric).is_some() {
                written.extend(both_formats(&panels(PlotKind::Robustness)?, &arguments.runs[0], PlotKind::Robustness, metric)?);
            }
        }
    }
    print(&written.iter().map(|p| format!("{}\n", p.display())).collect::<String>())
}

/// Writes a picture as SVG and as PNG into `plots/` of a run. Other metrics than the default get names of their own.
pub fn both_formats(panels: &[Panel], run: &Path, kind: PlotKind, metric: &str) -> Result<Vec<PathBuf>> {
    let stem = match kind {
        PlotKind::Learning => "learning",
        PlotKind::Robustness => "robustness",
    };
    let stem = match metric {
        DEFAULT_METRIC => stem.to_string(),
        _ => format!("{stem}-{}", metric.replace(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c), "-")),
    };
    let mut written = Vec::new();
    for extension in ["svg", "png"] {
        let path = run.join("plots").join(format!("{stem}.{extension}"));
        save(panels, &path)?;
        written.push(path);
    }
    Ok(written)
}
