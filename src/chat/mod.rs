//! `kimi chat`: a conversation in the terminal, full-screen or, for plain terminals and pipes, in a line editor.
//!
//! [`command`] parses commands, [`chat_session`] applies them to the chat, [`store`] saves chats to disk, and
//! [`worker`] runs a [`crate::client::ChatModel`] on its own thread. Full screen: [`app`] holds the state and handles keys,
//! [`markdown`], [`layout`] and [`transcript`] turn text into rows, [`sources`] locates quotes, [`view`] draws the rows, and
//! [`terminal`] does all terminal input and output. Line editor: [`repl`].

mod app;
mod chat_session;
mod code;
mod command;
mod input;
mod layout;
mod markdown;
mod palette;
mod picker;
mod popups;
mod repl;
mod settings;
mod source_panel;
mod sources;
mod status_bar;
mod store;
mod terminal;
#[cfg(test)]
mod tests;
mod theme;
mod transcript;
mod transcript_item;
mod view;
mod worker;

use crate::args::EngineArgs;
use crate::client::EndpointArgs;
use anyhow::{Result, bail};
use chat_session::ChatSession;
use settings::SettingsArgs;
use std::io::IsTerminal;
use std::path::PathBuf;
use store::ChatStore;
use theme::Theme;
use worker::{ChatWorker, WorkerEvent};

#[derive(Clone, Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub endpoint: EndpointArgs,
    /// Model file, as with --model
    #[arg(value_name = "FILE", conflicts_with = "model")]
    pub file: Option<PathBuf>,
    /// Use the line editor instead of the full screen (default on dumb terminals and pipes)
    #[arg(long)]
    plain: bool,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Resume the saved chat with this name
    #[arg(long, value_name = "NAME")]
    load: Option<String>,
    /// Colors for a light or dark background (default: from COLORFGBG, else dark)
    #[arg(long, value_enum)]
    theme: Option<Background>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// The background color of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Background {
    /// Light text on a dark background
    Dark,
    /// Dark text on a light background
    Light,
}

/// Loads the model and runs the interface that suits the terminal.
pub fn run(args: &ChatArgs) -> Result<()> {
    let mut session = ChatSession::new(ChatStore::for_user(), args.settings.into(), args.system.clone());
    if let Some(name) = &args.load {
        let mut chat = session.store.find(name)?;
        chat.system = args.system.clone().or(chat.system).filter(|text| !text.is_empty());
        session.open(chat);
    }
    let mut options = args.engine.options();
    options.model = args.file.clone().or(options.model);
    let worker = ChatWorker::start(options, args.endpoint.clone());
    let mut notes = Vec::new();
    session.set_model(loop {
        match worker.events.recv()? {
            WorkerEvent::Ready(model_info) => break model_info,
            WorkerEvent::Failed(e) => bail!("{e}"),
            other => notes.push(other),
        }
    });
    let has_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.plain || repl::is_dumb_terminal() || !has_terminal {
        notes.iter().for_each(repl::print_note);
        return repl::Repl::new(session, worker)?.run();
    }
    let mut theme = Theme::detect(|name| std::env::var(name).ok());
    if let Some(background) = args.theme {
        theme.light = background == Background::Light;
    }
    let mut app = app::ChatApp::new(session, theme, (80, 24));
    app.transcript.show(&app.session.chat);
    let ready = WorkerEvent::Ready(app.session.model_info.clone());
    for event in notes.into_iter().chain([ready]) {
        app.update(app::AppEvent::Worker(event));
    }
    terminal::run(app, worker)
}
