//! The event loop of the full-screen chat, with all its terminal input and output. Sets up the terminal and restores it
//! on exit, panic and signal.
//!
//! Nothing else writes to the screen. Next: [`super::app`].

use super::app::{AppEvent, ChatApp, Effect};
use super::input::History;
use super::view::view;
use super::worker::{ChatWorker, WorkerCommand};
use crate::io::output::tell;
use anyhow::{Context as _, Result, bail};
use crossterm::clipboard::CopyToClipboard;
use crossterm::event::{
    self, DisableBracketedPaste, EnableBracketedPaste, Event as Input, KeyEventKind, MouseButton,
    MouseEventKind,
};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, SetTitle,
    disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use std::io::{self, Stdout, Write, stdout};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

/// Time between two frames during a reply, which leaves the cores to the engine.
const FRAME: Duration = Duration::from_millis(33);
/// Longest wait for input while idle; bounds the delay of a signal.
const IDLE: Duration = Duration::from_millis(250);
/// Time between two saves of a growing reply, and two measurements of memory.
const SAVE: Duration = Duration::from_secs(2);
/// Time to finish a step and save the chat after a signal.
#[cfg(unix)]
const GRACE: Duration = Duration::from_secs(10);
/// Error message when the worker thread has ended.
const ENGINE_STOPPED: &str = "the engine stopped; the chat is saved";
/// Rows to scroll per step of the mouse wheel.
const ROWS_PER_STEP: isize = 3;
/// The editor where neither `$VISUAL` nor `$EDITOR` is set.
const EDITOR: &str = if cfg!(windows) { "notepad" } else { "vi" };

/// The terminal in raw mode, on its alternate screen.
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

    fn draw(&mut self, app: &ChatApp) -> Result<()> {
        execute!(stdout(), BeginSynchronizedUpdate)?;
        self.terminal.draw(|frame| view(app, frame))?;
        execute!(stdout(), EndSynchronizedUpdate)?;
        Ok(())
    }

    /// Restores the terminal while `other` runs, for example the external editor.
    fn suspend<T>(&mut self, mouse: bool, other: impl FnOnce() -> T) -> Result<T> {
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
        report_mouse(true)?;
    }
    Ok(())
}

/// Turns reports of buttons and the wheel on or off, with SGR coordinates and without movements, which would flood the loop.
#[cfg(unix)]
fn report_mouse(on: bool) -> io::Result<()> {
    let modes = if on { "\x1b[?1000h\x1b[?1006h" } else { "\x1b[?1006l\x1b[?1000l" };
    execute!(stdout(), crossterm::style::Print(modes))
}

/// Turns mouse events of the console on or off.
#[cfg(windows)]
fn report_mouse(on: bool) -> io::Result<()> {
    use crossterm::event::{DisableMouseCapture, EnableMouseCapture};
    if on { execute!(stdout(), EnableMouseCapture) } else { execute!(stdout(), DisableMouseCapture) }
}

/// Restores the terminal. Errors are ignored, as nothing can handle them.
fn leave() {
    let _ = execute!(stdout(), EndSynchronizedUpdate);
    let _ = report_mouse(false);
    let _ = execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen);
    let _ = execute!(stdout(), cursor::Show);
    let _ = disable_raw_mode();
}

/// Runs the chat until the user quits, then saves the chat and the model's state.
pub fn run(mut app: ChatApp, worker: ChatWorker) -> Result<()> {
    let exit = Arc::new(AtomicBool::new(false));
    exit_on_signals(exit.clone())?;
    let mut screen = Screen::enter(app.mouse)?;
    let outcome = event_loop(&mut app, &mut screen, &worker, &exit);
    drop(screen);
    if app.busy() {
        app.session.save()?;
    }
    if let Some(note) = app.session.note.take() {
        tell(&note);
    }
    outcome.and(worker.close())
}

/// Ends the event loop on a signal. The process exits after [`GRACE`] in any case: crossterm polls a closed terminal
/// forever, and the chat is already on disk.
#[cfg(unix)]
fn exit_on_signals(exit: Arc<AtomicBool>) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            exit.store(true, Ordering::Relaxed);
            std::thread::sleep(GRACE);
            std::process::exit(1);
        }
    });
    Ok(())
}

/// Ends the event loop on Ctrl-Break. In raw mode Ctrl-C is a key. A closed window ends the process; the chat is already on
/// disk.
#[cfg(windows)]
fn exit_on_signals(exit: Arc<AtomicBool>) -> Result<()> {
    ctrlc::set_handler(move || exit.store(true, Ordering::Relaxed))?;
    Ok(())
}

