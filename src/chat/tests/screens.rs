//! Exact screens of the full-screen chat, drawn by ratatui's test backend.

mod picture;

use crate::chat::app::{AppEvent, ChatApp, Effect};
use crate::chat::chat_session::ChatSession;
use crate::chat::input::WRAPPED_BYTES;
use crate::chat::settings::Settings;
use crate::chat::store::ChatStore;
use crate::chat::theme::{Depth, Theme};
use crate::chat::view::view;
use crate::chat::worker::WorkerEvent;
use crate::client::{ModelInfo, ReplyOutcome};
use crate::generation::draft::DraftCounts;
use crate::generation::event::Stats;
use crate::generation::generate::FinishReason;
use crate::generation::markup::ReplyEvent;
use crate::prefix_cache::PrefixSource;
use crate::runtime::session::Prefill;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// An app on a test screen, with the directory of its chats.
struct TestScreen {
    app: ChatApp,
    terminal: Terminal<TestBackend>,
    dir: TempDir,
}

impl TestScreen {
    fn new(columns: u16, rows: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut session = ChatSession::new(ChatStore::new(dir.path().to_owned()), Settings::default(), None);
        session.model_info = ModelInfo {
            name: "tiny".into(),
            runs_on: "test".into(),
            context_limit: Some(4096),
            ..ModelInfo::default()
        };
        let mut app = ChatApp::new(session, Theme { depth: Depth::Sixteen, light: false }, (columns, rows));
        app.transcript.set_model("tiny");
        let terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        let mut screen = TestScreen { app, terminal, dir };
        screen.send(AppEvent::Resize(columns, rows));
        screen
    }

    fn send(&mut self, event: impl Into<AppEvent>) -> Vec<Effect> {
        self.app.update(event.into())
    }

    fn types(&mut self, text: &str) {
        text.chars().for_each(|c| {
            self.send(KeyCode::Char(c));
        });
    }

    fn control(&mut self, c: char) -> Vec<Effect> {
        self.send(AppEvent::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)))
    }

    /// Types a line and sends it.
    fn enters(&mut self, text: &str) -> Vec<Effect> {
        self.types(text);
        self.send(KeyCode::Enter)
    }

    fn receives(&mut self, text: &str) {
        self.send(AppEvent::Worker(WorkerEvent::Reply {
            event: ReplyEvent::Text(text.into()),
            tokens: 7,
            rate: 12.5,
        }));
    }

    fn done(&mut self, ended: FinishReason) {
        let prefill = Prefill { reused: 12, source: Some(PrefixSource::Live), computed: 30, stopped: false };
        let (prefill_time, decode_time) = (Duration::from_secs(1), Duration::from_secs(2));
        let stats = Stats {
            prefill,
            prefill_time,
            generated: 21,
            decode_time,
            draft: DraftCounts::default(),
            expert_cache: None,
            ended,
        };
        self.send(AppEvent::Worker(WorkerEvent::Done(ReplyOutcome { ids: vec![1, 2], stats })));
    }

    /// Sends a message and receives its reply.
    fn exchange(&mut self, message: &str, reply: &str) {
        assert!(matches!(self.enters(message)[..], [Effect::Remember(_), Effect::Generate(_)]));
        self.receives(reply);
        self.done(FinishReason::EndToken);
    }

    /// The rows of the screen, without trailing spaces.
    fn rows(&mut self) -> Vec<String> {
        self.terminal.draw(|frame| view(&self.app, frame)).unwrap();
        let cells = self.terminal.backend().buffer();
        let mut rows = Vec::new();
        for y in 0..cells.area.height {
            let (mut row, mut x) = (String::new(), 0);
            while x < cells.area.width {
                let symbol = cells[(x, y)].symbol();
                row.push_str(symbol);
                x += u16::try_from(unicode_width::UnicodeWidthStr::width(symbol).max(1)).unwrap();
            }
            rows.push(row.trim_end().to_owned());
        }
        rows
    }

    /// Whether a row has exactly this text between its indentation and the scroll bar.
    fn says(&mut self, text: &str) -> bool {
        self.rows().iter().any(|row| row.trim_start().trim_end_matches(['│', '┃', ' ']) == text)
    }

    fn shows(&mut self, expected: &[&str]) {
        assert_eq!(self.rows(), expected);
    }
}

