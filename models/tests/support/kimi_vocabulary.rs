//! Kimi's `tiktoken.model` as text, from the crate that holds it packed as (rank, length, bytes) entries.
//!
//! Shared by tests and examples through `#[path]`; not part of the library.

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The published file, byte for byte.
pub fn tiktoken_model() -> Vec<u8> {
    let mut packed = splintr_vocab_kimi::KIMI_VOCAB_PACKED[12..].iter().copied();
    let mut text = Vec::new();
    while let Some(rank) = varint(&mut packed) {
        let length = varint(&mut packed).expect("an entry is whole");
        let token: Vec<u8> = packed.by_ref().take(length as usize).collect();
        text.extend(base64(&token));
        text.extend(format!(" {rank}\n").bytes());
    }
    text
}

fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes.next()?;
        value |= u32::from(byte & 127) << shift;
        shift += 7;
        if byte < 128 {
            return Some(value);
        }
    }
}

/// Base64 in the standard alphabet, padded.
pub fn base64(bytes: &[u8]) -> Vec<u8> {
    let group = |group: &[u8]| {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        let letter =
            |i: usize| if i <= group.len() { LETTERS[(bits >> (18 - 6 * i)) as usize & 63] } else { b'=' };
        [letter(0), letter(1), letter(2), letter(3)]
    };
    bytes.chunks(3).flat_map(group).collect()
}
