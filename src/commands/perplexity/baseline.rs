//! The file of a baseline: the log-probabilities of one model at all scored positions of a text, for comparison with others.
//!
//! A header names the model and holds the text's tokens; then comes a record per position ([`super::row`]). Header and records
//! have checksums, so damage is found where it is and nothing is computed from it. A file has about a byte per position and
//! token of the vocabulary: half of 16-bit values.

use super::row::Row;
use crate::io::output::partial_path;
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"KIMIKLD2";
/// The magic of 16-bit baselines of earlier versions.
const EARLIER: &[u8; 8] = b"KIMIKLD1";
/// Longest name of a model in bytes.
const MAX_NAME: usize = 255;
/// Bytes of a record before its head: its length, and two numbers.
const START: usize = 12;
/// Longest head of a record: the tokens of at least [`super::row::HEAD`], the best one and the next one.
const MAX_HEAD: usize = 1026;

/// The text and the model of a baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct BaselineText<'a> {
    /// The model's name, for messages.
    pub model: String,
    /// Number of token ids of the model.
    pub vocab: usize,
    /// Window size in tokens, of which the second half is scored.
    pub window: usize,
    /// The tokens of all windows.
    pub ids: &'a [u32],
}

impl BaselineText<'_> {
    /// Magic, lengths (vocabulary, window, tokens, name), name, ids, checksum.
    fn header(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        let name = &self.model.as_bytes()[..self.model.len().min(MAX_NAME)];
        let lengths = [self.vocab, self.window, self.ids.len(), name.len()];
        lengths.iter().for_each(|n| header.extend((*n as u64).to_le_bytes()));
        header.extend(name);
        self.ids.iter().for_each(|id| header.extend(id.to_le_bytes()));
        header.extend(xxh3_64(&header).to_le_bytes());
        header
    }
}

/// Removes an unfinished file on drop; after the rename it does not exist.
struct PartialFile(PathBuf);

impl Drop for PartialFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Writes a baseline under a temporary name.
pub struct BaselineWriter {
    file: BufWriter<File>,
    path: PathBuf,
    partial: PartialFile,
    records: u64,
}

impl BaselineWriter {
    /// Creates the file and writes the header.
    pub fn create(path: &Path, text: &BaselineText<'_>) -> Result<BaselineWriter> {
        let partial = partial_path(path);
        let file = BufWriter::new(File::create(&partial).with_context(|| partial.display().to_string())?);
        let (path, partial) = (path.to_owned(), PartialFile(partial));
        let mut writer = BaselineWriter { file, path, partial, records: 0 };
        writer.put(&text.header())?;
        Ok(writer)
    }

    /// Writes the record of the next position.
    pub fn write(&mut self, row: &Row) -> Result<()> {
        let mut record = (row.head.len() as u32).to_le_bytes().to_vec();
        record.extend(row.tail.to_le_bytes());
        record.extend(row.rounding.to_le_bytes());
        for (id, log) in &row.head {
            record.extend(id.to_le_bytes());
            record.extend(log.to_le_bytes());
        }
        record.extend(&row.codes);
        record.extend(checksum(self.records, &record).to_le_bytes());
        self.records += 1;
        self.put(&record)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| self.path.display().to_string())
    }

    /// Completes the file and gives it its name.
    pub fn finish(self) -> Result<()> {
        let place = || self.path.display().to_string();
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).with_context(place)?;
        std::fs::rename(&self.partial.0, &self.path).with_context(place)
    }
}

/// Reads the records of a baseline in order.
#[derive(Debug)]
pub struct BaselineReader {
    file: BufReader<File>,
    path: PathBuf,
    /// The name of the model that it was saved with.
    pub model: String,
    vocab: usize,
    records: u64,
}

impl BaselineReader {
    /// Opens a baseline of this text or a longer one with the same beginning.
    ///
    /// # Errors
    /// A damaged file, another vocabulary, window size or text.
    pub fn open(path: &Path, text: &BaselineText<'_>) -> Result<BaselineReader> {
        let place = path.display();
        let mut file = BufReader::new(File::open(path).with_context(|| place.to_string())?);
        let mut start = [0; 40];
        file.read_exact(&mut start).with_context(|| format!("{place}: header"))?;
        if start[..8] == *EARLIER {
            bail!(
                "{place}: expected a baseline of this version of kimi, found an earlier one; --save-baseline writes it again"
            );
        }
        if start[..8] != *MAGIC {
            bail!("{place}: expected a baseline of kimi perplexity, found {}", start[..8].escape_ascii());
        }
        let lengths: Vec<u64> = start[8..].as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        let [vocab, window, tokens, name] = lengths[..] else { bail!("{place}: header") };
        let about = std::fs::metadata(path).with_context(|| place.to_string())?;
        if name > MAX_NAME as u64 || tokens.saturating_mul(4) > about.len() {
            bail!("{place}: header: the file is damaged");
        }
        let mut rest = vec![0; name as usize + tokens as usize * 4 + 8];
        file.read_exact(&mut rest).with_context(|| format!("{place}: header"))?;
        let (body, sum) = rest.split_at(rest.len() - 8);
        if xxh3_64(&[&start, body].concat()).to_le_bytes() != *sum {
            bail!("{place}: header: the file is damaged (wrong checksum)");
        }
        let (name, ids) = body.split_at(name as usize);
        let model = String::from_utf8_lossy(name).into_owned();
        let of = format!("{place}, saved with {model}");
        if vocab != text.vocab as u64 {
            bail!("{of}: expected a vocabulary of {}, found {vocab}: a model of another kind", text.vocab);
        }
        if window != text.window as u64 {
            bail!(
                "{of}: expected windows of {} tokens, found {window}; --window {window} uses it",
                text.window
            );
        }
        let ids: Vec<u32> = ids.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        if let Some(at) = ids.iter().zip(text.ids).position(|(a, b)| a != b) {
            bail!("{of}: expected the same text, found another from token {at} on");
        }
        if ids.len() < text.ids.len() {
            let windows = ids.len() / text.window;
            bail!(
                "{of}: expected {} tokens, found {}; --windows {windows} uses it",
                text.ids.len(),
                ids.len()
            );
        }
        Ok(BaselineReader { file, path: path.to_owned(), model, vocab: text.vocab, records: 0 })
    }