#[test]
fn a_reply_streams_and_ends() {
    let mut s = TestScreen::new(44, 11);
    s.enters("hi");
    s.shows(&[
        "▌ You",
        "▌ hi",
        "",
        "  tiny",
        "",
        "",
        "",
        "",
        "── reading the prompt · Esc stops ──────────",
        ">",
        "tiny uses 0 of 4,096 tokens.",
    ]);
    s.send(AppEvent::Worker(WorkerEvent::Prefill { done: 10, total: 40, rate: 50.0 }));
    assert_eq!(s.rows()[8], "── reading the prompt · 25 % ━━━────────────");
    s.receives("**Hello** `you`,\n\n- 你好 🎉");
    let reply = ["▌ You", "▌ hi", "", "  tiny", "  Hello you,", "", "  • 你好 🎉", ""];
    assert_eq!(s.rows()[..8], reply);
    assert_eq!(
        s.rows()[8..],
        ["── generating, 7 tokens · 12.5 tok/s ───────", ">", "tiny uses 47 of 4,096 tokens."]
    );
    s.done(FinishReason::EndToken);
    assert_eq!(s.rows()[..8], reply);
    let end =
        ["── hi ──────────────────────────────────────", ">", "tiny uses 63 of 4,096 tokens, 10 tok/s."];
    assert_eq!(s.rows()[8..], end);
    assert_eq!(s.app.session.store.list().len(), 1);
}

#[test]
fn a_stopped_message_is_restored_only_before_its_reply() {
    let mut s = TestScreen::new(60, 12);
    s.enters("one");
    assert!(matches!(s.send(KeyCode::Esc)[..], [Effect::Stop]));
    let stats = Stats {
        prefill: Prefill { reused: 0, source: None, computed: 512, stopped: true },
        prefill_time: Duration::from_secs(1),
        generated: 0,
        decode_time: Duration::ZERO,
        draft: DraftCounts::default(),
        expert_cache: None,
        ended: FinishReason::Cancelled,
    };
    s.send(AppEvent::Worker(WorkerEvent::Done(ReplyOutcome { ids: vec![], stats })));
    let rows = s.rows();
    assert_eq!(rows[2], "  stopped during prefill; the prefilled tokens are kept");
    assert_eq!(rows[10], "> one", "the message is in the input again");
    s.send(KeyCode::Enter);
    s.receives("begun");
    assert!(matches!(s.control('c')[..], [Effect::Stop]));
    s.done(FinishReason::Cancelled);
    assert_eq!(s.rows()[3..7], ["  tiny", "  begun", "", "  stopped"]);
    assert_eq!(s.rows()[10], ">");
    assert!(s.send(KeyCode::Esc).is_empty(), "no reply to stop");
}

#[test]
fn a_failed_message_is_restored_with_its_attachments() {
    let mut s = TestScreen::new(60, 12);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "fn main() {}\n").unwrap();
    s.enters(&format!("/file {}", file.path().display()));
    assert_eq!(s.rows()[11], "tiny uses 0 of 4,096 tokens.");
    s.terminal.backend_mut().resize(80, 12);
    s.send(AppEvent::Resize(80, 12));
    assert_eq!(s.rows()[11], "tiny uses 0 of 4,096 tokens, 1 file attached to the next message.");
    s.enters("what is this?");
    assert!(s.rows().iter().any(|row| row.contains(": 1 line, 13 B]")));
    s.send(AppEvent::Worker(WorkerEvent::Failed("context: expected at most 9 tokens, found 10".into())));
    assert_eq!(s.rows()[10], "> what is this?");
    assert!(s.rows()[11].contains("1 file attached"));
    assert!(s.app.session.chat.turns.is_empty() && s.app.session.store.list().is_empty());
}

