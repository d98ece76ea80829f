//! Placeholders in the changes of a sweep: `{seed}` and `{AXIS}`.
//!
//! Only letters, digits and `_` between braces make a placeholder, so inline tables such as `{coefficient=0.1}` stay as
//! they are. `{{name}}` is the text `{name}`.

use std::ops::Range;

use super::{Sweep, SweepConfig, Word};
use crate::config::report::{Problem, suggest};
use crate::failure::Result;

/// The placeholder of the seed.
const SEED: &str = "seed";

/// Replaces every placeholder by what `value` knows of its name.
///
/// # Errors
/// Place and name of the first placeholder that `value` does not know.
pub(super) fn fill(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, (Range<usize>, String)> {
    let (mut out, mut done) = (String::with_capacity(text.len()), 0);
    while let Some(start) = text[done..].find('{').map(|i| done + i) {
        out.push_str(&text[done..start]);
        let rest = &text[start..];
        let depth = rest.len() - rest.trim_start_matches('{').len();
        let name_length = rest[depth..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(0);
        let (name, end) = (&rest[depth..depth + name_length], &rest[depth + name_length..]);
        let closing = depth.min(2);
        done = start + depth;
        if name.is_empty() || !end.starts_with(&"}}"[..closing]) {
            out.push_str(&rest[..depth]);
            continue;
        }
        // What stands before the braces of the placeholder is kept.
        out.push_str(&rest[..depth - closing]);
        done = start + depth + name_length + closing;
        if closing == 2 {
            out.push_str(&format!("{{{name}}}"));
        } else {
            out.push_str(&value(name).ok_or_else(|| (start..done, name.to_string()))?);
        }
    }
    out.push_str(&text[done..]);
    Ok(out)
}

/// Every change of a sweep.
fn changes(config: &SweepConfig) -> impl Iterator<Item = &Word> {
    config.set.iter().chain(config.axis.iter().flat_map(|axis| axis.values.entries.iter().flat_map(|(_, value)| &value.set)))
}

/// Makes sure that every placeholder is one of this sweep.
///
/// # Errors
/// [`crate::failure::Failure::Usage`] that shows the first one that is not.
pub(super) fn check(sweep: &Sweep) -> Result<()> {
    let axes = || sweep.config.axis.iter().map(|axis| axis.name.get_ref().as_str());
    let known: Vec<&str> = std::iter::once(SEED).chain(axes()).collect();
    for word in changes(&sweep.config) {
        let filled = fill(word.get_ref(), |name| known.contains(&name).then(String::new));
        if let Err((span, name)) = filled {
            let list: Vec<String> = known.iter().map(|k| format!("`{{{k}}}`")).collect();
            let close = Some(suggest(&name, &known)).filter(|text| text.starts_with("did you mean"));
            let close = close.map_or_else(String::new, |text| format!("{text} "));
            let help = format!("{close}known: {}; write `{{{{{name}}}}}` for the text `{{{name}}}`", list.join(", "));
            return Err(sweep.mistake_in(
                word,
                span,
                Problem::new(format!("unknown placeholder `{{{name}}}`"), "not known here").help(help),
            ));
        }
    }
    Ok(())
}

/// The value of a placeholder in a cell whose axes have these `slugs`.
pub(super) fn value(config: &SweepConfig, slugs: &[String], seed: u64, name: &str) -> Option<String> {
    match name {
        SEED => Some(seed.to_string()),
        _ => config.axis(name).map(|(i, _)| slugs[i].clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{cells, parse};
    use super::*;

    #[test]
    fn only_identifiers_between_braces_are_placeholders() {
        let known = |name: &str| (name == "a_1").then(|| "X".to_string());
        for (text, expected) in [
            ("p={a_1}/{a_1}", "p=X/X"),
            ("p={b=0.1}", "p={b=0.1}"),
            ("p={b={c=1}}", "p={b={c=1}}"),
            ("p={b={a_1}}", "p={b=X}"),
            ("p=[{b=1},{}] {", "p=[{b=1},{}] {"),
            ("p={{a_1}} {{b}}", "p={a_1} {b}"),
            ("p={{{a_1}}}", "p={{a_1}}"),
            ("p={{a_1}", "p={{a_1}"),
            ("größe={a_1}", "größe=X"),
        ] {
            assert_eq!(fill(text, known).unwrap(), expected, "{text}");
        }
        assert_eq!(fill("p={a_1}{b}", known), Err((7..10, "b".to_string())));
    }

    const SWEEP: &str = r#"
        name = "by-hand"
        base = "cartpole-ppo"
        seeds = [3, 4]
        set = ["name=\"of {noise}\"", "threads={seed}"]
        [[axis]]
        name = "noise"
        values = { "uniform 30 %" = [] }
        [[axis]]
        name = "loss"
        values = { r3m = ["name={noise}__{loss}__seed{seed}"], best = { set = ["name=x-{noise}"], ignores = ["noise"] } }
    "#;

    #[test]
    fn placeholders_are_filled_cell_by_cell() {
        let sweep = parse("test", SWEEP, Path::new("")).unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
        let found = cells(&sweep).unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
        let names: Vec<(&str, usize)> =
            found.iter().map(|c| (c.config.name(), c.config.clone().online().expect("the base is such a run").threads)).collect();
        assert_eq!(names[..2], [("uniform_30__r3m__seed3", 3), ("uniform_30__r3m__seed4", 4)]);
        assert_eq!(names[2], ("x-any", 3));
        assert_eq!(found[0].name, "uniform_30__r3m__seed3");
    }

    #[test]
    fn an_unknown_placeholder_is_shown_where_it_stands() {
        let text = SWEEP.replace("name={noise}__", "name={nose}__");
        let message = parse("test", &text, Path::new("")).unwrap_err().render(false, 100);
        assert!(message.contains("unknown placeholder `{nose}`") && message.contains("did you mean `noise`?"), "{message}");
        assert!(message.contains("known: `{seed}`, `{noise}`, `{loss}`"), "{message}");
    }

    #[test]
    fn a_mistake_behind_a_placeholder_is_shown_in_its_change() {
        let text = SWEEP.replace("\"threads={seed}\"", "\"threads={noise}\"");
        let sweep = parse("test", &text, Path::new("")).unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
        let message = cells(&sweep).unwrap_err().render(false, 100);
        assert!(message.contains("threads={noise}"), "{message}");
    }
}
