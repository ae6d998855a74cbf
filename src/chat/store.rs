//! Saves chats as JSON files, one per chat. Files are written under a temporary name and renamed, and other users can
//! neither read nor replace them.
//!
//! It knows no terminal and no model. Next: [`super::chat_session`].

use crate::client::PromptMessage;
use crate::documents::PartStart;
use crate::generation::markup::{join_reasoning, split_reasoning};
use crate::io::units::counted;
use crate::io::{private_file, user_dirs};
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The author of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Author {
    User,
    Assistant,
}

/// A text file attached to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The path as the user gave it.
    pub name: String,
    pub text: String,
    /// The parts of the format, such as pages, for the places of quotes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartStart>,
}

/// A message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredTurn", into = "StoredTurn")]
pub struct Turn {
    pub role: Author,
    /// The reasoning of a reply before its text.
    pub reasoning: String,
    pub text: String,
    /// Attachments, which precede the text in the prompt.
    pub files: Vec<Attachment>,
    /// The generated token ids, with which the prefix cache finds the state after this reply.
    pub ids: Vec<u32>,
}

/// A turn in a chat file, where reasoning and text are one text with the model's markup.
#[derive(Serialize, Deserialize)]
struct StoredTurn {
    role: Author,
    text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<Attachment>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ids: Vec<u32>,
}

impl From<StoredTurn> for Turn {
    fn from(StoredTurn { role, text, files, ids }: StoredTurn) -> Self {
        let (reasoning, text) = match role {
            Author::User => (String::new(), text),
            Author::Assistant => split_reasoning(&text),
        };
        Turn { role, reasoning, text, files, ids }
    }
}

impl From<Turn> for StoredTurn {
    fn from(turn: Turn) -> Self {
        let text = turn.full_text().into_owned();
        StoredTurn { role: turn.role, text, files: turn.files, ids: turn.ids }
    }
}

impl Turn {
    pub fn new(role: Author, text: impl Into<String>) -> Self {
        let (reasoning, text) = (String::new(), text.into());
        Turn { role, reasoning, text, files: Vec::new(), ids: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.reasoning.is_empty()
    }

    /// The text with the reasoning before it, in the model's markup.
    pub fn full_text(&self) -> Cow<'_, str> {
        join_reasoning(&self.reasoning, &self.text)
    }

    /// The message for a model.
    pub fn message(&self) -> PromptMessage {
        let role = match self.role {
            Author::User => "user",
            Author::Assistant => "assistant",
        };
        let (reasoning, ids) = (self.reasoning.clone(), self.ids.clone());
        PromptMessage { role, text: self.content(), reasoning, ids }
    }