#[test]
fn commands_complete() {
    let mut s = TestScreen::new(60, 11);
    s.types("/e");
    let rows = s.rows();
    assert_eq!(rows[2], "╭ Tab completes ───────────────────────────────────────────╮");
    assert_eq!(rows[3], "│  /edit                 edit the last message and send it │");
    assert_eq!(rows[5], "│  /export [FILE]        write the chat as Markdown        │");
    assert_eq!(rows[7], "╰──────────────────────────────────────────────────────────╯");
    s.send(KeyCode::Tab);
    s.send(KeyCode::Tab);
    s.send(KeyCode::Tab);
    assert_eq!(
        (&*s.rows()[5], &*s.rows()[9]),
        ("│› /export [FILE]        write the chat as Markdown        │", "> /export")
    );
    s.send(KeyCode::BackTab);
    assert_eq!(s.rows()[9], "> /editor");
    s.control('u');
    assert_eq!(s.rows()[5], "");
    s.types("/uno");
    s.send(KeyCode::Enter);
    assert!(s.says("/uno: unknown command; /help lists the commands"));
}

#[test]
fn undo_edit_regenerate_and_branch() {
    let mut s = TestScreen::new(60, 14);
    s.exchange("first", "one");
    s.exchange("second", "two");
    s.enters("/branch 1");
    assert_eq!(s.app.session.chat.turns.len(), 2);
    assert_eq!(s.app.session.store.list().len(), 2, "the original chat is kept");
    s.enters("/edit");
    assert_eq!(s.rows()[12], "> first");
    s.types("!");
    s.exchange("", "other");
    assert_eq!(s.rows()[..5], ["▌ You", "▌ first!", "", "  tiny", "  other"]);
    let effects = s.enters("/regen");
    assert!(matches!(&effects[..], [_, Effect::Generate(request)] if request.turns.len() == 1));
    s.receives("again");
    assert!(s.enters("/undo").is_empty(), "not during a reply");
    s.control('u');
    s.done(FinishReason::EndToken);
    s.enters("/undo");
    assert!(s.app.session.chat.turns.is_empty());
    s.enters("/undo");
    assert!(s.says("no exchange to undo"));
}

#[test]
fn a_replaced_reply_is_restored_on_failure() {
    let mut s = TestScreen::new(60, 12);
    s.exchange("hi", "one");
    s.enters("/regen");
    assert_eq!(s.rows()[..6], ["▌ You", "▌ hi", "", "  tiny", "", ""]);
    s.send(AppEvent::Worker(WorkerEvent::Failed("the server is gone".into())));
    let shown = ["▌ You", "▌ hi", "", "  tiny", "  one", ""];
    assert_eq!((&s.rows()[..6], &*s.rows()[6]), (&shown.map(str::to_owned)[..], "  the server is gone"));
    assert_eq!(s.rows()[10], ">");
    s.enters("/regen");
    s.done(FinishReason::EndToken);
    assert_eq!((&s.rows()[..6], &*s.rows()[6]), (&shown.map(str::to_owned)[..], "  the reply was empty"));
    s.enters("/edit");
    assert_eq!((&s.rows()[0][..], &s.rows()[10][..]), ("", "> hi"));
    s.control('c');
    assert_eq!(
        (&s.rows()[..6], &*s.rows()[6]),
        (&shown.map(str::to_owned)[..], "  edit cancelled; the chat is unchanged")
    );
    assert_eq!(s.rows()[10], ">");
    s.exchange("more", "two");
    assert_eq!(s.app.session.store.list()[0].turns, 4);
}

#[test]
fn a_chat_changed_in_another_window_continues_as_a_copy() {
    let mut s = TestScreen::new(80, 12);
    s.exchange("hi", "one");
    let mut there = ChatStore::new(s.dir.path().to_owned());
    let mut chat = there.find("hi").unwrap();
    chat.turns.truncate(1);
    there.save(&mut chat).unwrap();
    s.enters("more");
    assert!(s.says("another window changed this chat; it continues here as hi (copy)"));
    assert_eq!(s.app.session.store.list().len(), 2);
}

