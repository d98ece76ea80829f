//! A table with one fact per row, for other programs to read.

use std::collections::BTreeMap;

use crate::run::results;

/// The values of a column, one per row.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Words.
    Text(Vec<String>),
    /// Counts and seeds, where there are any.
    Whole(Vec<Option<u64>>),
    /// Numbers, where there are any.
    Real(Vec<Option<f64>>),
}

/// Named columns of equal length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tidy {
    columns: Vec<(String, Values)>,
}

impl Tidy {
    /// Adds a column.
    pub fn push(&mut self, name: impl Into<String>, values: Values) {
        self.columns.push((name.into(), values));
    }

    /// Adds columns of numbers: all names that a row has, in their order.
    pub fn push_reals(&mut self, rows: &[BTreeMap<String, f64>]) {
        let mut names: Vec<&String> = rows.iter().flat_map(BTreeMap::keys).collect();
        names.sort();
        names.dedup();
        for name in names {
            self.columns.push((name.clone(), Values::Real(rows.iter().map(|row| row.get(name).copied()).collect())));
        }
    }

    fn n_rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, values)| match values {
            Values::Text(values) => values.len(),
            Values::Whole(values) => values.len(),
            Values::Real(values) => values.len(),
        })
    }

    /// As CSV; what is missing is left empty.
    pub fn csv(&self) -> Vec<u8> {
        let mut text = results::record(self.columns.iter().map(|(name, _)| name.as_str()));
        for row in 0..self.n_rows() {
            let field = |values: &Values| match values {
                Values::Text(values) => values[row].clone(),
                Values::Whole(values) => values[row].map_or_else(String::new, |v| v.to_string()),
                Values::Real(values) => values[row].map_or_else(String::new, |v| v.to_string()),
            };
            let fields: Vec<String> = self.columns.iter().map(|(_, values)| field(values)).collect();
            text.extend(results::record(fields.iter().map(String::as_str)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_numbers_are_empty_and_texts_are_quoted() {
        let mut tidy = Tidy::default();
        tidy.push("name", Values::Text(vec!["a, b".to_string(), "c".to_string()]));
        tidy.push("seed", Values::Whole(vec![None, Some(u64::MAX)]));
        tidy.push_reals(&[[("y".to_string(), 0.1 + 0.2)].into(), [("x".to_string(), -1.5)].into()]);
        assert_eq!(String::from_utf8(tidy.csv()).unwrap(), "name,seed,x,y\n\"a, b\",,,0.30000000000000004\nc,18446744073709551615,-1.5,\n");
    }
}
