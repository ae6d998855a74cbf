//! Opens GGUF files: maps them and validates every count and offset before use.
//!
//! [`Gguf::open`] presents the parts of a split as one file. Next: [`super::parse`].

use super::parse::{Header, parse, parse_any, tensor_bytes};
use super::unread::UnreadTensor;
use super::{Error, Metadata, TensorInfo, Value};
use bytes::Bytes;
use kernels::quant::Format;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

/// An opened file, or all parts of a split: validated and mapped, with only the headers read.
#[derive(Debug)]
pub struct Gguf {
    /// The metadata; of a split, that of the first part without the `split.` keys.
    pub metadata: Metadata,
    /// All tensors, in the order of parts and file.
    pub tensors: Vec<TensorInfo>,
    /// Tensors of types that are not read; only [`Gguf::open_any`] accepts them.
    pub unread: Vec<UnreadTensor>,
    /// Alignment of the tensors' data; of a split, that of the first part.
    pub alignment: u64,
    paths: Vec<PathBuf>,
    parts: Vec<SplitPart>,
    by_name: HashMap<String, usize>,
    /// Tensors whose contents were replaced in memory: their entries in the file, and the new bytes.
    replaced: HashMap<String, (TensorInfo, Bytes)>,
}

/// A mapped file with the offset of its tensors' data.
#[derive(Debug)]
struct SplitPart {
    bytes: Bytes,
    data: u64,
    /// None for bytes in memory.
    mapping: Option<Mapping>,
    /// The open file; None for bytes in memory.
    source: Option<OpenFile>,
}

/// An open file, with its size and modification time at opening.
#[derive(Debug)]
struct OpenFile {
    file: Arc<File>,
    bytes: u64,
    modified: Option<SystemTime>,
}

/// One part of a split, or all of a single file.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Path of the part, also if it was opened from memory.
    pub path: PathBuf,
    /// All bytes; the view keeps the mapping alive.
    pub bytes: Bytes,
    /// The open file; None for bytes in memory.
    pub file: Option<Arc<File>>,
}

/// A file's bytes, shared by all views.
#[derive(Clone, Debug)]
struct Mapping(Arc<memmap2::Mmap>);

impl Mapping {
    #[cfg(unix)]
    fn lock(&self) -> std::io::Result<()> {
        self.0.lock()
    }

