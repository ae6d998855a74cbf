//! Reads and writes importance matrices: llama.cpp's GGUF form, and its older `.dat` form (reading only).
//!
//! An entry belongs to the weight of its name. It holds the squared inputs of each column, summed over the tokens, and the
//! number of these tokens; a stack of experts has both for each expert. Sizes in a file are never trusted. Next: `gguf_form`,
//! `dat_form`, then `crate::importance`, which conversions use.

mod dat_form;
mod gguf_form;

use crate::error::{Error, Result};
use crate::importance::Importance;
use bytes::Bytes;
use models::gguf::read::Gguf;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

/// Largest file that is read; the matrix of the published model has 300 MB.
const MAX_BYTES: u64 = 4 << 30;

/// An importance matrix as a file holds it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// Name of the file, for messages.
    pub listing: String,
    /// Names of the texts that it was computed from.
    pub datasets: Vec<String>,
    /// Number of chunks of text; None if the file does not say.
    pub chunk_count: Option<u64>,
    /// Tokens of a chunk; None if the file does not say.
    pub chunk_size: Option<u64>,
    /// The sums by the name of their weight.
    pub entries: BTreeMap<String, ImatrixEntry>,
    /// The KL divergence per relative error of weights, by name, which llama.cpp ignores. Finite and at least 0.
    pub sensitivities: BTreeMap<String, f32>,
}

/// The squared inputs of one weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImatrixEntry {
    /// Sums of squares, matrix after matrix, one per column. Finite and at least 0.
    pub sums: Vec<f32>,
    /// Tokens that the sums of each matrix are over; one number if all matrices of a stack saw the same tokens.
    pub counts: Vec<f32>,
}

/// Experts that no token of the text reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unreached {
    /// Unreached matrices of stacks of experts.
    pub experts: usize,
    /// All matrices of these stacks.
    pub of: usize,
    /// Stacks of which no matrix was reached.
    pub stacks: usize,
}

impl Imatrix {
    /// Opens a file of either form.
    ///
    /// # Errors
    /// A file that cannot be read or is malformed; each is one line.
    pub fn open(path: &Path) -> Result<Imatrix> {
        let mut file = models::file::open(path)?;
        let bytes = file.metadata().map_err(Error::io(path))?.len();
        let shown = path.display().to_string();
        if bytes > MAX_BYTES {
            let expected = format!("an importance matrix of at most {MAX_BYTES} bytes");
            return Err(Error::bad(shown, "size", expected, bytes));
        }
        if is_gguf(&mut file).map_err(Error::io(path))? {
            return gguf_form::read(&shown, &Gguf::open(path)?);
        }
        let mut content = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut content).map_err(Error::io(path))?;
        dat_form::read(&shown, &content)
    }

    /// Reads a complete file of either form in memory; `listing` is used in messages.
    ///
    /// # Errors
    /// A malformed file.
    pub fn from_bytes(listing: &str, bytes: Bytes) -> Result<Imatrix> {
        match bytes.starts_with(b"GGUF") {
            true => gguf_form::read(listing, &Gguf::from_bytes(listing, bytes)?),
            false => dat_form::read(listing, &bytes),
        }
    }

    /// Writes llama.cpp's GGUF form under a temporary name and renames it.
    ///
    /// # Errors
    /// An I/O error, or a name too long for a tensor.
    pub fn write(&self, path: &Path) -> Result<()> {
        gguf_form::write(self, path)
    }

    /// The mean square of each column, for the quantizers. An expert that no token reached gets the mean of the reached
    /// experts of its stack; a stack without any gets ones.
    pub fn importance(&self) -> (Importance, Unreached) {
        let mut unreached = Unreached::default();
        let means = |(name, entry): (&String, &ImatrixEntry)| (name.clone(), entry.means(&mut unreached));
        let tensors = self.entries.iter().map(means).collect();
        let tokens = |(name, entry): (&String, &ImatrixEntry)| {
            (entry.counts.len() > 1).then(|| (name.clone(), entry.counts.clone()))
        };
        let importance = Importance {
            listing: self.listing.clone(),
            dataset: self.datasets.first().cloned(),
            chunks: self.chunk_count,
            tensors,
            tokens: self.entries.iter().filter_map(tokens).collect(),
        };
        (importance, unreached)
    }

    /// Adds an entry of a file after checking its numbers.
    fn add(&mut self, name: &str, entry: ImatrixEntry) -> Result<()> {
        let bad = |place: String, expected: &str, found: String| {
            Err(Error::bad(&self.listing, place, expected, found))
        };
        let (sums, counts) = (&entry.sums, &entry.counts);
        if sums.is_empty() || counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            let found = format!("{} and {}", sums.len(), counts.len());
            return bad(name.to_owned(), "sums for each of its counts", found);
        }
        let wrong = |values: &[f32]| values.iter().position(|x| !x.is_finite() || *x < 0.0);
        for (part, values) in [("sum", sums), ("count", counts)] {
            if let Some(at) = wrong(values) {
                let found = format!("{} at {at}", values[at]);
                return bad(format!("{name}, {part}s"), "finite numbers of at least 0", found);
            }
        }
        // Below one token the mean might overflow.
        let too_few = |count: &f32| *count < 1.0 && (*count > 0.0 || counts.len() == 1);
        if let Some(count) = counts.iter().find(|count| too_few(count)) {
            return bad(format!("{name}, counts"), "at least 1 token", count.to_string());
        }
        let listing = self.listing.clone();
        match self.entries.insert(name.to_owned(), entry) {
            Some(_) => Err(Error::bad(listing, name, "one entry of that name", "two")),
            None => Ok(()),
        }
    }
}

