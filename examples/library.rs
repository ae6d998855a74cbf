//! Loads a model, streams a reply, and asks a second question whose prompt is mostly restored from the prefix cache.
//! `cargo run --release --example library [FILE]`; without a file it uses the built-in demonstration model.

use anyhow::Result;
use kimi::{Conversation, EngineEvent, EngineHandle, LoadOptions, Request, Sampling, generate};
use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::path::PathBuf;

const TEXT: &str =
    "The keeper of the Tiolmere museum is Mara Dellwood. The access code of the Hartwell mill is 4713.";
const QUESTIONS: [&str; 2] =
    ["Who keeps the Tiolmere museum?", "What is the access code of the Hartwell mill?"];

fn main() -> Result<()> {
    ask(std::env::args_os().nth(1).map(PathBuf::from), &mut stdout())
}

/// Asks both questions and writes the replies, each with the prompt tokens that came from the cache.
pub fn ask(model: Option<PathBuf>, out: &mut dyn Write) -> Result<()> {
    let engine = EngineHandle::open(&LoadOptions { model, ..LoadOptions::default() })?;
    let mut conversation = Conversation::new(Some(TEXT));
    for question in QUESTIONS {
        conversation.say("user", question);
        let prompt = conversation.prompt(&engine)?;
        let mut session = engine.session(); // empty: the first turn is restored from the prefix cache
        let (mut reply, mut ids) = (String::new(), Vec::new());
        let stats = generate(&mut session, Request::new(&prompt, Sampling::greedy()), &mut |event| {
            if let EngineEvent::Token { token, text, .. } = event {
                ids.extend(token);
                reply.push_str(&text);
                let _ = write!(out, "{text}").and_then(|()| out.flush());
            }
            ControlFlow::Continue(())
        })?;
        conversation.reply(&reply, &ids);
        writeln!(out, "\n{} of {} prompt tokens came from the cache", stats.prefill.reused, prompt.len())?;
    }
    Ok(())
}
