//! Names of the columns of preference files, and which known one an unknown one probably meant.

use super::row::RowKind;

/// Columns that hold texts or segments, whatever a row is.
pub(crate) const SIDES: [&str; 7] = ["prompt", "conversations", "chosen", "rejected", "completion", "messages", "text"];

/// Columns that are read of rows of a kind.
pub(crate) fn known(kind: RowKind) -> &'static [&'static str] {
    match kind {
        RowKind::Pairs => &[
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
            "logp_ref_chosen",
            "logp_ref_rejected",
        ],
        RowKind::JudgedCompletions => &["id", "prompt", "completion", "conversations", "label"],
        RowKind::Completions => &["id", "prompt", "completion", "conversations", "messages", "text", "label"],
        RowKind::Prompts => &["id", "prompt", "conversations"],
    }
}

/// Fields of a segment.
pub(crate) const SEGMENT: [&str; 5] = ["observations", "actions", "rewards", "terminated", "policy"];

/// The known column that `name` probably misspells. A field of a segment is written with its side, as `chosen.actons`.
///
/// One edit (insertion, deletion, replacement, swap of neighbours) for short names, two for those of six letters or more.
pub(crate) fn suggestion(name: &str, kind: RowKind) -> Option<String> {
    let near = |name: &str, known: &'static [&'static str]| {
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
        None => near(name, known(kind)).map(str::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        assert_eq!(suggestion("choosen", RowKind::Pairs).as_deref(), Some("chosen"));
        assert_eq!(suggestion("Rejected", RowKind::Pairs).as_deref(), Some("rejected"));
        assert_eq!(suggestion("annotatorid", RowKind::Pairs).as_deref(), Some("annotator_id"));
        assert_eq!(suggestion("chosen.observation", RowKind::Pairs).as_deref(), Some("chosen.observations"));
        assert_eq!(suggestion("completions", RowKind::JudgedCompletions).as_deref(), Some("completion"));
        assert_eq!(suggestion("completions", RowKind::Pairs), None);
    }

    #[test]
    fn far_names_are_not() {
        for name in ["source", "score_chosen", "ix", "x", "tools", "message.name"] {
            assert_eq!(suggestion(name, RowKind::Pairs), None, "{name}");
        }
    }
}
