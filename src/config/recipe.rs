//! The recipes that come with the program.

include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// The recipe that runs when none is named.
pub const DEFAULT: &str = "spread-ernie";

/// Text of a recipe.
pub fn text(name: &str) -> Option<&'static str> {
    RECIPES.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// The first comment line of a recipe, which says what it is for.
pub fn description(text: &str) -> &str {
    text.lines().next().and_then(|line| line.strip_prefix('#')).map_or("", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn every_recipe_is_described_and_valid() {
        assert!(text(DEFAULT).is_some());
        for (name, text) in RECIPES {
            assert!(!description(text).is_empty(), "{name} does not begin with a comment");
            let loaded = load::text(name, text, &[]).unwrap_or_else(|e| panic!("{name}: {e:?}"));
            assert_eq!(loaded.config.name, *name, "a recipe is named like its file");
        }
    }
}