    /// Windows locks no more than a process's working set, which is far smaller than a model.
    #[cfg(not(unix))]
    fn lock(&self) -> std::io::Result<()> {
        Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "this system cannot lock a model in memory"))
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Gguf {
    /// Opens a file. For any part of a split (`x-00001-of-00003.gguf`), it opens all parts in the directory.
    ///
    /// # Errors
    /// A file that cannot be mapped or is invalid, or an incomplete split.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf, Error> {
        Gguf::open_parsed(path.as_ref(), parse)
    }

    /// As [`Gguf::open`], but accepts tensors of types that are not read, to show the file.
    ///
    /// # Errors
    /// A file that cannot be mapped or is invalid, or an incomplete split.
    pub fn open_any(path: impl AsRef<Path>) -> Result<Gguf, Error> {
        Gguf::open_parsed(path.as_ref(), parse_any)
    }

    fn open_parsed(path: &Path, parse: ParseHeader) -> Result<Gguf, Error> {
        let (header, part) = open_part(path, parse)?;
        let name = path.display().to_string();
        let count = match header.metadata.get(SPLIT_COUNT) {
            None => 1,
            Some(_) => require(&name, &header.metadata, SPLIT_COUNT, 0..=99999)?,
        };
        if count > 1 {
            Gguf::open_split(path, count, parse)
        } else {
            Gguf::join(vec![(path.into(), header, part)])
        }
    }

    /// Opens a complete file in memory; `path` is used in messages.
    ///
    /// # Errors
    /// An invalid file.
    pub fn from_bytes(path: impl AsRef<Path>, bytes: Bytes) -> Result<Gguf, Error> {
        let path = path.as_ref();
        let header = parse(&path.display().to_string(), &bytes)?;
        let data = header.data;
        Gguf::join(vec![(path.into(), header, SplitPart { bytes, data, mapping: None, source: None })])
    }

    fn open_split(path: &Path, count: u64, parse: ParseHeader) -> Result<Gguf, Error> {
        let name = path.display().to_string();
        let Some(prefix) = split_prefix(path, count) else {
            let expected = format!("NAME-00001-of-{count:05}.gguf for a part of a split");
            return Err(Error::bad(
                &name,
                "file name",
                expected,
                path.file_name().unwrap_or_default().display(),
            ));
        };
        let mut opened = Vec::new();
        for no in 0..count {
            let path = path.with_file_name(format!("{prefix}-{:05}-of-{count:05}.gguf", no + 1));
            let (header, part) = open_part(&path, parse)?;
            let name = path.display().to_string();
            require(&name, &header.metadata, SPLIT_NO, no..=no)?;
            require(&name, &header.metadata, SPLIT_COUNT, count..=count)?;
            opened.push((path, header, part));
        }
        let count = |header: &Header| (header.tensors.len() + header.unread.len()) as u64;
        let total: u64 = opened.iter().map(|(_, header, _)| count(header)).sum();
        for (path, header, _) in &opened {
            require(&path.display().to_string(), &header.metadata, SPLIT_TENSORS, total..=total)?;
        }
        Gguf::join(opened)
    }

    fn join(opened: Vec<(PathBuf, Header, SplitPart)>) -> Result<Gguf, Error> {
        let mut all = Gguf {
            metadata: Metadata::default(),
            tensors: Vec::new(),
            unread: Vec::new(),
            alignment: 0,
            paths: Vec::new(),
            parts: Vec::new(),
            by_name: HashMap::new(),
            replaced: HashMap::new(),
        };
        for (path, header, part) in opened {
            let file = all.parts.len();
            if file == 0 {
                all.metadata = header.metadata;
                all.metadata.0.retain(|(key, _)| ![SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS].contains(&&**key));
                all.alignment = header.alignment;
            }
            for tensor in header.tensors {
                if all.by_name.insert(tensor.name.clone(), all.tensors.len()).is_some() {
                    let (path, place) = (path.display().to_string(), format!("tensor {:?}", tensor.name));
                    let problem = "duplicate tensor name, in two parts of the split";
                    return Err(Error::invalid(&path, place, problem));
                }
                all.tensors.push(TensorInfo { file, ..tensor });
            }
            all.unread.extend(header.unread);
            all.paths.push(path);
            all.parts.push(part);
        }
        Ok(all)
    }

    /// The description of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|i| &self.tensors[*i])
    }

    /// The bytes of a tensor of this file; the view keeps the mapping alive.
    pub fn bytes(&self, tensor: &TensorInfo) -> Bytes {
        if let Some((_, bytes)) = self.replaced.get(&tensor.name) {
            return bytes.clone();
        }
        let part = &self.parts[tensor.file];
        let start = part.data + tensor.offset;
        part.bytes.slice(start as usize..(start + tensor.bytes) as usize)
    }

    /// Replaces a tensor in memory by one of the same shape; the file does not change.
    ///
    /// # Errors
    /// No tensor of that name, or another number of bytes than the shape has in this format.
    pub fn replace(&mut self, name: &str, format: Format, bytes: Bytes) -> Result<(), Error> {
        let path = self.paths[0].display().to_string();
        let Some(info) = self.by_name.get(name).map(|i| &mut self.tensors[*i]) else {
            return Err(Error::bad(&path, name, "a tensor", "none"));
        };
        let expected = tensor_bytes(format, &info.shape);
        if expected != Some(bytes.len() as u64) {
            let expected = format!("{} bytes", expected.unwrap_or(0));
            return Err(Error::bad(&path, name, expected, bytes.len()));
        }
        let new = TensorInfo { format, bytes: bytes.len() as u64, ..info.clone() };
        let before = std::mem::replace(info, new);
        self.replaced.entry(name.to_owned()).or_insert((before, Bytes::new())).1 = bytes;
        Ok(())
    }

    /// Undoes [`Gguf::replace`] for a tensor.
    pub fn restore(&mut self, name: &str) {
        if let Some((before, _)) = self.replaced.remove(name) {
            let i = self.by_name[name];
            self.tensors[i] = before;
        }
    }

    /// Offset of a tensor's first byte in its file, `paths()[tensor.file]`, for readers that do not map.
    pub fn offset_in_file(&self, tensor: &TensorInfo) -> u64 {
        self.parts[tensor.file].data + tensor.offset
    }

    /// The bytes before the tensors' data of each part: metadata and tensor descriptions.
    pub fn headers(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| &part.bytes[..part.bytes.len().min(part.data as usize)])
    }

    /// The contents of all parts, in order.
    pub fn contents(&self) -> impl Iterator<Item = Contents> {
        let parts = self.paths.iter().zip(&self.parts);
        parts.map(|(path, part)| Contents {
            path: path.clone(),
            bytes: part.bytes.clone(),
            file: part.source.as_ref().map(|source| source.file.clone()),
        })
    }

    /// Total size of all parts in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// Reads the complete file and locks it in memory.
    ///
    /// # Errors
    /// The limit of locked memory (`ulimit -l`) or the memory itself is too small; `Unsupported` on Windows.
    pub fn lock(&self) -> std::io::Result<()> {
        self.parts.iter().filter_map(|part| part.mapping.as_ref()).try_for_each(Mapping::lock)
    }

    /// Checks, by one `fstat` per part, that no part was truncated or written since it was opened. A file that replaced a
    /// part under its name is no change: the opened file is still mapped.
    ///
    /// # Errors
    /// A part whose size or modification time has changed.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        for (path, part) in self.paths.iter().zip(&self.parts) {
            let Some(source) = &part.source else { continue };
            if let Some(found) = source.change().map_err(Error::io(path))? {
                return Err(Error::Overwritten { path: path.display().to_string(), change: found });
            }
        }
        Ok(())
    }

    /// Paths of all parts, in order.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Reads a required string.
    ///
    /// # Errors
    /// The key is missing or not a string.
    pub fn str(&self, key: &str) -> Result<&str, Error> {
        self.metadata.str(key).ok_or_else(|| self.bad(key, "a string"))
    }

    /// Reads a required integer of any type.
    ///
    /// # Errors
    /// The key is missing, not an integer, or negative.
    pub fn u64(&self, key: &str) -> Result<u64, Error> {
        let number = self.metadata.get(key).and_then(Value::as_u64);
        number.ok_or_else(|| self.bad(key, "an integer that is not negative"))
    }

    fn bad(&self, key: &str, expected: &str) -> Error {
        let path = self.paths[0].display().to_string();
        Error::bad(&path, key, expected, Value::describe(self.metadata.get(key)))
    }
}

