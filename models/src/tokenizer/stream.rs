//! Bytes of tokens to text, never splitting a character.
//!
//! Tokens cut characters: an emoji may be three of them. What cannot become a character any more is U+FFFD,
//! placed as `String::from_utf8_lossy` places it. Not aware of ids; [`super::Vocabulary::decode`] is.

/// Holds back the bytes of an unfinished character between pushes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utf8Stream {
    /// At most three bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// An empty stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes and returns the text that is complete: possibly nothing.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let unfinished = match self.held.utf8_chunks().last() {
            Some(chunk) if could_go_on(chunk.invalid()) => chunk.invalid().len(),
            _ => 0,
        };
        let rest = self.held.split_off(self.held.len() - unfinished);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        text
    }

    /// Ends the stream: an unfinished character is U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Whether these bytes are a character's beginning, given that they are the invalid rest of a text.
fn could_go_on(rest: &[u8]) -> bool {
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
    fn equals_lossy_conversion_however_it_is_cut() {
        check("a中😀é\u{301}".as_bytes());
        check(b"\xf0\x9f\x98");
        check(b"\xe4\xb8x\xf0\x9f\x98\xff\xf0\x9f\x98\x80\xc0\x80\xed\xa0\x80");
        check(b"\xf4\x90\x80\x80\xe0\x80\x80ok\x80\x80\xe4");
    }

    #[test]
    fn a_character_comes_whole_and_at_once() {
        let mut stream = Utf8Stream::new();
        let parts: Vec<String> = "x😀".bytes().map(|b| stream.push(&[b])).collect();
        assert_eq!(parts, ["x", "", "", "", "😀"]);
        assert_eq!(stream, Utf8Stream::new());
    }
}
