//! Which programs made the finished cells.

use std::collections::BTreeMap;
use std::fmt;

use crate::config::ExperimentConfig;
use crate::run::manifest::Manifest;

/// What the numbers of a run may depend on besides its settings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    version: String,
    commit: String,
    is_release: bool,
    instruction_sets: Vec<String>,
}

impl Program {
    /// This very program.
    pub fn own() -> Self {
        Self::first(&Manifest::new(&ExperimentConfig::default().into(), 1))
    }

    fn first(manifest: &Manifest) -> Self {
        Self {
            version: manifest.steadfast_version.clone(),
            commit: manifest.commit.clone(),
            is_release: manifest.is_release,
            instruction_sets: manifest.instruction_sets.clone(),
        }
    }

    /// The programs that made a run, one after the other. A continuation is taken to have been optimised like the start.
    pub fn makers(manifest: &Manifest) -> Vec<Self> {
        let later = manifest.resumed.iter().map(|r| Self {
            version: r.steadfast_version.clone(),
            commit: r.commit.clone(),
            is_release: manifest.is_release,
            instruction_sets: r.instruction_sets.clone(),
        });
        let mut found: Vec<Self> = std::iter::once(Self::first(manifest)).chain(later).collect();
        found.dedup();
        found
    }

    /// The first digits of the commit; empty if the program was built outside a checkout.
    pub fn short_commit(&self) -> &str {
        self.commit.get(..10).unwrap_or(&self.commit)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = if self.commit.is_empty() { "unknown" } else { self.short_commit() };
        let build = if self.is_release { "release" } else { "debug" };
        let sets = if self.instruction_sets.is_empty() { "no instruction sets".to_string() } else { self.instruction_sets.join(" ") };
        write!(f, "version {}, commit {commit}, {build} build, {sets}", self.version)
    }
}

/// Says how many cells were made by which programs, unless it was `own` for all of them. `makers` holds those of every
/// finished cell; nothing of a cell that does not say.
pub fn mixture(makers: &[&[Program]], own: &Program) -> Option<String> {
    let mut counts: BTreeMap<&[Program], usize> = BTreeMap::new();
    for &makers in makers {
        *counts.entry(makers).or_default() += 1;
    }
    let is_own = |makers: &[Program]| makers == std::slice::from_ref(own);
    if counts.keys().all(|makers| is_own(makers)) {
        return None;
    }
    let name = |makers: &[Program]| match makers {
        [] => "an unknown program".to_string(),
        makers if is_own(makers) => "this program".to_string(),
        makers => makers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", then "),
    };
    let lines: String = counts.iter().map(|(makers, n)| format!("\n  {n} by {}", name(makers))).collect();
    Some(format!("of {} finished cells not all were made by this program ({own}):{lines}", makers.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_other_programs_are_counted() {
        let own =
            Program { version: "1.0.0".into(), commit: "0123456789abcdef".into(), is_release: true, instruction_sets: vec!["avx2".into()] };
        let old = Program { commit: "fedcba9876543210".into(), ..own.clone() };
        let (ours, theirs, both) = ([own.clone()], [old.clone()], [old.clone(), own.clone()]);
        assert_eq!(mixture(&[], &own), None);
        assert_eq!(mixture(&[&ours, &ours], &own), None);
        let text = mixture(&[&ours, &theirs, &theirs, &both, &[]], &own).unwrap();
        let old = "version 1.0.0, commit fedcba9876, release build, avx2";
        for part in [
            "of 5 finished cells",
            "\n  1 by this program",
            &format!("\n  2 by {old}\n"),
            &format!("\n  1 by {old}, then version 1.0.0, commit 0123456789,"),
            "\n  1 by an unknown program",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(mixture(&[&[Program { is_release: false, ..own.clone() }]], &own).unwrap().contains("debug build"));
    }

    #[test]
    fn a_run_that_was_continued_has_several_makers() {
        let mut manifest = Manifest::new(&ExperimentConfig::default().into(), 1);
        let same = manifest.clone();
        manifest.resume(&same);
        assert_eq!(Program::makers(&manifest), [Program::own()]);
        manifest.resume(&Manifest { commit: "abc".into(), ..same });
        let makers = Program::makers(&manifest);
        assert_eq!((makers.len(), makers[1].short_commit()), (2, "abc"));
    }
}