/// Reads a metadata integer and checks its bounds.
fn require(
    path: &str,
    metadata: &Metadata,
    key: &str,
    bounds: std::ops::RangeInclusive<u64>,
) -> Result<u64, Error> {
    let value = metadata.get(key);
    value.and_then(Value::as_u64).filter(|n| bounds.contains(n)).ok_or_else(|| {
        let (low, high) = bounds.into_inner();
        let expected = if low == high { low.to_string() } else { format!("{low} to {high}") };
        Error::bad(path, key, expected, Value::describe(value))
    })
}

/// The `x` of `x-00001-of-00003.gguf` if the name is that of one of `count` parts.
fn split_prefix(path: &Path, count: u64) -> Option<&str> {
    let stem = path.file_name()?.to_str()?.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (prefix, number) = stem.split_at_checked(stem.len().checked_sub(6)?)?;
    let number = number.strip_prefix('-')?;
    number.bytes().all(|b| b.is_ascii_digit()).then_some(prefix)
}

/// The parser of a header: [`parse`] or [`parse_any`].
type ParseHeader = fn(&str, &[u8]) -> Result<Header, Error>;

fn open_part(path: &Path, parse: ParseHeader) -> Result<(Header, SplitPart), Error> {
    let name = path.display().to_string();
    let file = crate::file::open(path)?;
    let mapping = map(&file).map_err(Error::io(path))?;
    let bytes = Bytes::from_owner(mapping.clone());
    let about = file.metadata().map_err(Error::io(path))?;
    let header = parse(&name, &bytes)?;
    let data = header.data;
    let file = Arc::new(file);
    let source = OpenFile { file, bytes: bytes.len() as u64, modified: about.modified().ok() };
    Ok((header, SplitPart { bytes, data, mapping: Some(mapping), source: Some(source) }))
}

