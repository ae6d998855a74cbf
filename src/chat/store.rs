//! Chats as JSON files, one each, written beside and renamed, so that whatever happens one whole version is there. Other
//! users of the machine can neither read nor replace them.
//!
//! It knows no terminal and no model. Next: [`super::talk`].

use crate::io::private_file;
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// A file that goes with a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// As it was named.
    pub name: String,
    /// What was in it.
    pub text: String,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Whose it is.
    pub role: Role,
    /// What was typed or generated.
    pub text: String,
    /// Files before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<Attached>,
    /// The ids that were generated, so that the model's state is found again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
}

impl Turn {
    /// A message of text.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Turn { role, text: text.into(), files: Vec::new(), ids: Vec::new() }
    }

    /// What the model reads: the files first, so that another question about them finds their state.
    pub fn content(&self) -> String {
        let mut content = String::new();
        for file in &self.files {
            let end = if file.text.ends_with('\n') { "" } else { "\n" };
            content += &format!("<file name=\"{}\">\n{}{end}</file>\n\n", file.name, file.text);
        }
        content + &self.text
    }
}

/// A chat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chat {
    /// Its file's name without the ending.
    pub id: String,
    /// What the list shows.
    pub title: String,
    /// Seconds since 1970, of the last change.
    pub changed: u64,
    /// The system message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Messages, oldest first.
    pub turns: Vec<Turn>,
}

impl Chat {
    /// An empty chat with a name of its own.
    pub fn new(system: Option<String>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("{:x}-{:x}", now.as_micros(), std::process::id());
        Chat { id, changed: now.as_secs(), system, ..Default::default() }
    }

    /// Is changed now.
    pub fn touch(&mut self) {
        self.changed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    }

    /// The title, or the beginning of the first message.
    pub fn name(&self) -> String {
        if !self.title.is_empty() {
            return self.title.clone();
        }
        let first = self.turns.first().map(|t| beginning(&t.text)).filter(|line| !line.is_empty());
        first.unwrap_or("new chat".into())
    }
}

/// The first line of a text that says something, cut where it is long.
pub fn beginning(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    match line.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

/// What the list shows of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// How many messages it has.
    pub turns: usize,
    /// When it was changed last, in seconds since 1970.
    pub changed: u64,
}

/// Bytes of a chat at most, files in it included.
const MAX_BYTES: u64 = 1 << 30;

/// A directory of chats. Other windows may write in it too.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// None where the user has no home: nothing is stored then.
    dir: Option<PathBuf>,
    /// What each chat's file was when it was last read or written here, by its id.
    seen: HashMap<String, u64>,
}

impl Store {
    /// Chats in `dir`, which need not be there yet.
    pub fn new(dir: PathBuf) -> Self {
        Store { dir: Some(dir), seen: HashMap::new() }
    }

    /// `$XDG_DATA_HOME/kimi/chats`, by default under `~/.local/share`. Without a home nothing can be stored.
    pub fn of_user() -> Self {
        let data = xdg("XDG_DATA_HOME", ".local/share");
        data.map_or_else(Store::default, |data| Store::new(data.join("kimi/chats")))
    }

    fn dir(&self) -> Result<&Path> {
        self.dir.as_deref().context("HOME: expected a directory for chats, found none")
    }

