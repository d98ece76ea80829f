//! Chat templates: Jinja that turns messages into the text a model was trained on.
//!
//! Rendered as `transformers` renders them: blocks are trimmed (`trim_blocks`, `lstrip_blocks`), loops can be left
//! (`break`, `continue`), strings have Python's methods, `true` and `none` print as Python prints them, `tojson` does not
//! escape HTML, `raise_exception` refuses a conversation, `{% generation %}` marks nothing. `tools` and `documents` are
//! given as none.
//!
//! One departure: `strftime_now` does not look at the clock but at a [`ChatDate`] that is handed in. The same
//! conversation is then the same tokens tomorrow.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use steadfast_envs::text::Message;

use crate::AgentError;

/// Templates longer than this are refused; real ones have up to some 20 KB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
const NAME: &str = "chat_template";

/// The date that `strftime_now` formats, in no particular time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChatDate {
    /// Seconds since the beginning of 1970.
    seconds: i64,
}

impl Default for ChatDate {
    /// The 26th of July 2024, midnight: what the template of Llama 3.1 falls back on.
    fn default() -> Self {
        Self { seconds: 1_721_952_000 }
    }
}

impl ChatDate {
    /// A date as seconds since the beginning of 1970; those beyond the years 1 to 9999 are moved to the nearer end.
    pub fn from_unix_seconds(seconds: i64) -> Self {
        Self { seconds: seconds.clamp(-62_135_596_800, 253_402_300_799) }
    }

    /// The present time (UTC). Tokens then depend on the day.
    pub fn now() -> Self {
        let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self::from_unix_seconds(elapsed.map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)))
    }

    /// Seconds since the beginning of 1970.
    pub fn unix_seconds(self) -> i64 {
        self.seconds
    }

    /// Year, month from 1, day of the month from 1, day of the year from 1.
    fn calendar(self) -> (i64, usize, i64, i64) {
        // Days are counted from the first of March of the year 0, so that leap days stand at the end of a year.
        let days = self.seconds.div_euclid(86_400) + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let from_january = if month > 2 { day_of_year + 60 + i64::from(is_leap) } else { day_of_year - 305 };
        (year, month as usize, day, from_january)
    }

    /// Formats like C's `strftime` in the C locale, for the conversions that Python documents except those of time zones
    /// and week numbers, with `-` for no padding. An unknown conversion stays as it is.
    pub fn format(self, format: &str) -> String {
        const MONTHS: [&str; 12] =
            ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
        const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
        let (year, month, day, day_of_year) = self.calendar();
        let of_day = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let weekday = (self.seconds.div_euclid(86_400) + 4).rem_euclid(7);
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut ahead = rest.clone();
            let mut conversion = ahead.next();
            let is_padded = conversion != Some('-');
            if !is_padded {
                conversion = ahead.next();
            }
            let number = |value: i64, width: usize| {
                if is_padded { format!("{value:0width$}") } else { value.to_string() }
            };
            let hour_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
            let text = match conversion {
                Some('Y') => number(year, 4),
                Some('y') => number(year.rem_euclid(100), 2),
                Some('m') => number(month as i64, 2),
                Some('d') => number(day, 2),
                Some('e') if is_padded => format!("{day:2}"),
                Some('e') => day.to_string(),
                Some('j') => number(day_of_year, 3),
                Some('H') => number(hour, 2),
                Some('I') => number(hour_12, 2),
                Some('M') => number(minute, 2),
                Some('S') => number(second, 2),
                Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_string(),
                Some('B') => MONTHS[month - 1].to_string(),
                Some('b' | 'h') => MONTHS[month - 1][..3].to_string(),
                Some('A') => DAYS[weekday as usize].to_string(),
                Some('a') => DAYS[weekday as usize][..3].to_string(),
                Some('w') => weekday.to_string(),
                Some('F') => format!("{year:04}-{month:02}-{day:02}"),
                Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
                Some('D') => format!("{month:02}/{day:02}/{:02}", year.rem_euclid(100)),
                Some('R') => format!("{hour:02}:{minute:02}"),
                Some('n') => "\n".to_string(),
                Some('t') => "\t".to_string(),
                Some('%') => "%".to_string(),
                _ => {
                    out.push('%');
                    continue;
                }
            };
            out.push_str(&text);
            rest = ahead;
        }
        out
    }
}

