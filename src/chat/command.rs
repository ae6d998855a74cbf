//! The commands of the chat: parser, help and completion, for both interfaces.

use crate::io::user_dirs;

/// A parsed command with its argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlashCommand {
    Help,
    /// Attach the file at this path to the next message.
    File(String),
    /// Set the system message; empty to remove it.
    System(String),
    /// Change a setting to a value; None to show all settings.
    Set(Option<(String, String)>),
    Regen,
    Edit,
    Editor,
    Undo,
    /// Continue in a copy with the first N exchanges, or all.
    Branch(Option<usize>),
    /// Save the chat under this title; empty to keep its title.
    Save(String),
    /// Open the chat with this name; empty to list the chats.
    Load(String),
    /// Write the chat as Markdown to this path; empty for a default name.
    Export(String),
    Copy(CopyTarget),
    /// Start a new, empty chat.
    Clear,
    Stats,
    /// Load the model in this file; empty to show the current one.
    Model(String),
    Quit,
}

/// The text that `/copy` copies to the clipboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyTarget {
    /// The last reply in full.
    Reply,
    /// The last code block of the last reply.
    Code,
    /// The whole chat as Markdown.
    All,
}

/// The commands in the order of `/help`: name, argument, description.
pub const COMMANDS: [(&str, &str, &str); 18] = [
    ("/help", "", "show this help"),
    ("/file", "PATH", "attach a document to the next message"),
    ("/system", "[TEXT]", "set or remove the system message of this chat"),
    ("/set", "[NAME VALUE]", "show or change settings: temp, top-p, max-tokens, theme, mouse ..."),
    ("/regen", "", "regenerate the last reply"),
    ("/edit", "", "edit the last message and send it again"),
    ("/editor", "", "write the message in $VISUAL or $EDITOR"),
    ("/undo", "", "remove the last exchange"),
    ("/branch", "[N]", "continue in a copy with the first N exchanges, or all"),
    ("/save", "[TITLE]", "name the chat; chats are saved automatically"),
    ("/load", "[NAME]", "open another chat, or list all chats"),
    ("/export", "[FILE]", "write the chat as Markdown"),
    ("/copy", "[code|all]", "copy the last reply, its last code block or the whole chat"),
    ("/clear", "", "start a new chat; this one stays in the list"),
    ("/stats", "", "show rates of the last reply and tokens in the context"),
    ("/model", "[FILE]", "show the model, or load another one"),
    ("/quit", "", "quit (also Ctrl-D)"),
    ("/exit", "", "quit"),
];

/// Parses a line as a command; None for a message. A line that begins with an absolute path, such as `/usr/lib is full`,
/// is a message.
pub fn parse(line: &str) -> Option<Result<SlashCommand, String>> {
    let line = line.trim();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let word = name.strip_prefix('/')?;
    if word.is_empty() || word.contains('/') {
        return None;
    }
    let rest = rest.trim();
    let text = rest.to_owned();
    Some(Ok(match word {
        "help" => SlashCommand::Help,
        "file" if rest.is_empty() => return Some(Err("/file needs a path".into())),
        "file" => SlashCommand::File(text),
        "system" => SlashCommand::System(text),
        "set" => match rest.split_once(char::is_whitespace) {
            Some((name, value)) => SlashCommand::Set(Some((name.into(), value.trim().into()))),
            None if rest.is_empty() => SlashCommand::Set(None),
            None => return Some(Err(format!("/set {rest} needs a value"))),
        },
        "regen" => SlashCommand::Regen,
        "edit" => SlashCommand::Edit,
        "editor" => SlashCommand::Editor,
        "undo" => SlashCommand::Undo,
        "branch" if rest.is_empty() => SlashCommand::Branch(None),
        "branch" => match rest.parse() {
            Ok(n) => SlashCommand::Branch(Some(n)),
            Err(_) => return Some(Err(format!("/branch: expected a number of exchanges, found {rest:?}"))),
        },
        "save" => SlashCommand::Save(text),
        "load" => SlashCommand::Load(text),
        "export" => SlashCommand::Export(text),
        "copy" => match rest {
            "" => SlashCommand::Copy(CopyTarget::Reply),
            "code" => SlashCommand::Copy(CopyTarget::Code),
            "all" => SlashCommand::Copy(CopyTarget::All),
            _ => return Some(Err(format!("/copy: expected nothing, code or all, found {rest:?}"))),
        },
        "clear" => SlashCommand::Clear,
        "stats" => SlashCommand::Stats,
        "model" => SlashCommand::Model(text),
        "quit" | "exit" => SlashCommand::Quit,
        _ => return Some(Err(format!("{name}: unknown command; /help lists the commands"))),
    }))
}

