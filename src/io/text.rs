//! Decodes text files: UTF-8, or UTF-16 and UTF-32 as some programs write them. Binary files are rejected by their format,
//! and endless input at a size limit.

use anyhow::{Context as _, Error, Result, ensure};
use std::io::Read;

/// Largest text in bytes: 128 bytes for each of a million tokens.
pub const MAX_BYTES: u64 = 128 << 20;
/// Bytes that are read before a binary file is rejected.
pub(crate) const HEAD_BYTES: u64 = 1 << 16;

/// Reads a text of at most `max` bytes.
///
/// # Errors
/// Read errors, bytes that are not text, and more than `max` bytes.
pub fn read(name: &str, mut input: impl Read, max: u64) -> Result<String> {
    let mut bytes = Vec::new();
    let read = |bytes: &mut Vec<u8>, input: &mut dyn Read, most: u64| {
        input.take(most).read_to_end(bytes).with_context(|| name.to_owned())
    };
    read(&mut bytes, &mut input, HEAD_BYTES.min(max + 1))?;
    if let Some(e) = binary_error(name, &bytes) {
        return Err(e);
    }
    read(&mut bytes, &mut input, (max + 1).saturating_sub(HEAD_BYTES))?;
    ensure!(bytes.len() as u64 <= max, "{name}: expected at most {max} bytes of text, found more");
    decode(name, bytes)
}

/// The error for a known binary format or a zero byte outside UTF-16 and UTF-32.
pub(crate) fn binary_error(name: &str, bytes: &[u8]) -> Option<Error> {
    let kind = binary(bytes).map(|kind| anyhow::anyhow!("{name}: expected text, found {kind}"));
    kind.or_else(|| {
        let is_wide = utf32(bytes).is_some() || utf16(bytes).is_some();
        let at = bytes.iter().position(|b| *b == 0).filter(|_| !is_wide)?;
        Some(anyhow::anyhow!("{name}: byte {at}: expected text, found 0x00 (a binary file)"))
    })
}

/// Decodes the bytes of the file `name`; removes a byte order mark.
///
/// # Errors
/// Bytes that are not text; the message names a known binary format.
pub fn decode(name: &str, bytes: Vec<u8>) -> Result<String> {
    if let Some(e) = binary_error(name, &bytes) {
        return Err(e);
    }
    if let Some((skip, little)) = utf32(&bytes) {
        let unit = |b: &[u8; 4]| if little { u32::from_le_bytes(*b) } else { u32::from_be_bytes(*b) };
        let (units, rest) = bytes[skip..].as_chunks();
        ensure!(
            rest.is_empty(),
            "{name}: expected groups of four bytes of UTF-32, found {} more",
            rest.len()
        );
        let text: Option<String> = units.iter().map(|b| char::from_u32(unit(b))).collect();
        return text.with_context(|| format!("{name}: expected characters of UTF-32, found other numbers"));
    }
    if let Some((skip, little)) = utf16(&bytes) {
        let unit = |b: &[u8; 2]| if little { u16::from_le_bytes(*b) } else { u16::from_be_bytes(*b) };
        let (pairs, odd) = bytes[skip..].as_chunks();
        ensure!(odd.is_empty(), "{name}: expected pairs of bytes of UTF-16, found an odd number");
        let units: Vec<u16> = pairs.iter().map(unit).collect();
        return String::from_utf16(&units).with_context(|| format!("{name}: UTF-16"));
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{name}: byte {at}: expected UTF-8 or UTF-16, found 0x{:02x}", e.as_bytes()[at])
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// The format of a binary file that users commonly give instead of text.
fn binary(bytes: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 10] = [
        (b"%PDF-", "a PDF: extract its text first (pdftotext)"),
        (b"PK\x03\x04", "a zip archive, perhaps an office document: save it as text first"),
        (b"\xd0\xcf\x11\xe0", "an old office document: save it as text first"),
        (b"\x1f\x8b", "gzip: unpack it first"),
        (b"\x7fELF", "a program"),
        (b"\x89PNG", "an image"),
        (b"\xff\xd8\xff", "an image"),
        (b"GIF8", "an image"),
        // A text can begin with the magic, but not with the version after it.
        (b"GGUF\x02\0", "a model: give it with -m"),
        (b"GGUF\x03\0", "a model: give it with -m"),
    ];
    KINDS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind)
}

/// The number of bytes of the mark and whether the first byte is the lowest, of a text in UTF-32: one with a byte order mark,
/// or whose first characters have the two zero bytes of all characters.
fn utf32(bytes: &[u8]) -> Option<(usize, bool)> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] => return Some((4, true)),
        [0, 0, 0xfe, 0xff, ..] => return Some((4, false)),
        _ => {}
    }
    let units = bytes[..bytes.len().min(1024)].as_chunks::<4>().0;
    let is_text = |unit: u32| (0x20..=0x10_ffff).contains(&unit) || matches!(unit, 9 | 10 | 12 | 13);
    let all = |unit: fn([u8; 4]) -> u32| units.len() >= 2 && units.iter().all(|b| is_text(unit(*b)));
    match () {
        () if all(u32::from_le_bytes) => Some((0, true)),
        () if all(u32::from_be_bytes) => Some((0, false)),
        () => None,
    }
}

