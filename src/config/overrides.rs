//! `key.path=value` arguments that change a configuration.

use std::ops::Range;

use toml::{Table, Value};

use super::report::Problem;
use super::schema::{self, Kind, TYPES, TypeDoc, Wrapper};

/// One parsed argument.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// The argument as typed.
    pub text: String,
    /// Keys and list indices from the outside in.
    pub path: Vec<String>,
    /// The value: TOML, or a string without quotes.
    pub value: Value,
}

impl Override {
    /// Takes an argument apart.
    ///
    /// # Errors
    /// A [`Problem`] if there is no `=` or a key is empty.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(Problem::new("an override needs an equals sign", "no `=` here").help("write `key.path=value`, as in `seed=7`"));
        };
        let path: Vec<String> = key.trim().split('.').map(|k| k.trim().to_string()).collect();
        if path.iter().any(String::is_empty) {
            return Err(Problem::new("an override needs a key", "a key is empty").help("write `key.path=value`, as in `seed=7`"));
        }
        Ok(Self { text: text.to_string(), path, value: parse_value(value.trim()) })
    }

    /// The same change with a whole number, if its value is one that was written with a point or an exponent.
    pub fn with_whole_number(&self) -> Option<Self> {
        let value = self.value.as_float().filter(|v| v.fract() == 0.0 && v.abs() <= 2_f64.powi(53))?;
        Some(Self { value: Value::Integer(value as i64), ..self.clone() })
    }

    /// The place of the `index`-th key in the text.
    pub fn key_span(&self, index: usize) -> Range<usize> {
        let mut start = 0;
        for (i, key) in self.text.split('=').next().unwrap_or_default().split('.').enumerate() {
            if i == index {
                return start..start + key.len();
            }
            start += key.len() + 1;
        }
        0..self.text.len()
    }

    /// The place of the value in the text.
    pub fn value_span(&self) -> Range<usize> {
        self.text.find('=').map_or(0, |i| i + 1)..self.text.len()
    }

    /// Changes `table`, which is one of the kind `root`.
    ///
    /// # Errors
    /// The index of the key that does not fit, and what is wrong with it.
    pub fn apply(&self, table: &mut Table, root: &TypeDoc) -> Result<(), (usize, Problem)> {
        set_in_table(table, root, &self.path, 0, &self.value)
    }
}

/// A TOML value; what is none becomes a string.
fn parse_value(text: &str) -> Value {
    let parsed: Option<Table> = format!("value = {text}").parse().ok();
    match parsed {
        Some(mut table) if table.len() == 1 => table.remove("value").unwrap_or_else(|| Value::String(text.to_string())),
        _ => Value::String(text.to_string()),
    }
}

fn set_in_table(table: &mut Table, ty: &TypeDoc, path: &[String], depth: usize, new: &Value) -> Result<(), (usize, Problem)> {
    let key = &path[depth];
    let is_last = depth + 1 == path.len();
    match ty.kind {
        Kind::Table(fields) => {
            let Some(field) = fields.iter().find(|f| f.name == key) else {
                let known: Vec<&str> = fields.iter().map(|f| f.name).collect();
                return Err((depth, Problem::unknown("key", key, &known)));
            };
            let target = field.target.map(|t| &TYPES[t]);
            if is_last {
                let is_choice_of_tables = schema::choices(field).is_some_and(|v| v.iter().any(|v| v.target.is_some()));
                match new.as_str() {
                    Some("none") if field.wrapper == Wrapper::Optional => {
                        table.remove(key);
                    }
                    // The short form `env=pendulum`; what was set for the same choice stays.
                    Some(name) if is_choice_of_tables && field.wrapper != Wrapper::List => {
                        let same = table.get(key).and_then(Value::as_table).is_some_and(|t| t.contains_key(name));
                        if !same {
                            table.insert(key.clone(), Value::Table(Table::from_iter([(name.to_string(), Value::Table(Table::new()))])));
                        }
                    }
                    _ => {
                        table.insert(key.clone(), new.clone());
                    }
                }
                return Ok(());
            }
            let Some(target) = target else {
                return Err((depth + 1, Problem::new(format!("`{key}` has no keys of its own"), "nothing below")));
            };
            let entry = table.entry(key.clone()).or_insert_with(|| match field.wrapper {
                Wrapper::List => Value::Array(Vec::new()),
                _ => Value::Table(Table::new()),
            });
            match entry {
                Value::Table(inner) => set_in_table(inner, target, path, depth + 1, new),
                Value::Array(items) => set_in_list(items, key, target, path, depth + 1, new),
                _ => Err((depth + 1, Problem::new(format!("`{key}` has no keys of its own"), "nothing below"))),
            }
        }
        Kind::Choice(variants) => {
            let Some(variant) = variants.iter().find(|v| v.name == key) else {
                let known: Vec<&str> = variants.iter().map(|v| v.name).collect();
                return Err((depth, Problem::unknown("choice", key, &known)));
            };
            if let Some(other) = table.keys().find(|k| *k != key)
                && !is_last
            {
                let outer = path[..depth].join(".");
                let problem = Problem::new(format!("`{outer}` is `{other}`, not `{key}`"), "another choice is active");
                return Err((depth, problem.help(format!("write `{outer}={key}` before it to change the choice"))));
            }
            if is_last {
                table.clear();
                table.insert(key.clone(), new.clone());
                return Ok(());
            }
            let entry = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
            match (entry, variant.target) {
                (Value::Table(inner), Some(target)) => set_in_table(inner, &TYPES[target], path, depth + 1, new),
                _ => Err((depth + 1, Problem::new(format!("`{key}` has no keys of its own"), "nothing below"))),
            }
        }
    }
}

