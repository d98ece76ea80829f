//! The recipes that come with the program.

include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// The recipe that runs when none is named.
pub const DEFAULT: &str = "spread-ernie";

/// Text of a recipe.
pub fn text(name: &str) -> Option<&'static str> {
    RECIPES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// Text of a recipe of a sweep.
pub fn sweep_text(name: &str) -> Option<&'static str> {
    SWEEPS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// The first comment line of a recipe, which says what it is for.
pub fn description(text: &str) -> &str {
    text.lines().next().and_then(|line| line.strip_prefix('#')).map_or("", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{load, sweep};

    #[test]
    fn every_recipe_is_described_and_valid() {
        assert!(text(DEFAULT).is_some());
        for (name, text) in RECIPES {
            assert!(!description(text).is_empty(), "{name} does not begin with a comment");
            // The files that a recipe names are made by other recipes.
            let config = load::stored(name, text).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            assert_eq!(config.name(), *name, "a recipe is named like its file");
        }
    }

    #[test]
    fn every_sweep_is_described_and_valid() {
        assert!(!SWEEPS.is_empty());
        for (name, text) in SWEEPS {
            assert!(!description(text).is_empty(), "{name} does not begin with a comment");
            assert!(super::text(name).is_none(), "{name} is the name of two recipes");
            let sweep = sweep::read(name).unwrap_or_else(|e| panic!("{name}: {}", e.render(false, 100)));
            assert_eq!(sweep.config.name.get_ref(), name, "a recipe is named like its file");
            if super::text(sweep.config.base.get_ref()).is_some_and(|base| base.contains("[model.pretrained]")) {
                // Cells look for the model that another recipe makes.
                continue;
            }
            let cells = sweep::cells(&sweep).unwrap_or_else(|e| panic!("{name}: {}", e.render(false, 100)));
            assert!(!cells.is_empty());
        }
    }
}
