//! Accumulates the squared inputs of every weight, and saves them so that a stopped run resumes.
//!
//! Sums are f64, so that their order hardly matters. The saved file has a fixed layout that follows from the model: it is used
//! only if its first bytes are exactly those expected, its length is right and its checksum matches.

use crate::io::output::partial_path;
use anyhow::{Context as _, Result};
use convert::imatrix::ImatrixEntry;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Rows whose squares are added in f32 before they are added to the f64 sums: eight columns fit in a register.
const BLOCK_ROWS: usize = 32;

/// The sums of all weights.
#[derive(Debug, Default)]
pub struct Sums {
    weights: Vec<WeightSums>,
    by_name: BTreeMap<Arc<str>, usize>,
    /// The first weight that had an input of NaN or infinity.
    pub not_finite: Option<Arc<str>>,
}

/// The sums of one weight.
#[derive(Debug)]
struct WeightSums {
    name: Arc<str>,
    cols: usize,
    /// Tokens per matrix; a single number if all matrices see every token.
    counts: Vec<u64>,
    /// Squares summed over the tokens: the columns of each matrix in turn.
    sums: Vec<f64>,
}

impl Sums {
    /// Adds a weight with `matrices` matrices; returns its number. Parts of one tensor share it.
    pub fn register(&mut self, name: &Arc<str>, cols: usize, matrices: usize, counts: usize) -> usize {
        *self.by_name.entry(name.clone()).or_insert_with(|| {
            let (counts, sums) = (vec![0; counts], vec![0.0; cols * matrices]);
            self.weights.push(WeightSums { name: name.clone(), cols, counts, sums });
            self.weights.len() - 1
        })
    }

    /// Adds the squares of `rows` tokens for a weight or, with `matrix`, for one matrix of a stack.
    pub fn add(&mut self, weight: usize, matrix: Option<usize>, rows: usize, squares: &[f64]) {
        let weight = &mut self.weights[weight];
        let first = matrix.unwrap_or(0);
        weight.counts[first] += rows as u64;
        let sums = &mut weight.sums[first * weight.cols..][..squares.len()];
        sums.iter_mut().zip(squares).for_each(|(sum, x)| *sum += x);
        if self.not_finite.is_none() && !squares.iter().all(|x| x.is_finite()) {
            self.not_finite = Some(weight.name.clone());
        }
    }

    /// The entries of the importance matrix. A weight that no token reached has none.
    pub fn entries(&self) -> BTreeMap<String, ImatrixEntry> {
        let reached = self.weights.iter().filter(|weight| weight.counts.iter().any(|count| *count > 0));
        let entry = |weight: &WeightSums| {
            let sums = weight.sums.iter().map(|x| *x as f32).collect();
            let counts = weight.counts.iter().map(|n| *n as f32).collect();
            (weight.name.to_string(), ImatrixEntry { sums, counts })
        };
        reached.map(entry).collect()
    }

    /// Bytes of counts and sums in a saved file.
    fn saved_bytes(&self) -> usize {
        self.weights.iter().map(|weight| 8 * (weight.counts.len() + weight.sums.len())).sum()
    }

    /// A line per weight that identifies the layout of a saved file.
    fn layout(&self) -> String {
        let line = |w: &WeightSums| format!("{} {} {} {}\n", w.name, w.cols, w.counts.len(), w.sums.len());
        self.weights.iter().map(line).collect()
    }
}