/// For UTF-16, the bytes to skip and whether it is little-endian. Detected by its byte order mark, or by zeros in nearly
/// every second byte, as in Western text.
fn utf16(bytes: &[u8]) -> Option<(usize, bool)> {
    match bytes {
        [0xff, 0xfe, ..] => return Some((2, true)),
        [0xfe, 0xff, ..] => return Some((2, false)),
        _ => {}
    }
    let pairs = bytes[..bytes.len().min(1024)].as_chunks::<2>().0;
    let zeros = |at: usize| pairs.iter().filter(|pair| pair[at] == 0).count();
    let most = |n: usize| pairs.len() >= 2 && n * 10 >= pairs.len() * 9;
    match (zeros(0), zeros(1)) {
        (0, second) if most(second) => Some((0, true)),
        (first, 0) if most(first) => Some((0, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: &str) {
        assert_eq!(decode("x", bytes.to_vec()).unwrap(), expected);
    }

    fn rejected(bytes: &[u8], expected: &str) {
        assert_eq!(decode("x", bytes.to_vec()).unwrap_err().to_string(), expected);
    }

    #[test]
    fn utf8_and_utf16_are_decoded() {
        check("Grüße\r\n日本\n".as_bytes(), "Grüße\r\n日本\n");
        check(b"\xef\xbb\xbfhi", "hi");
        check(b"GGUF is a format", "GGUF is a format");
        let utf16 =
            |text: &str, unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<_>>();
        check(&[&[0xff, 0xfe][..], &utf16("Grüße 日本 🎉", u16::to_le_bytes)].concat(), "Grüße 日本 🎉");
        check(&[&[0xfe, 0xff][..], &utf16("日本", u16::to_be_bytes)].concat(), "日本");
        check(&utf16("plain text", u16::to_le_bytes), "plain text");
        check(&utf16("plain text", u16::to_be_bytes), "plain text");
        let utf32 = |text: &str, unit: fn(u32) -> [u8; 4]| {
            text.chars().flat_map(|c| unit(c.into())).collect::<Vec<_>>()
        };
        check(&utf32("\u{feff}Grüße 🎉\n", u32::to_le_bytes), "Grüße 🎉\n");
        check(&utf32("\u{feff}日本", u32::to_be_bytes), "日本");
        check(&utf32("plain 日本", u32::to_le_bytes), "plain 日本");
        check(&utf32("plain 日本", u32::to_be_bytes), "plain 日本");
        rejected(b"\xff\xfe\0\0a\0\0", "x: expected groups of four bytes of UTF-32, found 3 more");
        rejected(b"\xff\xfe\0\0\0\0\xff\0", "x: expected characters of UTF-32, found other numbers");
    }

    #[test]
    fn endless_input_is_rejected_at_the_limit() {
        let e = |input: &mut dyn Read| read("x", input, 1 << 20).unwrap_err().to_string();
        assert_eq!(e(&mut std::io::repeat(b'a')), "x: expected at most 1048576 bytes of text, found more");
        let mut zeros = std::io::repeat(0).take(1 << 40);
        assert_eq!(e(&mut zeros), "x: byte 0: expected text, found 0x00 (a binary file)");
        assert_eq!(zeros.limit(), (1 << 40) - HEAD_BYTES, "only the head is read");
        for length in [0, 9, 10, HEAD_BYTES as usize, HEAD_BYTES as usize + 1, 100_000] {
            let text = "a".repeat(length);
            assert_eq!(read("x", text.as_bytes(), length as u64).unwrap(), text);
            assert!(length == 0 || read("x", text.as_bytes(), length as u64 - 1).is_err());
        }
    }

    /// Any bytes decode to a text or give an error that names the file.
    #[test]
    fn mutated_texts_are_decoded_or_refused() {
        let utf16 =
            |text: &str, unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<_>>();
        let text = "\u{feff}Grüße\r\n日本 🎉\tend\n";
        let seeds = [
            text.as_bytes().to_vec(),
            utf16(text, u16::to_le_bytes),
            utf16(text, u16::to_be_bytes),
            utf16("plain text", u16::to_le_bytes),
            b"\xef\xbb\xbf\xff\xfe\xfe\xff".to_vec(),
            b"\xc0\xaf\xe0\x80\xaf\xed\xa0\x80\xf4\x90\x80\x80".to_vec(),
            b"GGUF\x03\0\0\0".to_vec(),
            Vec::new(),
        ];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below.max(1) as u64) as usize
        };
        let (mut texts, mut refusals) = (0, 0);
        for _ in 0..20_000 {
            let mut bytes = seeds[next(seeds.len())].clone();
            for _ in 0..next(4) {
                let at = next(bytes.len() + 1);
                match next(5) {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, [0, 0xff, 0xfe, 0xd8, 0x80, 0xc0, b'\n'][next(7)]),
                    2 => bytes.extend_from_within(at..),
                    3 => bytes
                        .splice(0..0, [[0xff, 0xfe], [0xfe, 0xff], [0, b'a'], [0xef, 0xbb]][next(4)])
                        .for_each(drop),
                    _ if at < bytes.len() => bytes[at] = next(256) as u8,
                    _ => {}
                }
            }
            match read("x", &bytes[..], 100) {
                Ok(text) => {
                    texts += 1;
                    assert!(text.len() <= 2 * bytes.len(), "{bytes:?}");
                }
                Err(e) => {
                    refusals += 1;
                    assert!(e.to_string().starts_with("x: "), "{bytes:?}: {e}");
                }
            }
        }
        assert!(texts > 1000 && refusals > 1000, "{texts} texts, {refusals} refusals");
    }

    #[test]
    fn binary_files_are_rejected() {
        rejected(b"%PDF-1.7 ...", "x: expected text, found a PDF: extract its text first (pdftotext)");
        rejected(b"GGUF\x03\0\0\0", "x: expected text, found a model: give it with -m");
        rejected(b"ab\0cd\x01ef", "x: byte 2: expected text, found 0x00 (a binary file)");
        rejected(b"caf\xe9", "x: byte 3: expected UTF-8 or UTF-16, found 0xe9");
        rejected(b"\xff\xfea", "x: expected pairs of bytes of UTF-16, found an odd number");
    }
}
