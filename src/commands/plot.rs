//! `steadfast plot`.

use std::path::{Path, PathBuf};

use super::print;
use crate::cli::{PlotArgs, PlotKind};
use crate::failure::Result;
use crate::plot::figure::Panel;
use crate::plot::table::{COLUMNS, RunData};
use crate::plot::{curve, robustness, save};

/// Draws the runs.
pub fn run(arguments: &PlotArgs) -> Result<()> {
    let runs: Vec<RunData> = arguments.runs.iter().map(|path| RunData::read(path)).collect::<Result<_>>()?;
    let metric = arguments.metric.as_str();
    let panels = |kind: PlotKind| match kind {
        PlotKind::Learning => curve::panel(&runs, metric).map(|panel| vec![panel]),
        PlotKind::Robustness => robustness::panels(&runs, metric),
    };
    let mut written = Vec::new();
    match (&arguments.output, arguments.kind) {
        (Some(path), kind) => {
            save(&panels(kind.unwrap_or(PlotKind::Learning))?, path)?;
            written.push(path.clone());
        }
        (None, Some(kind)) => written.extend(both_formats(&panels(kind)?, &arguments.runs[0], kind)?),
        (None, None) => {
            written.extend(both_formats(&panels(PlotKind::Learning)?, &arguments.runs[0], PlotKind::Learning)?);
            let is_swept = runs.iter().flat_map(|r| &r.evaluations).any(|r| r.perturbation != "none");
            if is_swept && COLUMNS.iter().any(|(name, ..)| *name == metric) {
                written.extend(both_formats(&panels(PlotKind::Robustness)?, &arguments.runs[0], PlotKind::Robustness)?);
            }
        }
    }
    print(&written.iter().map(|p| format!("{}\n", p.display())).collect::<String>())
}

/// Writes a picture as SVG and as PNG into `plots/` of a run.
pub fn both_formats(panels: &[Panel], run: &Path, kind: PlotKind) -> Result<Vec<PathBuf>> {
    let stem = match kind {
        PlotKind::Learning => "learning",
        PlotKind::Robustness => "robustness",
    };
    let mut written = Vec::new();
    for extension in ["svg", "png"] {
        let path = run.join("plots").join(format!("{stem}.{extension}"));
        save(panels, &path)?;
        written.push(path);
    }
    Ok(written)
}
