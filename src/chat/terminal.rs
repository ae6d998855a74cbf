//! The terminal around the full-screen chat: taken over at the start, given back whatever happens, and between
//! them the loop that waits for keys and for the engine.
//!
//! Nothing else of the program writes to the screen. Next: [`super::app`].

use super::app::{App, Effect, Event};
use super::input::History;
use super::view::view;
use super::worker::{Order, Worker};
use crate::io::output::tell;
use anyhow::{Context as _, Result, bail};
use crossterm::clipboard::CopyToClipboard;
use crossterm::event::{
    self, DisableBracketedPaste, EnableBracketedPaste, Event as Input, KeyEventKind, MouseEventKind,
};
use crossterm::style::Print;
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, SetTitle,
    disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{Stdout, Write, stdout};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

/// While a reply comes: the screen changes at most so often, the cores belong to the engine.
const FRAME: Duration = Duration::from_millis(33);
/// While nothing happens: how soon a signal is seen.
const IDLE: Duration = Duration::from_millis(250);
/// How often a growing reply is written to disk and the memory is looked at.
const SAVE: Duration = Duration::from_secs(2);
/// After a signal: what is left of a step, and the last write.
const GRACE: Duration = Duration::from_secs(10);
const GONE: &str = "the engine stopped; the chat is saved";
/// Rows a notch of the wheel scrolls.
const NOTCH: isize = 3;
/// Buttons and wheel with exact places; without movements, which would come by the hundred.
const MOUSE_ON: &str = "\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &str = "\x1b[?1006l\x1b[?1000l";

/// The terminal while it is ours.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    fn enter(mouse: bool) -> Result<Self> {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            leave();
            hook(info);
        }));
        enter(mouse)?;
        let terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        Ok(Screen { terminal })
    }

    fn draw(&mut self, app: &App) -> Result<()> {
        execute!(stdout(), BeginSynchronizedUpdate)?;
        self.terminal.draw(|frame| view(app, frame))?;
        execute!(stdout(), EndSynchronizedUpdate)?;
        Ok(())
    }

    /// Gives the terminal to another program for a while.
    fn lend<T>(&mut self, mouse: bool, other: impl FnOnce() -> T) -> Result<T> {
        leave();
        let result = other();
        enter(mouse)?;
        self.terminal.clear()?;
        Ok(result)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn enter(mouse: bool) -> Result<()> {
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste, SetTitle("kimi"))?;
    if mouse {
        execute!(stdout(), Print(MOUSE_ON))?;
    }
    Ok(())
}

/// As it was before; what fails here cannot be helped.
fn leave() {
    let _ = execute!(
        stdout(),
        EndSynchronizedUpdate,
        Print(MOUSE_OFF),
        DisableBracketedPaste,
        LeaveAlternateScreen
    );
    let _ = execute!(stdout(), cursor::Show);
    let _ = disable_raw_mode();
}

/// Runs the chat until it is left; what was said and read so far is kept then.
pub fn run(mut app: App, worker: Worker) -> Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    end_on_signals(ended.clone())?;
    let mut screen = Screen::enter(app.mouse)?;
    let outcome = go(&mut app, &mut screen, &worker, &ended);
    drop(screen);
    if app.busy() {
        app.talk.store_chat()?;
    }
    if let Some(note) = app.talk.note.take() {
        tell(&note);
    }
    outcome.and(worker.close())
}

/// Ends the loop on a signal. It may never hear of it: crossterm waits without end, and busily, for input of a terminal
/// that is gone. What was said is on disk by then, so the process ends after a grace.
fn end_on_signals(ended: Arc<AtomicBool>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            ended.store(true, Ordering::Relaxed);
            std::thread::sleep(GRACE);
            std::process::exit(1);
        }
    });
    Ok(())
}

