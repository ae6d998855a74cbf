//! Implements `tojson` for templates as transformers does: Python's `json.dumps`, character for character.
//!
//! minijinja's own filter escapes for HTML and has no separators.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Largest depth of nested values; deeper ones are an error.
const DEPTH: usize = 256;

/// Formatting of one call, with the defaults of `json.dumps` filled in.
struct Style {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    item: String,
    key: String,
    /// Written as it is, never escaped; see [`super::special_token_guard`].
    sentinel: char,
}

/// The filter, with keyword arguments `ensure_ascii`, `indent`, `separators` and `sort_keys`; the first is also positional.
pub(super) fn tojson(
    value: &Value,
    ascii: Option<bool>,
    options: &Kwargs,
    sentinel: char,
) -> Result<String, Error> {
    let named_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sorted: Option<bool> = options.get("sort_keys")?;
    let indent = match options.get::<Option<Value>>("indent")?.filter(|indent| !indent.is_none()) {
        None => None,
        Some(width) => match width.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(width)?.min(64))),
        },
    };
    let separators: Option<Value> = options.get("separators")?;
    options.assert_all_used()?;
    let (item, key) = match separators.filter(|separators| !separators.is_none()) {
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let ascii = named_ascii.or(ascii).unwrap_or(false);
    let style = Style { ascii, sorted: sorted.unwrap_or(false), indent, item, key, sentinel };
    let mut out = String::new();
    style.value(value, 0, &mut out)?;
    Ok(out)
}

impl Style {
    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(refused(format!("values nested deeper than {DEPTH}")));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth, out)?,
            ValueKind::Map => self.map(value, depth, out)?,
            other => return Err(refused(format!("a value of kind {other}"))),
        }
        Ok(())
    }

    fn list(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let mut items = value.try_iter()?.peekable();
        if items.peek().is_none() {
            out.push_str("[]");
            return Ok(());
        }
        out.push('[');
        for (index, item) in items.enumerate() {
            self.separate(index, depth + 1, out);
            self.value(&item, depth + 1, out)?;
        }
        self.line(depth, out);
        out.push(']');
        Ok(())
    }

    fn map(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sorted {
            keys.sort();
        }
        if keys.is_empty() {
            out.push_str("{}");
            return Ok(());
        }
        out.push('{');
        for (index, key) in keys.iter().enumerate() {
            self.separate(index, depth + 1, out);
            match key.kind() {
                ValueKind::String => self.string(key.as_str().unwrap_or_default(), out),
                ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                    out.push('"');
                    self.value(key, depth + 1, out)?;
                    out.push('"');
                }
                other => return Err(refused(format!("a key of kind {other}"))),
            }
            out.push_str(&self.key);
            self.value(&value.get_item(key)?, depth + 1, out)?;
        }
        self.line(depth, out);
        out.push('}');
        Ok(())
    }

    /// Writes the separator between two items, or before the first.
    fn separate(&self, index: usize, depth: usize, out: &mut String) {
        if index > 0 {
            out.push_str(&self.item);
        }
        self.line(depth, out);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
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
                c if c == self.sentinel => out.push(c),
                c if c < ' ' || self.ascii && c > '~' => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn refused(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{what} cannot be written as JSON"))
}

fn number(value: &Value, out: &mut String) {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => out.push_str(&float_repr(float)),
        _ => out.push_str(&value.to_string()),
    }
}

/// Python's `repr` of a float: the shortest digits that round-trip, in scientific notation outside 1e-4 to 1e16.
fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..16).contains(&power) {
        format!("{value:?}")
    } else {
        format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123456789012345.6, "123456789012345.6"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e100, "-2.5e+100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "Infinity"),
        ];
        for (value, text) in cases {
            assert_eq!(float_repr(value), text);
        }
    }
}
