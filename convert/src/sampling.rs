//! Adds the sampling defaults of a checkpoint's `generation_config.json`, with llama.cpp's keys.
//!
//! Fields that the file lacks are left to the defaults of the program that reads the output. Next: `vocabulary`.

use crate::checkpoint::read_json;
use crate::error::{Error, Result};
use models::gguf::{Metadata, Value};
use serde_json::Value as Json;
use std::path::Path;

/// Fields with a number, their keys, and the least and the greatest value.
const NUMBERS: [(&str, &str, f64, f64); 4] = [
    ("temperature", "temp", 0.0, 100.0),
    ("top_p", "top_p", 0.0, 1.0),
    ("min_p", "min_p", 0.0, 1.0),
    ("repetition_penalty", "penalty_repeat", 1.0, 100.0),
];

/// Adds the `general.sampling.` keys.
///
/// # Errors
/// A field of another type or out of range.
pub fn add(metadata: &mut Metadata, dir: &Path) -> Result<()> {
    let path = dir.join("generation_config.json");
    let Some((_, config)) = read_json(&path)? else { return Ok(()) };
    let bad =
        |field: &str, expected: String, found: &Json| Err(Error::bad(path.display(), field, expected, found));
    let greedy = match config.get("do_sample") {
        None | Some(Json::Null | Json::Bool(true)) => false,
        Some(Json::Bool(false)) => true,
        Some(other) => return bad("do_sample", "true or false".to_owned(), other),
    };
    for (field, key, least, greatest) in NUMBERS {
        let Some(value) = config.get(field).filter(|value| !value.is_null()) else { continue };
        match value.as_f64().filter(|x| (least..=greatest).contains(x)) {
            Some(x) => set(metadata, key, Value::F32(x as f32)),
            None => return bad(field, format!("a number from {least} to {greatest}"), value),
        }
    }
    if let Some(value) = config.get("top_k").filter(|value| !value.is_null()) {
        // 0 and -1 both keep all tokens.
        match value.as_i64().and_then(|k| i32::try_from(k.max(0)).ok().filter(|_| k >= -1)) {
            Some(k) => set(metadata, "top_k", Value::I32(k)),
            None => return bad("top_k", format!("an integer from -1 to {}", i32::MAX), value),
        }
    }
    if greedy {
        set(metadata, "temp", Value::F32(0.0));
    }
    Ok(())
}

fn set(metadata: &mut Metadata, key: &str, value: Value) {
    metadata.set(&format!("general.sampling.{key}"), value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that a file gives, or the error without its path.
    fn keys(config: &str) -> std::result::Result<Vec<(String, Value)>, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generation_config.json"), config).unwrap();
        let mut metadata = Metadata::default();
        match add(&mut metadata, dir.path()) {
            Ok(()) => Ok(metadata.0),
            Err(e) => Err(e.to_string().replace(&format!("{}/", dir.path().display()), "")),
        }
    }

    fn check(config: &str, expected: &[(&str, Value)]) {
        let found = keys(config).unwrap();
        let found: Vec<(&str, Value)> = found
            .iter()
            .map(|(key, value)| (key.trim_start_matches("general.sampling."), value.clone()))
            .collect();
        assert_eq!(found, expected, "{config}");
    }

    #[test]
    fn fields_become_keys() {
        check(
            r#"{"temperature": 0.6, "top_p": 0.95, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.05, "do_sample": true}"#,
            &[
                ("temp", Value::F32(0.6)),
                ("top_p", Value::F32(0.95)),
                ("min_p", Value::F32(0.01)),
                ("penalty_repeat", Value::F32(1.05)),
                ("top_k", Value::I32(50)),
            ],
        );
        check(r#"{"max_length": 1048576, "eos_token_id": 163586, "top_p": null, "do_sample": null}"#, &[]);
        check(r#"{"temperature": 1, "top_k": -1}"#, &[("temp", Value::F32(1.0)), ("top_k", Value::I32(0))]);
    }

    #[test]
    fn greedy_configs_have_temperature_0() {
        check(r#"{"temperature": 0}"#, &[("temp", Value::F32(0.0))]);
        check(r#"{"do_sample": false}"#, &[("temp", Value::F32(0.0))]);
        check(r#"{"do_sample": false, "temperature": 0.6}"#, &[("temp", Value::F32(0.0))]);
    }

    #[test]
    fn nonsense_is_refused() {
        let error = |config: &str| keys(config).unwrap_err();
        let hot = "generation_config.json: temperature: expected a number from 0 to 100, found ";
        assert_eq!(error(r#"{"temperature": "hot"}"#), format!("{hot}\"hot\""));
        assert_eq!(error(r#"{"temperature": -1}"#), format!("{hot}-1"));
        assert!(error(r#"{"top_p": 95}"#).ends_with("top_p: expected a number from 0 to 1, found 95"));
        assert!(error(r#"{"top_k": 3.5}"#).ends_with("expected an integer from -1 to 2147483647, found 3.5"));
        assert!(error(r#"{"top_k": -5}"#).ends_with("found -5"));
        assert!(error(r#"{"do_sample": 1}"#).ends_with("do_sample: expected true or false, found 1"));
        assert!(
            error(r#"{"repetition_penalty": 0.5}"#).ends_with("expected a number from 1 to 100, found 0.5")
        );
        assert!(error("[").contains("expected JSON"));
    }
}
