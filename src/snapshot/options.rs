//! How many snapshots are kept and where: the options that every command with a model has. A leaf.

use crate::inspect::machine;
use anyhow::{Result, bail};
use std::path::Path;

/// A waypoint is kept every so many tokens of a long prompt. On the real model it costs 43 MiB, as much as the
/// rows of 5,500 tokens, and an edit or a stop re-reads half of this on average: one or two minutes at the speed of
/// a CPU, a second on a GPU. Half as many tokens would take twice the memory for the sake of a minute.
pub const WAYPOINT_TOKENS: usize = 8192;

/// What is kept of what was read.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct StoreOptions {
    /// Memory for snapshots of what was read (default: a quarter of what is free; 0 keeps none)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub cache_ram: Option<u64>,
}

impl StoreOptions {
    /// Keeps nothing: for measurements.
    pub fn nothing() -> StoreOptions {
        StoreOptions { cache_ram: Some(0) }
    }

    /// Bytes of memory for snapshots.
    pub fn ram_bytes(&self) -> u64 {
        let quarter = || machine::available(Path::new("/")).map_or(1 << 30, |free| free / 4);
        self.cache_ram.unwrap_or_else(quarter)
    }
}

/// `500M`, `16G`, `1.5GiB`, `1048576`: binary multiples.
///
/// # Errors
/// No number, an unknown unit, or more than any memory.
pub fn size(text: &str) -> Result<u64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = unit.trim().to_ascii_uppercase();
    let shift = match unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => bail!("expected a size such as 500M or 16G, found {text:?}"),
    };
    match number.parse::<f64>() {
        Ok(n) if n * f64::from(2).powi(shift) <= f64::from(2).powi(53) => {
            Ok((n * f64::from(2).powi(shift)) as u64)
        }
        _ => bail!("expected a size such as 500M or 16G, found {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("500M", 500 << 20),
            ("1.5GiB", 3 << 29),
            ("2 kb", 2048),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "M", "-1", "1X", "1e9", "9999999T", "1.2.3"] {
            let error = size(text).unwrap_err().to_string();
            assert_eq!(error, format!("expected a size such as 500M or 16G, found {text:?}"));
        }
    }
}
