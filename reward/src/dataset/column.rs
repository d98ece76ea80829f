//! Names of the columns of preference files, and which known one an unknown one probably meant.

/// Columns that are read.
pub(crate) const KNOWN: [&str; 12] = [
    "id",
    "prompt",
    "chosen",
    "rejected",
    "conversations",
    "equal",
    "label",
    "margin",
    "annotator_id",
    "flipped",
    "gold_chosen",
    "gold_rejected",
];

/// Fields of a segment.
pub(crate) const SEGMENT: [&str; 5] = ["observations", "actions", "rewards", "terminated", "policy"];

/// The known column that `name` probably misspells. A field of a segment is written with its side, as `chosen.actons`.
///
/// One edit (insertion, deletion, replacement, swap of neighbours) for short names, two for those of six letters or more.
pub(crate) fn suggestion(name: &str) -> Option<String> {
    let near = |name: &str, known: &[&'static str]| {
        known
            .iter()
            .map(|known| (strsim::damerau_levenshtein(&name.to_ascii_lowercase(), known), *known))
            .filter(|(distance, known)| *distance <= if known.len() < 6 { 1 } else { 2 })
            .min()
            .map(|(_, known)| known)
    };
    match name.split_once('.') {
        Some((side, field)) => near(field, &SEGMENT).map(|known| format!("{side}.{known}")),
        // A name of one or two letters is near to everything that is short.
        None if name.len() < 3 && !name.eq_ignore_ascii_case("id") => None,
        None => near(name, &KNOWN).map(str::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        assert_eq!(suggestion("choosen").as_deref(), Some("chosen"));
        assert_eq!(suggestion("Rejected").as_deref(), Some("rejected"));
        assert_eq!(suggestion("annotatorid").as_deref(), Some("annotator_id"));
        assert_eq!(suggestion("chosen.observation").as_deref(), Some("chosen.observations"));
    }

    #[test]
    fn far_names_are_not() {
        for name in ["source", "score_chosen", "ix", "x", "tools", "message.name"] {
            assert_eq!(suggestion(name), None, "{name}");
        }
    }
}