    /// The content in the prompt: attachments first, so that later questions about them share a prefix.
    pub fn content(&self) -> String {
        let mut content = String::new();
        for file in &self.files {
            let end = if file.text.ends_with('\n') { "" } else { "\n" };
            content += &format!("<file name=\"{}\">\n{}{end}</file>\n\n", file.name, file.text);
        }
        content + &self.text
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredChat {
    /// The name of its file, without the extension.
    pub id: String,
    /// The name given with `/save`; may be empty.
    pub title: String,
    /// Time of the last change, in Unix seconds.
    pub changed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Messages from the oldest to the newest.
    pub turns: Vec<Turn>,
}

impl StoredChat {
    /// Creates an empty chat with a unique id.
    pub fn new(system: Option<String>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("{:x}-{:x}", now.as_micros(), std::process::id());
        StoredChat { id, changed: now.as_secs(), system, ..Default::default() }
    }

    /// Sets the time of the last change to now.
    pub fn touch(&mut self) {
        self.changed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    }

    /// The title, or an excerpt of the first message.
    pub fn name(&self) -> String {
        if !self.title.is_empty() {
            return self.title.clone();
        }
        let first = self.turns.first().map(|t| excerpt(&t.text)).filter(|line| !line.is_empty());
        first.unwrap_or("new chat".into())
    }
}

/// The first non-blank line of a text, cut after 60 characters.
pub fn excerpt(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    match line.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

/// A row in the list of chats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatSummary {
    pub id: String,
    pub name: String,
    pub turns: usize,
    /// Time of the last change, in Unix seconds.
    pub changed: u64,
}

/// Largest chat file in bytes, attachments included.
const MAX_BYTES: u64 = 1 << 30;

/// A directory of chats, which other processes may write concurrently.
#[derive(Clone, Debug, Default)]
pub struct ChatStore {
    /// None without a home directory; saving fails then.
    dir: Option<PathBuf>,
    /// By chat id, the hash of its file when this process last read or wrote it.
    seen: HashMap<String, u64>,
}

impl ChatStore {
    /// Stores chats in `dir`, which is created when needed.
    pub fn new(dir: PathBuf) -> Self {
        ChatStore { dir: Some(dir), seen: HashMap::new() }
    }

    /// The user's store: the directory `chats` in [`user_dirs::data`].
    pub fn for_user() -> Self {
        user_dirs::data().map_or_else(ChatStore::default, |data| ChatStore::new(data.join("chats")))
    }

    fn dir(&self) -> Result<&Path> {
        self.dir.as_deref().context("no directory for chats: HOME is not set")
    }

    /// Saves a chat; an empty one without a title has no file. If another process changed the file since this one read
    /// or wrote it, the chat is saved as a copy with a new id, and the result is true.
    pub fn save(&mut self, chat: &mut StoredChat) -> Result<bool> {
        let path = self.path(&chat.id)?;
        let on_disk = file_hash(&path)?;
        let changed_elsewhere = on_disk.is_some() && on_disk != self.seen.get(&chat.id).copied();
        if chat.turns.is_empty() && (changed_elsewhere || on_disk.is_none() || chat.title.is_empty()) {
            if on_disk.is_some() && !changed_elsewhere {
                std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
            return Ok(false);
        }
        if changed_elsewhere {
            chat.title = format!("{} (copy)", chat.name());
            chat.id = StoredChat::new(None).id;
        }
        let bytes = serde_json::to_vec(chat)?;
        let dir = self.dir()?;
        self.write(&chat.id, &bytes).with_context(|| dir.display().to_string())?;
        self.seen.insert(chat.id.clone(), hash(&bytes));
        Ok(changed_elsewhere)
    }

    fn write(&self, id: &str, bytes: &[u8]) -> Result<()> {
        let dir = self.dir()?;
        restrict_to_user(dir, || private_file::create_dir(dir))?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?; // mode 0600
        // Bypasses the wrapper, whose errors name the temporary file.
        file.as_file_mut().write_all(bytes)?;
        file.as_file().sync_data()?;
        file.persist(self.path(id)?)?;
        Ok(())
    }

    pub fn load(&mut self, id: &str) -> Result<StoredChat> {
        let (chat, hash) = read(&self.path(id)?)?;
        self.seen.insert(chat.id.clone(), hash);
        Ok(chat)
    }

    /// Loads the chat with this id, title or first line, or the newest one whose name contains `name`.
    pub fn find(&mut self, name: &str) -> Result<StoredChat> {
        let all = self.list();
        let lowercase = name.to_lowercase();
        let exact = all.iter().find(|e| e.id == name || e.name.to_lowercase() == lowercase);
        match exact.or_else(|| all.iter().find(|e| e.name.to_lowercase().contains(&lowercase))) {
            Some(entry) => self.load(&entry.id),
            None => bail!("none of {} has a name like {name:?}", counted(all.len(), "saved chat")),
        }
    }

    /// Lists all readable chats from the newest to the oldest.
    pub fn list(&self) -> Vec<ChatSummary> {
        let files = self.dir.iter().flat_map(std::fs::read_dir).flatten().flatten().map(|e| e.path());
        let chats =
            files.filter(|p| p.extension().is_some_and(|e| e == "json")).filter_map(|p| read(&p).ok());
        let mut all: Vec<ChatSummary> = chats
            .map(|(c, _)| ChatSummary { name: c.name(), turns: c.turns.len(), changed: c.changed, id: c.id })
            .collect();
        all.sort_by(|a, b| b.changed.cmp(&a.changed).then_with(|| b.id.cmp(&a.id)));
        all
    }

    fn path(&self, id: &str) -> Result<PathBuf> {
        Ok(self.dir()?.join(format!("{id}.json")))
    }
}

/// Reads a chat and the hash of its file.
fn read(path: &Path) -> Result<(StoredChat, u64)> {
    let place = || path.display().to_string();
    let mut bytes = Vec::new();
    let file = private_file::open(path).with_context(place)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(place)?;
    ensure!(bytes.len() as u64 <= MAX_BYTES, "{}: expected at most {MAX_BYTES} bytes, found more", place());
    let mut chat: StoredChat = serde_json::from_slice(&bytes).with_context(place)?;
    // The id is the file's name, whatever the file contains.
    chat.id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok((chat, hash(&bytes)))
}

/// The hash of a file, None if it is missing. Modification times are too coarse to detect concurrent writes.
fn file_hash(path: &Path) -> Result<Option<u64>> {
    let read = |file: std::fs::File| {
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map(|_| Some(hash(&bytes)))
    };
    match private_file::open(path).and_then(read) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        hash => hash.with_context(|| path.display().to_string()),
    }
}

/// Removes other users' permissions from an existing file or directory, then calls `make` to open or create it.
pub fn restrict_to_user<T>(path: &Path, make: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let is_shared = |metadata: &std::fs::Metadata| {
            !metadata.is_symlink()
                && private_file::foreign_owner(metadata).is_none()
                && metadata.permissions().mode() & 0o077 != 0
        };
        if let Some(metadata) = std::fs::symlink_metadata(path).ok().filter(is_shared) {
            std::fs::set_permissions(path, PermissionsExt::from_mode(metadata.permissions().mode() & 0o700))?;
        }
    }
    #[cfg(not(unix))]
    let _ = path;
    make()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> StoredChat {
        let mut chat = StoredChat::new(None);
        chat.turns.push(Turn::new(Author::User, text));
        chat
    }

    #[test]
    fn saved_chats_are_loaded_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = ChatStore::new(dir.path().join("chats"));
        assert!(store.list().is_empty());
        store.save(&mut StoredChat::new(None)).unwrap();
        assert!(store.list().is_empty(), "an empty chat leaves no file");
        let mut one = chat("你好 🎉\nsecond line");
        one.turns.push(Turn { ids: vec![1, 2], ..Turn::new(Author::Assistant, "hi") });
        one.turns[0].files.push(Attachment {
            name: "a.rs".into(),
            text: "fn a() {}".into(),
            parts: serde_json::from_str(r#"[{"line": 1, "part": {"Page": 3}}]"#).unwrap(),
        });
        store.save(&mut one).unwrap();
        assert_eq!(store.load(&one.id).unwrap(), one);
        assert_eq!(store.find("你好").unwrap(), one);
        assert_eq!(
            one.turns[0].content(),
            "<file name=\"a.rs\">\nfn a() {}\n</file>\n\n你好 🎉\nsecond line"
        );
        assert_eq!(store.list()[0].name, "你好 🎉");
        store.save(&mut StoredChat { turns: vec![], ..one }).unwrap();
        assert!(store.find("你好").is_err());
    }

    #[test]
    fn reasoning_is_stored_in_the_markup_of_the_model() {
        let stored = r#"{"role":"assistant","text":"<think>hm</think>\n\nyes","ids":[7]}"#;
        let turn: Turn = serde_json::from_str(stored).unwrap();
        assert_eq!((&turn.reasoning[..], &turn.text[..], &turn.ids[..]), ("hm", "\n\nyes", &[7][..]));
        assert_eq!(serde_json::to_string(&turn).unwrap(), stored);
        let stored = r#"{"role":"user","text":"<think>hm</think>"}"#;
        let turn: Turn = serde_json::from_str(stored).unwrap();
        assert_eq!((&turn.reasoning[..], &turn.text[..]), ("", "<think>hm</think>"));
        assert_eq!(serde_json::to_string(&turn).unwrap(), stored);
    }

    #[test]
    fn an_emptied_chat_with_a_title_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = ChatStore::new(dir.path().to_owned());
        let mut named = StoredChat { title: "Named".into(), ..chat("hi") };
        store.save(&mut named).unwrap();
        named.turns.clear();
        store.save(&mut named).unwrap();
        assert_eq!(store.find("named").unwrap(), named);
        store.save(&mut StoredChat { title: "Other".into(), ..StoredChat::new(None) }).unwrap();
        assert_eq!(store.list().len(), 1, "an empty chat that was never saved has no file");
    }

