//! What a chat keeps, without a terminal and without a model.

use super::command::Command;
use super::reply::Outcome;
use super::settings::Settings;
use super::store::{Chat, Store};
use super::talk::Talk;
use crate::generate::{Ended, Stats};
use crate::session::Prefill;
use std::time::Duration;
use tempfile::TempDir;

fn talk() -> (Talk, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Talk::new(Store::new(dir.path().to_owned()), Settings::default(), None), dir)
}

fn end(talk: &mut Talk, ended: Ended) -> Option<String> {
    let prefill = Prefill { reused: 0, source: None, computed: 9, stopped: false };
    let time = Duration::from_secs(1);
    let stats = Stats { prefill, prefill_time: time, generated: 1, decode_time: time, ended };
    talk.heard(Outcome { ids: vec![1], stats }).unwrap()
}

fn exchange(talk: &mut Talk, message: &str, reply: &str) {
    talk.say(message);
    talk.ask().unwrap();
    talk.hear(reply);
    assert_eq!(end(talk, Ended::EndToken), None);
}

/// The messages of the chat as another start would find them.
fn on_disk(dir: &TempDir, id: &str) -> Vec<String> {
    texts(&Store::new(dir.path().to_owned()).load(id).unwrap())
}

fn texts(chat: &Chat) -> Vec<String> {
    chat.turns.iter().map(|turn| turn.text.clone()).collect()
}

#[test]
fn two_windows_keep_both_of_their_exchanges() {
    let (mut here, dir) = talk();
    exchange(&mut here, "hi", "one");
    let mut there = Talk::new(Store::new(dir.path().to_owned()), Settings::default(), None);
    there.run(Command::Load("hi".into())).unwrap();
    exchange(&mut there, "over there", "two");
    assert_eq!(there.note, None);
    exchange(&mut here, "here", "three");
    let note = "another window changed this chat: it goes on here as hi (copy)";
    assert_eq!((here.note.as_deref(), here.chat.id != there.chat.id), (Some(note), true));
    assert_eq!(on_disk(&dir, &there.chat.id), ["hi", "one", "over there", "two"]);
    assert_eq!(on_disk(&dir, &here.chat.id), ["hi", "one", "here", "three"]);
}

#[test]
fn files_may_be_utf16() {
    let (mut t, dir) = talk();
    let path = dir.path().join("a.txt");
    let units = "\u{feff}Grüße\r\n日本".encode_utf16();
    std::fs::write(&path, units.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
    t.run(Command::File(path.display().to_string())).unwrap();
    assert_eq!(t.files[0].text, "Grüße\n日本");
}
