//! What stays on disk whatever becomes of a reply or a change, without a terminal and without a model.

use super::command::Command;
use super::reply::Outcome;
use super::settings::Settings;
use super::store::{Chat, Store};
use super::talk::{Back, Talk, Todo};
use crate::generation::generate::{FinishReason, Stats};
use crate::runtime::session::Prefill;
use std::time::Duration;
use tempfile::TempDir;

fn talk() -> (Talk, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Talk::new(Store::new(dir.path().to_owned()), Settings::default(), None), dir)
}

fn end(talk: &mut Talk, ended: FinishReason) -> Option<Back> {
    let prefill = Prefill { reused: 0, source: None, computed: 9, stopped: false };
    let time = Duration::from_secs(1);
    let stats =
        Stats { prefill, prefill_time: time, generated: 1, decode_time: time, expert_cache: None, ended };
    talk.heard(Outcome { ids: vec![1], stats })
}

fn exchange(talk: &mut Talk, message: &str, reply: &str) {
    talk.say(message);
    talk.ask();
    talk.hear(reply);
    assert_eq!(end(talk, FinishReason::EndToken), None);
}

/// The messages of the chat as another start would find them.
fn on_disk(dir: &TempDir, id: &str) -> Vec<String> {
    texts(&Store::new(dir.path().to_owned()).load(id).unwrap())
}

fn texts(chat: &Chat) -> Vec<String> {
    chat.turns.iter().map(|turn| turn.text.clone()).collect()
}

#[test]
fn a_reply_stays_until_there_is_another() {
    let (mut t, dir) = talk();
    exchange(&mut t, "hi", "one");
    let id = t.chat.id.clone();
    let fails: [fn(&mut Talk) -> Option<Back>; 3] =
        [Talk::give_up, |t| end(t, FinishReason::Cancelled), |t| end(t, FinishReason::EndToken)];
    for fail in fails {
        assert_eq!(t.run(Command::Regen).unwrap(), Todo::Answer);
        assert_eq!(t.ask().turns.len(), 1);
        assert_eq!(on_disk(&dir, &id), ["hi", "one"]);
        t.store_chat().unwrap();
        assert_eq!(on_disk(&dir, &id), ["hi", "one"], "what is written meanwhile");
        assert_eq!(fail(&mut t), Some(Back::Chat));
        assert_eq!(texts(&t.chat), ["hi", "one"]);
        assert_eq!(on_disk(&dir, &id), ["hi", "one"]);
    }
    t.run(Command::Regen).unwrap();
    t.ask();
    t.hear("two");
    assert_eq!(t.give_up(), None);
    assert_eq!((texts(&t.chat), on_disk(&dir, &id)), (vec!["hi".into(), "two".into()], texts(&t.chat)));
}

#[test]
fn an_exchange_stays_until_its_changed_message_is_answered() {
    let (mut t, dir) = talk();
    let file = dir.path().join("a.txt");
    std::fs::write(&file, "text").unwrap();
    t.run(Command::File(file.display().to_string())).unwrap();
    exchange(&mut t, "hi", "one");
    let id = t.chat.id.clone();
    assert_eq!(t.run(Command::Edit).unwrap(), Todo::Type("hi".into()));
    assert_eq!((t.chat.turns.len(), t.files.len()), (0, 1));
    t.run(Command::Save("Named".into())).unwrap();
    t.run(Command::Clear).unwrap();
    assert_eq!(on_disk(&dir, &id), ["hi", "one"]);
    t.run(Command::Load("named".into())).unwrap();
    t.run(Command::Edit).unwrap();
    t.say("changed");
    t.ask();
    assert_eq!(t.give_up(), Some(Back::Message("changed".into())));
    assert_eq!((on_disk(&dir, &id), t.files.len()), (vec!["hi".into(), "one".into()], 1));
    assert!(t.stop_editing() && !t.stop_editing());
    assert_eq!((texts(&t.chat), t.files.len()), (on_disk(&dir, &id), 0));
    t.run(Command::Edit).unwrap();
    exchange(&mut t, "changed", "two");
    assert_eq!(on_disk(&dir, &id), ["changed", "two"]);
}

#[test]
fn what_concerns_the_last_exchange_ends_an_edit() {
    let (mut t, dir) = talk();
    exchange(&mut t, "first", "one");
    exchange(&mut t, "second", "two");
    let id = t.chat.id.clone();
    t.run(Command::Edit).unwrap();
    assert_eq!(t.run(Command::Edit).unwrap(), Todo::Type("second".into()));
    t.run(Command::Regen).unwrap();
    assert_eq!(t.ask().turns.len(), 3);
    t.give_up();
    t.run(Command::Edit).unwrap();
    t.run(Command::Undo).unwrap();
    assert_eq!(on_disk(&dir, &id), ["first", "one"]);
    t.run(Command::Edit).unwrap();
    t.run(Command::Branch(None)).unwrap();
    assert_eq!(texts(&t.chat), ["first", "one"]);
}

#[test]
fn a_reply_that_has_not_begun_is_not_stored() {
    let (mut t, dir) = talk();
    t.say("hi");
    t.ask();
    t.store_chat().unwrap();
    let id = t.chat.id.clone();
    assert_eq!(on_disk(&dir, &id), ["hi"]);
    t.hear("he");
    t.store_chat().unwrap();
    assert_eq!(on_disk(&dir, &id), ["hi", "he"]);
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
fn a_chat_that_cannot_be_saved_goes_on_and_says_so_once() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("chats");
    std::fs::write(&place, "in the way").unwrap();
    let mut t = Talk::new(Store::new(place.clone()), Settings::default(), None);
    exchange(&mut t, "hi", "one");
    let note = t.note.take().unwrap();
    assert!(
        note.starts_with("the chat could not be saved: ") && note.ends_with(": it goes on unsaved"),
        "{note}"
    );
    exchange(&mut t, "more", "two");
    assert_eq!((t.note.take(), t.chat.turns.len()), (None, 4));
    std::fs::remove_file(&place).unwrap();
    exchange(&mut t, "again", "three");
    let stored = Store::new(place).load(&t.chat.id).unwrap();
    assert_eq!((texts(&stored).len(), t.note.take()), (6, None), "nothing is missing");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_file_for_a_message() {
    let (mut t, dir) = talk();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let e = t.run(Command::File(pipe.display().to_string())).unwrap_err();
    assert_eq!(format!("{e:#}"), format!("{}: expected a regular file, found another kind", pipe.display()));
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
