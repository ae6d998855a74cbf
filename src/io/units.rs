//! Parses and formats sizes in bytes and counts.

use anyhow::{Result, bail};

/// Parses a size with a binary unit: `500M`, `16G`, `1.5GiB`, `1048576`.
///
/// # Errors
/// No number, an unknown unit, or more than 2^53 bytes.
pub fn parse_size(text: &str) -> Result<u64> {
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

/// Formats a size with a binary unit: `4.74 GiB`, `42.8 MiB`.
pub fn format_size(bytes: u64) -> String {
    let x = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", x / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", x / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", x / f64::from(1 << 30)),
    }
}

/// Returns the number with the shortest decimal that denotes an f32: 0.6, not 0.6000000238.
pub fn shortest_decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::NAN)
}

/// Formats a number with a noun in the singular or plural: `1 line`, `3 lines`.
pub fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Formats a whole number with its digits in groups of three: `128,004`.
pub fn grouped(n: impl ToString) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("500M", 500 << 20),
            ("1.5GiB", 3 << 29),
            ("2 kb", 2048),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "M", "-1", "1X", "1e9", "9999999T", "1.2.3"] {
            let error = parse_size(text).unwrap_err().to_string();
            assert_eq!(error, format!("expected a size such as 500M or 16G, found {text:?}"));
        }
    }
}
