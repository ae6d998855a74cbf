//! Writes GGUF files: [`Layout`] determines every byte except the tensors', which [`Writer`] streams.
//!
//! The file is written as `NAME.part` and renamed when complete.

use super::parse::{MAX_DIMS, alignment, tensor_bytes};
use super::values::Type;
use super::{Array, Error, Metadata, TensorInfo, Value};
use kernels::quant::Format;
use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

/// Longest tensor name in llama.cpp, in bytes.
const MAX_NAME: usize = 63;
/// File name in messages about a layout.
const OUTPUT: &str = "output";

/// The layout of a new file.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    header: Vec<u8>,
    tensors: Vec<TensorInfo>,
    alignment: u64,
}

impl Layout {
    /// Lays out a file with `tensors` (name, format, ggml's `ne`) in this order, aligned to 32 bytes or to the metadata's
    /// `general.alignment`.
    ///
    /// # Errors
    /// A duplicate key or name, a name above 63 bytes, or a shape that does not fit its format.
    pub fn new(metadata: Metadata, tensors: Vec<(String, Format, Vec<u64>)>) -> Result<Layout, Error> {
        let alignment = alignment(OUTPUT, &metadata)?;
        let mut header = Vec::from(*b"GGUF\x03\0\0\0");
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.0.len() as u64).to_le_bytes());
        let mut keys = HashSet::new();
        for (key, value) in &metadata.0 {
            if !keys.insert(key) {
                return Err(Error::invalid(OUTPUT, key, "duplicate key"));
            }
            put_string(&mut header, key);
            header.extend((value.kind() as u32).to_le_bytes());
            put_value(&mut header, value);
        }
        let tensors = place(tensors, alignment)?;
        for tensor in &tensors {
            put_string(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|d| header.extend(d.to_le_bytes()));
            header.extend((tensor.format as u32).to_le_bytes());
            header.extend(tensor.offset.to_le_bytes());
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        Ok(Layout { header, tensors, alignment })
    }

    /// The padded bytes before the tensors' data.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes that each tensor's data is padded to a multiple of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The tensors; offsets are relative to the end of the header.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Size of the complete file in bytes, header and padding included.
    pub fn total_bytes(&self) -> u64 {
        self.end_of(self.tensors.len())
    }

    /// File offset after the first `n` tensors and their padding.
    fn end_of(&self, n: usize) -> u64 {
        let data = match n.checked_sub(1) {
            Some(last) => self.padded_end(&self.tensors[last]),
            None => 0,
        };
        self.header.len() as u64 + data
    }

    fn padded_end(&self, tensor: &TensorInfo) -> u64 {
        (tensor.offset + tensor.bytes).next_multiple_of(self.alignment)
    }
}

