//! Tables whose order matters.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{ValueConfig, Word};

/// A table in the order of the file. The TOML reader sorts keys; their places in the text bring the order back.
#[derive(Debug, Clone, PartialEq)]
pub struct Ordered<V> {
    /// Keys and values.
    pub entries: Vec<(Word, V)>,
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Ordered<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Ordered<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<Word, V>()? {
                    entries.push(entry);
                }
                entries.sort_by_key(|(key, _)| key.span().start);
                Ok(Ordered { entries })
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// A value in its long form.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LongForm {
    set: Vec<Word>,
    ignores: Vec<Word>,
}

impl<'de> Deserialize<'de> for ValueConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EitherForm;

        impl<'de> Visitor<'de> for EitherForm {
            type Value = ValueConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of changes as in [\"key.path=value\"], or a table of `set` and `ignores`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                let set = Vec::deserialize(SeqAccessDeserializer::new(seq))?;
                Ok(ValueConfig { set, ignores: Vec::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let LongForm { set, ignores } = LongForm::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ValueConfig { set, ignores })
            }
        }

        deserializer.deserialize_any(EitherForm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_file_is_kept() {
        let text = "z = [\"a=1\"]\n\"b 0.3\" = { set = [\"b=2\"], ignores = [\"z\"] }\na = []\n";
        let read: Ordered<ValueConfig> = toml::from_str(text).unwrap();
        let labels: Vec<&str> = read.entries.iter().map(|(label, _)| label.get_ref().as_str()).collect();
        assert_eq!(labels, ["z", "b 0.3", "a"]);
        let change = &read.entries[0].1.set[0];
        assert_eq!(&text[change.span()], "\"a=1\"");
        assert_eq!(read.entries[1].1.ignores[0].get_ref(), "z");
        assert_eq!(read.entries[1].1.set[0].get_ref(), "b=2");
        let nested: Result<Ordered<ValueConfig>, _> = toml::from_str("a = { sett = [] }\n");
        assert!(nested.unwrap_err().message().contains("unknown field `sett`"));
        let text: Result<Ordered<ValueConfig>, _> = toml::from_str("a = \"b=1\"\n");
        assert!(text.unwrap_err().message().contains("a list of changes"));
    }
}
