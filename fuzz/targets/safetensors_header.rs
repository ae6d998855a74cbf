//! Parses the input as a safetensors header, an index or a `config.json`, chosen by the first byte.

use convert::config::CheckpointConfig;
use convert::names::tensor_specs;
use convert::safetensors::{parse_header, parse_index};

/// Tests one input, and panics if a property does not hold.
pub fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => check_header(rest, rest.len() as u64),
        1 => {
            // Two bytes with the length of the data, then the header's JSON.
            let Some((data, json)) = rest.split_first_chunk::<2>() else { return };
            let head = [&(json.len() as u64).to_le_bytes(), json].concat();
            check_header(&head, head.len() as u64 + u64::from(u16::from_le_bytes(*data)));
        }
        2 => drop(parse_index("fuzz", rest)),
        _ => {
            if let Ok(config) = CheckpointConfig::parse("fuzz", rest)
                && config.layers() * (config.experts + config.heads) < 10_000
            {
                assert!(!tensor_specs(&config).is_empty());
            }
        }
    }
}

fn check_header(head: &[u8], file_bytes: u64) {
    let Ok(entries) = parse_header("fuzz", head, file_bytes) else { return };
    let mut at = file_bytes - entries.iter().map(|e| e.bytes).sum::<u64>();
    for entry in entries {
        assert_eq!(entry.offset, at, "no gap and no overlap");
        at += entry.bytes;
    }
}
