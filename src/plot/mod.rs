//! Pictures of runs: learning curves and return against the strength of a perturbation.

pub mod curve;
pub mod figure;
pub mod robustness;
pub mod stats;
pub mod style;
pub mod table;

use std::path::Path;

use crate::failure::{Failure, Result};
use figure::Panel;

/// Draws `panels` side by side into an SVG or PNG file, by its extension.
///
/// # Errors
/// [`Failure::Usage`] for another extension; [`Failure::Run`] if drawing or writing fails.
pub fn save(panels: &[Panel], path: &Path) -> Result<()> {
    let bytes = match path.extension().and_then(|e| e.to_str()) {
        Some("svg") => figure::svg(panels).map(String::into_bytes),
        Some("png") => figure::png(panels),
        _ => {
            return Err(Failure::usage(
                format!("cannot tell the kind of picture from the name {}", path.display()),
                "end it in .svg or .png",
            ));
        }
    };
    let bytes = bytes.map_err(|reason| Failure::run(format!("cannot draw {}: {reason}", path.display())))?;
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| Failure::file("create", parent, e))?;
    }
    crate::run::log::write_whole(path, &bytes)
}
