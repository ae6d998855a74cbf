//! Parses JSON with a limit on the number of values, as a few bytes of text may take hundreds in memory.

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Maximum arrays, objects, keys and strings of a body. Each takes about 100 bytes besides its text.
pub const MAX_NODES: usize = 200_000;
/// Maximum numbers, booleans and nulls of a body: a prompt may have a million token ids.
pub const MAX_SCALARS: usize = 2_000_000;

/// Estimated memory of a node; an object with one field is three nodes.
const NODE_BYTES: usize = 170;

/// A parsed value and its memory.
#[derive(Debug)]
pub struct Parsed {
    pub value: Value,
    /// Estimated memory in bytes, without texts.
    pub memory: usize,
}

/// The reason that parsing failed.
#[derive(Debug)]
pub enum JsonError {
    /// The text is not JSON, or is nested more than 128 levels deep.
    Syntax(serde_json::Error),
    /// There are more values than the limits allow.
    TooMany(&'static str, usize),
    /// The caller cancelled the parse.
    Cancelled,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            JsonError::Syntax(error) => write!(f, "expected JSON: {error}"),
            JsonError::TooMany(what, most) => write!(f, "expected at most {most} {what}, found more"),
            JsonError::Cancelled => f.write_str("cancelled"),
        }
    }
}

/// Parses a whole text, unless `cancelled` becomes true.
///
/// # Errors
/// See [`JsonError`].
pub fn parse(text: &[u8], cancelled: &AtomicBool) -> Result<Parsed, JsonError> {
    let budget = ValueBudget {
        nodes: Cell::new(MAX_NODES),
        scalars: Cell::new(MAX_SCALARS),
        cancelled,
        stopped: Cell::new(None),
    };
    let mut from = serde_json::Deserializer::from_slice(text);
    let value = (&budget).deserialize(&mut from).and_then(|value| from.end().map(|()| value));
    let spent = (MAX_NODES - budget.nodes.get()) * NODE_BYTES;
    let memory = spent + (MAX_SCALARS - budget.scalars.get()) * size_of::<Value>();
    value.map(|value| Parsed { value, memory }).map_err(|e| match budget.stopped.get() {
        Some(ParseStop::Nodes) => JsonError::TooMany("objects, arrays, keys and strings", MAX_NODES),
        Some(ParseStop::Scalars) => JsonError::TooMany("numbers, booleans and nulls", MAX_SCALARS),
        Some(ParseStop::Cancelled) => JsonError::Cancelled,
        None => JsonError::Syntax(e),
    })
}

#[derive(Clone, Copy)]
enum ParseStop {
    Nodes,
    Scalars,
    Cancelled,
}

/// Remaining numbers of nodes and scalars.
struct ValueBudget<'c> {
    nodes: Cell<usize>,
    scalars: Cell<usize>,
    cancelled: &'c AtomicBool,
    stopped: Cell<Option<ParseStop>>,
}

impl ValueBudget<'_> {
    fn spend<E: serde::de::Error>(&self, of: &Cell<usize>, stop: ParseStop) -> Result<(), E> {
        let left = of.get();
        let stop = match left {
            0 => stop,
            _ if left.is_multiple_of(256) && self.cancelled.load(Ordering::Relaxed) => ParseStop::Cancelled,
            _ => {
                of.set(left - 1);
                return Ok(());
            }
        };
        self.stopped.set(Some(stop));
        Err(E::custom("stopped"))
    }

    fn node<E: serde::de::Error>(&self) -> Result<(), E> {
        self.spend(&self.nodes, ParseStop::Nodes)
    }

    fn scalar<E: serde::de::Error>(&self, value: impl Into<Value>) -> Result<Value, E> {
        self.spend(&self.scalars, ParseStop::Scalars)?;
        Ok(value.into())
    }
}

impl<'de> DeserializeSeed<'de> for &ValueBudget<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &ValueBudget<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.scalar(value)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.scalar(Value::Null)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.node()?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        self.node()?;
        let mut array = Vec::new();
        while let Some(value) = from.next_element_seed(self)? {
            array.push(value);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        self.node()?;
        let mut object = Map::new();
        while let Some(key) = from.next_key::<String>()? {
            self.node().map_err(|e: A::Error| A::Error::custom(e))?;
            object.insert(key, from.next_value_seed(self)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static GO: AtomicBool = AtomicBool::new(false);

    fn refused(text: &str, expected: &str) {
        assert_eq!(parse(text.as_bytes(), &GO).unwrap_err().to_string(), expected);
    }

    #[test]
    fn values_are_those_of_serde_json() {
        for text in [
            r#"{"a":[1,-2,3.5,1e300,18446744073709551615,true,null,"é\n\ud83c\udf89"],"b":{},"a":2,"":[[]]}"#,
            "[]",
            " 7 ",
            r#""x""#,
            "[1",
            "{\"a\"}",
            "{} x",
            "[1e999]",
            "\u{0}",
            "",
            &"[".repeat(200),
            &format!("{}{}", "[".repeat(127), "]".repeat(127)),
        ] {
            match (parse(text.as_bytes(), &GO), serde_json::from_str::<Value>(text)) {
                (Ok(ours), Ok(theirs)) => assert_eq!(ours.value.to_string(), theirs.to_string()),
                (Err(ours), Err(theirs)) => assert_eq!(ours.to_string(), format!("expected JSON: {theirs}")),
                (ours, theirs) => panic!("{text}: {ours:?} {theirs:?}"),
            }
        }
        assert!(parse(b"\"\xff\"", &GO).is_err());
    }

    #[test]
    fn numbers_of_values_are_limited() {
        let objects = format!("[{}0]", r#"{"":1},"#.repeat(MAX_NODES / 2));
        refused(&objects, "expected at most 200000 objects, arrays, keys and strings, found more");
        let strings = format!("[{}0]", r#""","#.repeat(MAX_NODES));
        refused(&strings, "expected at most 200000 objects, arrays, keys and strings, found more");
        let keys = format!("{{{}\"\":0}}", r#""":0,"#.repeat(MAX_NODES));
        refused(&keys, "expected at most 200000 objects, arrays, keys and strings, found more");
        let numbers = format!("[{}0]", "0,".repeat(MAX_SCALARS));
        refused(&numbers, "expected at most 2000000 numbers, booleans and nulls, found more");
        let most = format!("[{}0]", "0,".repeat(MAX_SCALARS - 1));
        assert_eq!(parse(most.as_bytes(), &GO).unwrap().value.as_array().unwrap().len(), MAX_SCALARS);
        let object = parse(br#"{"":1}"#, &GO).unwrap().memory;
        assert!((400..600).contains(&object), "{object}");
    }

    #[test]
    fn a_cancelled_parse_ends() {
        let numbers = format!("[{}0]", "0,".repeat(1000));
        let error = parse(numbers.as_bytes(), &AtomicBool::new(true)).unwrap_err();
        assert!(matches!(error, JsonError::Cancelled));
    }
}
