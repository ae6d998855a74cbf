//! The settings that `/set` changes. Values are parsed and checked as the command-line options of the same names.

use crate::generation::sample::Sampling;
use crate::runtime::sampling_options::SamplingOptions;
use clap::Parser;

/// The settings of a command line or of `/set`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct SettingsArgs {
    /// Maximum number of tokens to generate per reply
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingOptions,
}

/// The settings in effect: the user's, else the model's, else built-in ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Those that the user set, which override the model's.
    given: SamplingOptions,
    model: SamplingOptions,
}

/// All names that `/set` accepts: settings of generation, then of appearance.
pub const NAMES: [&str; 13] = [
    "temp",
    "top-k",
    "top-p",
    "min-p",
    "repeat-penalty",
    "repeat-last-n",
    "presence-penalty",
    "frequency-penalty",
    "seed",
    "max-tokens",
    "theme",
    "mouse",
    "reasoning",
];

#[derive(Parser)]
#[command(no_binary_name = true, args_override_self = true, disable_help_flag = true)]
struct SettingsLine {
    #[command(flatten)]
    settings: SettingsArgs,
}

impl From<SettingsArgs> for Settings {
    fn from(args: SettingsArgs) -> Self {
        let (given, model) = (args.sampling, SamplingOptions::default());
        Settings { max_tokens: args.max_tokens, sampling: given.into(), given, model }
    }
}

impl Settings {
    fn values(&self) -> [(&'static str, String); 10] {
        let Sampling { temperature, top_k, top_p, min_p, seed, .. } = self.sampling;
        let Sampling { repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty, .. } =
            self.sampling;
        [
            ("temp", temperature.to_string()),
            ("top-k", top_k.to_string()),
            ("top-p", top_p.to_string()),
            ("min-p", min_p.to_string()),
            ("repeat-penalty", repeat_penalty.to_string()),
            ("repeat-last-n", repeat_last_n.to_string()),
            ("presence-penalty", presence_penalty.to_string()),
            ("frequency-penalty", frequency_penalty.to_string()),
            ("seed", seed.to_string()),
            ("max-tokens", self.max_tokens.to_string()),
        ]
    }

    /// The parameters that the user set, with the seed of the next reply if it is one of them.
    pub fn given(&self) -> SamplingOptions {
        SamplingOptions { seed: self.given.seed.map(|_| self.sampling.seed), ..self.given }
    }

    /// Takes the defaults of another model for what the user did not set.
    pub fn set_model(&mut self, model: SamplingOptions) {
        self.model = model;
        self.sampling = Sampling { seed: self.sampling.seed, ..self.given.or(model).into() };
    }

    /// Formats all settings in one line.
    pub fn line(&self) -> String {
        self.values().map(|(name, value)| format!("{name} {value}")).join(", ")
    }

    /// Changes a setting, checked as the option of that name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name = if name == "temperature" { "temp" } else { name };
        if !self.values().iter().any(|(known, _)| *known == name) {
            return Err(format!("/set {name}: expected one of {}", NAMES.join(", ")));
        }
        let words = [format!("--max-tokens={}", self.max_tokens), format!("--{name}={value}")];
        match SettingsLine::try_parse_from(words) {
            Ok(SettingsLine { settings }) => {
                self.max_tokens = settings.max_tokens;
                self.given = settings.sampling.or(self.given);
                let sampling = Sampling::from(self.given.or(self.model));
                let seed = settings.sampling.seed.unwrap_or(self.sampling.seed);
                self.sampling = Sampling { seed, ..sampling };
            }
            Err(e) => {
                let text = e.to_string();
                let line = text.lines().next().unwrap_or_default();
                return Err(format!("/set {name}: {}", line.trim_start_matches("error: ")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Default for Settings {
    fn default() -> Self {
        SettingsLine::parse_from([""; 0]).settings.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_changes_one_setting_only() {
        let mut settings = Settings::default();
        let before = settings;
        settings.set("temp", "0.25").unwrap();
        assert_eq!(settings.sampling, Sampling { temperature: 0.25, ..before.sampling });
        settings.set("max-tokens", "7").unwrap();
        assert_eq!((settings.max_tokens, settings.sampling.temperature), (7, 0.25));
        assert!(settings.line().contains("temp 0.25"));
        let temperature = Some(0.25);
        assert_eq!(settings.given(), SamplingOptions { temperature, ..SamplingOptions::default() });
        settings.set("seed", "7").unwrap();
        settings.sampling.seed += 1;
        assert_eq!(settings.given().seed, Some(8));
        for (name, value) in [("temp", "-1"), ("top-p", "2"), ("nothing", "1"), ("seed", "x"), ("top-k", "")]
        {
            let before = settings;
            assert!(settings.set(name, value).unwrap_err().starts_with(&format!("/set {name}")), "{name}");
            assert_eq!(settings, before);
        }
    }

    #[test]
    fn the_model_sets_what_the_user_did_not() {
        let mut settings = Settings::default();
        settings.set("top-p", "0.5").unwrap();
        let model = |temperature, top_p| SamplingOptions { temperature, top_p, ..SamplingOptions::default() };
        settings.set_model(model(Some(0.9), Some(0.8)));
        settings.set("top-k", "7").unwrap();
        let Sampling { temperature, top_p, top_k, .. } = settings.sampling;
        assert_eq!((temperature, top_p, top_k), (0.9, 0.5, 7));
        settings.set_model(model(None, None));
        assert_eq!((settings.sampling.temperature, settings.sampling.top_p), (0.6, 0.5));
    }

    #[test]
    fn every_setting_is_listed() {
        assert!(Settings::default().values().iter().all(|(name, _)| NAMES.contains(name)));
    }
}
