//! Pictures of runs: learning curves, return against the strength of a perturbation, and the outcomes of sweeps.

pub mod aggregate;
pub mod curve;
pub mod figure;
pub mod heat_map;
mod layout;
pub mod margins;
pub mod page;
pub mod path;
pub mod precision_recall;
pub mod robustness;
pub mod stats;
pub mod style;
pub mod sweep;
pub mod table;

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};
use figure::Drawing;

/// Draws into NAME.svg and NAME.png in `directory`.
///
/// # Errors
/// [`Failure::Run`] if drawing or writing fails.
pub fn save_both<D: Drawing + ?Sized>(drawing: &D, directory: &Path, name: &str) -> Result<[PathBuf; 2]> {
    let files = ["svg", "png"].map(|extension| directory.join(format!("{name}.{extension}")));
    files.iter().try_for_each(|path| save(drawing, path))?;
    Ok(files)
}

/// Draws into an SVG or PNG file, by its extension.
///
/// # Errors
/// [`Failure::Usage`] for another extension; [`Failure::Run`] if drawing or writing fails.
pub fn save<D: Drawing + ?Sized>(drawing: &D, path: &Path) -> Result<()> {
    let bytes = match path.extension().and_then(|e| e.to_str()) {
        Some("svg") => figure::svg(drawing).map(String::into_bytes),
        Some("png") => figure::png(drawing),
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