impl ImatrixEntry {
    fn means(&self, unreached: &mut Unreached) -> Vec<f32> {
        let cols = self.sums.len() / self.counts.len();
        let mut means = Vec::with_capacity(self.sums.len());
        for (sums, count) in self.sums.chunks_exact(cols).zip(&self.counts) {
            means.extend(sums.iter().map(|sum| if *count > 0.0 { sum / count } else { 0.0 }));
        }
        let missing = self.counts.iter().filter(|count| **count == 0.0).count();
        if missing == 0 {
            return means;
        }
        unreached.experts += missing;
        unreached.of += self.counts.len();
        unreached.stacks += usize::from(missing == self.counts.len());
        let reached = (self.counts.len() - missing) as f64;
        let mut mean = vec![0.0f64; cols];
        for values in means.chunks_exact(cols) {
            mean.iter_mut().zip(values).for_each(|(mean, x)| *mean += f64::from(*x));
        }
        let mean: Vec<f32> =
            mean.iter().map(|sum| if reached > 0.0 { (sum / reached) as f32 } else { 1.0 }).collect();
        for (values, count) in means.chunks_exact_mut(cols).zip(&self.counts) {
            if *count == 0.0 {
                values.copy_from_slice(&mean);
            }
        }
        means
    }
}

/// Returns whether the file begins with GGUF's magic, and rewinds it.
fn is_gguf(file: &mut File) -> std::io::Result<bool> {
    let mut magic = Vec::new();
    (&mut *file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(magic == b"GGUF")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sums: &[f32], counts: &[f32]) -> ImatrixEntry {
        ImatrixEntry { sums: sums.to_vec(), counts: counts.to_vec() }
    }

    fn added(name: &str, entry: ImatrixEntry) -> Result<Imatrix> {
        let mut imatrix = Imatrix { listing: "i".into(), ..Imatrix::default() };
        imatrix.add(name, entry).map(|()| imatrix)
    }

    #[test]
    fn unreached_experts_get_the_mean_of_the_others() {
        let mut imatrix = added("stack", entry(&[2.0, 4.0, 0.0, 0.0, 9.0, 6.0], &[2.0, 0.0, 3.0])).unwrap();
        imatrix.add("none", entry(&[0.0; 4], &[0.0; 2])).unwrap();
        imatrix.add("dense", entry(&[8.0, 4.0, 0.0], &[4.0])).unwrap();
        let (importance, unreached) = imatrix.importance();
        assert_eq!(unreached, Unreached { experts: 3, of: 5, stacks: 1 });
        assert_eq!(importance.tensors["stack"], [1.0, 2.0, 2.0, 2.0, 3.0, 2.0]);
        assert_eq!(importance.tensors["none"], [1.0; 4]);
        assert_eq!(importance.tensors["dense"], [2.0, 1.0, 0.0]);
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        let refused = |entry: ImatrixEntry, message: &str| {
            assert_eq!(added("blk.0.x.weight", entry).unwrap_err().to_string(), message);
        };
        let numbers = "expected finite numbers of at least 0, found";
        let [sums, counts] = ["sums", "counts"].map(|part| format!("i: blk.0.x.weight, {part}: {numbers}"));
        refused(entry(&[1.0, f32::NAN], &[1.0]), &format!("{sums} NaN at 1"));
        refused(entry(&[1.0, f32::INFINITY], &[1.0]), &format!("{sums} inf at 1"));
        refused(entry(&[-1.0], &[1.0]), &format!("{sums} -1 at 0"));
        refused(entry(&[1.0, 1.0], &[1.0, -2.0]), &format!("{counts} -2 at 1"));
        refused(entry(&[1.0], &[f32::NAN]), &format!("{counts} NaN at 0"));
        refused(entry(&[1.0], &[0.0]), "i: blk.0.x.weight, counts: expected at least 1 token, found 0");
        let few = "i: blk.0.x.weight, counts: expected at least 1 token, found 0.5";
        refused(entry(&[1.0; 2], &[2.0, 0.5]), few);
        let shape = "i: blk.0.x.weight: expected sums for each of its counts, found";
        refused(entry(&[1.0; 3], &[1.0; 2]), &format!("{shape} 3 and 2"));
        refused(entry(&[], &[1.0]), &format!("{shape} 0 and 1"));
        refused(entry(&[1.0], &[]), &format!("{shape} 1 and 0"));
    }
}
