//! Sampling parameters of which each may be unset: those of a command line or a request, and the defaults in a model file
//! (llama.cpp's keys `general.sampling.*`).
//!
//! [`crate::generation::sample::Sampling`] is the complete set that a sampler needs.

use models::gguf::{Metadata, Value};

/// The prefix of the keys of a model file.
const PREFIX: &str = "general.sampling.";
/// Keys that llama.cpp reads and this sampler has no parameter for, except with the values after them, which turn them off.
const UNSUPPORTED: [(&str, f32); 2] = [("mirostat", 0.0), ("xtc_probability", 0.0)];

/// Sampling parameters; unset ones take the defaults of the model file, else built-in ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::Args)]
pub struct SamplingOptions {
    /// Sampling temperature; 0 selects the most likely token (default: from the model file, else 0.6)
    #[arg(long = "temp", visible_alias = "temperature", value_name = "X", value_parser = at_least::<0>)]
    pub temperature: Option<f32>,
    /// Top-k sampling: keep the K most likely tokens; 0 keeps all (default: from the model file, else 0)
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Top-p sampling: keep the most likely tokens whose probabilities add up to P (default: from the model file, else
    /// 0.95)
    #[arg(long, value_name = "P", value_parser = share)]
    pub top_p: Option<f32>,
    /// Min-p sampling: drop tokens with less than P times the probability of the most likely one (default: from the
    /// model file, else 0)
    #[arg(long, value_name = "P", value_parser = share)]
    pub min_p: Option<f32>,
    /// Repetition penalty: divide the logits of recent tokens by X; 1 is off (default: from the model file, else 1)
    #[arg(long, value_name = "X", value_parser = at_least::<1>)]
    pub repeat_penalty: Option<f32>,
    /// Number of recent tokens to penalize (default: from the model file, else 64)
    #[arg(long, value_name = "N")]
    pub repeat_last_n: Option<usize>,
    /// Presence penalty: subtract X from the logits of tokens that occur in the reply (default: 0)
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = penalty)]
    pub presence_penalty: Option<f32>,
    /// Frequency penalty: subtract X from the logits of a token for each occurrence in the reply (default: 0)
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = penalty)]
    pub frequency_penalty: Option<f32>,
    /// Random seed: the same seed, prompt and options give the same text (default: random)
    #[arg(long)]
    pub seed: Option<u64>,
}

impl SamplingOptions {
    /// The parameters of a model file that sets none; the others are off.
    pub const BUILT_IN: SamplingOptions = SamplingOptions {
        temperature: Some(0.6),
        top_k: None,
        top_p: Some(0.95),
        min_p: None,
        repeat_penalty: None,
        repeat_last_n: None,
        presence_penalty: None,
        frequency_penalty: None,
        seed: None,
    };

    /// Returns these parameters, with those of `other` where they are unset.
    pub fn or(self, other: SamplingOptions) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repeat_penalty: self.repeat_penalty.or(other.repeat_penalty),
            repeat_last_n: self.repeat_last_n.or(other.repeat_last_n),
            presence_penalty: self.presence_penalty.or(other.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(other.frequency_penalty),
            seed: self.seed.or(other.seed),
        }
    }

    /// Reads the defaults of a model file. A value out of range and a parameter that is not supported are left unset and
    /// described in a line each, which begins with its key.
    pub fn from_metadata(metadata: &Metadata) -> (SamplingOptions, Vec<String>) {
        let mut reader = SamplingReader { metadata, faults: Vec::new() };
        let options = SamplingOptions {
            temperature: reader.number("temp", at_least::<0>),
            top_k: reader.count("top_k", 0),
            top_p: reader.number("top_p", share),
            min_p: reader.number("min_p", share),
            repeat_penalty: reader.number("penalty_repeat", at_least::<1>),
            // -1 means the whole context.
            repeat_last_n: reader.count("penalty_last_n", usize::MAX),
            presence_penalty: None,
            frequency_penalty: None,
            seed: None,
        };
        for (name, off) in UNSUPPORTED {
            let key = format!("{PREFIX}{name}");
            if metadata.get(&key).is_some_and(|value| number(value) != Some(off)) {
                reader.faults.push(format!("{key}: not supported"));
            }
        }
        (options, reader.faults)
    }

    /// Formats the parameters that are set, but for the seed, with the names of their options: `temp 0.6, top-p 0.95`.
    pub fn line(&self) -> String {
        let numbers = [
            ("temp", self.temperature),
            ("top-p", self.top_p),
            ("min-p", self.min_p),
            ("repeat-penalty", self.repeat_penalty),
            ("presence-penalty", self.presence_penalty),
            ("frequency-penalty", self.frequency_penalty),
        ];
        let numbers = numbers.map(|(name, value)| Some(format!("{name} {}", value?)));
        let counts = [("top-k", self.top_k), ("repeat-last-n", self.repeat_last_n)];
        let counts = counts.map(|(name, value)| match value? {
            usize::MAX => Some(format!("{name} all")),
            value => Some(format!("{name} {value}")),
        });
        numbers.into_iter().chain(counts).flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Reads the keys of a model file and collects what is wrong with them.
struct SamplingReader<'a> {
    metadata: &'a Metadata,
    faults: Vec<String>,
}