/// What a template sees beside the messages.
#[derive(Debug, Clone, Default)]
pub struct ChatContext<'a> {
    /// Special tokens by the name of their variable, as `bos_token`.
    pub special_tokens: Vec<(&'a str, &'a str)>,
    /// True asks for the beginning of an answer at the end.
    pub add_generation_prompt: bool,
    /// What `strftime_now` formats.
    pub date: ChatDate,
}

/// A chat template, ready to render.
#[derive(Clone)]
pub struct ChatTemplate {
    place: String,
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("place", &self.place).field("bytes", &self.source.len()).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Parses a template. `place` says in errors where it stands, as `model/chat_template.jinja`.
    ///
    /// # Errors
    /// [`AgentError::Model`] with the place and the line if it is no Jinja or longer than 1 MiB.
    pub fn new(place: &str, source: &str) -> Result<Self, AgentError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let reason = format!("the chat template has {} bytes, at most {MAX_TEMPLATE_BYTES} are read", source.len());
            return Err(AgentError::Model { place: place.to_string(), reason });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let failed = |error: &Error| template_error(place, error);
        environment.set_syntax(syntax.map_err(|error| failed(&error))?);
        environment.set_unknown_method_callback(python_method);
        environment.set_formatter(print_as_python);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses the conversation: {message}")))
        });
        environment.add_template_owned(NAME, without_generation_tags(source)).map_err(|error| failed(&error))?;
        Ok(Self { place: place.to_string(), source: source.into(), environment: Arc::new(environment) })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Where it stands, as in errors.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`AgentError::Model`] with the template's place and the line where it failed or refused.
    pub fn render(&self, messages: &[Message], context: &ChatContext<'_>) -> Result<String, AgentError> {
        let failed = |error: Error| template_error(&self.place, &error);
        let date = context.date;
        let pairs = |items: Vec<(&str, Value)>| Value::from_pairs(items.into_iter().map(|(name, value)| (name.to_string(), value)));
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| pairs(vec![("role", Value::from(&*message.role)), ("content", Value::from(&*message.content))]))
            .collect();
        let mut variables = vec![
            ("messages", Value::from(messages)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(context.add_generation_prompt)),
            ("strftime_now", Value::from_function(move |format: String| date.format(&format))),
        ];
        variables.extend(context.special_tokens.iter().map(|&(name, token)| (name, Value::from(token))));
        self.environment.get_template(NAME).and_then(|template| template.render(pairs(variables))).map_err(failed)
    }
}

fn template_error(place: &str, error: &Error) -> AgentError {
    let mut reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    let line = error.line().map_or_else(String::new, |line| format!(", line {line}"));
    AgentError::Model { place: format!("{place}{line}"), reason }
}

/// Replaces the tags that only mark what an assistant says, `{% generation %}`, by a condition that always holds: the
/// same white space is trimmed and no line moves.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        let body = tag.strip_prefix(['-', '+']).unwrap_or(tag);
        let word = body.trim_start();
        for (name, condition) in [("generation", "if true"), ("endgeneration", "endif")] {
            if let Some(after) = word.strip_prefix(name)
                && after.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
            {
                out.push_str(&tag[..tag.len() - word.len()]);
                out.push_str(condition);
                rest = after;
                break;
            }
        }
    }
    out + rest
}