/// The rows of `/help`: a command with its argument, and what it does.
pub fn entries() -> impl Iterator<Item = (String, String)> {
    let entry = |(name, argument, meaning): &(&str, &str, &str)| {
        (format!("{name} {argument}").trim_end().to_owned(), (*meaning).to_owned())
    };
    COMMANDS.iter().filter(|c| c.0 != "/exit").map(entry)
}

/// The text of `/help`, one command per line.
pub fn help() -> String {
    let line = |(name, meaning): (String, String)| format!("{name:<22}{meaning}");
    entries().map(line).collect::<Vec<_>>().join("\n")
}

/// Completions of a line as whole lines: commands for the first word, then paths, settings or keywords.
pub fn complete(line: &str) -> Vec<String> {
    let Some((name, rest)) = line.split_once(' ') else {
        let begins = |c: &&(&str, &str, &str)| c.0.starts_with(line);
        let all =
            COMMANDS.iter().filter(begins).map(|c| c.0.to_owned() + if c.1.is_empty() { "" } else { " " });
        return if line.starts_with('/') { all.collect() } else { Vec::new() };
    };
    let of = |words: &[&str]| -> Vec<String> {
        words.iter().filter(|w| w.starts_with(rest)).map(|w| format!("{name} {w}")).collect()
    };
    match name {
        "/file" | "/export" | "/model" => paths(rest).into_iter().map(|p| format!("{name} {p}")).collect(),
        "/set" => of(&super::settings::NAMES.map(|n| n.to_owned() + " ").each_ref().map(String::as_str)),
        "/copy" => of(&["code", "all"]),
        _ => Vec::new(),
    }
}

/// Paths that begin with `prefix`. Directories end with a slash; hidden files need a leading dot.
fn paths(prefix: &str) -> Vec<String> {
    let (dir, start) = prefix.rfind('/').map_or(("", prefix), |at| prefix.split_at(at + 1));
    let place = expand(if dir.is_empty() { "." } else { dir });
    let mut found: Vec<String> = std::fs::read_dir(place)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let is_match = name.starts_with(start) && (start.starts_with('.') || !name.starts_with('.'));
            let slash = if entry.path().is_dir() { "/" } else { "" };
            is_match.then(|| format!("{dir}{name}{slash}"))
        })
        .collect();
    found.sort();
    found.truncate(100);
    found
}

/// Expands a leading `~/` to the home directory.
pub fn expand(path: &str) -> std::path::PathBuf {
    let home = path.strip_prefix("~/").zip(user_dirs::home());
    home.map_or_else(|| path.into(), |(rest, home)| home.join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_command_is_parsed() {
        for (name, argument, _) in COMMANDS {
            let line = if argument == "PATH" { format!("{name} x") } else { name.to_owned() };
            assert!(matches!(parse(&line), Some(Ok(_))), "{line}");
        }
        assert_eq!(help().lines().count(), COMMANDS.len() - 1);
    }

    #[test]
    fn arguments_are_parsed_and_checked() {
        assert_eq!(parse("hello"), None);
        assert_eq!(parse("/usr/lib is full"), None);
        assert_eq!(parse("/ what"), None);
        assert_eq!(parse(" /branch 2 "), Some(Ok(SlashCommand::Branch(Some(2)))));
        assert_eq!(
            parse("/set top-p 0.5"),
            Some(Ok(SlashCommand::Set(Some(("top-p".into(), "0.5".into())))))
        );
        for bad in ["/nope", "/branch x", "/set temp", "/file", "/copy x"] {
            assert!(matches!(parse(bad), Some(Err(_))), "{bad}");
        }
    }

    #[test]
    fn commands_settings_and_paths_are_completed() {
        assert_eq!(complete("/e"), ["/edit", "/editor", "/export ", "/exit"]);
        assert_eq!(complete("/set max"), ["/set max-tokens "]);
        assert_eq!(complete("e"), [""; 0]);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a b.txt"), "").unwrap();
        std::fs::create_dir(dir.path().join("abc")).unwrap();
        let at = dir.path().display();
        assert_eq!(
            complete(&format!("/file {at}/a")),
            [format!("/file {at}/a b.txt"), format!("/file {at}/abc/")]
        );
    }
}