impl SamplingReader<'_> {
    fn number(&mut self, name: &str, parse: fn(&str) -> Result<f32, String>) -> Option<f32> {
        let value = self.metadata.get(&format!("{PREFIX}{name}"))?;
        let found = number(value);
        let parsed = parse(&found.map_or_else(String::new, |x| x.to_string()));
        parsed.map_err(|expected| self.fault(name, &expected, value)).ok()
    }

    /// Reads a count; `negative` is the meaning of -1.
    fn count(&mut self, name: &str, negative: usize) -> Option<usize> {
        let value = self.metadata.get(&format!("{PREFIX}{name}"))?;
        match (value.as_u64(), number(value)) {
            (Some(count), _) if u32::try_from(count).is_ok() => Some(count as usize),
            (None, Some(-1.0)) => Some(negative),
            _ => {
                self.fault(name, "expected an integer from -1 to 4294967295", value);
                None
            }
        }
    }

    fn fault(&mut self, name: &str, expected: &str, value: &Value) {
        let found = number(value).map_or_else(|| value.type_name().to_owned(), |x| x.to_string());
        self.faults.push(format!("{PREFIX}{name}: {expected}, found {found}"));
    }
}

/// The value of a number of any type.
fn number(value: &Value) -> Option<f32> {
    match *value {
        Value::F32(x) => Some(x),
        Value::F64(x) => Some(x as f32),
        Value::I8(n) => Some(n.into()),
        Value::I16(n) => Some(n.into()),
        Value::I32(n) => Some(n as f32),
        Value::I64(n) => Some(n as f32),
        _ => value.as_u64().map(|n| n as f32),
    }
}

fn share(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|v: &f32| (0.0..=1.0).contains(v));
    value.ok_or_else(|| "expected a number from 0 to 1".into())
}

fn at_least<const MIN: u32>(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|v: &f32| v.is_finite() && *v >= MIN as f32);
    value.ok_or_else(|| format!("expected a number of at least {MIN}"))
}

fn penalty(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|v: &f32| (-2.0..=2.0).contains(v));
    value.ok_or_else(|| "expected a number from -2 to 2".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[(&str, Value)]) -> (SamplingOptions, Vec<String>) {
        let mut metadata = Metadata::default();
        values.iter().for_each(|(name, value)| metadata.set(&format!("{PREFIX}{name}"), value.clone()));
        SamplingOptions::from_metadata(&metadata)
    }

    #[test]
    fn a_file_sets_parameters_by_llama_cpp_keys() {
        let (options, faults) = read(&[
            ("temp", Value::F32(0.7)),
            ("top_k", Value::I32(40)),
            ("top_p", Value::F64(0.5)),
            ("min_p", Value::F32(0.05)),
            ("penalty_repeat", Value::F32(1.25)),
            ("penalty_last_n", Value::I32(-1)),
            ("mirostat", Value::I32(0)),
        ]);
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!(
            options.line(),
            "temp 0.7, top-p 0.5, min-p 0.05, repeat-penalty 1.25, top-k 40, repeat-last-n all"
        );
        assert_eq!(read(&[("top_k", Value::I32(-1))]).0.top_k, Some(0));
        assert_eq!(read(&[("temp", Value::U32(1))]).0.temperature, Some(1.0));
        assert_eq!(read(&[]), (SamplingOptions::default(), Vec::new()));
        assert_eq!(SamplingOptions::default().line(), "");
    }

    /// A value that makes no sense leaves its parameter unset.
    fn check_fault(name: &str, value: Value, expected: &str) {
        let (options, faults) = read(&[(name, value)]);
        assert_eq!(options, SamplingOptions::default(), "{name}");
        assert_eq!(faults, [format!("general.sampling.{name}: {expected}")]);
    }

    #[test]
    fn values_out_of_range_are_faults() {
        check_fault("temp", Value::F32(f32::NAN), "expected a number of at least 0, found NaN");
        check_fault("temp", Value::F32(-1.0), "expected a number of at least 0, found -1");
        check_fault("temp", Value::String("hot".into()), "expected a number of at least 0, found a string");
        check_fault("top_p", Value::F32(95.0), "expected a number from 0 to 1, found 95");
        check_fault("min_p", Value::F64(f64::INFINITY), "expected a number from 0 to 1, found inf");
        check_fault("penalty_repeat", Value::F32(0.5), "expected a number of at least 1, found 0.5");
        check_fault("top_k", Value::I32(-7), "expected an integer from -1 to 4294967295, found -7");
        check_fault("top_k", Value::F32(3.5), "expected an integer from -1 to 4294967295, found 3.5");
        check_fault(
            "penalty_last_n",
            Value::Bool(true),
            "expected an integer from -1 to 4294967295, found a bool",
        );
        check_fault("mirostat", Value::I32(2), "not supported");
    }

    #[test]
    fn set_parameters_override_others() {
        let own = SamplingOptions { temperature: Some(0.0), ..SamplingOptions::default() };
        let file = SamplingOptions { temperature: Some(1.0), top_k: Some(5), ..SamplingOptions::default() };
        assert_eq!(own.or(file), SamplingOptions { temperature: Some(0.0), ..file });
        assert_eq!(SamplingOptions::default().or(file), file);
    }
}