/// Methods of Python's strings and lists beyond those of `minijinja_contrib`.
fn python_method(state: &mut State<'_, '_>, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let argument = || match arguments {
            [first] if first.as_str().is_some() => Ok(first.as_str().unwrap_or_default().to_string()),
            _ => Err(Error::new(ErrorKind::InvalidOperation, format!("`{method}` takes one string"))),
        };
        let parts = |parts: [&str; 3]| Value::from(parts.map(Value::from).to_vec());
        match method {
            // Letters after a sign begin a word, as in Python.
            "title" if arguments.is_empty() => {
                let mut is_inside = false;
                let mut out = String::with_capacity(text.len());
                for c in text.chars() {
                    if is_inside {
                        out.extend(c.to_lowercase())
                    } else {
                        out.extend(c.to_uppercase())
                    }
                    is_inside = c.is_lowercase() || c.is_uppercase();
                }
                return Ok(Value::from(out));
            }
            "removeprefix" => return argument().map(|prefix| Value::from(text.strip_prefix(&*prefix).unwrap_or(text))),
            "removesuffix" => return argument().map(|suffix| Value::from(text.strip_suffix(&*suffix).unwrap_or(text))),
            "partition" => {
                let separator = argument()?;
                let (before, middle, after) = text.split_once(&*separator).map_or((text, "", ""), |(a, b)| (a, &*separator, b));
                return Ok(parts([before, middle, after]));
            }
            "rpartition" => {
                let separator = argument()?;
                let (before, middle, after) = text.rsplit_once(&*separator).map_or(("", "", text), |(a, b)| (a, &*separator, b));
                return Ok(parts([before, middle, after]));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
}

/// Prints a value as Python's `str` does.
fn print_as_python(out: &mut Output<'_>, _state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let mut text = String::new();
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Map => python_repr(value, &mut text, 0)?,
        ValueKind::Undefined => {}
        _ => text = value.to_string(),
    }
    out.write_str(&text).map_err(|_| Error::new(ErrorKind::WriteFailure, "cannot print"))
}

/// How deep lists and maps are printed.
const MAX_DEPTH: usize = 64;

fn too_deep(depth: usize) -> Result<(), Error> {
    if depth <= MAX_DEPTH { Ok(()) } else { Err(Error::new(ErrorKind::InvalidOperation, format!("nested deeper than {MAX_DEPTH}"))) }
}

fn python_repr(value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    too_deep(depth)?;
    match value.kind() {
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::None => out.push_str("None"),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            out.push(quote);
            for c in text.chars() {
                match c {
                    '\\' => out.push_str("\\\\"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    c if c == quote => {
                        out.push('\\');
                        out.push(c);
                    }
                    c => out.push(c),
                }
            }
            out.push(quote);
        }
        ValueKind::Seq => {
            out.push('[');
            for (position, item) in value.try_iter()?.enumerate() {
                out.push_str(if position == 0 { "" } else { ", " });
                python_repr(&item, out, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (position, key) in value.try_iter()?.enumerate() {
                out.push_str(if position == 0 { "" } else { ", " });
                python_repr(&key, out, depth + 1)?;
                out.push_str(": ");
                python_repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// `tojson` as `transformers` defines it: Python's `json.dumps` with the text as it is.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let indent: Option<usize> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "`separators` of tojson are two strings")),
    };
    let style = JsonStyle { ensure_ascii: ensure_ascii == Some(true), sort_keys: sort_keys == Some(true), indent, item, key };
    let mut out = String::new();
    style.write(value, &mut out, 0)?;
    Ok(out)
}

struct JsonStyle {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    item: String,
    key: String,
}

impl JsonStyle {
    fn write(&self, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
        too_deep(depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(('[', ']'), items.len(), out, depth, |at, out| self.write(&items[at], out, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items(('{', '}'), keys.len(), out, depth, |at, out| {
                    match keys[at].kind() {
                        ValueKind::String => self.write(&keys[at], out, depth + 1)?,
                        ValueKind::Bool | ValueKind::None | ValueKind::Number => {
                            let mut text = String::new();
                            self.write(&keys[at], &mut text, depth + 1)?;
                            self.write_text(&text, out);
                        }
                        _ => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: keys must be strings or numbers")),
                    }
                    out.push_str(&self.key);
                    self.write(&value.get_item(&keys[at])?, out, depth + 1)
                })?;
            }
            kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: a value of kind {kind} is no JSON"))),
        }
        Ok(())
    }

    fn write_items(
        &self,
        (open, close): (char, char),
        n_items: usize,
        out: &mut String,
        depth: usize,
        mut write: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let new_line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent.filter(|_| n_items > 0) {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent.min(64) * depth));
            }
        };
        out.push(open);
        for at in 0..n_items {
            out.push_str(if at == 0 { "" } else { &self.item });
            new_line(out, depth + 1);
            write(at, out)?;
        }
        new_line(out, depth);
        out.push(close);
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        use std::fmt::Write as _;
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(role: &str, content: &str) -> Message {
        Message { role: role.to_string(), content: content.to_string() }
    }

    fn render(source: &str) -> Result<String, AgentError> {
        let context = ChatContext { special_tokens: vec![("eos_token", "</s>")], ..ChatContext::default() };
        ChatTemplate::new("m/chat_template.jinja", source)?.render(&[say("user", "hé \"<b>\""), say("assistant", "yes")], &context)
    }

    #[test]
    fn dates_are_formatted_like_strftime() {
        let date = ChatDate::default();
        assert_eq!(date.format("%d %b %Y, %A %H:%M:%S %j %p %-d/%-m/%y %%"), "26 Jul 2024, Friday 00:00:00 208 AM 26/7/24 %");
        let leap = ChatDate::from_unix_seconds(951_782_400 + 13 * 3600);
        assert_eq!(leap.format("%Y-%m-%d %j %I%p %e %Q %"), "2000-02-29 060 01PM 29 %Q %");
        assert_eq!(ChatDate::from_unix_seconds(-1).format("%F %T %a"), "1969-12-31 23:59:59 Wed");
        assert_eq!(ChatDate::from_unix_seconds(i64::MAX).format("%F"), "9999-12-31");
        assert_eq!(ChatDate::from_unix_seconds(i64::MIN).format("%F"), "0001-01-01");
    }

    #[test]
    fn the_date_comes_from_the_context() {
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "26 Jul 2024");
    }

    #[test]
    fn errors_name_the_template_and_the_line() {
        let shown = |source: &str| render(source).unwrap_err().to_string();
        let refused = shown("a\n{% if true %}\n{{ raise_exception('roles must alternate') }}{% endif %}");
        assert!(refused.starts_with("m/chat_template.jinja, line 3: ") && refused.contains("roles must alternate"), "{refused}");
        let broken = shown("a\nb\n{% for %}");
        assert!(broken.starts_with("m/chat_template.jinja, line 3: "), "{broken}");
        let unknown = shown("\n{{ messages[0].content.swapcase_all() }}");
        assert!(unknown.contains("line 2") && unknown.contains("swapcase_all"), "{unknown}");
    }

    #[test]
    fn generation_tags_mark_nothing() {
        let source = "{%- for m in messages %}\n{%- generation -%}\n {{ m.role }} \n{%- endgeneration %}\n{% endfor %}|{{ eos_token }}";
        assert_eq!(render(source).unwrap(), "userassistant|</s>");
        assert_eq!(render("{% generation %}\nx\n{% endgeneration %}\ny").unwrap(), "x\ny");
    }

    #[test]
    fn values_print_as_python_prints_them() {
        assert_eq!(
            render("{{ true }} {{ none }} {{ x }} {{ [1, 'a', \"b'c\"] }} {{ {'k': false} }}").unwrap(),
            "True None  [1, 'a', \"b'c\"] {'k': False}"
        );
    }

    #[test]
    fn json_keeps_text_and_order() {
        assert_eq!(render("{{ messages[0] | tojson }}").unwrap(), "{\"role\": \"user\", \"content\": \"hé \\\"<b>\\\"\"}");
        assert_eq!(
            render("{{ {'b': [1, {}], 'a': none} | tojson(indent=2) }}").unwrap(),
            "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": null\n}"
        );
        assert_eq!(render("{{ messages[0].content | tojson(ensure_ascii=true) }}").unwrap(), "\"h\\u00e9 \\\"<b>\\\"\"");
    }

    #[test]
    fn methods_of_python_strings_are_there() {
        let source = "{{ ' a,b '.strip().split(',')[-1] }}{{ 'abc'.removeprefix('a').removesuffix('c') }}{{ 'k=v=w'.partition('=')[2] }}{{ 'x'.upper() }}";
        assert_eq!(render(source).unwrap(), "bbv=wX");
    }
}