/// Returns the sum of squares of each column of `[rows, cols]`.
pub fn column_squares(x: &[f32], cols: usize) -> Vec<f64> {
    let mut sums = vec![0.0; cols];
    let mut block = vec![0.0f32; cols];
    for rows in x.chunks(cols * BLOCK_ROWS) {
        block.fill(0.0);
        for row in rows.chunks_exact(cols) {
            block.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
        sums.iter_mut().zip(&block).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    sums
}

/// The file in which the sums of an unfinished run are saved.
pub struct SavedSums {
    path: PathBuf,
    /// Identifies model, text and options: a file with another stamp is not resumed.
    stamp: String,
}

impl SavedSums {
    /// The file beside `output` for a run that `stamp` identifies.
    pub fn beside(output: &Path, stamp: String) -> SavedSums {
        let mut name = output.as_os_str().to_owned();
        name.push(".sums");
        SavedSums { path: name.into(), stamp }
    }

    fn header(&self, sums: &Sums) -> Vec<u8> {
        format!("{}\n{}\n", self.stamp, sums.layout()).into_bytes()
    }

    /// Restores the sums of an earlier run of the same work; returns how many windows it had done.
    pub fn restore(&self, sums: &mut Sums) -> Option<u64> {
        let file = models::file::open(&self.path).ok()?;
        let about = file.metadata().ok()?;
        let (header, body) = (self.header(sums), 8 + sums.saved_bytes());
        let bytes = header.len() + body + 8;
        if !models::file::is_own(&about) || about.len() != bytes as u64 {
            return None;
        }
        let mut content = vec![0; bytes];
        BufReader::new(file).read_exact(&mut content).ok()?;
        let (content, checksum) = content.split_at(bytes - 8);
        if xxh3_64(content).to_le_bytes() != *checksum || !content.starts_with(&header) {
            return None;
        }
        let mut words = content[header.len()..].as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        let done = words.next()?;
        for weight in &mut sums.weights {
            weight.counts.iter_mut().zip(&mut words).for_each(|(count, word)| *count = word);
            weight.sums.iter_mut().zip(&mut words).for_each(|(sum, word)| *sum = f64::from_bits(word));
        }
        Some(done)
    }

    /// Saves the sums after `done` windows, under a temporary name first.
    pub fn save(&self, sums: &Sums, done: u64) -> Result<()> {
        let partial = partial_path(&self.path);
        let write = || -> Result<()> {
            let mut content = self.header(sums);
            content.extend(done.to_le_bytes());
            for weight in &sums.weights {
                weight.counts.iter().for_each(|count| content.extend(count.to_le_bytes()));
                weight.sums.iter().for_each(|sum| content.extend(sum.to_le_bytes()));
            }
            let checksum = xxh3_64(&content);
            content.extend(checksum.to_le_bytes());
            let file: File = models::file::open_own(&partial)?;
            file.set_len(0)?;
            let mut file = BufWriter::new(file);
            file.write_all(&content)?;
            file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
            Ok(std::fs::rename(&partial, &self.path)?)
        };
        write().inspect_err(|_| self.remove()).with_context(|| partial.display().to_string())
    }

    /// Removes the saved sums, if there are any.
    pub fn remove(&self) {
        for path in [&self.path, &partial_path(&self.path)] {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums() -> Sums {
        let mut sums = Sums::default();
        assert_eq!(sums.register(&"blk.0.a.weight".into(), 2, 1, 1), 0);
        assert_eq!(sums.register(&"blk.0.up_exps.weight".into(), 2, 3, 3), 1);
        assert_eq!(sums.register(&"blk.0.a.weight".into(), 2, 1, 1), 0);
        sums
    }

    #[test]
    fn squares_are_summed_by_column() {
        let rows: Vec<f32> = (0..200).map(|i| i as f32).collect();
        let expected = [0, 1].map(|col| (0..100).map(|row| f64::from(2 * row + col).powi(2)).sum::<f64>());
        assert_eq!(column_squares(&rows, 2), expected);
    }

    #[test]
    fn matrices_of_a_stack_have_their_own_counts() {
        let mut sums = sums();
        sums.add(0, None, 5, &[1.0, 2.0]);
        sums.add(1, Some(2), 3, &[4.0, 5.0]);
        sums.add(1, Some(2), 1, &[1.0, 0.5]);
        let entries = sums.entries();
        assert_eq!(entries["blk.0.a.weight"], ImatrixEntry { sums: vec![1.0, 2.0], counts: vec![5.0] });
        let stack = ImatrixEntry { sums: vec![0.0, 0.0, 0.0, 0.0, 5.0, 5.5], counts: vec![0.0, 0.0, 4.0] };
        assert_eq!(entries["blk.0.up_exps.weight"], stack);
        assert_eq!(sums.not_finite, None);
        sums.add(0, None, 1, &[f64::NAN, 0.0]);
        assert_eq!(sums.not_finite.as_deref(), Some("blk.0.a.weight"));
    }

    #[test]
    fn only_undamaged_sums_of_the_same_run_are_restored() {
        let dir = tempfile::tempdir().unwrap();
        let saved = |stamp: &str| SavedSums::beside(&dir.path().join("o"), stamp.to_owned());
        let mut before = sums();
        before.add(1, Some(1), 7, &[0.1, 0.2]);
        saved("x").save(&before, 9).unwrap();
        let restored = |stamp: &str| {
            let mut sums = sums();
            saved(stamp).restore(&mut sums).map(|done| (done, sums.entries()))
        };
        assert_eq!(restored("x"), Some((9, before.entries())));
        assert_eq!(restored("y"), None);
        let path = dir.path().join("o.sums");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(restored("x"), None, "byte {at}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(restored("x"), None);
        saved("x").remove();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