fn event_loop(app: &mut ChatApp, screen: &mut Screen, worker: &ChatWorker, exit: &AtomicBool) -> Result<()> {
    let history = History::for_user();
    app.input.remember_all(history.read());
    let size = screen.terminal.size()?;
    let mut events = vec![AppEvent::Resize(size.width, size.height), AppEvent::Memory(resident())];
    let mut saved = Instant::now();
    while !exit.load(Ordering::Relaxed) {
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
        let timeout = if app.busy() { FRAME } else { IDLE };
        read_input(if events.is_empty() { timeout } else { Duration::ZERO }, &mut events)?;
        worker_events(worker, &mut events)?;
        if app.busy() && saved.elapsed() >= SAVE {
            saved = Instant::now();
            events.push(AppEvent::Memory(resident()));
            app.session.autosave();
        }
    }
    Ok(())
}

/// Reads all pending input after waiting at most `timeout`. Key releases and mouse movements are ignored.
fn read_input(timeout: Duration, events: &mut Vec<AppEvent>) -> Result<()> {
    let mut timeout = timeout;
    while event::poll(timeout)? {
        timeout = Duration::ZERO;
        match event::read()? {
            Input::Key(key) if key.kind != KeyEventKind::Release => events.push(AppEvent::Key(key)),
            Input::Paste(text) => events.push(AppEvent::Paste(text)),
            Input::Resize(columns, rows) => events.push(AppEvent::Resize(columns, rows)),
            Input::Mouse(mouse) if mouse.kind == MouseEventKind::ScrollUp => {
                events.push(AppEvent::Wheel(-ROWS_PER_STEP))
            }
            Input::Mouse(mouse) if mouse.kind == MouseEventKind::ScrollDown => {
                events.push(AppEvent::Wheel(ROWS_PER_STEP))
            }
            Input::Mouse(mouse) if mouse.kind == MouseEventKind::Down(MouseButton::Left) => {
                events.push(AppEvent::Click(mouse.column, mouse.row))
            }
            _ => {}
        }
    }
    Ok(())
}

fn worker_events(worker: &ChatWorker, events: &mut Vec<AppEvent>) -> Result<()> {
    loop {
        match worker.events.try_recv() {
            Ok(event) => events.push(AppEvent::Worker(event)),
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => bail!("{ENGINE_STOPPED}"),
        }
    }
}

fn perform(
    effect: Effect,
    screen: &mut Screen,
    app: &ChatApp,
    worker: &ChatWorker,
    history: &History,
) -> Result<Option<AppEvent>> {
    match effect {
        Effect::Generate(request) => {
            worker.stop.store(false, Ordering::Relaxed);
            worker.commands.send(WorkerCommand::Generate(request)).ok().context(ENGINE_STOPPED)?;
        }
        Effect::LoadModel(path) => {
            worker.commands.send(WorkerCommand::LoadModel(path)).ok().context(ENGINE_STOPPED)?
        }
        Effect::Stop => worker.stop.store(true, Ordering::Relaxed),
        Effect::Copy(text) => execute!(stdout(), CopyToClipboard::to_clipboard_from(text))?,
        Effect::Mouse(on) => report_mouse(on)?,
        Effect::Editor(text) => {
            return Ok(Some(AppEvent::Edited(screen.suspend(app.mouse, || edit(&text))?)));
        }
        Effect::Remember(text) => history.add(&text),
        Effect::Quit => {}
    }
    Ok(None)
}

/// Edits a text in `$VISUAL`, `$EDITOR` or [`EDITOR`] and returns the result.
pub fn edit(text: &str) -> Result<String> {
    let named = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
    let editor = named("VISUAL").or_else(|| named("EDITOR")).unwrap_or(EDITOR.into());
    let mut file = tempfile::Builder::new().prefix("kimi-").suffix(".md").tempfile()?;
    file.write_all(text.as_bytes())?;
    let mut words = editor.split_whitespace();
    let program = words.next().unwrap_or(EDITOR);
    let status = Command::new(program).args(words).arg(file.path()).status();
    let status = status.with_context(|| format!("cannot start the editor {editor}"))?;
    if !status.success() {
        bail!("the editor {editor} failed: {status}");
    }
    std::fs::read_to_string(file.path()).with_context(|| file.path().display().to_string())
}

/// Resident memory of this process in bytes, on Linux only.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
