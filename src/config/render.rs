//! Configurations as text: the defaults with their documentation, and resolved ones.

use toml::{Table, Value};

use super::experiment::{Experiment, Root};
use super::schema::{FieldDoc, Kind, TYPES, TypeDoc, Wrapper};

/// A resolved configuration as TOML.
pub fn resolved(config: &Experiment) -> String {
    toml::to_string(&config.to_table()).expect("a configuration consists of tables, lists, numbers and strings within TOML's ranges")
}

/// Every setting with its default and its documentation. Choices that are not the default are commented out.
pub fn defaults<T: Root>() -> String {
    let mut out = String::from(
        "# Every setting of an experiment with its default value.\n\
         # Of several `[env.NAME]`, `[agent.NAME]` or `[regularizer.NAME]` only one can be active; the others are commented out.\n\n",
    );
    let table = to_table(&T::default());
    Renderer { out: &mut out, sample: sample::<T> }.table(T::schema(), &mut Vec::new(), &table, false);
    out
}

fn to_table<T: Root>(config: &T) -> Table {
    Table::try_from(config).expect("a configuration consists of tables, lists, numbers and strings within TOML's ranges")
}

/// One step of a path through a configuration.
#[derive(Debug, Clone, Copy)]
struct Step {
    key: &'static str,
    is_list: bool,
}

struct Renderer<'a> {
    out: &'a mut String,
    sample: fn(&[Step]) -> Table,
}

impl Renderer<'_> {
    fn line(&mut self, commented: bool, text: &str) {
        if commented {
            self.out.push_str(if text.is_empty() { "#" } else { "# " });
        }
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn doc(&mut self, commented: bool, doc: &str) {
        for paragraph in doc.lines() {
            let mut line = String::from("#");
            for word in paragraph.split_whitespace() {
                if line.len() + word.len() > 110 {
                    self.line(commented, &line);
                    line = String::from("#");
                }
                line.push(' ');
                line.push_str(word);
            }
            self.line(commented, &line);
        }
    }

    /// Plain values first: in TOML they must stand before the tables inside.
    fn table(&mut self, ty: &TypeDoc, path: &mut Vec<Step>, values: &Table, commented: bool) {
        let Kind::Table(fields) = ty.kind else { return };
        let is_inner = |f: &FieldDoc| {
            f.target.is_some_and(|t| match TYPES[t].kind {
                Kind::Table(_) => true,
                Kind::Choice(variants) => variants.iter().any(|v| v.target.is_some()),
            })
        };
        for field in fields.iter().filter(|f| !is_inner(f)) {
            self.doc(commented, field.doc);
            match values.get(field.name) {
                Some(value) => self.line(commented, &format!("{} = {value}", field.name)),
                None => self.line(true, &format!("{} = (absent)", field.name)),
            }
        }
        for field in fields.iter().filter(|f| is_inner(f)) {
            let inner = &TYPES[field.target.expect("fields with inner tables have a target")];
            let is_list = field.wrapper == Wrapper::List;
            self.line(commented, "");
            self.doc(commented, field.doc);
            path.push(Step { key: field.name, is_list });
            match inner.kind {
                Kind::Table(_) => {
                    let value = values.get(field.name).and_then(Value::as_table).cloned();
                    let commented = commented || value.is_none();
                    self.line(commented, &header(path));
                    self.table(inner, path, &value.unwrap_or_else(|| (self.sample)(path)), commented);
                }
                Kind::Choice(variants) => {
                    let active = values.get(field.name).and_then(Value::as_table);
                    for (i, variant) in variants.iter().enumerate() {
                        if variant.target.is_none() && !is_list {
                            // A name alone, which still belongs to the table above.
                            let is_active = values.get(field.name).and_then(Value::as_str) == Some(variant.name);
                            self.doc(commented, variant.doc);
                            self.line(commented || !is_active, &format!("{} = \"{}\"", field.name, variant.name));
                            continue;
                        }
                        let value = active.and_then(|t| t.get(variant.name)).and_then(Value::as_table).cloned();
                        let commented = commented || value.is_none();
                        if i > 0 {
                            self.line(commented, "");
                        }
                        self.doc(commented, variant.doc);
                        if is_list {
                            self.line(commented, &header(path));
                        }
                        path.push(Step { key: variant.name, is_list: false });
                        self.line(commented, &header(path));
                        if let Some(target) = variant.target {
                            self.table(&TYPES[target], path, &value.unwrap_or_else(|| (self.sample)(path)), commented);
                        }
                        path.pop();
                    }
                }
            }
            path.pop();
        }
    }
}

