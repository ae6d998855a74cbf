//! What a line that begins with `/` asks for: one list for both interfaces, for `/help` and for completion.

/// A command and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The list of commands.
    Help,
    /// A file that goes with the next message.
    File(String),
    /// Another system message, or none.
    System(String),
    /// A setting and its value; all settings without a name.
    Set(Option<(String, String)>),
    /// The last message once more.
    Regen,
    /// The last message, to be changed.
    Edit,
    /// The message being written, in an external editor.
    Editor,
    /// The last exchange taken back.
    Undo,
    /// A copy that goes on from the first N exchanges, or all.
    Branch(Option<usize>),
    /// A title for the chat.
    Save(String),
    /// Another chat; the list without a name.
    Load(String),
    /// The chat as Markdown.
    Export(String),
    /// The last reply, or its last code block, or all, to the clipboard.
    Copy(Copied),
    /// A chat of its own from here on.
    Clear,
    /// Rates and sizes.
    Stats,
    /// Which model, or another one.
    Model(String),
    /// The end.
    Quit,
}

/// What goes to the clipboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// The last reply.
    Reply,
    /// The last code block of the last reply.
    Code,
    /// The whole chat.
    All,
}

/// Name, argument, meaning.
pub const COMMANDS: [(&str, &str, &str); 18] = [
    ("/help", "", "this list"),
    ("/file", "PATH", "send a text file with the next message, before it"),
    ("/system", "[TEXT]", "set the system message of this chat, or remove it"),
    ("/set", "[NAME VALUE]", "show or change settings: temp, top-p, max-tokens, theme, mouse ..."),
    ("/regen", "", "answer the last message again"),
    ("/edit", "", "take the last message back and change it"),
    ("/editor", "", "write the message in $VISUAL or $EDITOR"),
    ("/undo", "", "take the last exchange back"),
    ("/branch", "[N]", "go on in a copy, from the first N exchanges or from here"),
    ("/save", "[TITLE]", "name the chat; it is on disk in any case"),
    ("/load", "[NAME]", "another chat, or the list of them"),
    ("/export", "[FILE]", "write the chat as Markdown"),
    ("/copy", "[code|all]", "the last reply, its last code block or all to the clipboard"),
    ("/clear", "", "begin a new chat; this one stays in the list"),
    ("/stats", "", "rates of the last reply, context and memory used"),
    ("/model", "[FILE]", "which model this is, or another one"),
    ("/quit", "", "leave (also Ctrl-D)"),
    ("/exit", "", "leave"),
];

/// A line as a command; None is a message. An absolute path (`/usr/lib is full`) is a message too.
pub fn parse(line: &str) -> Option<Result<Command, String>> {
    let line = line.trim();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let word = name.strip_prefix('/')?;
    if word.is_empty() || word.contains('/') {
        return None;
    }
    let rest = rest.trim();
    let text = rest.to_owned();
    Some(Ok(match word {
        "help" => Command::Help,
        "file" if rest.is_empty() => return Some(Err("/file: expected a path, found none".into())),
        "file" => Command::File(text),
        "system" => Command::System(text),
        "set" => match rest.split_once(char::is_whitespace) {
            Some((name, value)) => Command::Set(Some((name.into(), value.trim().into()))),
            None if rest.is_empty() => Command::Set(None),
            None => return Some(Err(format!("/set {rest}: expected a value, found none"))),
        },
        "regen" => Command::Regen,
        "edit" => Command::Edit,
        "editor" => Command::Editor,
        "undo" => Command::Undo,
        "branch" if rest.is_empty() => Command::Branch(None),
        "branch" => match rest.parse() {
            Ok(n) => Command::Branch(Some(n)),
            Err(_) => return Some(Err(format!("/branch: expected a number of exchanges, found {rest:?}"))),
        },
        "save" => Command::Save(text),
        "load" => Command::Load(text),
        "export" => Command::Export(text),
        "copy" => match rest {
            "" => Command::Copy(Copied::Reply),
            "code" => Command::Copy(Copied::Code),
            "all" => Command::Copy(Copied::All),
            _ => return Some(Err(format!("/copy: expected nothing, code or all, found {rest:?}"))),
        },
        "clear" => Command::Clear,
        "stats" => Command::Stats,
        "model" => Command::Model(text),
        "quit" | "exit" => Command::Quit,
        _ => return Some(Err(format!("{name}: no such command; /help lists them"))),
    }))
}

/// The list, a command a line.
pub fn help() -> String {
    let line = |(name, argument, meaning): &(&str, &str, &str)| {
        format!("{:<22}{meaning}", format!("{name} {argument}").trim_end())
    };
    COMMANDS.iter().filter(|c| c.0 != "/exit").map(line).collect::<Vec<_>>().join("\n")
}

/// What a line may go on to: whole lines, for the first word commands, after `/file` and the like paths.
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

/// Paths that begin with `typed`, directories with a slash; hidden ones only when asked for.
fn paths(typed: &str) -> Vec<String> {
    let (dir, start) = typed.rfind('/').map_or(("", typed), |at| typed.split_at(at + 1));
    let place = expand(if dir.is_empty() { "." } else { dir });
    let mut found: Vec<String> = std::fs::read_dir(place)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let wanted = name.starts_with(start) && (start.starts_with('.') || !name.starts_with('.'));
            let slash = if entry.path().is_dir() { "/" } else { "" };
            wanted.then(|| format!("{dir}{name}{slash}"))
        })
        .collect();
    found.sort();
    found.truncate(100);
    found
}

/// A path with `~/` as the home.
pub fn expand(path: &str) -> std::path::PathBuf {
    let home = path.strip_prefix("~/").zip(std::env::var_os("HOME"));
    home.map_or_else(|| path.into(), |(rest, home)| std::path::Path::new(&home).join(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_list_is_understood() {
        for (name, argument, _) in COMMANDS {
            let line = if argument == "PATH" { format!("{name} x") } else { name.to_owned() };
            assert!(matches!(parse(&line), Some(Ok(_))), "{line}");
        }
        assert_eq!(help().lines().count(), COMMANDS.len() - 1);
    }

    #[test]
    fn arguments_are_read_and_refused() {
        assert_eq!(parse("hello"), None);
        assert_eq!(parse("/usr/lib is full"), None);
        assert_eq!(parse("/ what"), None);
        assert_eq!(parse(" /branch 2 "), Some(Ok(Command::Branch(Some(2)))));
        assert_eq!(parse("/set top-p 0.5"), Some(Ok(Command::Set(Some(("top-p".into(), "0.5".into()))))));
        for bad in ["/nope", "/branch x", "/set temp", "/file", "/copy x"] {
            assert!(matches!(parse(bad), Some(Err(_))), "{bad}");
        }
    }

    #[test]
    fn completion_knows_commands_settings_and_paths() {
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
