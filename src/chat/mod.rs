//! `kimi chat`: a conversation in the terminal. [`plain`] is the line editor, for any terminal and for pipes.

mod plain;

use crate::engine::{Engine, EngineArgs};
use crate::sample::Sampling;
use anyhow::Result;

/// Arguments of `kimi chat`.
#[derive(Clone, Debug, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// Use the line editor (the only interface of this version)
    #[arg(long)]
    plain: bool,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of a reply at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4096)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: Sampling,
}

/// Loads the model and talks.
pub fn run(args: &ChatArgs) -> Result<()> {
    let engine = Engine::open(&args.engine)?;
    engine.tokenizer()?;
    plain::Chat::new(&engine, args)?.run()
}
