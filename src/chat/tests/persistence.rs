//! The saved chat after failed, stopped and edited replies.

use crate::chat::chat_session::{Action, ChatSession, Restored};
use crate::chat::command::SlashCommand;
use crate::chat::settings::Settings;
use crate::chat::store::{ChatStore, StoredChat};
use crate::client::ReplyOutcome;
use crate::generation::draft::DraftCounts;
use crate::generation::event::Stats;
use crate::generation::generate::FinishReason;
use crate::generation::markup::ReplyEvent;
use crate::runtime::session::Prefill;
use std::time::Duration;
use tempfile::TempDir;

fn session() -> (ChatSession, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (ChatSession::new(ChatStore::new(dir.path().to_owned()), Settings::default(), None), dir)
}

fn end(session: &mut ChatSession, ended: FinishReason) -> Option<Restored> {
    let prefill = Prefill { reused: 0, source: None, computed: 9, stopped: false };
    let time = Duration::from_secs(1);
    let stats = Stats {
        prefill,
        prefill_time: time,
        generated: 1,
        decode_time: time,
        draft: DraftCounts::default(),
        expert_cache: None,
        ended,
    };
    session.finish_reply(ReplyOutcome { ids: vec![1], stats })
}

fn push_text(session: &mut ChatSession, text: &str) {
    session.push_event(&ReplyEvent::Text(text.into()));
}

fn exchange(session: &mut ChatSession, message: &str, reply: &str) {
    session.add_message(message);
    session.begin_reply();
    push_text(session, reply);
    assert_eq!(end(session, FinishReason::EndToken), None);
}

/// The messages of a chat as a new process would load them.
fn on_disk(dir: &TempDir, id: &str) -> Vec<String> {
    texts(&ChatStore::new(dir.path().to_owned()).load(id).unwrap())
}

fn texts(chat: &StoredChat) -> Vec<String> {
    chat.turns.iter().map(|turn| turn.text.clone()).collect()
}

#[test]
fn a_reply_is_kept_until_its_replacement_has_text() {
    let (mut t, dir) = session();
    exchange(&mut t, "hi", "one");
    let id = t.chat.id.clone();
    let fails: [fn(&mut ChatSession) -> Option<Restored>; 3] =
        [ChatSession::fail_reply, |t| end(t, FinishReason::Cancelled), |t| end(t, FinishReason::EndToken)];
    for fail in fails {
        assert_eq!(t.run(SlashCommand::Regen).unwrap(), Action::Answer);
        assert_eq!(t.begin_reply().turns.len(), 1);
        assert_eq!(on_disk(&dir, &id), ["hi", "one"]);
        t.save().unwrap();
        assert_eq!(on_disk(&dir, &id), ["hi", "one"], "a save during the reply");
        assert_eq!(fail(&mut t), Some(Restored::Chat));
        assert_eq!(texts(&t.chat), ["hi", "one"]);
        assert_eq!(on_disk(&dir, &id), ["hi", "one"]);
    }
    t.run(SlashCommand::Regen).unwrap();
    t.begin_reply();
    push_text(&mut t, "two");
    assert_eq!(t.fail_reply(), None);
    assert_eq!((texts(&t.chat), on_disk(&dir, &id)), (vec!["hi".into(), "two".into()], texts(&t.chat)));
}

#[test]
fn an_exchange_is_kept_until_the_edited_message_has_a_reply() {
    let (mut t, dir) = session();
    let file = dir.path().join("a.txt");
    std::fs::write(&file, "text").unwrap();
    t.run(SlashCommand::File(file.display().to_string())).unwrap();
    exchange(&mut t, "hi", "one");
    let id = t.chat.id.clone();
    assert_eq!(t.run(SlashCommand::Edit).unwrap(), Action::Type("hi".into()));
    assert_eq!((t.chat.turns.len(), t.files.len()), (0, 1));
    t.run(SlashCommand::Save("Named".into())).unwrap();
    t.run(SlashCommand::Clear).unwrap();
    assert_eq!(on_disk(&dir, &id), ["hi", "one"]);
    t.run(SlashCommand::Load("named".into())).unwrap();
    t.run(SlashCommand::Edit).unwrap();
    t.add_message("changed");
    t.begin_reply();
    assert_eq!(t.fail_reply(), Some(Restored::Message("changed".into())));
    assert_eq!((on_disk(&dir, &id), t.files.len()), (vec!["hi".into(), "one".into()], 1));
    assert!(t.cancel_edit() && !t.cancel_edit());
    assert_eq!((texts(&t.chat), t.files.len()), (on_disk(&dir, &id), 0));
    t.run(SlashCommand::Edit).unwrap();
    exchange(&mut t, "changed", "two");
    assert_eq!(on_disk(&dir, &id), ["changed", "two"]);
}

