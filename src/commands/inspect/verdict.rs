//! Decides whether a file runs on this machine, and says in one line why not and what would.
//!
//! The file is loaded as the other commands do, on the reference backend, which copies no weights. Next:
//! [`crate::runtime::memory_estimate`].

use super::ModelReport;
use crate::io::units::{counted, format_size, grouped};
use kernels::backend::Backend;
use kernels::cpu::Cpu;
use kernels::quant::unsupported::unsupported;
use kernels::reference::Reference;
use models::architecture::ARCHITECTURES;
use models::gguf::read::Gguf;
use models::gguf::unread::UnreadTensor;
use models::hybrid::Model;
use serde::Serialize;

/// Whether a file runs here.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// False for files that no command loads.
    pub runs: bool,
    /// The reason, and the way out if there is one.
    pub line: String,
}

impl Verdict {
    /// Decides for an opened file; `model` is its memory report, or the reason why there is none.
    pub fn new(file: &Gguf, parameters: u64, model: Result<&ModelReport, &str>) -> Verdict {
        let no = |line: String| Verdict { runs: false, line };
        match file.metadata.str("general.architecture") {
            Some(name) if ARCHITECTURES.contains(&name) => {}
            Some(other) => {
                let ours = ARCHITECTURES.join(" and ");
                return no(format!(
                    "the architecture is {other}, and kimi runs {ours} alone; llama.cpp runs most others"
                ));
            }
            None => return no("the file names no architecture (general.architecture)".into()),
        }
        if !file.unread.is_empty() {
            return no(unread_types(&file.unread));
        }
        let model = match model {
            Ok(model) => model,
            Err(why) => return no(why.to_owned()),
        };
        match load(file) {
            Ok(()) => {}
            Err(why) => return no(why),
        }
        Verdict { runs: true, line: memory(model, parameters) }
    }
}

/// Loads the file and drops the model; a model that loads also runs.
fn load(file: &Gguf) -> Result<(), String> {
    let model = Model::load(&Reference, file).map_err(|e| e.to_string())?;
    let path = file.paths().first().map(|p| p.display().to_string()).unwrap_or_default();
    model.config.check(&path, &Cpu::LIMITS).map_err(|e| e.to_string())?;
    match &model.not_finite[..] {
        [] => Ok(()),
        [first, ..] => Err(first.to_string()),
    }
}

/// Names the types that are not read, with the reason for the first.
fn unread_types(unread: &[UnreadTensor]) -> String {
    let mut ids: Vec<u32> = unread.iter().map(|t| t.type_id).collect();
    ids.sort_unstable();
    ids.dedup();
    let first = unread.iter().filter(|t| t.type_id == ids[0]).count();
    let name = unread.iter().find(|t| t.type_id == ids[0]).map(UnreadTensor::type_name).unwrap_or_default();
    let are = if first == 1 { "is" } else { "are" };
    let why = unsupported(ids[0]).map_or("it is newer than this program, or damage", |t| t.why);
    let more = match ids.len() {
        1 => String::new(),
        _ => format!(", and {} of other such types", counted(unread.len() - first, "tensor")),
    };
    format!(
        "{} {are} {name}, which kimi does not read ({why}){more}; a file of another type runs, or `kimi convert` on the checkpoint",
        counted(first, "tensor")
    )
}

/// Compares the memory of the smallest reported context with that of this machine.
fn memory(m: &ModelReport, parameters: u64) -> String {
    let Some(smallest) = m.contexts.iter().min_by_key(|c| c.tokens) else { return "it loads".into() };
    let total = smallest.f16.total_bytes;
    let with = format!("{} with {} tokens of context", format_size(total), grouped(smallest.tokens));
    let Some(available) = m.available_bytes else {
        return format!("{with}; the free RAM is unknown");
    };
    let free = format!("{} of free RAM", format_size(available));
    if total <= available {
        return format!("{with} in {free}");
    }
    let beside = total.saturating_sub(m.weights_bytes);
    let bits = available.saturating_sub(beside) as f64 * 8.0 / parameters.max(1) as f64;
    let fits = match bits {
        ..1.5 => "no quantization of it fits".to_owned(),
        _ => format!("a type of at most {bits:.1} bits per weight fits"),
    };
    format!("slowly: {with} in {free}, and the rest is read from disk for each token; {fits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_named_with_the_reason() {
        let tensor = |type_id| UnreadTensor { name: "t".into(), type_id, shape: vec![256] };
        assert_eq!(
            unread_types(&[tensor(99), tensor(35), tensor(35)]),
            "2 tensors are TQ2_0, which kimi does not read (it is for models trained with ternary weights), and 1 tensor of \
             other such types; a file of another type runs, or `kimi convert` on the checkpoint"
        );
    }
}
