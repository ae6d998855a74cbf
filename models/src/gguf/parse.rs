//! Parses the header of a GGUF file from untrusted bytes.
//!
//! Counts are checked against the remaining bytes before anything is allocated, so memory stays within a small multiple
//! of the input. The tensors' data is not touched.

use super::unread::{UnreadTensor, describe};
use super::values::Type;
use super::{Array, Error, Metadata, TensorInfo, Value};
use kernels::quant::Format;
use std::collections::HashSet;

/// Alignment in bytes of a file without [`ALIGNMENT_KEY`], as GGUF defines it.
const ALIGNMENT: u64 = 32;
/// The key of another alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
/// Largest alignment, far above any page size: it bounds the padding.
const MAX_ALIGNMENT: u32 = 1 << 20;
/// Largest nesting of arrays; parsing recurses once per level.
const MAX_DEPTH: usize = 8;
/// Most dimensions of a tensor in ggml.
pub(super) const MAX_DIMS: usize = 4;
/// Smallest size of a tensor description in bytes: name length, dimension count, one dimension, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;
/// Smallest size of a key with its value in bytes.
const MIN_PAIR_BYTES: usize = 8 + 4 + 1;

/// The contents before the tensors' data.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Key-value pairs in file order.
    pub metadata: Metadata,
    /// Tensors in file order; offsets are relative to `data`.
    pub tensors: Vec<TensorInfo>,
    /// Tensors of types that are not read; empty if [`parse`] returned this header, which refuses them.
    pub unread: Vec<UnreadTensor>,
    /// Alignment in bytes of the tensors' offsets: `general.alignment`, or 32.
    pub alignment: u64,
    /// File offset of the tensors' data.
    pub data: u64,
}

/// Parses and validates the header in the `bytes` of a complete file; `path` is used in messages.
///
/// # Errors
/// Not GGUF 2 or 3 in little-endian order, a contradiction within the header or with the file's length, or a tensor of a
/// type that is not read.
pub fn parse(path: &str, bytes: &[u8]) -> Result<Header, Error> {
    parse_tensors(path, bytes, Unread::Refuse)
}

/// As [`parse`], but accepts tensors of any type, to show them.
pub(super) fn parse_any(path: &str, bytes: &[u8]) -> Result<Header, Error> {
    parse_tensors(path, bytes, Unread::Accept)
}

/// The treatment of tensors of types that are not read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unread {
    Refuse,
    Accept,
}

fn parse_tensors(path: &str, bytes: &[u8], policy: Unread) -> Result<Header, Error> {
    let mut c = Cursor { path, bytes, at: 0 };
    c.magic_and_version()?;
    let n_tensors = c.count("tensor count", MIN_TENSOR_BYTES)?;
    let n_pairs = c.count("metadata count", MIN_PAIR_BYTES)?;
    let metadata = c.metadata(n_pairs)?;
    let alignment = alignment(path, &metadata)?;
    let mut tensors = Vec::with_capacity(n_tensors.min(c.left() / MIN_TENSOR_BYTES));
    let (mut names, mut unread) = (HashSet::new(), Vec::new());
    for index in 0..n_tensors {
        let tensor = c.tensor(index, alignment, policy)?;
        let name = tensor.as_ref().map_or_else(|unread| &unread.name, |read| &read.name);
        if !names.insert(name.clone()) {
            return Err(Error::invalid(path, quoted("tensor", name), "duplicate tensor name"));
        }
        match tensor {
            Ok(tensor) => tensors.push(tensor),
            Err(tensor) => unread.push(tensor),
        }
    }
    let data = (c.at as u64).next_multiple_of(alignment);
    check_extents(path, &tensors, (bytes.len() as u64).saturating_sub(data))?;
    Ok(Header { metadata, tensors, unread, alignment, data })
}

fn quoted(what: &str, name: &str) -> String {
    format!("{what} {name:?}")
}

/// Reads the alignment from the metadata.
///
/// # Errors
/// Not a u32, not a power of two, or above [`MAX_ALIGNMENT`].
pub(super) fn alignment(path: &str, metadata: &Metadata) -> Result<u64, Error> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => Ok(u64::from(*n)),
        other => {
            let expected = format!("a power of two up to {MAX_ALIGNMENT} as u32");
            Err(Error::bad(path, ALIGNMENT_KEY, expected, Value::describe(other)))
        }
    }
}