fn set_in_list(
    items: &mut [Value],
    name: &str,
    item: &TypeDoc,
    path: &[String],
    depth: usize,
    new: &Value,
) -> Result<(), (usize, Problem)> {
    let n = items.len();
    let Some(chosen) = path[depth].parse::<usize>().ok().and_then(|i| items.get_mut(i)) else {
        let message = format!("`{name}` is a list of {n}, so an index below {n} must follow");
        return Err((depth, Problem::new(message, "no such element").help(format!("write `{name}.0.KEY=value`, or `{name}=[...]`"))));
    };
    if depth + 1 == path.len() {
        *chosen = new.clone();
        return Ok(());
    }
    match chosen {
        Value::Table(inner) => set_in_table(inner, item, path, depth + 1, new),
        _ => Err((depth + 1, Problem::new(format!("element of `{name}` has no keys of its own"), "nothing below"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(base: &str, text: &str) -> Result<Table, (usize, Problem)> {
        let mut table: Table = base.parse().unwrap();
        Override::parse(text).unwrap().apply(&mut table, schema::of("ExperimentConfig"))?;
        Ok(table)
    }

    #[test]
    fn values_are_toml_or_bare_words() {
        assert_eq!(Override::parse("seed=7").unwrap().value, Value::Integer(7));
        assert_eq!(Override::parse("name=my-run").unwrap().value, Value::String("my-run".into()));
        assert_eq!(Override::parse("name=\"7\"").unwrap().value, Value::String("7".into()));
        assert_eq!(Override::parse("x=[1, 2]").unwrap().value.as_array().unwrap().len(), 2);
        // A second key must not be smuggled in behind a line break.
        assert!(Override::parse("x=1\ny = 2").unwrap().value.is_str());
        assert!(Override::parse("seed").is_err());
        assert!(Override::parse("a..b=1").is_err());
    }

    #[test]
    fn a_choice_by_name_replaces_the_table() {
        let table = changed("[env.identity]\nsymbols = 3", "env=chain").unwrap();
        assert_eq!(table["env"].to_string(), "{ chain = {} }");
        let table = changed("[env.identity]\nsymbols = 3", "env=identity").unwrap();
        assert_eq!(table["env"]["identity"]["symbols"].as_integer(), Some(3));
        let table = changed("[regularizer.lipschitz]", "regularizer=none").unwrap();
        assert!(!table.contains_key("regularizer"));
    }

    #[test]
    fn a_field_of_another_choice_is_refused_with_advice() {
        let (depth, problem) = changed("[env.identity]", "env.chain.length=3").unwrap_err();
        assert_eq!(depth, 1);
        assert!(problem.help.unwrap().contains("env=chain"));
    }

    #[test]
    fn elements_of_lists_are_reached_by_index() {
        let table = changed("[[robustness]]\nepisodes = 3", "robustness.0.episodes=9").unwrap();
        assert_eq!(table["robustness"][0]["episodes"].as_integer(), Some(9));
        assert!(changed("", "robustness.0.episodes=9").is_err());
    }

    #[test]
    fn key_spans_point_at_the_key() {
        let it = Override::parse("env.chain.length=3").unwrap();
        assert_eq!(&it.text[it.key_span(1)], "chain");
        assert_eq!(&it.text[it.value_span()], "3");
    }
}
