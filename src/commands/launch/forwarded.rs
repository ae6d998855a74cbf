//! The options of a model that are passed on to `kimi serve`, as they were given.

use crate::args::EngineArgs;
use clap::{ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use std::ffi::OsString;

/// [`EngineArgs`] with their command line for another process.
#[derive(Clone, Debug)]
pub struct ForwardedEngineArgs {
    pub args: EngineArgs,
    /// Options whose values are not the defaults, except for the model and `--yes`.
    pub given: Vec<OsString>,
}

impl FromArgMatches for ForwardedEngineArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let args = EngineArgs::from_arg_matches(matches)?;
        let mut given = Vec::new();
        for arg in EngineArgs::augment_args(Command::new("serve")).get_arguments() {
            let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
            if matches!(id, "model" | "yes") {
                continue;
            }
            if matches!(arg.get_action(), ArgAction::SetTrue) {
                if matches.get_flag(id) {
                    given.push(format!("--{long}").into());
                }
                continue;
            }
            let values: Vec<OsString> =
                matches.get_raw(id).into_iter().flatten().map(OsString::from).collect();
            let is_default = arg.get_default_values().iter().eq(values.iter());
            for value in values.into_iter().filter(|_| !is_default) {
                given.extend([format!("--{long}").into(), value]);
            }
        }
        Ok(ForwardedEngineArgs { args, given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ForwardedEngineArgs {
    fn augment_args(command: Command) -> Command {
        EngineArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        EngineArgs::augment_args_for_update(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_other_than_defaults_are_passed_on() {
        let command = ForwardedEngineArgs::augment_args(Command::new("launch"));
        let line = [
            "launch",
            "-m",
            "a b.gguf",
            "-c",
            "4096",
            "--draft",
            "auto",
            "--mlock",
            "--cache-size=2G",
            "--device",
            "cpu",
        ];
        let matches = command.try_get_matches_from(line).unwrap();
        let found = ForwardedEngineArgs::from_arg_matches(&matches).unwrap();
        assert_eq!(found.given, ["--ctx", "4096", "--mlock", "--device", "cpu", "--cache-size", "2G"]);
        assert_eq!(found.args.model.as_deref(), Some(std::path::Path::new("a b.gguf")));
    }
}