    /// Writes a chat. One without messages leaves no file, unless it had one and has a title. Where another window
    /// changed the file since it was read or written here, that is left alone: the chat becomes a copy with an id
    /// of its own, which is what is returned.
    pub fn save(&mut self, chat: &mut Chat) -> Result<bool> {
        let path = self.path(&chat.id)?;
        let there = hash_of(&path)?;
        let foreign = there.is_some() && there != self.seen.get(&chat.id).copied();
        if chat.turns.is_empty() && (foreign || there.is_none() || chat.title.is_empty()) {
            if there.is_some() && !foreign {
                std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
            return Ok(false);
        }
        if foreign {
            chat.title = format!("{} (copy)", chat.name());
            chat.id = Chat::new(None).id;
        }
        let bytes = serde_json::to_vec(chat)?;
        let dir = self.dir()?;
        self.write(&chat.id, &bytes).with_context(|| dir.display().to_string())?;
        self.seen.insert(chat.id.clone(), hash(&bytes));
        Ok(foreign)
    }

    fn write(&self, id: &str, bytes: &[u8]) -> Result<()> {
        let dir = self.dir()?;
        own(dir, || private_file::create_dir(dir))?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?; // of mode 0600
        // Not through the wrapper: its errors name the temporary file.
        file.as_file_mut().write_all(bytes)?;
        file.as_file().sync_data()?;
        file.persist(self.path(id)?)?;
        Ok(())
    }

    /// Reads a chat.
    pub fn load(&mut self, id: &str) -> Result<Chat> {
        let (chat, hash) = read(&self.path(id)?)?;
        self.seen.insert(chat.id.clone(), hash);
        Ok(chat)
    }

    /// The chat whose title, beginning or id is `name`; the newest of several.
    pub fn find(&mut self, name: &str) -> Result<Chat> {
        let all = self.list();
        let wanted = name.to_lowercase();
        let exact = all.iter().find(|e| e.id == name || e.name.to_lowercase() == wanted);
        match exact.or_else(|| all.iter().find(|e| e.name.to_lowercase().contains(&wanted))) {
            Some(entry) => self.load(&entry.id),
            None => bail!("{name}: expected the name of one of {} chats, found none like it", all.len()),
        }
    }

    /// All chats that can be read, the newest first.
    pub fn list(&self) -> Vec<Entry> {
        let files = self.dir.iter().flat_map(std::fs::read_dir).flatten().flatten().map(|e| e.path());
        let chats =
            files.filter(|p| p.extension().is_some_and(|e| e == "json")).filter_map(|p| read(&p).ok());
        let mut all: Vec<Entry> = chats
            .map(|(c, _)| Entry { name: c.name(), turns: c.turns.len(), changed: c.changed, id: c.id })
            .collect();
        all.sort_by(|a, b| b.changed.cmp(&a.changed).then_with(|| b.id.cmp(&a.id)));
        all
    }

    fn path(&self, id: &str) -> Result<PathBuf> {
        Ok(self.dir()?.join(format!("{id}.json")))
    }
}

/// A chat's file, and what it is told from others by.
fn read(path: &Path) -> Result<(Chat, u64)> {
    let place = || path.display().to_string();
    let mut bytes = Vec::new();
    let file = private_file::open(path).with_context(place)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).with_context(place)?;
    ensure!(bytes.len() as u64 <= MAX_BYTES, "{}: expected at most {MAX_BYTES} bytes, found more", place());
    let mut chat: Chat = serde_json::from_slice(&bytes).with_context(place)?;
    // The file's name is what it is found by, whatever was written in it.
    chat.id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok((chat, hash(&bytes)))
}

/// Of a file, if there is one. Times of change are too coarse to tell two windows' writes apart.
fn hash_of(path: &Path) -> Result<Option<u64>> {
    let read = |file: std::fs::File| {
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map(|_| Some(hash(&bytes)))
    };
    match private_file::open(path).and_then(read) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        hash => hash.with_context(|| path.display().to_string()),
    }
}