#[test]
fn chats_are_listed_and_opened() {
    let mut s = TestScreen::new(60, 12);
    s.exchange("about Rust", "yes");
    s.enters("/clear");
    s.exchange("你好", "hello");
    s.control('o');
    let rows = s.rows();
    assert_eq!(rows[0], "╭ Chats:  ─────────────────────────────────────────────────╮");
    assert_eq!(rows[1], "│  Name                                   Messages Changed │");
    assert_eq!(rows[2], "│› 你好                                          2     now │");
    s.types("rust");
    assert!(s.rows()[0].starts_with("╭ Chats: rust ──"));
    s.send(KeyCode::Enter);
    assert_eq!(s.rows()[..5], ["▌ You", "▌ about Rust", "", "  tiny", "  yes"]);
    s.enters("/load 你");
    assert_eq!(s.rows()[..2], ["▌ You", "▌ 你好"]);
    s.enters("/save Greeting");
    assert_eq!(s.app.session.store.find("greeting").unwrap().turns.len(), 2);
}

#[test]
fn the_screen_may_have_any_size() {
    let mut s = TestScreen::new(80, 24);
    s.exchange(
        "wide 你好世界",
        "| a | b |\n|---|---|\n| 宽 | 👩‍👩‍👧‍👦 |\n\n```rust\nfn main() { let x = 1; }\n```",
    );
    s.types("/");
    for (columns, rows) in [(1, 1), (4, 3), (5, 4), (20, 5), (200, 60), (3, 50), (300, 2), (80, 24)] {
        s.terminal.backend_mut().resize(columns, rows);
        s.send(AppEvent::Resize(columns, rows));
        assert_eq!(s.rows().len(), usize::from(rows));
    }
    s.control('u');
    assert_eq!(
        s.rows()[4..13],
        [
            "  ╭────┬────╮",
            "  │ a  │ b  │",
            "  ├────┼────┤",
            "  │ 宽 │ 👩‍👩‍👧‍👦 │",
            "  ╰────┴────╯",
            "",
            "  ╭─ rust ────────────────────────────────────────────────────────────────────╮",
            "  │ fn main() { let x = 1; }                                                  │",
            "  ╰───────────────────────────────────────────────────────────────────────────╯",
        ]
    );
}

#[test]
fn a_megabyte_is_pasted_and_sent_whole() {
    let mut s = TestScreen::new(80, 24);
    let paste = "0123456789 你好\r\n".repeat((1 << 20) / 19);
    let before = WRAPPED_BYTES.get();
    s.send(AppEvent::Paste(paste.clone()));
    s.types("ab");
    s.rows();
    // Wrapped once for the paste and for each key; drawing wraps nothing.
    let wrapped = WRAPPED_BYTES.get() - before;
    assert!((2 << 20..=3 * paste.len()).contains(&wrapped), "{wrapped}");
    let effects = s.send(KeyCode::Enter);
    let [_, Effect::Generate(request)] = &effects[..] else { panic!("{} effects", effects.len()) };
    assert_eq!(request.turns[0].text, paste.replace("\r\n", "\n") + "ab");
    assert!(s.rows().iter().any(|row| row.contains("bytes more (Ctrl-R)")));
}

