//! Any bytes as what stands beside a checkpoint's weights; the first byte chooses what they are.
#![no_main]

use convert::config::Config;
use convert::names::tensor_specs;
use convert::safetensors::{parse_header, parse_index};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => check_header(rest, rest.len() as u64),
        1 => {
            // A header's JSON after two bytes that say how much data follows it.
            let Some((data, json)) = rest.split_first_chunk::<2>() else { return };
            let head = [&(json.len() as u64).to_le_bytes(), json].concat();
            check_header(&head, head.len() as u64 + u64::from(u16::from_le_bytes(*data)));
        }
        2 => drop(parse_index("fuzz", rest)),
        _ => {
            if let Ok(config) = Config::parse("fuzz", rest)
                && config.layers() * (config.experts + config.heads) < 10_000
            {
                assert!(!tensor_specs(&config).is_empty());
            }
        }
    }
});

fn check_header(head: &[u8], file_bytes: u64) {
    let Ok(entries) = parse_header("fuzz", head, file_bytes) else { return };
    let mut at = file_bytes - entries.iter().map(|e| e.bytes).sum::<u64>();
    for entry in entries {
        assert_eq!(entry.offset, at, "no gap and no overlap");
        at += entry.bytes;
    }
}
