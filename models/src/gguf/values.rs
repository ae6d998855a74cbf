//! Maps metadata values to ggml's type ids, and reads them by getters that accept any fitting type.

use super::{Array, Metadata, Value};
use crate::visible::MAX_SHOWN;

/// Type ids in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Type {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Type {
    pub(super) fn from_id(id: u32) -> Option<Type> {
        use Type::*;
        let all = [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64];
        all.get(usize::try_from(id).ok()?).copied()
    }

    /// Smallest size of an element in the file, in bytes.
    pub(super) fn min_bytes(self) -> usize {
        match self {
            Type::U8 | Type::I8 | Type::Bool => 1,
            Type::U16 | Type::I16 => 2,
            Type::U32 | Type::I32 | Type::F32 => 4,
            Type::U64 | Type::I64 | Type::F64 | Type::String => 8,
            Type::Array => 12,
        }
    }
}

impl Array {
    /// Number of elements; a nested array counts as one.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(a) => a.len(),
            Array::I8(a) => a.len(),
            Array::U16(a) => a.len(),
            Array::I16(a) => a.len(),
            Array::U32(a) => a.len(),
            Array::I32(a) => a.len(),
            Array::F32(a) => a.len(),
            Array::Bool(a) => a.len(),
            Array::String(a) => a.len(),
            Array::Array(a) => a.len(),
            Array::U64(a) => a.len(),
            Array::I64(a) => a.len(),
            Array::F64(a) => a.len(),
        }
    }

    /// Returns whether the array is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn element(&self) -> Type {
        match self {
            Array::U8(_) => Type::U8,
            Array::I8(_) => Type::I8,
            Array::U16(_) => Type::U16,
            Array::I16(_) => Type::I16,
            Array::U32(_) => Type::U32,
            Array::I32(_) => Type::I32,
            Array::F32(_) => Type::F32,
            Array::Bool(_) => Type::Bool,
            Array::String(_) => Type::String,
            Array::Array(_) => Type::Array,
            Array::U64(_) => Type::U64,
            Array::I64(_) => Type::I64,
            Array::F64(_) => Type::F64,
        }
    }
}

impl Value {
    /// The type for messages: `u32`, `an array of strings`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "u8",
            Value::I8(_) => "i8",
            Value::U16(_) => "u16",
            Value::I16(_) => "i16",
            Value::U32(_) => "u32",
            Value::I32(_) => "i32",
            Value::F32(_) => "f32",
            Value::Bool(_) => "a bool",
            Value::String(_) => "a string",
            Value::Array(a) => match a.element() {
                Type::String => "an array of strings",
                Type::Array => "an array of arrays",
                Type::Bool => "an array of bools",
                Type::F32 | Type::F64 => "an array of floats",
                _ => "an array of integers",
            },
            Value::U64(_) => "u64",
            Value::I64(_) => "i64",
            Value::F64(_) => "f64",
        }
    }

    /// The number, if the value is a non-negative integer of any type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    /// The text, if the value is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    pub(super) fn kind(&self) -> Type {
        match self {
            Value::U8(_) => Type::U8,
            Value::I8(_) => Type::I8,
            Value::U16(_) => Type::U16,
            Value::I16(_) => Type::I16,
            Value::U32(_) => Type::U32,
            Value::I32(_) => Type::I32,
            Value::F32(_) => Type::F32,
            Value::Bool(_) => Type::Bool,
            Value::String(_) => Type::String,
            Value::Array(_) => Type::Array,
            Value::U64(_) => Type::U64,
            Value::I64(_) => Type::I64,
            Value::F64(_) => Type::F64,
        }
    }

    /// Describes a value for messages: small values verbatim, others by type.
    pub(crate) fn describe(value: Option<&Value>) -> String {
        match value {
            None => "nothing".into(),
            Some(Value::String(s)) => {
                let start: String = s.chars().take(MAX_SHOWN).collect();
                format!("the string {start:?}")
            }
            Some(v @ Value::Array(_)) => v.type_name().into(),
            Some(v) => format!("{v:?}"),
        }
    }
}

impl Metadata {
    /// The string of a key, if it exists and is one.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }
}