#[test]
fn commands_on_the_last_exchange_cancel_an_edit() {
    let (mut t, dir) = session();
    exchange(&mut t, "first", "one");
    exchange(&mut t, "second", "two");
    let id = t.chat.id.clone();
    t.run(SlashCommand::Edit).unwrap();
    assert_eq!(t.run(SlashCommand::Edit).unwrap(), Action::Type("second".into()));
    t.run(SlashCommand::Regen).unwrap();
    assert_eq!(t.begin_reply().turns.len(), 3);
    t.fail_reply();
    t.run(SlashCommand::Edit).unwrap();
    t.run(SlashCommand::Undo).unwrap();
    assert_eq!(on_disk(&dir, &id), ["first", "one"]);
    t.run(SlashCommand::Edit).unwrap();
    t.run(SlashCommand::Branch(None)).unwrap();
    assert_eq!(texts(&t.chat), ["first", "one"]);
}

#[test]
fn an_empty_reply_is_not_saved() {
    let (mut t, dir) = session();
    t.add_message("hi");
    t.begin_reply();
    t.save().unwrap();
    let id = t.chat.id.clone();
    assert_eq!(on_disk(&dir, &id), ["hi"]);
    push_text(&mut t, "he");
    t.save().unwrap();
    assert_eq!(on_disk(&dir, &id), ["hi", "he"]);
}

#[test]
fn two_windows_keep_both_of_their_exchanges() {
    let (mut here, dir) = session();
    exchange(&mut here, "hi", "one");
    let mut there = ChatSession::new(ChatStore::new(dir.path().to_owned()), Settings::default(), None);
    there.run(SlashCommand::Load("hi".into())).unwrap();
    exchange(&mut there, "over there", "two");
    assert_eq!(there.note, None);
    exchange(&mut here, "here", "three");
    let note = "another window changed this chat; it continues here as hi (copy)";
    assert_eq!((here.note.as_deref(), here.chat.id != there.chat.id), (Some(note), true));
    assert_eq!(on_disk(&dir, &there.chat.id), ["hi", "one", "over there", "two"]);
    assert_eq!(on_disk(&dir, &here.chat.id), ["hi", "one", "here", "three"]);
}

#[test]
fn a_chat_that_cannot_be_saved_continues_and_warns_once() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("chats");
    std::fs::write(&place, "in the way").unwrap();
    let mut t = ChatSession::new(ChatStore::new(place.clone()), Settings::default(), None);
    exchange(&mut t, "hi", "one");
    let note = t.note.take().unwrap();
    assert!(
        note.starts_with("the chat could not be saved: ") && note.ends_with("; continuing unsaved"),
        "{note}"
    );
    exchange(&mut t, "more", "two");
    assert_eq!((t.note.take(), t.chat.turns.len()), (None, 4));
    std::fs::remove_file(&place).unwrap();
    exchange(&mut t, "again", "three");
    let stored = ChatStore::new(place).load(&t.chat.id).unwrap();
    assert_eq!((texts(&stored).len(), t.note.take()), (6, None), "all messages are saved");
}

#[cfg(unix)]
#[test]
fn a_pipe_cannot_be_attached() {
    let (mut t, dir) = session();
    let pipe = dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let e = t.run(SlashCommand::File(pipe.display().to_string())).unwrap_err();
    assert_eq!(format!("{e:#}"), format!("{}: not a regular file", pipe.display()));
}

#[test]
fn files_may_be_utf16() {
    let (mut t, dir) = session();
    let path = dir.path().join("a.txt");
    let units = "\u{feff}Grüße\r\n日本".encode_utf16();
    std::fs::write(&path, units.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
    t.run(SlashCommand::File(path.display().to_string())).unwrap();
    assert_eq!(t.files[0].text, "Grüße\n日本");
}