fn place(tensors: Vec<(String, Format, Vec<u64>)>, alignment: u64) -> Result<Vec<TensorInfo>, Error> {
    let mut names = HashSet::new();
    let mut placed = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for (name, format, shape) in tensors {
        let bad = |expected: &str, found: &str| Err(Error::bad(OUTPUT, &name, expected, found));
        if name.len() > MAX_NAME {
            return bad("a name of at most 63 bytes", &name.len().to_string());
        }
        if !names.insert(name.clone()) {
            return bad("one tensor of that name", "two");
        }
        let bytes = (1..=MAX_DIMS).contains(&shape.len()).then(|| tensor_bytes(format, &shape)).flatten();
        let next = bytes.and_then(|b| offset.checked_add(b)?.checked_next_multiple_of(alignment));
        let (Some(bytes), Some(next)) = (bytes, next) else {
            let expected = format!("1 to 4 dimensions with rows of whole {} blocks", format.name());
            return bad(&expected, &format!("{shape:?}"));
        };
        placed.push(TensorInfo { name, format, shape, bytes, offset, file: 0 });
        offset = next;
    }
    Ok(placed)
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(x) => out.push(*x),
        Value::I8(x) => out.extend(x.to_le_bytes()),
        Value::U16(x) => out.extend(x.to_le_bytes()),
        Value::I16(x) => out.extend(x.to_le_bytes()),
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::I32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(x) => put_string(out, x),
        Value::Array(x) => put_array(out, x),
        Value::U64(x) => out.extend(x.to_le_bytes()),
        Value::I64(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let kind: Type = array.element();
    out.extend((kind as u32).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(a) => out.extend(a),
        Array::I8(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U16(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I16(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U32(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I32(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F32(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::Bool(a) => out.extend(a.iter().map(|x| u8::from(*x))),
        Array::String(a) => a.iter().for_each(|x| put_string(out, x)),
        Array::Array(a) => a.iter().for_each(|x| put_array(out, x)),
        Array::U64(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I64(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F64(a) => a.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
}

/// Streams a file's tensors in order to `NAME.part`. If dropped unfinished, it leaves that file for [`Writer::resume`].
pub struct Writer {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    layout: Layout,
    /// 64-bit XXH3 of each complete tensor, padding included.
    checksums: Vec<u64>,
    /// Bytes written of the current tensor.
    written: u64,
    /// XXH3 state over these bytes; its digest becomes the tensor's checksum.
    hash: Xxh3,
}

impl Writer {
    /// Starts a new file; replaces a partial file of that name.
    ///
    /// # Errors
    /// A file that cannot be written or that another process is writing.
    pub fn create(path: impl AsRef<Path>, layout: Layout) -> Result<Writer, Error> {
        let mut writer = Writer::open(path.as_ref(), layout)?;
        writer.start_at(0)?;
        let Writer { file, layout, part, .. } = &mut writer;
        file.write_all(&layout.header).map_err(Error::io(part))?;
        Ok(writer)
    }

    /// Resumes a partial file after its last complete tensor that matches `checksums` (an earlier [`Writer::checksums`]).
    /// Also returns the number of these tensors, 0 without a partial file. It reads and hashes the tensors that it keeps.
    ///
    /// # Errors
    /// Those of [`Writer::create`], or a partial file with another header (another model, type or version).
    pub fn resume(
        path: impl AsRef<Path>,
        layout: Layout,
        checksums: &[u64],
    ) -> Result<(Writer, usize), Error> {
        let path = path.as_ref();
        let mut writer = Writer::open(path, layout)?;
        let length = writer.file.get_ref().metadata().map_err(Error::io(&writer.part))?.len();
        let mut header = Vec::new();
        let mut start = writer.file.get_ref().take(writer.layout.header.len() as u64);
        start.read_to_end(&mut header).map_err(Error::io(&writer.part))?;
        if !writer.layout.header.starts_with(&header) {
            let part = writer.part.display().to_string();
            return Err(Error::bad(&part, "header", "the one of this output", "another"));
        }
        if length < writer.layout.end_of(0) {
            return Ok((Writer::create_again(writer)?, 0));
        }
        let whole = (0..=writer.layout.tensors.len()).rev().find(|n| writer.layout.end_of(*n) <= length);
        for (i, checksum) in checksums.iter().enumerate().take(whole.unwrap_or(0)) {
            // The file position is at the end of the previous tensor.
            let bytes = writer.layout.end_of(i + 1) - writer.layout.end_of(i);
            if checksum_of(writer.file.get_ref().take(bytes)).map_err(Error::io(&writer.part))? != *checksum {
                break;
            }
            writer.checksums.push(*checksum);
        }
        let done = writer.checksums.len();
        writer.start_at(writer.layout.end_of(done))?;
        Ok((writer, done))
    }

    fn create_again(mut self) -> Result<Writer, Error> {
        self.start_at(0)?;
        self.file.write_all(&self.layout.header).map_err(Error::io(&self.part))?;
        Ok(self)
    }

    fn open(path: &Path, layout: Layout) -> Result<Writer, Error> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = crate::file::open_own(&part)?;
        file.try_lock().map_err(|e| match e {
            TryLockError::Error(source) => Error::io(&part)(source),
            TryLockError::WouldBlock => {
                Error::bad(&part.display().to_string(), "lock", "no other process writing it", "one")
            }
        })?;
        let file = BufWriter::with_capacity(1 << 20, file);
        let (path, checksums) = (path.to_owned(), Vec::new());
        Ok(Writer { path, part, file, layout, checksums, written: 0, hash: Xxh3::new() })
    }

    fn start_at(&mut self, length: u64) -> Result<(), Error> {
        let file = self.file.get_mut();
        file.set_len(length)
            .and_then(|()| file.seek(SeekFrom::Start(length)))
            .map_err(Error::io(&self.part))?;
        Ok(())
    }

    /// Appends bytes to the current tensor.
    ///
    /// # Errors
    /// More bytes than the tensor has left, or an I/O error.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let Some(tensor) = self.layout.tensors.get(self.checksums.len()) else {
            let found = format!("{} bytes more", bytes.len());
            return Err(Error::bad(&self.part.display().to_string(), "the end", "no tensor", found));
        };
        let left = tensor.bytes - self.written;
        if bytes.len() as u64 > left {
            let expected = format!("at most {left} of {} bytes", tensor.bytes);
            let part = self.part.display().to_string();
            return Err(Error::bad(&part, &tensor.name, expected, bytes.len()));
        }
        self.file.write_all(bytes).map_err(Error::io(&self.part))?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        if self.written == tensor.bytes {
            let padding = vec![0; (self.layout.padded_end(tensor) - tensor.offset - tensor.bytes) as usize];
            self.file.write_all(&padding).map_err(Error::io(&self.part))?;
            self.hash.update(&padding);
            self.checksums.push(self.hash.digest());
            self.hash.reset();
            self.written = 0;
        }
        Ok(())
    }

    /// The tensor that the next bytes belong to. None if all are written.
    pub fn current(&self) -> Option<&TensorInfo> {
        self.layout.tensors.get(self.checksums.len())
    }

    /// A checksum per complete tensor, in order, for [`Writer::resume`].
    pub fn checksums(&self) -> &[u64] {
        &self.checksums
    }

    /// Path of the partial file.
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// The layout that the writer follows.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Syncs the file and renames it to its final name. It keeps the permissions of a file that it replaces.
    ///
    /// # Errors
    /// An incomplete tensor, or an I/O error.
    pub fn finish(mut self) -> Result<(), Error> {
        if let Some(tensor) = self.current() {
            let part = self.part.display().to_string();
            return Err(Error::bad(&part, &tensor.name, format!("{} bytes", tensor.bytes), self.written));
        }
        self.file.flush().map_err(Error::io(&self.part))?;
        self.file.get_ref().sync_all().map_err(Error::io(&self.part))?;
        if let Ok(before) = std::fs::metadata(&self.path) {
            self.file.get_ref().set_permissions(before.permissions()).map_err(Error::io(&self.part))?;
        }
        std::fs::rename(&self.part, &self.path).map_err(Error::io(&self.path))?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_directory(folder).map_err(Error::io(folder))
    }
}

/// Writes a directory's entries to disk.
#[cfg(unix)]
fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Windows cannot open a directory as a file; NTFS journals renames itself.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// XXH3 of all bytes of a reader.
fn checksum_of(mut from: impl Read) -> std::io::Result<u64> {
    let (mut hash, mut piece) = (Xxh3::new(), vec![0; 1 << 20]);
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(hash.digest()),
            n => hash.update(&piece[..n]),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::read::Gguf;
    use super::*;

    /// Metadata with every type of value and array.
    pub(in super::super) fn every_value() -> Metadata {
        let nested = Array::Array(vec![Array::Array(vec![Array::U8(vec![1])]), Array::String(vec![])]);
        let strings = Array::String(vec!["ä".into(), String::new()]);
        let arrays = [
            Array::U8(vec![255]),
            Array::I8(vec![-1]),
            Array::U16(vec![1, 2]),
            Array::I16(vec![-2]),
            Array::U32(vec![3]),
            Array::I32(vec![-3]),
            Array::F32(vec![0.5]),
            Array::Bool(vec![true, false]),
            strings,
            nested,
            Array::U64(vec![u64::MAX]),
            Array::I64(vec![i64::MIN]),
            Array::F64(vec![1e300]),
        ];
        let scalars = [
            Value::U8(1),
            Value::I8(-1),
            Value::U16(2),
            Value::I16(-2),
            Value::U32(3),
            Value::I32(-3),
            Value::F32(0.25),
            Value::Bool(true),
            Value::String("日本\0".into()),
            Value::U64(1 << 63),
            Value::I64(-4),
            Value::F64(0.1),
        ];
        let values = scalars.into_iter().chain(arrays.into_iter().map(Value::Array));
        Metadata(values.enumerate().map(|(i, v)| (format!("key.{i}"), v)).collect())
    }

    fn two_tensors() -> Vec<(String, Format, Vec<u64>)> {
        vec![("a".into(), Format::Q8_0, vec![32, 3]), ("b".into(), Format::F32, vec![5])]
    }

    fn layout() -> Layout {
        Layout::new(every_value(), two_tensors()).unwrap()
    }

    fn contents(n: usize) -> Vec<u8> {
        (0..n).map(|i| i as u8).collect()
    }

    /// Writes the tensors from `done` on and checks the file.
    fn finish_and_check(mut writer: Writer, path: &Path, done: usize) {
        if done < 1 {
            writer.write(&contents(102)[..50]).unwrap();
            writer.write(&contents(102)[50..]).unwrap();
        }
        if done < 2 {
            assert_eq!(writer.current().unwrap().name, "b");
            writer.write(&contents(20)).unwrap();
        }
        let total = writer.layout().total_bytes();
        writer.finish().unwrap();
        let file = Gguf::open(path).unwrap();
        assert_eq!(file.metadata, every_value());
        assert_eq!(file.tensors, layout().tensors);
        assert_eq!(file.bytes(file.tensor("a").unwrap()), contents(102));
        assert_eq!(file.bytes(file.tensor("b").unwrap()), contents(20));
        assert_eq!((file.file_bytes(), total % 32, file.alignment), (total, 0, 32));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no partial file stays");
    }

    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        finish_and_check(Writer::create(&path, layout()).unwrap(), &path, 0);
    }

    #[test]
    fn resume_from_any_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let part = dir.path().join("x.gguf.part");
        finish_and_check(Writer::create(&path, layout()).unwrap(), &path, 0);
        let whole = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let checksums = checksums(&whole);
        let header = layout().header.len();
        let cuts = [(0, 0), (9, 0), (header, 0), (header + 101, 0), (header + 102, 0), (header + 128, 1)];
        for (cut, done) in cuts.into_iter().chain([(header + 130, 1), (whole.len(), 2)]) {
            std::fs::write(&part, &whole[..cut]).unwrap();
            let (writer, found) = Writer::resume(&path, layout(), &checksums).unwrap();
            assert_eq!(found, done, "cut at {cut}");
            finish_and_check(writer, &path, done);
            assert!(std::fs::read(&path).unwrap() == whole, "cut at {cut}");
            std::fs::remove_file(&path).unwrap();
        }
    }

    /// Checksums of both tensors in a complete file.
    fn checksums(whole: &[u8]) -> [u64; 2] {
        let data = &whole[layout().header().len()..];
        [&data[..128], &data[128..]].map(|bytes| checksum_of(bytes).unwrap())
    }

    #[test]
    fn what_is_not_as_it_was_written_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let mut writer = Writer::create(&path, layout()).unwrap();
        writer.write(&contents(102)).unwrap();
        writer.write(&contents(20)).unwrap();
        let known = writer.checksums().to_vec();
        let part = writer.part().to_owned();
        drop(writer);
        let whole = std::fs::read(&part).unwrap();
        assert_eq!(known, checksums(&whole));
        let header = layout().header.len();
        let cases =
            [(header, 0), (header + 101, 0), (header + 127, 0), (header + 128, 1), (whole.len() - 1, 1)];
        for (at, done) in cases {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&part, changed).unwrap();
            assert_eq!(Writer::resume(&path, layout(), &known).unwrap().1, done, "byte {at}");
        }
        for (known, done) in [(&known[..], 2), (&known[..1], 1), (&[], 0)] {
            std::fs::write(&part, &whole).unwrap();
            assert_eq!(Writer::resume(&path, layout(), known).unwrap().1, done, "{known:x?}");
        }
        std::fs::remove_file(&part).unwrap();
        finish_and_check(Writer::resume(&path, layout(), &known).unwrap().0, &path, 0);
    }

    #[test]
    #[cfg(unix)]
    fn a_replaced_file_hands_on_its_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, b"").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        finish_and_check(Writer::create(&path, layout()).unwrap(), &path, 0);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn misuse_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let mut writer = Writer::create(&path, layout()).unwrap();
        let refused = |result: Result<(), Error>, message: &str| {
            assert!(result.as_ref().unwrap_err().to_string().ends_with(message), "{result:?}");
        };
        refused(
            Writer::create(&path, layout()).map(|_| ()),
            "x.gguf.part: lock: expected no other process writing it, found one",
        );
        refused(writer.write(&[0; 103]), "x.gguf.part: a: expected at most 102 of 102 bytes, found 103");
        writer.write(&[0; 102]).unwrap();
        refused(writer.finish(), "x.gguf.part: b: expected 20 bytes, found 0");
        assert!(!path.exists());
        let other = Layout::new(Metadata::default(), two_tensors()).unwrap();
        let resumed = Writer::resume(&path, other, &[]).map(|_| ());
        refused(resumed, "x.gguf.part: header: expected the one of this output, found another");
    }

    #[test]
    fn layouts_that_cannot_be_read_back_are_refused() {
        let refused = |metadata: &[(&str, Value)], names: &[&str], shape: &[u64], message: &str| {
            let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
            let tensors = names.iter().map(|n| ((*n).to_owned(), Format::Q8_0, shape.to_vec())).collect();
            let error = Layout::new(Metadata(metadata), tensors).unwrap_err().to_string();
            assert_eq!(error, format!("output: {message}"));
        };
        let long = "n".repeat(64);
        refused(&[], &[&long], &[32], &format!("{long}: expected a name of at most 63 bytes, found 64"));
        refused(&[], &["a", "a"], &[32], "a: expected one tensor of that name, found two");
        let rows = "a: expected 1 to 4 dimensions with rows of whole Q8_0 blocks, found";
        for shape in [&[16][..], &[32, 0], &[], &[32, 1, 1, 1, 1], &[32, 1 << 62]] {
            refused(&[], &["a"], shape, &format!("{rows} {shape:?}"));
        }
        let twice = [("k", Value::U8(0)), ("k", Value::U8(0))];
        refused(&twice, &[], &[], "k: duplicate key");
        let odd = [("general.alignment", Value::U32(24))];
        let expected = "expected a power of two up to 1048576 as u32, found U32(24)";
        refused(&odd, &[], &[], &format!("general.alignment: {expected}"));
    }

    #[test]
    fn another_alignment() {
        let metadata = Metadata(vec![("general.alignment".into(), Value::U32(64))]);
        let layout = Layout::new(metadata, two_tensors()).unwrap();
        assert_eq!(
            (layout.tensors[1].offset, layout.header.len() % 64, layout.total_bytes() % 64),
            (128, 0, 0)
        );
    }
}