#[test]
fn a_hundred_thousand_tokens_scroll_at_sixty_frames_a_second() {
    let mut s = TestScreen::new(200, 60);
    let reply = "Some **words** of a reply with `code` and 你好, as long as a line may be in practice.\n\n\
                 ```rust\nfn main() { println!(\"{}\", 1 + 2); } // done\n```\n\n- a point\n- another\n\n";
    for _ in 0..50 {
        s.exchange("question", &reply.repeat(50));
    }
    let bytes: usize = s.app.session.chat.turns.iter().map(|t| t.text.len()).sum();
    assert!(bytes > 400_000, "about 100,000 tokens, {bytes} bytes");
    let start = Instant::now();
    for i in 0..240 {
        s.send(AppEvent::Wheel(if i % 80 < 60 { -50 } else { 3 }));
        s.terminal.draw(|frame| view(&s.app, frame)).unwrap();
    }
    let frame = start.elapsed() / 240;
    assert!(frame < Duration::from_millis(16), "{frame:?} a frame");
    let start = Instant::now();
    s.send(AppEvent::Resize(199, 60));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?} for another width", start.elapsed());
}

#[test]
fn settings_change_generation_and_appearance() {
    let mut s = TestScreen::new(80, 12);
    s.enters("/set temp 0.1");
    assert!(s.says("temp 0.1"));
    s.enters("/set temp hot");
    assert!(s.rows().iter().any(|row| row.starts_with("  /set temp: invalid value 'hot'")));
    s.enters("/set theme light");
    assert!(s.app.theme.light);
    assert!(matches!(s.enters("/set mouse off")[..], [_, Effect::Mouse(false)]));
    assert!(matches!(s.send(KeyCode::F(2))[..], [Effect::Mouse(true)]));
    s.enters("/set mouse maybe");
    assert!(s.rows().iter().any(|row| row.contains("expected on or off, found \"maybe\"")));
    let effects = s.enters("hi");
    assert!(matches!(&effects[..], [_, Effect::Generate(request)] if request.sampling.temperature == 0.1));
}