impl OpenFile {
    /// Describes how the file changed since it was opened, if it did.
    fn change(&self) -> std::io::Result<Option<String>> {
        let about = self.file.metadata()?;
        if about.len() != self.bytes {
            return Ok(Some(format!("{} bytes instead of {}", about.len(), self.bytes)));
        }
        Ok((about.modified().ok() != self.modified).then(|| "written again with the same size".to_owned()))
    }
}

/// The bytes of a file that this process wrote for itself: pages of the mapping can be evicted, unlike memory.
///
/// # Errors
/// Those of the system's `mmap`.
pub fn map_scratch(file: &File) -> std::io::Result<Bytes> {
    map(file).map(Bytes::from_owner)
}

/// Maps a file: the kernel reads its pages on first access.
#[allow(unsafe_code, reason = "the one mapping; weights stay in the page cache, shared between processes")]
fn map(file: &File) -> std::io::Result<Mapping> {
    // SAFETY: the mapping is read-only and private and lives as long as the Bytes. A file that another process truncates
    // while it is mapped raises SIGBUS (docs/security.md); this project writes models under a temporary name and renames
    // them, and `check_unchanged` detects writes in place.
    let mapping = unsafe { memmap2::Mmap::map(file)? };
    // A hint: where the file system has large folios, one TLB entry then covers 2 MiB of weights.
    #[cfg(target_os = "linux")]
    let _ = mapping.advise(memmap2::Advice::HugePage);
    Ok(Mapping(Arc::new(mapping)))
}

#[cfg(test)]
mod tests {
    use super::super::write::{Layout, Writer};
    use super::*;

    /// Writes a part of a split with one tensor per name, which holds the part's number.
    fn write_part(dir: &Path, file: &str, [no, count, total]: [u32; 3], names: &[&str]) {
        let keys = [("split.no", no), ("split.count", count), ("split.tensors.count", total)];
        let mut metadata = Metadata::default();
        metadata.set("general.name", Value::String(format!("part {no}")));
        keys.iter().for_each(|(key, n)| metadata.set(key, Value::U16(*n as u16)));
        let tensors = names.iter().map(|n| ((*n).to_owned(), Format::F16, vec![2])).collect();
        let mut writer = Writer::create(dir.join(file), Layout::new(metadata, tensors).unwrap()).unwrap();
        names.iter().for_each(|_| writer.write(&[no as u8; 4]).unwrap());
        writer.finish().unwrap();
    }

