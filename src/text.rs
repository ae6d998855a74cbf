//! Bytes as text: UTF-8, or UTF-16 as some programs write it. What is no text is refused by what it is. A leaf.

use anyhow::{Context as _, Result, bail, ensure};

/// The text of a file of this name, without a byte order mark.
///
/// # Errors
/// What is no text, by what it is.
pub fn decode(name: &str, bytes: Vec<u8>) -> Result<String> {
    if let Some(kind) = binary(&bytes) {
        bail!("{name}: expected text, found {kind}");
    }
    if let Some((skip, little)) = utf16(&bytes) {
        let unit = |b: &[u8; 2]| if little { u16::from_le_bytes(*b) } else { u16::from_be_bytes(*b) };
        let (pairs, odd) = bytes[skip..].as_chunks();
        ensure!(odd.is_empty(), "{name}: expected pairs of bytes of UTF-16, found an odd number");
        let units: Vec<u16> = pairs.iter().map(unit).collect();
        return String::from_utf16(&units).with_context(|| format!("{name}: UTF-16"));
    }
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        bail!("{name}: byte {at}: expected text, found 0x00 (a binary file)");
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

/// What a file is that people take for text, or give by mistake.
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
        // A text may begin with the name of the format, but not go on with its version.
        (b"GGUF\x02\0", "a model: give it with -m"),
        (b"GGUF\x03\0", "a model: give it with -m"),
    ];
    KINDS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind)
}

/// How many bytes to skip, and whether little-endian, if this is UTF-16: by its mark, or without one where every
/// second byte is zero, as in Western text.
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

    fn refused(bytes: &[u8], expected: &str) {
        assert_eq!(decode("x", bytes.to_vec()).unwrap_err().to_string(), expected);
    }

    #[test]
    fn encodings() {
        check("Grüße\r\n日本\n".as_bytes(), "Grüße\r\n日本\n");
        check(b"\xef\xbb\xbfhi", "hi");
        check(b"GGUF is a format", "GGUF is a format");
        let utf16 =
            |text: &str, unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<_>>();
        check(&[&[0xff, 0xfe][..], &utf16("Grüße 日本 🎉", u16::to_le_bytes)].concat(), "Grüße 日本 🎉");
        check(&[&[0xfe, 0xff][..], &utf16("日本", u16::to_be_bytes)].concat(), "日本");
        check(&utf16("plain text", u16::to_le_bytes), "plain text");
        check(&utf16("plain text", u16::to_be_bytes), "plain text");
    }

    #[test]
    fn what_is_no_text_is_refused() {
        refused(b"%PDF-1.7 ...", "x: expected text, found a PDF: extract its text first (pdftotext)");
        refused(b"GGUF\x03\0\0\0", "x: expected text, found a model: give it with -m");
        refused(b"ab\0cd\x01ef", "x: byte 2: expected text, found 0x00 (a binary file)");
        refused(b"caf\xe9", "x: byte 3: expected UTF-8 or UTF-16, found 0xe9");
        refused(b"\xff\xfea", "x: expected pairs of bytes of UTF-16, found an odd number");
    }
}