#[test]
fn replies_are_copied_and_exported() {
    let mut s = TestScreen::new(80, 12);
    s.enters("/copy");
    assert!(s.says("no reply to copy yet"));
    s.exchange("q", "text\n```\ncode\n```\n");
    assert!(matches!(&s.enters("/copy code")[..], [_, Effect::Copy(text)] if text == "code\n"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.md");
    s.enters(&format!("/export {}", path.display()));
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, "# q\n\n## You\n\nq\n\n## Reply\n\ntext\n```\ncode\n```\n");
    s.enters(&format!("/export {}", path.display()));
    assert!(s.rows().iter().any(|row| row.contains("exists")), "nothing is overwritten");
}

#[test]
fn the_first_screen_says_what_to_do_in_three_lines() {
    let mut s = TestScreen::new(80, 9);
    s.send(AppEvent::Worker(WorkerEvent::Ready(s.app.session.model_info.clone())));
    s.shows(&[
        "  tiny on test.",
        "",
        "  Enter        sends what you type; Alt-Enter adds a line",
        "  /file PATH   attaches a document; quotes of it are checked",
        "  /help        lists commands and keys; Ctrl-O opens an earlier chat",
        "",
        "────────────────────────────────────────────────────────────────────────────────",
        ">",
        "tiny uses 0 of 4,096 tokens.",
    ]);
    s.exchange("hi", "one");
    assert_eq!(s.rows()[..2], ["▌ You", "▌ hi"]);
    s.enters("/clear");
    assert!(s.says("/file PATH   attaches a document; quotes of it are checked"));
}

/// A screen with a chat about a file of 40 lines, whose reply has two quotes of it and one that it lacks.
fn cited(columns: u16, rows: u16) -> TestScreen {
    let mut s = TestScreen::new(columns, rows);
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines: String = (1..=40).map(|n| format!("line {n} of the file\n")).collect();
    std::fs::write(file.path(), lines).unwrap();
    s.enters(&format!("/file {}", file.path().display()));
    s.app.session.files[0].name = "f.txt".into();
    s.exchange("which?", "> line 20 of the\n\n> line 50 of the\n\n> 2 of the file");
    s
}

#[test]
fn a_selected_quote_shows_its_source_beside_the_chat() {
    let mut s = cited(100, 18);
    assert_eq!(
        s.rows()[4..12],
        [
            "  tiny",
            "  ┃ line 20 of the",
            "  ┃ ✓ f.txt:20",
            "",
            "  ┊ line 50 of the",
            "  ┊ ✗ not in the files",
            "",
            "  ┃ 2 of the file"
        ]
    );
    s.control('p');
    assert!(
        s.rows()[0].contains("╭ f.txt:2 ─") && s.rows()[0].ends_with(" quote 3 of 3 ╮"),
        "{:?}",
        s.rows()
    );
    assert!(s.rows()[2].contains("│  2  line 2 of the file"));
    s.control('p');
    assert!(s.rows()[0].contains("╭ not in the files ─"));
    assert!(s.rows()[1].contains("│ No attached file has this text:"));
    s.control('p');
    let rows = s.rows();
    assert!(rows[0].contains("╭ f.txt:20 ─") && rows[14].contains(" Ctrl-P, Ctrl-N: quotes · Esc closes "));
    assert!(rows[5].contains("│ 20  line 20 of the file"), "{rows:?}");
    let cells = s.terminal.backend().buffer();
    let reversed = |x: u16, y: u16| cells[(x, y)].modifier.contains(ratatui::style::Modifier::REVERSED);
    let column = |text: &str| rows[5].rfind(text).map(|at| rows[5][..at].chars().count() as u16).unwrap();
    let quote = column("line 20");
    assert!(
        reversed(quote, 5) && reversed(quote + 13, 5) && !reversed(quote + 14, 5),
        "the quote is highlighted"
    );
    assert!(reversed(4, 5) && !reversed(4, 8), "the selected quote is marked");
    s.send(AppEvent::Key(KeyEvent::new(KeyCode::Down, KeyModifiers::ALT)));
    assert!(s.rows()[4].contains("│ 20  line 20 of the file"));
    s.control('n');
    assert!(s.rows()[0].contains("╭ not in the files ─"));
    s.send(KeyCode::Esc);
    assert!(!s.rows().iter().any(|row| row.contains('╭')));
    s.send(AppEvent::Click(4, 6));
    assert!(s.rows()[0].contains("╭ f.txt:20 ─"));
}

#[test]
fn the_list_of_keys_fits_into_80_columns() {
    let mut s = TestScreen::new(80, 24);
    s.enters("/help");
    let rows = s.rows();
    assert!(rows[4].starts_with("  Keys"), "{rows:?}");
    assert!(rows[6..20].iter().all(|row| !row.starts_with("   ")), "no line is wrapped: {rows:?}");
}

#[test]
fn the_source_is_below_the_chat_or_replaces_it_on_small_screens() {
    let mut s = cited(60, 23);
    s.control('p');
    assert!(s.rows()[10].starts_with("╭ f.txt:2 ─"), "{:?}", s.rows());
    assert!(s.rows().iter().any(|row| row.starts_with("› ┃ 2 of the file")), "the quote is in view");
    let mut s = cited(60, 12);
    s.control('p');
    assert!(s.rows()[0].starts_with("╭ f.txt:2 ─") && s.rows()[8].starts_with('╰'), "{:?}", s.rows());
    s.send(KeyCode::Esc);
    s.enters("/clear");
    s.control('p');
    assert!(s.says("no reply quotes an attached file yet"));
}

#[test]
fn a_theme_sets_the_background_unless_the_terminal_has_few_colors() {
    use ratatui::style::Color;
    let mut s = TestScreen::new(30, 4);
    for (depth, light, background) in [
        (Depth::Exact, false, Color::from_u32(0x0d_11_17)),
        (Depth::Exact, true, Color::from_u32(0xff_ff_ff)),
        (Depth::Indexed, true, Color::Indexed(231)),
        (Depth::Sixteen, false, Color::Reset),
        (Depth::None, false, Color::Reset),
    ] {
        s.app.theme = Theme { depth, light };
        s.types("/");
        s.rows();
        assert!(s.terminal.backend().buffer().content.iter().all(|cell| cell.bg == background), "{depth:?}");
        s.control('u');
    }
}