    /// Reads the record of the next position.
    ///
    /// # Errors
    /// A damaged or truncated file.
    pub fn read(&mut self) -> Result<Row> {
        let (at, path) = (self.records, self.path.clone());
        let place = || format!("{}: position {at}: the file is damaged or incomplete", path.display());
        let mut start = [0; START];
        self.file.read_exact(&mut start).with_context(place)?;
        let [head, tail, rounding] = [0, 4, 8].map(|i| [start[i], start[i + 1], start[i + 2], start[i + 3]]);
        let head = u32::from_le_bytes(head) as usize;
        if head > MAX_HEAD.min(self.vocab) {
            bail!("{}", place());
        }
        let mut record = start.to_vec();
        record.resize(START + 8 * head + self.vocab, 0);
        self.file.read_exact(&mut record[START..]).with_context(place)?;
        let mut sum = [0; 8];
        self.file.read_exact(&mut sum).with_context(place)?;
        if checksum(at, &record).to_le_bytes() != sum {
            bail!("{} (wrong checksum)", place());
        }
        self.records += 1;
        let codes = record.split_off(START + 8 * head);
        let pairs = record[START..].as_chunks::<8>().0.iter();
        let pair = |b: &[u8; 8]| {
            (u32::from_le_bytes([b[0], b[1], b[2], b[3]]), f32::from_le_bytes([b[4], b[5], b[6], b[7]]))
        };
        let [tail, rounding] = [tail, rounding].map(f32::from_le_bytes);
        let row = Row { head: pairs.map(pair).collect(), tail, rounding, codes };
        // A checksum does not protect from a crafted file.
        let is_sorted = row.head.is_sorted_by(|a, b| a.0 < b.0);
        if !is_sorted || row.head.last().is_some_and(|(id, _)| *id as usize >= self.vocab) {
            bail!("{}", place());
        }
        Ok(row)
    }
}

/// The checksum of a record and of its index.
fn checksum(index: u64, record: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(record, index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 0];

    fn text(ids: &[u32]) -> BaselineText<'_> {
        BaselineText { model: "wide.gguf".into(), vocab: 16, window: 4, ids }
    }

    /// Writes a baseline of two positions and returns it.
    fn write(path: &Path) -> Vec<Row> {
        let logits = |seed: f32| (0..16).map(|i| (i as f32 * seed).sin() * 9.0).collect::<Vec<f32>>();
        let rows: Vec<Row> =
            [1.0, 2.0].map(|seed| Row::new(&super::super::log_softmax(&logits(seed)), 3)).to_vec();
        let mut writer = BaselineWriter::create(path, &text(&IDS)).unwrap();
        rows.iter().for_each(|row| writer.write(row).unwrap());
        writer.finish().unwrap();
        rows
    }

    #[test]
    fn rows_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.kld");
        let rows = write(&path);
        for ids in [&IDS[..], &IDS[..4]] {
            let mut reader = BaselineReader::open(&path, &text(ids)).unwrap();
            assert_eq!(reader.model, "wide.gguf");
            rows.iter().for_each(|row| assert_eq!(reader.read().unwrap(), *row));
            assert!(
                reader
                    .read()
                    .unwrap_err()
                    .to_string()
                    .contains("position 2: the file is damaged or incomplete")
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_text_model_or_window_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.kld");
        write(&path);
        let refused = |text: BaselineText<'_>, end: &str| {
            let error = BaselineReader::open(&path, &text).unwrap_err().to_string();
            assert_eq!(error, format!("{}, saved with wide.gguf: expected {end}", path.display()));
        };
        let other = BaselineText { vocab: 17, ..text(&IDS) };
        refused(other, "a vocabulary of 17, found 16: a model of another kind");
        let other = BaselineText { window: 8, ..text(&IDS) };
        refused(other, "windows of 8 tokens, found 4; --window 4 uses it");
        refused(text(&[1, 2, 9, 4]), "the same text, found another from token 2 on");
        refused(text(&[1, 2, 3, 4, 5, 6, 7, 0, 1, 1, 1, 1]), "12 tokens, found 8; --windows 2 uses it");
    }

    #[test]
    fn damage_anywhere_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.kld");
        write(&path);
        let bytes = std::fs::read(&path).unwrap();
        let read = |bytes: &[u8]| -> Result<()> {
            std::fs::write(&path, bytes).unwrap();
            let mut reader = BaselineReader::open(&path, &text(&IDS))?;
            (0..2).try_for_each(|_| reader.read().map(drop))
        };
        read(&bytes).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let error = read(&damaged).unwrap_err().to_string();
            assert!(error.contains("damaged") || error.contains("header") || at < 8, "{at}: {error}");
            read(&bytes[..at]).unwrap_err();
        }
        let error = read(b"KIMIKLD1 and more than forty bytes of an earlier file").unwrap_err().to_string();
        assert!(error.contains("found an earlier one; --save-baseline writes it again"), "{error}");
    }
}