    #[test]
    fn concurrent_changes_are_both_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut here = ChatStore::new(dir.path().to_owned());
        let mut there = here.clone();
        let mut one = chat("hi");
        here.save(&mut one).unwrap();
        let mut other = there.load(&one.id).unwrap();
        one.turns.push(Turn::new(Author::Assistant, "here"));
        assert!(!here.save(&mut one).unwrap());
        other.turns.push(Turn::new(Author::Assistant, "over"));
        assert!(there.save(&mut other).unwrap(), "same length, same time");
        assert_eq!(here.load(&one.id).unwrap(), one);
        assert_eq!((&other.title[..], other.id != one.id), ("hi (copy)", true));
        assert_eq!(here.load(&other.id).unwrap(), other);
        assert!(!there.save(&mut other).unwrap(), "the copy keeps its new id");
        let mut emptied = StoredChat { turns: vec![], ..one.clone() };
        there.save(&mut emptied).unwrap();
        assert_eq!(here.load(&one.id).unwrap(), one, "a file that another process changed is not removed");
    }

    #[cfg(unix)]
    #[test]
    fn other_users_of_the_machine_see_no_chats() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let chats = dir.path().join("kimi/chats");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // Older versions created the directory with this mode.
        std::fs::create_dir_all(&chats).unwrap();
        std::fs::set_permissions(&chats, PermissionsExt::from_mode(0o755)).unwrap();
        let mut store = ChatStore::new(chats.clone());
        let mut one = chat("hi");
        store.save(&mut one).unwrap();
        let file = chats.join(format!("{}.json", one.id));
        assert_eq!((mode(&chats), mode(&file)), (0o700, 0o600));
        symlink(&file, chats.join("link.json")).unwrap();
        assert!(
            std::process::Command::new("mkfifo").arg(chats.join("pipe.json")).status().unwrap().success()
        );
        assert_eq!(store.list().len(), 1, "links and pipes are ignored without blocking");
        let found = |id: &str| format!("{:#}", ChatStore::new(chats.clone()).load(id).unwrap_err());
        let expected = "expected a file that only this user may write, found";
        assert!(found("link").ends_with(&format!("{expected} a symbolic link")), "{}", found("link"));
        assert!(found("pipe").contains(expected), "{}", found("pipe"));
    }

    #[test]
    fn saving_fails_without_a_home_directory() {
        let mut store = ChatStore::default();
        let e = store.save(&mut chat("hi")).unwrap_err().to_string();
        assert_eq!(e, "no directory for chats: HOME is not set");
        assert!(store.list().is_empty() && store.load("x").is_err());
    }

    #[test]
    fn damaged_files_are_skipped_and_the_newest_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = ChatStore::new(dir.path().to_owned());
        let (mut old, mut new) = (chat("old"), chat("new"));
        old.changed -= 10;
        store.save(&mut old).unwrap();
        store.save(&mut new).unwrap();
        std::fs::write(dir.path().join("broken.json"), "{\"id\":").unwrap();
        assert_eq!(store.list().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["new", "old"]);
        assert!(store.load("broken").unwrap_err().to_string().contains("broken.json"));
    }
}