    #[test]
    fn a_split_opens_from_any_part() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["x-00001-of-00003.gguf", "x-00002-of-00003.gguf", "x-00003-of-00003.gguf"];
        for (no, names) in [&["a"][..], &[], &["b", "c"]].into_iter().enumerate() {
            write_part(dir.path(), files[no], [no as u32, 3, 3], names);
        }
        for file in files {
            let opened = Gguf::open(dir.path().join(file)).unwrap();
            assert_eq!(opened.metadata.0.len(), 1);
            assert_eq!(opened.str("general.name").unwrap(), "part 0");
            assert_eq!(opened.paths().iter().map(|p| p.file_name().unwrap()).collect::<Vec<_>>(), files);
            let found: Vec<_> = opened.tensors.iter().map(|t| (&*t.name, opened.bytes(t)[0])).collect();
            assert_eq!(found, [("a", 0), ("b", 2), ("c", 2)]);
            let sizes = files.map(|f| std::fs::metadata(dir.path().join(f)).unwrap().len());
            assert_eq!(opened.file_bytes(), sizes.iter().sum::<u64>());
        }
    }

    #[test]
    fn incomplete_splits_are_refused() {
        let first = "x-00001-of-00002.gguf";
        let check = |file: &str, second: [u32; 3], names: &[&str], message: &str| {
            let dir = tempfile::tempdir().unwrap();
            write_part(dir.path(), first, [0, 2, 2], &["a"]);
            write_part(dir.path(), file, second, names);
            let error = Gguf::open(dir.path().join(first)).unwrap_err().to_string();
            assert!(error.ends_with(message), "{error}");
        };
        let second = "x-00002-of-00002.gguf";
        check("y", [1, 2, 2], &["b"], "x-00002-of-00002.gguf: No such file or directory (os error 2)");
        check(second, [0, 2, 2], &["b"], "x-00002-of-00002.gguf: split.no: expected 1, found U16(0)");
        check(second, [1, 3, 2], &["b"], "x-00002-of-00002.gguf: split.count: expected 2, found U16(3)");
        check(
            second,
            [1, 2, 2],
            &["b", "c"],
            "x-00001-of-00002.gguf: split.tensors.count: expected 3, found U16(2)",
        );
        check(second, [1, 2, 2], &["a"], "tensor \"a\": duplicate tensor name, in two parts of the split");
        check(
            first,
            [0, 7, 2],
            &["a"],
            "x-00001-of-00002.gguf: file name: expected NAME-00001-of-00007.gguf for a part of a split, found x-00001-of-00002.gguf",
        );
    }

    #[test]
    #[cfg(unix)]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(path("fifo")).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("zero")).unwrap();
        for (name, found) in [("fifo", "a FIFO"), ("socket", "a socket"), ("zero", "a device")] {
            let error = Gguf::open(path(name)).unwrap_err().to_string();
            let expected = format!("{} is {found}, not a file", path(name).display());
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_change_of_the_open_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let file = || std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        write_part(dir.path(), "x.gguf", [0, 1, 1], &["a"]);
        let bytes = std::fs::metadata(&path).unwrap().len();
        let opened = Gguf::open(&path).unwrap();
        opened.check_unchanged().unwrap();
        let found = || opened.check_unchanged().unwrap_err().to_string();
        let expected = "x.gguf was overwritten while loaded";
        file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(found().ends_with(&format!("{expected} (written again with the same size)")), "{}", found());
        file().set_len(bytes - 1).unwrap();
        assert!(
            found().ends_with(&format!("{expected} ({} bytes instead of {bytes})", bytes - 1)),
            "{}",
            found()
        );
        file().set_len(bytes).unwrap();
        let opened = Gguf::open(&path).unwrap();
        std::fs::rename(&path, dir.path().join("y.gguf")).unwrap();
        write_part(dir.path(), "x.gguf", [0, 1, 1], &["b"]);
        opened.check_unchanged().unwrap();
    }

    #[test]
    fn a_tensor_is_replaced_in_memory_and_restored() {
        let dir = tempfile::tempdir().unwrap();
        write_part(dir.path(), "x", [0, 1, 2], &["a", "b"]);
        let mut file = Gguf::open(dir.path().join("x")).unwrap();
        let content = |file: &Gguf| file.tensor("b").map(|t| (t.format, file.bytes(t).to_vec())).unwrap();
        let before = content(&file);
        for values in [[1; 8], [2; 8]] {
            file.replace("b", Format::F32, values.to_vec().into()).unwrap();
            assert_eq!(content(&file), (Format::F32, values.to_vec()));
        }
        file.restore("b");
        assert_eq!(content(&file), before);
        let refused = |error: Error, end: &str| assert!(error.to_string().ends_with(end), "{error}");
        let none = Bytes::new();
        refused(
            file.replace("c", Format::F32, none.clone()).unwrap_err(),
            "c: expected a tensor, found none",
        );
        refused(file.replace("b", Format::F32, none).unwrap_err(), "b: expected 8 bytes, found 0");
    }

    #[test]
    fn getters_name_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let metadata = Metadata(vec![("a".into(), Value::I8(-1)), ("b".into(), Value::I64(7))]);
        Writer::create(&path, Layout::new(metadata, vec![]).unwrap()).unwrap().finish().unwrap();
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.u64("b").unwrap(), 7);
        let refused = |error: Error, end: &str| assert!(error.to_string().ends_with(end), "{error}");
        refused(file.u64("a").unwrap_err(), "x: a: expected an integer that is not negative, found I8(-1)");
        refused(file.str("b").unwrap_err(), "x: b: expected a string, found I64(7)");
        refused(file.str("c").unwrap_err(), "x: c: expected a string, found nothing");
        refused(Gguf::open(dir.path()).unwrap_err(), " is a directory, not a file");
        std::fs::write(&path, b"").unwrap();
        refused(
            Gguf::open(&path).unwrap_err(),
            "byte 0, magic: expected 4 bytes, found the file's end after 0",
        );
    }
}
