//! The filter `tojson`, as transformers has it: Python's `json.dumps`.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Rest, ValueKind},
};

/// Deepest nesting of a value that is written.
const MAX_DEPTH: usize = 128;

/// Ways to write JSON, as parameters of `json.dumps`.
struct Style {
    is_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    is_sorted: bool,
}

/// Writes `value` as JSON.
///
/// # Errors
///
/// Fails for a value that JSON cannot have, and for unknown parameters.
#[expect(clippy::needless_pass_by_value, reason = "filters are given their arguments so")]
pub(super) fn to_json(
    state: &State,
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let style = Style::new(&positional, &named)?;
    named.assert_all_used()?;
    let mut text = String::new();
    style.write(value, 0, &mut text)?;
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(Value::from(text))
}

impl Style {
    /// Reads the parameters `ensure_ascii`, `indent`, `separators` and `sort_keys`.
    fn new(positional: &[Value], named: &Kwargs) -> Result<Self, Error> {
        let parameter = |index: usize, name: &str| -> Result<Option<Value>, Error> {
            let given = match positional.get(index) {
                Some(value) => Some(value.clone()),
                None => named.get::<Option<Value>>(name)?,
            };
            Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
        };
        let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        let is_ascii = is_true(parameter(0, "ensure_ascii")?);
        let indent = match parameter(1, "indent")? {
            Some(indent) => Some(match indent.as_str() {
                Some(text) => text.to_owned(),
                None => " ".repeat(usize::try_from(indent)?.min(64)),
            }),
            None => None,
        };
        let separators = parameter(2, "separators")?;
        let separator = |index: i64| match &separators {
            Some(pair) => pair.get_item(&Value::from(index)).map(|text| text.to_string()).map(Some),
            None => Ok(None),
        };
        let item = if indent.is_some() { "," } else { ", " };
        Ok(Self {
            is_ascii,
            item: separator(0)?.unwrap_or_else(|| item.to_owned()),
            key: separator(1)?.unwrap_or_else(|| ": ".to_owned()),
            indent,
            is_sorted: is_true(parameter(3, "sort_keys")?),
        })
    }

    fn write(&self, value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
        let wrong = |what: String| Error::new(ErrorKind::BadSerialization, what);
        if depth > MAX_DEPTH {
            return Err(wrong(format!("a value is nested more than {MAX_DEPTH} deep")));
        }
        match value.kind() {
            ValueKind::None => text.push_str("null"),
            ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => text.push_str(&number(value)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), text),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                text.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.start_item(index, depth + 1, text);
                    self.write(item, depth + 1, text)?;
                }
                self.end_items(items.len(), depth, text);
                text.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.is_sorted {
                    keys.sort_by_key(ToString::to_string);
                }
                text.push('{');
                for (index, key) in keys.iter().enumerate() {
                    self.start_item(index, depth + 1, text);
                    self.write_string(&key.to_string(), text);
                    text.push_str(&self.key);
                    self.write(&value.get_item(key)?, depth + 1, text)?;
                }
                self.end_items(keys.len(), depth, text);
                text.push('}');
            }
            kind => return Err(wrong(format!("a value of the kind {kind} is not JSON"))),
        }
        Ok(())
    }

    /// Writes what stands before the item `index`.
    fn start_item(&self, index: usize, depth: usize, text: &mut String) {
        if index > 0 {
            text.push_str(&self.item);
        }
        self.start_line(depth, text);
    }

    /// Writes what stands behind the last of `num_items` items.
    fn end_items(&self, num_items: usize, depth: usize, text: &mut String) {
        if num_items > 0 {
            self.start_line(depth, text);
        }
    }

    fn start_line(&self, depth: usize, text: &mut String) {
        if let Some(indent) = &self.indent {
            text.push('\n');
            text.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, string: &str, text: &mut String) {
        text.push('"');
        for character in string.chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                '\u{8}' => text.push_str("\\b"),
                '\u{c}' => text.push_str("\\f"),
                ' '..='~' => text.push(character),
                _ if character < ' ' || self.is_ascii => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        text.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => text.push(character),
            }
        }
        text.push('"');
    }
}

/// Returns a number as Python writes it.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    if number == 0.0 || (1e-4..1e16).contains(&number.abs()) {
        return format!("{number:?}");
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    format!("{digits}e{sign}{exponent:0>2}")
}
