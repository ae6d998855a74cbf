//! The environment, arguments and temporary files with which a client is started, and the same as a shell script.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Most variables and arguments that a line on the terminal names.
const MAX_SHOWN: usize = 4;

/// Collects what a client needs. Files live in a directory that is removed when the client exits.
pub struct LaunchPlan {
    dir: PathBuf,
    /// Variables in the order of the client's entry; `None` removes one.
    env: Vec<(&'static str, Option<String>)>,
    args: Vec<String>,
    files: Vec<(PathBuf, String)>,
}

impl LaunchPlan {
    /// `dir` is the directory of the files; nothing is written before [`Self::write_files`].
    pub fn new(dir: &Path) -> Self {
        LaunchPlan { dir: dir.to_owned(), env: Vec::new(), args: Vec::new(), files: Vec::new() }
    }

    pub fn set(&mut self, name: &'static str, value: impl ToString) {
        self.env.push((name, Some(value.to_string())));
    }

    /// Sets a limit or a timeout, which the user may have set otherwise.
    pub fn set_default(&mut self, name: &'static str, value: impl ToString) {
        if std::env::var_os(name).is_none_or(|value| value.is_empty()) {
            self.set(name, value);
        }
    }

    /// Sets variables that all have the same value.
    pub fn set_each(&mut self, names: &[&'static str], value: &str) {
        for name in names {
            self.set(name, value);
        }
    }

    /// Removes a variable that would take precedence.
    pub fn unset(&mut self, name: &'static str) {
        self.env.push((name, None));
    }

    pub fn args<T: ToString>(&mut self, args: impl IntoIterator<Item = T>) {
        self.args.extend(args.into_iter().map(|arg| arg.to_string()));
    }

    /// Adds a file and sets a variable to its path.
    pub fn set_file(&mut self, variable: &'static str, name: &str, contents: String) {
        let path = self.dir.join(name);
        self.set(variable, path.display());
        self.files.push((path, contents));
    }

    /// Adds a file and sets a variable to its directory.
    pub fn set_dir(&mut self, variable: &'static str, name: &str, contents: String) {
        self.set(variable, self.dir.display().to_string());
        self.files.push((self.dir.join(name), contents));
    }

    pub fn write_files(&self) -> io::Result<()> {
        self.files.iter().try_for_each(|(path, contents)| std::fs::write(path, contents))
    }

    pub fn apply(&self, command: &mut Command) {
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(&self.args);
    }

    /// Names the first variables and arguments, for one line on the terminal.
    pub fn summary(&self) -> String {
        let names = self.env.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name);
        let mut shown: Vec<&str> = names.chain(self.args.iter().map(String::as_str)).collect();
        let hidden = shown.len().saturating_sub(MAX_SHOWN);
        shown.truncate(MAX_SHOWN);
        let more = if hidden == 0 { String::new() } else { format!(" and {hidden} more (see --print)") };
        format!("sets {}{more}", shown.join(", "))
    }

    /// The lines of a POSIX shell script that does the same by hand.
    pub fn script(&self, program: &str, more: &[String]) -> String {
        let mut lines = Vec::new();
        if !self.files.is_empty() {
            lines.push(format!("mkdir -p {}", quoted(&self.dir.display().to_string())));
        }
        for (path, contents) in &self.files {
            let path = quoted(&path.display().to_string());
            lines.push(format!("cat > {path} <<'END'\n{}\nEND", contents.trim_end()));
        }
        for (name, value) in &self.env {
            lines.push(match value {
                Some(value) => format!("export {name}={}", quoted(value)),
                None => format!("unset {name}"),
            });
        }
        let words = [program].into_iter().chain(self.args.iter().chain(more).map(String::as_str));
        lines.push(words.map(quoted).collect::<Vec<_>>().join(" "));
        lines.join("\n")
    }
}

/// Quotes a word for a POSIX shell. A word with a NUL, which no argument can have, stays as it is.
pub fn quoted(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), |word| word.into_owned())
}
