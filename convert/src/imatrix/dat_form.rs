//! Reads the older `.dat` form: for each entry its name, its number of chunks and sums that are scaled to it.
//!
//! All numbers are little-endian 32-bit. It has no counts per expert: sums of experts that were not reached are ones.

use super::{Imatrix, ImatrixEntry};
use crate::error::{Error, Result};

/// Bytes of an entry with an empty name and one sum.
const SMALLEST_ENTRY: usize = 16;

/// Reads from the start of the bytes that are left.
struct DatReader<'a> {
    listing: &'a str,
    all: usize,
    rest: &'a [u8],
}

impl<'a> DatReader<'a> {
    /// The next `count` elements of `size` bytes; a file that ends before is an error.
    fn take(&mut self, what: &str, count: i32, size: usize) -> Result<&'a [u8]> {
        let at = self.all - self.rest.len();
        let wanted = usize::try_from(count).ok().and_then(|n| n.checked_mul(size));
        match wanted.and_then(|n| self.rest.split_at_checked(n)) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => {
                let expected = format!("{count} x {size} bytes of {what}");
                let found = format!("{} bytes before the end", self.rest.len());
                Err(Error::bad(self.listing, format!("byte {at}"), expected, found))
            }
        }
    }

    fn number(&mut self, what: &str) -> Result<i32> {
        let bytes = self.take(what, 1, 4)?;
        Ok(i32::from_le_bytes(bytes.try_into().expect("4 bytes")))
    }

    /// A number of at least 1.
    fn positive(&mut self, what: &str) -> Result<i32> {
        let at = self.all - self.rest.len();
        match self.number(what)? {
            n @ 1.. => Ok(n),
            n => Err(Error::bad(
                self.listing,
                format!("byte {at}"),
                format!("{what} of at least 1 (an importance matrix in GGUF or .dat form)"),
                n,
            )),
        }
    }

    fn text(&mut self, what: &str) -> Result<&'a str> {
        let at = self.all - self.rest.len();
        let length = self.number(&format!("the length of {what}"))?;
        let bytes = self.take(what, length, 1)?;
        std::str::from_utf8(bytes).map_err(|_| {
            Error::bad(self.listing, format!("byte {at}"), format!("{what} in UTF-8"), "other bytes")
        })
    }
}

pub(super) fn read(listing: &str, bytes: &[u8]) -> Result<Imatrix> {
    let mut from = DatReader { listing, all: bytes.len(), rest: bytes };
    let mut imatrix = Imatrix { listing: listing.to_owned(), ..Imatrix::default() };
    let entries = from.positive("a number of entries")?;
    if entries as usize > from.rest.len() / SMALLEST_ENTRY {
        let text = bytes.iter().take(64).all(|b| !b.is_ascii_control() || b.is_ascii_whitespace());
        let numbers = format!("a number of {entries} entries in {} bytes", bytes.len());
        let found = if text { "a text" } else { &numbers };
        return Err(Error::bad(listing, "byte 0", "an importance matrix in GGUF or .dat form", found));
    }
    for _ in 0..entries {
        let name = from.text("a name")?;
        let calls = from.positive("a number of chunks")?;
        let count = from.positive("a number of sums")?;
        let sums =
            from.take("sums", count, 4)?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        imatrix.add(name, ImatrixEntry { sums, counts: vec![calls as f32] })?;
    }
    // The oldest files end here.
    if !from.rest.is_empty() {
        imatrix.chunk_count = Some(from.positive("a number of chunks")? as u64);
    }
    if !from.rest.is_empty() {
        imatrix.datasets.push(from.text("a file name")?.to_owned());
    }
    match from.rest.len() {
        0 => Ok(imatrix),
        left => Err(Error::bad(
            listing,
            format!("byte {}", bytes.len() - left),
            "the end",
            format!("{left} bytes"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as i32).to_le_bytes(), text.as_bytes()].concat()
    }

    fn entry(name: &str, calls: i32, sums: &[f32]) -> Vec<u8> {
        let numbers = [calls, sums.len() as i32].map(i32::to_le_bytes).concat();
        [text(name), numbers, sums.iter().flat_map(|x| x.to_le_bytes()).collect()].concat()
    }

    fn file() -> Vec<u8> {
        let entries = [entry("blk.0.a.weight", 4, &[8.0, 2.0]), entry("blk.1.b.weight", 4, &[4.0])].concat();
        [2i32.to_le_bytes().to_vec(), entries, 4i32.to_le_bytes().to_vec(), text("wiki.txt")].concat()
    }

    #[test]
    fn sums_are_divided_by_the_chunks() {
        let imatrix = read("x", &file()).unwrap();
        assert_eq!((imatrix.chunk_count, &imatrix.datasets[..]), (Some(4), &["wiki.txt".to_owned()][..]));
        let (importance, _) = imatrix.importance();
        assert_eq!(importance.tensors["blk.0.a.weight"], [2.0, 0.5]);
        // Files of the first versions have neither a number of chunks nor a name.
        let oldest = &file()[..file().len() - text("wiki.txt").len() - 4];
        assert_eq!(read("x", oldest).unwrap().entries, imatrix.entries);
    }

    #[test]
    fn every_truncation_is_refused_or_the_oldest_form() {
        let whole = file();
        let accepted: Vec<usize> = (0..whole.len()).filter(|n| read("x", &whole[..*n]).is_ok()).collect();
        let end = whole.len() - text("wiki.txt").len();
        assert_eq!(accepted, [end - 4, end]);
    }

    #[test]
    fn sizes_are_not_trusted() {
        let refused = |bytes: &[u8], message: &str| {
            assert_eq!(read("x", bytes).unwrap_err().to_string(), format!("x: {message}"));
        };
        let mut bytes = file();
        bytes[4..8].copy_from_slice(&i32::MAX.to_le_bytes());
        let left = bytes.len() - 8;
        let expected = "expected 2147483647 x 1 bytes of a name";
        refused(&bytes, &format!("byte 8: {expected}, found {left} bytes before the end"));
        bytes[4..8].copy_from_slice(&(-1i32).to_le_bytes());
        refused(
            &bytes,
            &format!("byte 8: expected -1 x 1 bytes of a name, found {left} bytes before the end"),
        );
        let form = "of at least 1 (an importance matrix in GGUF or .dat form)";
        refused(&[0; 4], &format!("byte 0: expected a number of entries {form}, found 0"));
        let expected = "expected an importance matrix in GGUF or .dat form";
        refused(
            &[255, 0, 0, 0, 1, 2],
            &format!("byte 0: {expected}, found a number of 255 entries in 6 bytes"),
        );
        refused("Some text,\nfor calibration: 你好".as_bytes(), &format!("byte 0: {expected}, found a text"));
        refused(
            &[&file()[..], &[1]].concat(),
            &format!("byte {}: expected the end, found 1 bytes", file().len()),
        );
    }
}
