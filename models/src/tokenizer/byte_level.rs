//! Encodes bytes as printable characters by GPT-2's byte-level alphabet, in which GGUF and `tokenizer.json` write tokens.
//!
//! Byte 0x20 is written `Ġ`, 0xE4 is `ä`. Next: [`super::metadata`].

/// Returns whether a byte is written as the character of the same number.
const fn printable(byte: u8) -> bool {
    matches!(byte, 33..=126 | 161..=172 | 174..=255)
}

/// Character of each byte; unprintable bytes are numbered from U+0100.
const CHARS: [char; 256] = {
    let mut table = ['\0'; 256];
    let (mut byte, mut next) = (0, 256);
    while byte < 256 {
        let own = printable(byte as u8);
        table[byte] = match char::from_u32(if own { byte as u32 } else { next }) {
            Some(c) => c,
            None => unreachable!(),
        };
        next += !own as u32;
        byte += 1;
    }
    table
};

/// Byte of each of the first 324 characters, if any.
const BYTES: [Option<u8>; 324] = {
    let mut table = [None; 324];
    let mut byte = 0;
    while byte < 256 {
        table[CHARS[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    table
};

/// Writes each byte as its character of the alphabet.
pub(super) fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| CHARS[b as usize]).collect()
}

/// Decodes text to `bytes`, which is cleared first. The error is the first character outside the alphabet.
pub(super) fn decode(text: &str, bytes: &mut Vec<u8>) -> Result<(), char> {
    bytes.clear();
    for c in text.chars() {
        bytes.push(BYTES.get(c as usize).copied().flatten().ok_or(c)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_round_trips() {
        let all: Vec<u8> = (0..=255).collect();
        let mut back = Vec::new();
        decode(&encode(&all), &mut back).unwrap();
        assert_eq!(back, all);
        assert_eq!(encode(b" a\n\xc3"), "ĠaĊÃ");
        assert_eq!(decode("a b", &mut back), Err(' '));
        assert_eq!(decode("中", &mut back), Err('中'));
    }
}
