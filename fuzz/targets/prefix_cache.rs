//! Parses the input as a file of the prefix cache, which must be accepted only if it is byte for byte what would be written;
//! or, chosen by the first byte, flips a byte of a valid file, which must then be refused.

use kimi::prefix_cache::file::{FileHeader, chain, encode, parse};

/// Tests one input, and panics if a property does not hold.
pub fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    if kind % 2 == 0 {
        if let Ok((header, body)) = parse(rest) {
            assert!(encode(&header, &body) == rest);
        }
        return;
    }
    // The offset and the value of the damage, the number of tokens, the tokens, the body.
    let Some(([at @ .., flip, count], rest)) = rest.split_first_chunk::<6>() else { return };
    let (at, tokens) = (u32::from_le_bytes(*at), rest.len().min(4 * usize::from(*count)) / 4 * 4);
    let (tokens, body) = rest.split_at(tokens);
    let tokens: Vec<u32> = tokens.as_chunks().0.iter().map(|t| u32::from_le_bytes(*t)).collect();
    let parent = u128::from(at);
    let header = FileHeader { key: 7, id: chain(parent, &tokens), parent, before: u64::from(*flip), tokens };
    let mut file = encode(&header, body);
    assert_eq!(parse(&file).expect("what is written is read"), (header, body.to_vec()));
    let at = at as usize % file.len();
    file[at] ^= flip.max(&1);
    assert!(parse(&file).is_err(), "byte {at}");
}