fn go(app: &mut App, screen: &mut Screen, worker: &Worker, ended: &AtomicBool) -> Result<()> {
    let history = History::of_user();
    app.input.remember_all(history.read());
    let size = screen.terminal.size()?;
    let mut events = vec![Event::Resize(size.width, size.height), Event::Memory(resident())];
    let mut saved = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let changed = !events.is_empty();
        let effects: Vec<Effect> = events.drain(..).flat_map(|event| app.update(event)).collect();
        for effect in effects {
            if matches!(effect, Effect::Quit) {
                return Ok(());
            }
            events.extend(perform(effect, screen, app, worker, &history)?);
        }
        if changed {
            screen.draw(app)?;
        }
        let patience = if app.busy() { FRAME } else { IDLE };
        wait(if events.is_empty() { patience } else { Duration::ZERO }, &mut events)?;
        reports(worker, &mut events)?;
        if app.busy() && saved.elapsed() >= SAVE {
            saved = Instant::now();
            events.push(Event::Memory(resident()));
            app.talk.keep();
        }
    }
    Ok(())
}

/// All input there is, after at most so long; movements and releases are none.
fn wait(most: Duration, events: &mut Vec<Event>) -> Result<()> {
    let mut most = most;
    while event::poll(most)? {
        most = Duration::ZERO;
        match event::read()? {
            Input::Key(key) if key.kind != KeyEventKind::Release => events.push(Event::Key(key)),
            Input::Paste(text) => events.push(Event::Paste(text)),
            Input::Resize(columns, rows) => events.push(Event::Resize(columns, rows)),
            Input::Mouse(mouse) if mouse.kind == MouseEventKind::ScrollUp => {
                events.push(Event::Wheel(-NOTCH))
            }
            Input::Mouse(mouse) if mouse.kind == MouseEventKind::ScrollDown => {
                events.push(Event::Wheel(NOTCH))
            }
            _ => {}
        }
    }
    Ok(())
}

fn reports(worker: &Worker, events: &mut Vec<Event>) -> Result<()> {
    loop {
        match worker.reports.try_recv() {
            Ok(report) => events.push(Event::Report(report)),
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => bail!("{GONE}"),
        }
    }
}

fn perform(
    effect: Effect,
    screen: &mut Screen,
    app: &App,
    worker: &Worker,
    history: &History,
) -> Result<Option<Event>> {
    match effect {
        Effect::Ask(ask) => {
            worker.stop.store(false, Ordering::Relaxed);
            worker.orders.send(Order::Ask(ask)).ok().context(GONE)?;
        }
        Effect::Open(path) => worker.orders.send(Order::Open(path)).ok().context(GONE)?,
        Effect::Stop => worker.stop.store(true, Ordering::Relaxed),
        Effect::Copy(text) => execute!(stdout(), CopyToClipboard::to_clipboard_from(text))?,
        Effect::Mouse(on) => execute!(stdout(), Print(if on { MOUSE_ON } else { MOUSE_OFF }))?,
        Effect::Editor(text) => return Ok(Some(Event::Edited(screen.lend(app.mouse, || edit(&text))?))),
        Effect::Remember(text) => history.add(&text),
        Effect::Quit => {}
    }
    Ok(None)
}

/// The text after `$VISUAL`, `$EDITOR` or `vi` had it.
pub fn edit(text: &str) -> Result<String> {
    let named = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    let editor = named("VISUAL").or_else(|| named("EDITOR")).unwrap_or("vi".into());
    let mut file = tempfile::Builder::new().prefix("kimi-").suffix(".md").tempfile()?;
    file.write_all(text.as_bytes())?;
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or("vi");
    let status = Command::new(program).args(words).arg(file.path()).status();
    let status = status.with_context(|| format!("{editor}: expected an editor that starts"))?;
    if !status.success() {
        bail!("{editor}: expected it to succeed, found {status}");
    }
    std::fs::read_to_string(file.path()).with_context(|| file.path().display().to_string())
}

/// Bytes of memory this process holds, as Linux counts them; None elsewhere.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
