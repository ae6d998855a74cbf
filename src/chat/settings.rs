//! The settings that `/set` changes. Values are parsed and checked as the command-line options of the same names.

use crate::generation::sample::Sampling;
use clap::Parser;

#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct Settings {
    /// Maximum number of tokens to generate per reply
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4096)]
    pub max_tokens: usize,
    #[command(flatten)]
    pub sampling: Sampling,
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
    settings: Settings,
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

    /// Formats all settings in one line.
    pub fn line(&self) -> String {
        self.values().map(|(name, value)| format!("{name} {value}")).join(", ")
    }

    /// Changes a setting, checked as the option of that name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let name = if name == "temperature" { "temp" } else { name };
        let now = self.values();
        if !now.iter().any(|(known, _)| *known == name) {
            return Err(format!("/set {name}: expected one of {}", NAMES.join(", ")));
        }
        let changed = [(name, value.to_owned())];
        let words = now.iter().chain(&changed).map(|(name, value)| format!("--{name}={value}"));
        match SettingsLine::try_parse_from(words) {
            Ok(line) => *self = line.settings,
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
        SettingsLine::parse_from([""; 0]).settings
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
        for (name, value) in [("temp", "-1"), ("top-p", "2"), ("nothing", "1"), ("seed", "x"), ("top-k", "")]
        {
            let before = settings;
            assert!(settings.set(name, value).unwrap_err().starts_with(&format!("/set {name}")), "{name}");
            assert_eq!(settings, before);
        }
    }

    #[test]
    fn every_setting_is_listed() {
        assert!(Settings::default().values().iter().all(|(name, _)| NAMES.contains(name)));
    }
}
