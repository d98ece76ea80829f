//! Models in folders, and in the folder `model` of a finished run.

use std::path::{Path, PathBuf};

use crate::config::recipe;

/// Name of the folder in a run directory.
pub const MODEL: &str = "model";

/// The folder that holds the model which `path` names: itself, or `model` in it if it is a run directory.
///
/// # Errors
/// What is missing, and how to get it.
pub fn folder(path: &Path) -> Result<PathBuf, (String, String)> {
    if path.join("config.json").is_file() {
        return Ok(path.to_path_buf());
    }
    let inner = path.join(MODEL);
    if inner.join("config.json").is_file() {
        return Ok(inner);
    }
    let shown = path.display();
    if path.as_os_str().is_empty() {
        return Err(("no path is given".to_string(), "give a folder with a model, or a finished run".to_string()));
    }
    if path.join("config.toml").is_file() {
        return Err((
            format!("{shown} is a run without a model yet"),
            format!("models are written at the end: continue it with `steadfast train --resume {shown}`"),
        ));
    }
    if path.is_dir() {
        return Err((format!("{shown} holds no model: it has no config.json"), "give a folder as Hugging Face writes it".to_string()));
    }
    Err((format!("{shown} does not exist"), maker(path)))
}

/// Which recipe makes the run that a path like `runs/NAME-seed3` or `sweeps/NAME/cells/CELL` names.
fn maker(path: &Path) -> String {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    if let [.., sweep, "cells", _] = parts.as_slice()
        && recipe::sweep_text(sweep).is_some()
    {
        return format!("`steadfast sweep {sweep}` makes it");
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some((recipe, seed)) = name.rsplit_once("-seed")
        && recipe::text(recipe).is_some()
    {
        let seed = if seed == "0" { String::new() } else { format!(" seed={seed}") };
        return format!("`steadfast train {recipe}{seed}` makes it");
    }
    "give a folder as Hugging Face writes it, or a finished run".to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_runs_are_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for name in ["plain", "run/model", "early", "empty"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        for name in ["plain/config.json", "run/model/config.json", "run/config.toml", "early/config.toml"] {
            std::fs::write(path(name), "").unwrap();
        }
        assert_eq!(folder(&path("plain")), Ok(path("plain")));
        assert_eq!(folder(&path("run")), Ok(path("run/model")));
        assert!(folder(&path("early")).unwrap_err().1.contains("--resume"));
        assert!(folder(&path("empty")).unwrap_err().0.contains("no config.json"));
        assert_eq!(folder(Path::new("runs/spread-ernie-seed3")).unwrap_err().1, "`steadfast train spread-ernie seed=3` makes it");
        let cell = Path::new("sweeps/topic-reward-models/cells/uniform_30__r3m__seed1");
        assert_eq!(folder(cell).unwrap_err().1, "`steadfast sweep topic-reward-models` makes it");
        assert!(folder(Path::new("nowhere")).unwrap_err().0.contains("does not exist"));
    }
}
