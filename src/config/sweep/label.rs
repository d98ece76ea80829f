//! What labels say: families of settings, and names of directories.

use super::AxisConfig;

/// What stands behind the family of settings in the label of a selected setting.
pub const SELECTED: &str = "selected";

/// Families with more than one label, and their labels, in the order of the file.
pub fn families(axis: &AxisConfig) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for label in axis.labels() {
        let family = label.split(' ').next().unwrap_or_default();
        match found.iter_mut().find(|(name, _)| *name == family) {
            Some((_, members)) => members.push(label),
            None => found.push((family, vec![label])),
        }
    }
    found.retain(|(_, members)| members.len() > 1);
    found
}

/// The label as part of a file name.
pub fn slug(label: &str) -> String {
    let mut text = String::new();
    for c in label.chars() {
        match c {
            c if c.is_ascii_alphanumeric() || ".-+".contains(c) => text.push(c),
            _ if text.ends_with('_') => {}
            _ => text.push('_'),
        }
    }
    text.trim_matches(['_', '.', '-']).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_keep_what_is_safe() {
        for (label, expected) in [("r3m 0.3", "r3m_0.3"), ("irrational-1/3", "irrational-1_3"), ("uniform 30 %", "uniform_30"), ("..", "")]
        {
            assert_eq!(slug(label), expected, "{label}");
        }
    }

    #[test]
    fn settings_of_a_family_agree_up_to_the_first_space() {
        let axis: AxisConfig = toml::from_str("name = \"a\"\nvalues = { \"r 2\" = [], q = [], \"r 1\" = [], \"rr 1\" = [] }").unwrap();
        assert_eq!(families(&axis), [("r", vec!["r 2", "r 1"])]);
    }
}
