//! `kimi chat`: a conversation in the terminal, on the full screen or, for any terminal and for pipes, a line editor.
//!
//! One way through: [`command`] says what a line asks for, [`talk`] does it to the chat, [`store`] keeps it;
//! [`worker`] runs what answers ([`reply`]). The screen: [`app`] (state and keys), [`markdown`], [`layout`]
//! and [`transcript`] (text to rows), [`view`] (rows to cells), [`terminal`] (the only one that waits and writes).
//! The line editor: [`plain`].

mod app;
mod code;
mod command;
mod far;
mod input;
#[cfg(test)]
mod kept;
mod layout;
mod markdown;
mod meters;
mod picker;
mod plain;
mod reply;
#[cfg(test)]
mod screens;
mod settings;
mod store;
mod talk;
mod terminal;
mod theme;
mod transcript;
mod view;
mod worker;

use crate::client::EndpointArgs;
use crate::runtime::options::EngineArgs;
use anyhow::{Result, bail};
use settings::Settings;
use std::io::IsTerminal;
use store::Store;
use talk::Talk;
use theme::Theme;
use worker::{Report, Worker};

/// Arguments of `kimi chat`.
#[derive(Clone, Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// Use the line editor: any terminal, pipes (chosen by itself where there is no screen)
    #[arg(long)]
    plain: bool,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Go on with the chat of this name
    #[arg(long, value_name = "NAME")]
    load: Option<String>,
    /// Colours for a light or a dark terminal (default: what COLORFGBG says, else dark)
    #[arg(long, value_enum)]
    theme: Option<Ground>,
    #[command(flatten)]
    settings: Settings,
}

/// What a terminal writes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Ground {
    /// Light text on a dark ground
    Dark,
    /// Dark text on a light ground
    Light,
}

/// Opens the model and talks.
pub fn run(args: &ChatArgs) -> Result<()> {
    let mut talk = Talk::new(Store::of_user(), args.settings, args.system.clone());
    if let Some(name) = &args.load {
        let mut chat = talk.store.find(name)?;
        chat.system = args.system.clone().or(chat.system).filter(|text| !text.is_empty());
        talk.open(chat);
    }
    let worker = Worker::start(args.engine.clone(), args.endpoint.clone());
    let mut notes = Vec::new();
    talk.about = loop {
        match worker.reports.recv()? {
            Report::Ready(about) => break about,
            Report::Failed(e) => bail!("{e}"),
            other => notes.push(other),
        }
    };
    if args.plain || plain::dumb() || !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        notes.iter().for_each(plain::note);
        return plain::Plain::new(talk, worker)?.run();
    }
    let mut theme = Theme::detect(|name| std::env::var(name).ok());
    if let Some(ground) = args.theme {
        theme.light = ground == Ground::Light;
    }
    let mut app = app::App::new(talk, theme, (80, 24));
    app.transcript.show(&app.talk.chat);
    let ready = Report::Ready(app.talk.about.clone());
    for report in notes.into_iter().chain([ready]) {
        app.update(app::Event::Report(report));
    }
    terminal::run(app, worker)
}