fn header(path: &[Step]) -> String {
    let keys: Vec<&str> = path.iter().map(|s| s.key).collect();
    if path.last().is_some_and(|s| s.is_list) { format!("[[{}]]", keys.join(".")) } else { format!("[{}]", keys.join(".")) }
}

/// The defaults of a table that is not part of the default configuration.
fn sample<T: Root>(path: &[Step]) -> Table {
    let nested = path.iter().rev().fold(Table::new(), |inner, step| {
        let value = if step.is_list { Value::Array(vec![Value::Table(inner)]) } else { Value::Table(inner) };
        Table::from_iter([(step.key.to_string(), value)])
    });
    // A list of choices cannot hold an empty element; the caller only asks for its variants.
    let Ok(config) = T::deserialize(nested) else { return Table::new() };
    let mut found = Value::Table(to_table(&config));
    for step in path {
        let inner = found.get(step.key).cloned().unwrap_or(Value::Table(Table::new()));
        found = if step.is_list { inner.get(0).cloned().unwrap_or(Value::Table(Table::new())) } else { inner };
    }
    found.try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "llm")]
    use crate::config::LanguageConfig;
    use crate::config::{ExperimentConfig, load};

    #[test]
    fn printed_defaults_are_the_defaults() {
        let read = |text: &str| load::text("defaults", text, &[]).unwrap_or_else(|e| panic!("{}", e.render(false, 100))).config;
        assert_eq!(read(&defaults::<ExperimentConfig>()), ExperimentConfig::default().into());
        #[cfg(feature = "llm")]
        assert_eq!(read(&defaults::<LanguageConfig>()), LanguageConfig::default().into_experiment());
    }

    /// Follows the schema and counts what must be printed.
    fn fields(index: usize) -> Vec<&'static str> {
        match TYPES[index].kind {
            Kind::Table(all) => all.iter().flat_map(|f| [f.name].into_iter().chain(f.target.map(fields).unwrap_or_default())).collect(),
            Kind::Choice(all) => all.iter().flat_map(|v| v.target.map(fields).unwrap_or_default()).collect(),
        }
    }

    #[test]
    fn every_field_and_every_choice_is_printed() {
        #[cfg(feature = "llm")]
        every_field_is_in(&defaults::<LanguageConfig>(), "LanguageConfig");
        every_field_is_in(&defaults::<ExperimentConfig>(), "ExperimentConfig");
    }

    fn every_field_is_in(text: &str, root: &str) {
        let root = TYPES.iter().position(|t| t.name == root).unwrap();
        for name in fields(root) {
            let is_printed = text.lines().any(|l| {
                let l = l.trim_start_matches(['#', ' ']);
                l.starts_with(&format!("{name} = "))
                    || l.starts_with(&format!("[{name}"))
                    || l.starts_with(&format!("[[{name}"))
                    || l.contains(&format!(".{name}."))
                    || l.ends_with(&format!(".{name}]"))
            });
            assert!(is_printed, "{name} is missing");
        }
    }

    #[test]
    fn commented_alternatives_are_valid() {
        let text = defaults::<ExperimentConfig>();
        let mut checked = 0;
        for (list, names) in [
            ("env", steadfast_envs::EnvConfig::LIST),
            ("agent", steadfast_agents::AgentConfig::LIST),
            ("regularizer", steadfast_agents::RegularizerConfig::LIST),
        ] {
            for (name, _) in names {
                let head = format!("[{list}.{name}]");
                let mut body = String::new();
                let at = text.lines().position(|l| l.trim_start_matches("# ") == head).unwrap_or_else(|| panic!("{head} is missing"));
                let is_commented = text.lines().nth(at).unwrap().starts_with('#');
                for line in text.lines().skip(at) {
                    let line = if is_commented { line.strip_prefix("# ").unwrap_or(line) } else { line };
                    if (line.starts_with('[') && line != head) || line.is_empty() || line == "#" {
                        break;
                    }
                    if !line.contains("(absent)") {
                        body.push_str(line);
                        body.push('\n');
                    }
                }
                match *name {
                    // Its file and models are not part of the defaults.
                    "prompts" => continue,
                    "topic_lexicon" | "salient_copy" | "shortcut_style" => body.push_str("[agent.rloo]\n[model.fresh]\n"),
                    "rloo" | "grpo" | "text_ppo" => body.push_str("[env.topic_lexicon]\n[model.fresh]\n"),
                    _ => {}
                }
                load::text(&head, &body, &[]).unwrap_or_else(|e| panic!("{body}\n{}", e.render(false, 100)));
                checked += 1;
            }
        }
        assert!(checked >= 6);
    }
}
