//! Decodes the bytes of tokens to text incrementally, without splitting characters.
//!
//! Tokens may split characters: an emoji may take three. Invalid bytes become U+FFFD exactly as with
//! `String::from_utf8_lossy`. It takes bytes, not ids; [`super::Vocabulary::decode`] takes ids.

/// Buffers the bytes of an incomplete character between pushes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utf8Stream {
    /// Bytes of an incomplete character, at most three.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Creates a stream without buffered bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes and returns the complete text, which may be empty.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let unfinished = match self.pending.utf8_chunks().last() {
            Some(chunk) if is_incomplete(chunk.invalid()) => chunk.invalid().len(),
            _ => 0,
        };
        let rest = self.pending.split_off(self.pending.len() - unfinished);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        text
    }

    /// Ends the stream; an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Returns whether these bytes, the invalid end of a text, are the start of a character.
fn is_incomplete(rest: &[u8]) -> bool {
    std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8]) {
        for step in 1..=5 {
            let mut stream = Utf8Stream::new();
            let mut text: String = bytes.chunks(step).map(|part| stream.push(part)).collect();
            text += &stream.finish();
            assert_eq!(text, String::from_utf8_lossy(bytes), "{bytes:x?} in steps of {step}");
        }
    }

    #[test]
    fn equals_lossy_conversion_for_every_split() {
        check("a中😀é\u{301}".as_bytes());
        check(b"\xf0\x9f\x98");
        check(b"\xe4\xb8x\xf0\x9f\x98\xff\xf0\x9f\x98\x80\xc0\x80\xed\xa0\x80");
        check(b"\xf4\x90\x80\x80\xe0\x80\x80ok\x80\x80\xe4");
    }

    #[test]
    fn a_character_is_returned_once_complete() {
        let mut stream = Utf8Stream::new();
        let parts: Vec<String> = "x😀".bytes().map(|b| stream.push(&[b])).collect();
        assert_eq!(parts, ["x", "", "", "", "😀"]);
        assert_eq!(stream, Utf8Stream::new());
    }
}
