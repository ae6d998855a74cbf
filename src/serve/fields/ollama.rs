//! The fields of Ollama's interface. Its requests are not checked for unknown fields, as Ollama ignores them.

use super::FieldRule;
use super::Handling::{Ignored, Refused, Used};

/// Fields of chats and completions.
const COMMON: &[FieldRule] = &[
    ("model", Used("checked with --strict-model; otherwise every name means the loaded model")),
    ("stream", Used("lines of JSON, which is the default")),
    ("format", Used("json, or a JSON schema of the reply")),
    ("options", Used("see below")),
    ("think", Used("where the chat template has a variable for reasoning")),
    ("keep_alive", Ignored("the model stays loaded")),
    ("truncate", Ignored("a prompt that exceeds the context is refused")),
    ("shift", Ignored("a reply ends at the end of the context")),
    ("logprobs", Ignored("replies of this interface have none")),
    ("top_logprobs", Ignored("replies of this interface have none")),
];

const CHAT: &[FieldRule] =
    &[("messages", Used("text only; images are refused")), ("tools", Used("functions"))];

const GENERATE: &[FieldRule] = &[
    ("prompt", Used("a user message, or text to continue with raw")),
    ("system", Used("system message before the prompt")),
    ("raw", Used("continues the prompt without the chat template")),
    ("suffix", Refused(&["\"\""], "the model does not support infilling")),
    ("template", Refused(&["\"\""], "the model file has the template; use raw")),
    ("context", Refused(&["[]"], "use /api/chat")),
    ("images", Refused(&["[]"], "only text is supported")),
];

/// The members of `options`. Others configure the engine of Ollama and are ignored.
const OPTIONS: &[FieldRule] = &[
    ("num_predict", Used("maximum tokens of the reply; -1: as many as fit")),
    ("temperature", Used("sampling temperature, 0 to 2; 0 is greedy")),
    ("top_k", Used("keeps this many most likely tokens")),
    ("top_p", Used("nucleus sampling")),
    ("min_p", Used("drops tokens below this fraction of the highest probability")),
    ("seed", Used("the same seed, prompt and options give the same text")),
    ("stop", Used("strings that end the reply")),
    ("repeat_penalty", Used("divides the logits of recent tokens; 0 is off")),
    ("presence_penalty", Used("subtracted from logits of tokens in the reply")),
    ("frequency_penalty", Used("subtracted for each occurrence in the reply")),
    ("repeat_last_n", Ignored("the server's --repeat-last-n holds")),
    ("num_ctx", Ignored("the server's --ctx holds")),
    ("num_keep", Ignored("a prompt is never cut")),
    ("num_batch", Ignored("the server's --batch holds")),
    ("num_gpu", Ignored("the server's --device holds")),
    ("num_thread", Ignored("the server's --threads holds")),
    ("use_mmap", Ignored("the model file is always mapped")),
    ("mirostat", Refused(&["0"], "this sampler is not supported")),
    ("mirostat_tau", Ignored("mirostat is not supported")),
    ("mirostat_eta", Ignored("mirostat is not supported")),
    ("tfs_z", Refused(&["1"], "this sampler is not supported")),
    ("typical_p", Refused(&["1"], "this sampler is not supported")),
];

/// The sections of the table, by their titles.
pub fn sections() -> [(&'static str, Vec<FieldRule>); 3] {
    [
        ("POST /api/chat", [CHAT, COMMON].concat()),
        ("POST /api/generate", [GENERATE, COMMON].concat()),
        ("Members of options of /api/chat and /api/generate", OPTIONS.to_vec()),
    ]
}