/// Checks that all tensors lie inside the `len` bytes of data and do not overlap.
fn check_extents(path: &str, tensors: &[TensorInfo], len: u64) -> Result<(), Error> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    let mut before: Option<&TensorInfo> = None;
    for tensor in order {
        let place = || quoted("tensor", &tensor.name);
        let end = tensor.offset.checked_add(tensor.bytes).filter(|end| *end <= len);
        if end.is_none() {
            let expected = format!("{} bytes at offset {}", tensor.bytes, tensor.offset);
            return Err(Error::bad(path, place(), expected, format_args!("{len} bytes of tensor data")));
        }
        if let Some(b) = before
            && tensor.offset < b.offset + b.bytes
        {
            let expected = format!("an offset from {} on, after {:?}", b.offset + b.bytes, b.name);
            return Err(Error::bad(path, place(), expected, tensor.offset));
        }
        before = Some(tensor);
    }
    Ok(())
}

struct Cursor<'a> {
    path: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn bad<T>(&self, what: &str, expected: &str, found: impl std::fmt::Display) -> Result<T, Error> {
        Err(Error::bad(self.path, format_args!("byte {}, {what}", self.at), expected, found))
    }

    fn invalid(&self, what: &str, problem: &str) -> Error {
        Error::invalid(self.path, format_args!("byte {}, {what}", self.at), problem)
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Error> {
        if n > self.left() {
            let found = format!("the file's end after {}", self.left());
            return self.bad(what, &format!("{n} bytes"), found);
        }
        self.at += n;
        Ok(&self.bytes[self.at - n..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        Ok(self.take(N, what)?.try_into().expect("take gives N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, Error> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads a count of items of at least `min_bytes` each, which must fit in the rest of the file.
    fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize, Error> {
        let start = self.at;
        let n = self.u64(what)?;
        let most = self.left() / min_bytes;
        match usize::try_from(n) {
            Ok(n) if n <= most => Ok(n),
            _ => {
                self.at = start;
                self.bad(what, &format!("at most {most}, which the file has room for"), n)
            }
        }
    }

    fn magic_and_version(&mut self) -> Result<(), Error> {
        let magic: [u8; 4] = self.array("magic")?;
        if magic != *b"GGUF" {
            let begin = magic.escape_ascii().to_string();
            return Err(Error::NotGguf { path: self.path.to_owned(), begin });
        }
        let version = self.u32("version")?;
        self.at -= 4;
        match version {
            2 | 3 => {}
            _ if (1..=3).contains(&version.swap_bytes()) => {
                return self.bad("version", "a little-endian file", "a big-endian one");
            }
            _ => return self.bad("version", "GGUF version 2 or 3", version),
        }
        self.at += 4;
        Ok(())
    }

    fn string(&mut self, what: &str) -> Result<&'a str, Error> {
        let n = self.count(&format!("length of {what}"), 1)?;
        let bytes = self.take(n, what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s),
            Err(e) => {
                self.at -= n - e.valid_up_to();
                let rest = &bytes[e.valid_up_to()..];
                self.bad(what, "UTF-8", rest[..rest.len().min(4)].escape_ascii())
            }
        }
    }

    fn metadata(&mut self, n_pairs: usize) -> Result<Metadata, Error> {
        let mut pairs = Vec::with_capacity(n_pairs.min(self.left() / MIN_PAIR_BYTES));
        let mut keys = HashSet::new();
        for index in 0..n_pairs {
            let key = self.string(&format!("key {index}"))?;
            let what = quoted("value of", key);
            if !keys.insert(key) {
                return Err(self.invalid(&quoted("key", key), "duplicate key"));
            }
            let kind = self.kind(&what)?;
            pairs.push((key.to_owned(), self.value(kind, &what)?));
        }
        Ok(Metadata(pairs))
    }

    fn kind(&mut self, what: &str) -> Result<Type, Error> {
        let id = self.u32(&format!("type of {what}"))?;
        let Some(kind) = Type::from_id(id) else {
            self.at -= 4;
            return self.bad(&format!("type of {what}"), "a value type from 0 to 12", id);
        };
        Ok(kind)
    }

    fn value(&mut self, kind: Type, what: &str) -> Result<Value, Error> {
        Ok(match kind {
            Type::U8 => Value::U8(self.array::<1>(what)?[0]),
            Type::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            Type::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            Type::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            Type::U32 => Value::U32(self.u32(what)?),
            Type::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            Type::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            Type::Bool => Value::Bool(self.bools(1, what)?[0]),
            Type::String => Value::String(self.string(what)?.to_owned()),
            Type::Array => Value::Array(self.elements(what, MAX_DEPTH)?),
            Type::U64 => Value::U64(self.u64(what)?),
            Type::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            Type::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
        })
    }

    fn bools(&mut self, n: usize, what: &str) -> Result<Vec<bool>, Error> {
        let bytes = self.take(n, what)?;
        if let Some(i) = bytes.iter().position(|b| *b > 1) {
            self.at -= n - i;
            return self.bad(what, "a bool, 0 or 1", bytes[i]);
        }
        Ok(bytes.iter().map(|b| *b == 1).collect())
    }

    fn elements(&mut self, what: &str, depth: usize) -> Result<Array, Error> {
        if depth == 0 {
            return Err(self.invalid(what, &format!("arrays are nested deeper than {MAX_DEPTH}")));
        }
        let kind = self.kind(&format!("the elements of {what}"))?;
        let n = self.count(&format!("length of {what}"), kind.min_bytes())?;
        Ok(match kind {
            Type::U8 => Array::U8(self.take(n, what)?.to_vec()),
            Type::I8 => Array::I8(self.numbers(n, i8::from_le_bytes, what)?),
            Type::U16 => Array::U16(self.numbers(n, u16::from_le_bytes, what)?),
            Type::I16 => Array::I16(self.numbers(n, i16::from_le_bytes, what)?),
            Type::U32 => Array::U32(self.numbers(n, u32::from_le_bytes, what)?),
            Type::I32 => Array::I32(self.numbers(n, i32::from_le_bytes, what)?),
            Type::F32 => Array::F32(self.numbers(n, f32::from_le_bytes, what)?),
            Type::Bool => Array::Bool(self.bools(n, what)?),
            Type::String => Array::String(self.each(n, |c| Ok(c.string(what)?.to_owned()))?),
            Type::Array => Array::Array(self.each(n, |c| c.elements(what, depth - 1))?),
            Type::U64 => Array::U64(self.numbers(n, u64::from_le_bytes, what)?),
            Type::I64 => Array::I64(self.numbers(n, i64::from_le_bytes, what)?),
            Type::F64 => Array::F64(self.numbers(n, f64::from_le_bytes, what)?),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        n: usize,
        from: fn([u8; N]) -> T,
        what: &str,
    ) -> Result<Vec<T>, Error> {
        Ok(self.take(n * N, what)?.as_chunks::<N>().0.iter().map(|b| from(*b)).collect())
    }

    fn each<T>(&mut self, n: usize, one: impl Fn(&mut Self) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        let mut all = Vec::with_capacity(n);
        for _ in 0..n {
            all.push(one(self)?);
        }
        Ok(all)
    }

    /// Reads a tensor's description; the inner result is an error for a type that is not read and accepted.
    fn tensor(
        &mut self,
        index: usize,
        alignment: u64,
        policy: Unread,
    ) -> Result<Result<TensorInfo, UnreadTensor>, Error> {
        let name = self.string(&format!("name of tensor {index}"))?;
        let what = quoted("tensor", name);
        let n_dims = self.u32(&what)? as usize;
        if !(1..=MAX_DIMS).contains(&n_dims) {
            self.at -= 4;
            return self.bad(&what, "1 to 4 dimensions", n_dims);
        }
        let start = self.at;
        let mut shape = Vec::with_capacity(n_dims);
        for _ in 0..n_dims {
            shape.push(self.u64(&what)?);
        }
        let id = self.u32(&what)?;
        let Some(format) = Format::from_ggml(id) else {
            if policy == Unread::Refuse {
                self.at -= 4;
                return self.bad(&what, "a type that kimi reads", describe(id));
            }
            self.u64(&what)?;
            return Ok(Err(UnreadTensor { name: name.to_owned(), type_id: id, shape }));
        };
        let Some(bytes) = tensor_bytes(format, &shape) else {
            self.at = start;
            let blocks = format.block_len();
            let expected = format!("{} rows of whole blocks of {blocks}, below 2^63 weights", format.name());
            return self.bad(&what, &expected, format_args!("{shape:?}"));
        };
        let offset = self.u64(&what)?;
        if offset % alignment != 0 {
            self.at -= 8;
            return self.bad(&what, &format!("an offset that is a multiple of {alignment}"), offset);
        }
        Ok(Ok(TensorInfo { name: name.to_owned(), format, shape, bytes, offset, file: 0 }))
    }
}

/// Size of a tensor in bytes. None if a dimension is 0, a row is not whole blocks, or the size overflows.
pub(super) fn tensor_bytes(format: Format, shape: &[u64]) -> Option<u64> {
    let weights = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
    if weights == 0 || i64::try_from(weights).is_err() {
        return None;
    }
    format.row_bytes(shape[0])?.checked_mul(weights / shape[0])
}

#[cfg(test)]
mod tests {
    use super::super::write::Layout;
    use super::*;

    /// A header built field by field, valid or not.
    #[derive(Clone)]
    struct Raw(Vec<u8>);

    impl Raw {
        fn new(tensors: u64, pairs: u64) -> Raw {
            Raw(Vec::from(*b"GGUF\x03\0\0\0")).u64(tensors).u64(pairs)
        }

        fn bytes(mut self, bytes: &[u8]) -> Raw {
            self.0.extend(bytes);
            self
        }

        fn u32(self, n: u32) -> Raw {
            self.bytes(&n.to_le_bytes())
        }

        fn u64(self, n: u64) -> Raw {
            self.bytes(&n.to_le_bytes())
        }

        fn text(self, s: &[u8]) -> Raw {
            self.u64(s.len() as u64).bytes(s)
        }

        fn pair(self, key: &str, kind: u32) -> Raw {
            self.text(key.as_bytes()).u32(kind)
        }

        fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Raw {
            let named = self.text(name.as_bytes()).u32(shape.len() as u32);
            shape.iter().fold(named, |raw, d| raw.u64(*d)).u32(kind).u64(offset)
        }

        fn data(mut self, n: usize) -> Raw {
            self.0.resize(self.0.len().next_multiple_of(32) + n, 0);
            self
        }
    }

    fn refused(raw: Raw, message: &str) {
        let error = parse("f", &raw.0).unwrap_err().to_string();
        assert_eq!(error, format!("f: {message}"));
    }

    #[test]
    fn hostile_starts_and_counts() {
        let raw = |bytes: &[u8]| Raw(bytes.to_vec());
        refused(raw(b""), "byte 0, magic: expected 4 bytes, found the file's end after 0");
        let error = parse("f", b"GG\"\n").unwrap_err().to_string();
        assert_eq!(error, r#"f is not a GGUF file; it begins with "GG\"\n""#);
        refused(raw(b"GGUF\x01\0\0\0"), "byte 4, version: expected GGUF version 2 or 3, found 1");
        refused(
            raw(b"GGUF\0\0\0\x03"),
            "byte 4, version: expected a little-endian file, found a big-endian one",
        );
        let most = |n: u64, room| format!("expected at most {room}, which the file has room for, found {n}");
        refused(Raw::new(1 << 63, 0), &format!("byte 8, tensor count: {}", most(1 << 63, 0)));
        refused(Raw::new(0, 1 << 63), &format!("byte 16, metadata count: {}", most(1 << 63, 0)));
        refused(
            Raw::new(0, 1).u64(u64::MAX).data(32),
            &format!("byte 24, length of key 0: {}", most(u64::MAX, 32)),
        );
    }

    #[test]
    fn hostile_metadata() {
        let pair = |kind| Raw::new(0, 1).pair("k", kind);
        refused(pair(13), "byte 33, type of value of \"k\": expected a value type from 0 to 12, found 13");
        refused(pair(7).bytes(&[2]), r#"byte 37, value of "k": expected a bool, 0 or 1, found 2"#);
        refused(pair(8).text(b"a\xff"), r#"byte 46, value of "k": expected UTF-8, found \xff"#);
        refused(
            pair(4).bytes(&[0; 3]),
            "byte 37, value of \"k\": expected 4 bytes, found the file's end after 3",
        );
        let most = "expected at most 0, which the file has room for, found 9223372036854775808";
        refused(pair(9).u32(4).u64(1 << 63), &format!("byte 41, length of value of \"k\": {most}"));
        let nested = (0..9).fold(pair(9), |raw, _| raw.u32(9).u64(1)).u32(0).u64(0);
        refused(nested, r#"byte 133, value of "k": arrays are nested deeper than 8"#);
        let twice = Raw::new(0, 2).pair("k", 0).bytes(&[0]).pair("k", 0).bytes(&[0]);
        refused(twice, r#"byte 47, key "k": duplicate key"#);
        for alignment in [0, 24, 1 << 31] {
            let raw = Raw::new(0, 1).pair(ALIGNMENT_KEY, 4).u32(alignment);
            let expected = "expected a power of two up to 1048576 as u32";
            refused(raw, &format!("general.alignment: {expected}, found U32({alignment})"));
        }
        let escaped = Raw::new(0, 1).pair("a\n\u{1b}", 13);
        assert!(!parse("f", &escaped.0).unwrap_err().to_string().contains(['\n', '\u{1b}']));
    }

    #[test]
    fn hostile_tensors() {
        let one = |shape: &[u64], kind, offset| Raw::new(1, 0).tensor("t", shape, kind, offset).data(64);
        let at = |byte, rest: &str| format!("byte {byte}, tensor \"t\": {rest}");
        refused(one(&[1; 5], 0, 0), &at(33, "expected 1 to 4 dimensions, found 5"));
        refused(one(&[], 0, 0).data(64), &at(33, "expected 1 to 4 dimensions, found 0"));
        let rows = "expected F32 rows of whole blocks of 1, below 2^63 weights, found";
        refused(one(&[4, 0], 0, 0), &at(37, &format!("{rows} [4, 0]")));
        let half = 1 << 32;
        refused(one(&[half, half], 0, 0), &at(37, &format!("{rows} [{half}, {half}]")));
        refused(one(&[1 << 62], 0, 0), &at(37, &format!("{rows} [{}]", 1u64 << 62)));
        let rows = "expected Q8_0 rows of whole blocks of 32, below 2^63 weights, found [16]";
        refused(one(&[16], 8, 0), &at(37, rows));
        let types = "expected a type that kimi reads, found";
        let ternary = "TQ2_0 (type 35): it is for models trained with ternary weights";
        refused(one(&[4], 35, 0), &at(45, &format!("{types} {ternary}")));
        refused(
            one(&[4], 77, 0),
            &at(45, &format!("{types} type 77, which is newer than this program or damage")),
        );
        refused(one(&[4], 0, 8), &at(49, "expected an offset that is a multiple of 32, found 8"));
        let past = |offset: u64| {
            format!("tensor \"t\": expected 16 bytes at offset {offset}, found 64 bytes of tensor data")
        };
        refused(one(&[4], 0, 64), &past(64));
        refused(one(&[4], 0, u64::MAX - 31), &past(u64::MAX - 31));
        let two =
            |name, offset| Raw::new(2, 0).tensor("t", &[16], 0, 0).tensor(name, &[4], 0, offset).data(96);
        refused(two("t", 64), r#"tensor "t": duplicate tensor name"#);
        refused(two("u", 32), r#"tensor "u": expected an offset from 64 on, after "t", found 32"#);
        assert_eq!(parse("f", &two("u", 64).0).unwrap().tensors.len(), 2);
    }

    #[test]
    fn unread_types_are_described_on_request() {
        let raw = Raw::new(2, 0).tensor("u", &[256, 2], 35, 0).tensor("t", &[4], 0, 160).data(192);
        let header = parse_any("f", &raw.0).unwrap();
        assert_eq!((&*header.tensors[0].name, header.tensors.len()), ("t", 1));
        assert_eq!((&*header.unread[0].name, header.unread[0].bytes()), ("u", Some(132)));
        let twice = Raw::new(2, 0).tensor("u", &[1], 35, 0).tensor("u", &[4], 0, 0).data(64);
        assert!(parse_any("f", &twice.0).unwrap_err().to_string().ends_with("duplicate tensor name"));
    }

    /// A small valid file with every kind of value.
    fn sample() -> Vec<u8> {
        let layout = Layout::new(
            super::super::write::tests::every_value(),
            vec![("a".into(), Format::Q8_0, vec![32, 3]), ("b.weight".into(), Format::F32, vec![5])],
        );
        let layout = layout.unwrap();
        let mut bytes = layout.header().to_vec();
        bytes.resize(layout.total_bytes() as usize, 7);
        bytes
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = sample();
        let last = parse("f", &bytes).unwrap().tensors[1].clone();
        let needed =
            bytes.len() as u64 - (last.offset + last.bytes).next_multiple_of(32) + last.offset + last.bytes;
        for cut in 0..needed as usize {
            let error = parse("f", &bytes[..cut]).unwrap_err().to_string();
            assert!(error.starts_with("f: ") && error.contains("expected"), "{cut}: {error}");
        }
        parse("f", &bytes[..needed as usize]).unwrap();
    }

    #[test]
    fn no_mutation_panics() {
        let good = sample();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % n as u64) as usize
        };
        let mut refused = 0;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                let odd = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8];
                bytes[at] = odd[random(odd.len())];
            }
            if let Ok(header) = parse("f", &bytes) {
                let inside = |t: &TensorInfo| header.data + t.offset + t.bytes <= bytes.len() as u64;
                assert!(header.tensors.iter().all(inside));
            } else {
                refused += 1;
            }
        }
        assert!(refused > 2_000, "the mutations reach the checks: {refused}");
    }
}