/// Makes a file or directory of this user, and takes all rights of other users from it.
pub fn own<T>(path: &Path, make: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let about = std::fs::symlink_metadata(path).ok();
        let shared = |about: &std::fs::Metadata| {
            !about.is_symlink()
                && private_file::foreign_owner(about).is_none()
                && about.permissions().mode() & 0o077 != 0
        };
        if let Some(about) = about.filter(shared) {
            std::fs::set_permissions(path, PermissionsExt::from_mode(about.permissions().mode() & 0o700))?;
        }
    }
    make()
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// The directory in a variable, or `default` under the home; None without a home.
pub fn xdg(variable: &str, default: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    set.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> Chat {
        let mut chat = Chat::new(None);
        chat.turns.push(Turn::new(Role::User, text));
        chat
    }

    #[test]
    fn chats_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().join("chats"));
        assert!(store.list().is_empty());
        store.save(&mut Chat::new(None)).unwrap();
        assert!(store.list().is_empty(), "an empty chat leaves no file");
        let mut one = chat("你好 🎉\nsecond line");
        one.turns.push(Turn { ids: vec![1, 2], ..Turn::new(Role::Assistant, "hi") });
        one.turns[0].files.push(Attached { name: "a.rs".into(), text: "fn a() {}".into() });
        store.save(&mut one).unwrap();
        assert_eq!(store.load(&one.id).unwrap(), one);
        assert_eq!(store.find("你好").unwrap(), one);
        assert_eq!(
            one.turns[0].content(),
            "<file name=\"a.rs\">\nfn a() {}\n</file>\n\n你好 🎉\nsecond line"
        );
        assert_eq!(store.list()[0].name, "你好 🎉");
        store.save(&mut Chat { turns: vec![], ..one }).unwrap();
        assert!(store.find("你好").is_err());
    }

    #[test]
    fn a_chat_with_a_title_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let mut named = Chat { title: "Named".into(), ..chat("hi") };
        store.save(&mut named).unwrap();
        named.turns.clear();
        store.save(&mut named).unwrap();
        assert_eq!(store.find("named").unwrap(), named);
        store.save(&mut Chat { title: "Other".into(), ..Chat::new(None) }).unwrap();
        assert_eq!(store.list().len(), 1, "what was never written needs no file");
    }

    #[test]
    fn what_two_windows_wrote_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut here = Store::new(dir.path().to_owned());
        let mut there = here.clone();
        let mut one = chat("hi");
        here.save(&mut one).unwrap();
        let mut other = there.load(&one.id).unwrap();
        one.turns.push(Turn::new(Role::Assistant, "here"));
        assert!(!here.save(&mut one).unwrap());
        other.turns.push(Turn::new(Role::Assistant, "over"));
        assert!(there.save(&mut other).unwrap(), "of the same length, in the same instant");
        assert_eq!(here.load(&one.id).unwrap(), one);
        assert_eq!((&other.title[..], other.id != one.id), ("hi (copy)", true));
        assert_eq!(here.load(&other.id).unwrap(), other);
        assert!(!there.save(&mut other).unwrap(), "it goes on under the other id");
        let mut gone = Chat { turns: vec![], ..one.clone() };
        there.save(&mut gone).unwrap();
        assert_eq!(here.load(&one.id).unwrap(), one, "what another window wrote is not removed");
    }

    #[cfg(unix)]
    #[test]
    fn other_users_of_the_machine_see_no_chats() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let chats = dir.path().join("kimi/chats");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // As an older version left it.
        std::fs::create_dir_all(&chats).unwrap();
        std::fs::set_permissions(&chats, PermissionsExt::from_mode(0o755)).unwrap();
        let mut store = Store::new(chats.clone());
        let mut one = chat("hi");
        store.save(&mut one).unwrap();
        let file = chats.join(format!("{}.json", one.id));
        assert_eq!((mode(&chats), mode(&file)), (0o700, 0o600));
        symlink(&file, chats.join("link.json")).unwrap();
        assert!(
            std::process::Command::new("mkfifo").arg(chats.join("pipe.json")).status().unwrap().success()
        );
        assert_eq!(store.list().len(), 1, "links and pipes are no chats, and nothing is waited for");
        let found = |id: &str| format!("{:#}", Store::new(chats.clone()).load(id).unwrap_err());
        let expected = "expected a file that only this user may write, found";
        assert!(found("link").ends_with(&format!("{expected} a symbolic link")), "{}", found("link"));
        assert!(found("pipe").contains(expected), "{}", found("pipe"));
    }

    #[test]
    fn without_a_home_nothing_is_stored() {
        let mut store = Store::default();
        let e = store.save(&mut chat("hi")).unwrap_err().to_string();
        assert_eq!(e, "HOME: expected a directory for chats, found none");
        assert!(store.list().is_empty() && store.load("x").is_err());
    }

    #[test]
    fn damaged_files_are_passed_over_and_the_newest_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path().to_owned());
        let (mut old, mut new) = (chat("old"), chat("new"));
        old.changed -= 10;
        store.save(&mut old).unwrap();
        store.save(&mut new).unwrap();
        std::fs::write(dir.path().join("broken.json"), "{\"id\":").unwrap();
        assert_eq!(store.list().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["new", "old"]);
        assert!(store.load("broken").unwrap_err().to_string().contains("broken.json"));
    }
}
