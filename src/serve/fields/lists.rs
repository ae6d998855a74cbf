//! The fields of each interface. A list says for each field what it does, or why it has no effect.

use super::FieldRule;
use super::Handling::{Ignored, Refused, Used};

const NOT_STORED: &str = "responses are not stored";
const USE_TOOLS: &str = "use tools";
const TEXT_ONLY: &str = "only text output is supported";
const ONE_TIER: &str = "there is one tier";
const NO_IDENTITY: &str = "it identifies a user to the provider";
const ALL_CACHED: &str = "every prompt is cached";
const NO_SAMPLER: &str = "this sampler is not supported";
const USE_FORMAT: &str = "use response_format";

/// Sampling and length, of chat and text completions.
pub const GENERATION: &[FieldRule] = &[
    ("temperature", Used("sampling temperature, 0 to 2; 0 is greedy")),
    ("top_p", Used("nucleus sampling")),
    ("top_k", Used("keeps this many most likely tokens")),
    ("min_p", Used("drops tokens below this fraction of the highest probability")),
    ("seed", Used("the same seed, prompt and options give the same text")),
    ("stop", Used("strings that end the reply")),
    ("max_tokens", Used("maximum tokens of the reply; -1: as many as fit")),
    ("max_completion_tokens", Used("newer name of max_tokens")),
    ("presence_penalty", Used("subtracted from logits of tokens in the reply")),
    ("frequency_penalty", Used("subtracted for each occurrence in the reply")),
    ("repeat_penalty", Used("divides the logits of recent tokens")),
    ("logit_bias", Used("added to the logits of these token ids")),
    ("n", Used("replies per prompt, 1 to 16")),
    ("ignore_eos", Used("continues past the end of the reply")),
];

/// Constraints by their names in vLLM and llama.cpp.
pub const GUIDED: &[FieldRule] = &[
    ("guided_json", Used("JSON schema of the reply, as in vLLM")),
    ("guided_regex", Used("regular expression of the reply, as in vLLM")),
    ("json_schema", Used("JSON schema of the reply, as in llama.cpp")),
    ("grammar", Used("GBNF grammar of the reply, as in llama.cpp; an empty one allows any text")),
];

/// Fields of OpenAI's interfaces that change nothing here.
pub const OPENAI: &[FieldRule] = &[
    ("user", Ignored(NO_IDENTITY)),
    ("safety_identifier", Ignored(NO_IDENTITY)),
    ("service_tier", Ignored(ONE_TIER)),
    ("prompt_cache_key", Ignored(ALL_CACHED)),
    ("prompt_cache_retention", Ignored(ALL_CACHED)),
    ("prompt_cache_options", Ignored(ALL_CACHED)),
    ("store", Ignored(NOT_STORED)),
    ("verbosity", Ignored("the model has no such setting")),
    ("moderation", Ignored("nothing is moderated")),
];

/// Fields of `/v1/chat/completions` besides those above.
pub const CHAT: &[FieldRule] = &[
    ("model", Used("checked with --strict-model; otherwise every name means the loaded model")),
    ("messages", Used("text and file parts; images and audio are refused")),
    ("stream", Used("server-sent events")),
    ("stream_options", Used("include_usage")),
    ("return_progress", Used("chunks with prompt_progress, as in llama.cpp")),
    ("tools", Used("functions; tools of other kinds are left out, or refused if tool_choice is required")),
    ("tool_choice", Used("none, auto, required or a function")),
    ("parallel_tool_calls", Used("false: one call at most")),
    ("response_format", Used("text, json_object, json_schema, grammar")),
    ("reasoning_effort", Used("where the chat template has a variable for reasoning")),
    ("chat_template_kwargs", Used("variables that the chat template uses; others are ignored")),
    ("logprobs", Used("log-probabilities of the tokens")),
    ("top_logprobs", Used("number of alternatives per token, 0 to 20")),
    ("metadata", Ignored(NOT_STORED)),
    ("prediction", Ignored("a hint for speed")),
    ("reasoning_format", Ignored("reasoning is returned as reasoning_content")),
    ("parse_tool_calls", Ignored("calls are always parsed")),
    ("modalities", Refused(&["[\"text\"]"], TEXT_ONLY)),
    ("audio", Refused(&[], TEXT_ONLY)),
    ("functions", Refused(&[], USE_TOOLS)),
    ("function_call", Refused(&["\"none\""], "use tool_choice")),
    ("web_search_options", Refused(&[], "web search is not supported")),
    ("conversation", Refused(&[], "conversations are not stored; send the messages")),
    ("previous_response_id", Refused(&[], "responses are not stored; send the whole conversation")),
    ("background", Refused(&["false"], NOT_STORED)),
    ("truncation", Ignored("a conversation that exceeds the context is refused")),
    ("reasoning", Ignored("use reasoning_effort")),
];

/// Fields of `/v1/completions` besides those above.
pub const COMPLETIONS: &[FieldRule] = &[
    ("model", Used("checked with --strict-model; otherwise every name means the loaded model")),
    ("prompt", Used("text or token ids, one or several")),
    ("stream", Used("server-sent events")),
    ("stream_options", Used("include_usage")),
    ("echo", Used("returns the prompt before the text; not with logprobs")),
    ("logprobs", Used("log-probabilities and alternatives, 0 to 20")),
    ("response_format", Used("text, json_object, json_schema, grammar")),
    ("best_of", Used("accepted if equal to n")),
    ("suffix", Used("refused unless empty")),
    ("metadata", Ignored(NOT_STORED)),
    ("reasoning_effort", Ignored("a text completion has no reasoning")),
    ("truncation", Ignored("a prompt that exceeds the context is refused")),
    ("modalities", Refused(&["[\"text\"]"], TEXT_ONLY)),
    ("tools", Refused(&["[]"], "use /v1/chat/completions")),
];

/// Fields of `/v1/responses` besides those above.
pub const RESPONSES: &[FieldRule] = &[
    ("model", Used("checked with --strict-model; otherwise every name means the loaded model")),
    (
        "input",
        Used(
            "messages with texts and files, function calls and their outputs; reasoning of earlier turns is left out",
        ),
    ),
    ("instructions", Used("system message before the input")),
    ("stream", Used("server-sent events")),
    ("tools", Used("functions; tools of other kinds are left out, or refused if tool_choice is required")),
    ("tool_choice", Used("none, auto, required or a function")),
    ("parallel_tool_calls", Used("false: one call at most")),
    ("text", Used("format: text, json_object, json_schema, grammar; verbosity is ignored")),
    ("max_output_tokens", Used("maximum tokens of the reply")),
    ("temperature", Used("sampling temperature, 0 to 2; 0 is greedy")),
    ("top_p", Used("nucleus sampling")),
    ("include", Used("data that the model never produces; other values are refused")),
    ("reasoning", Used("effort, where the chat template has a variable for it; the rest is ignored")),
    ("metadata", Used("returned in the response")),
    ("truncation", Ignored("a conversation that exceeds the context is refused")),
    ("stream_options", Ignored("events are not obfuscated")),
    ("client_metadata", Ignored(NO_IDENTITY)),
    ("access_programs", Ignored("there are none")),
    ("background_options", Ignored("see background")),
    ("image", Ignored("images are not generated")),
    ("max_tool_calls", Ignored("it limits built-in tools")),
    ("context_management", Ignored("the client sends the conversation that it wants")),
    ("top_logprobs", Refused(&["0"], "use /v1/chat/completions")),
    ("background", Refused(&["false"], NOT_STORED)),
    ("previous_response_id", Refused(&[], "responses are not stored; send the whole conversation")),
    ("conversation", Refused(&[], "conversations are not stored; send the messages")),
    ("prompt", Refused(&[], "prompts are not stored; send input")),
    ("modalities", Refused(&["[\"text\"]"], TEXT_ONLY)),
    ("audio", Refused(&[], TEXT_ONLY)),
    ("functions", Refused(&[], USE_TOOLS)),
    ("stop", Refused(&[], "stop strings are not part of this interface")),
    ("response_format", Refused(&[], "use text.format")),
];

/// Fields of `/v1/messages`, in Anthropic's form.
pub const MESSAGES: &[FieldRule] = &[
    ("model", Used("checked with --strict-model; otherwise every name means the loaded model")),
    (
        "messages",
        Used(
            "text, thinking, tool_use, tool_result and documents (text, base64, file), with citations; images are refused; system turns anywhere",
        ),
    ),
    ("system", Used("text or blocks; a line x-anthropic-billing-header at the start is left out")),
    ("max_tokens", Used("maximum tokens of the reply, reduced to what fits the memory")),
    ("stop_sequences", Used("strings that end the reply")),
    ("stream", Used("server-sent events")),
    ("temperature", Used("sampling temperature, 0 to 2; 0 is greedy")),
    ("top_p", Used("nucleus sampling")),
    ("top_k", Used("keeps this many most likely tokens")),
    ("tools", Used("tools of the client; others are left out, or refused if tool_choice is any")),
    ("tool_choice", Used("auto, any, tool or none; disable_parallel_tool_use")),
    ("thinking", Used("where the chat template has a variable for reasoning; the budget is ignored")),
    ("output_config", Used("format: json_schema; effort, where the chat template has a variable for it")),
    ("output_format", Used("older name of output_config.format")),
    ("metadata", Ignored(NO_IDENTITY)),
    ("service_tier", Ignored(ONE_TIER)),
    ("inference_geo", Ignored("the model runs here")),
    ("speed", Ignored("there is one speed")),
    ("cache_control", Ignored(ALL_CACHED)),
    ("context_management", Ignored("the client sends the conversation that it wants")),
    ("betas", Ignored("unknown betas change nothing")),
    ("diagnostics", Ignored("there are none")),
    ("user_profile_id", Ignored(NO_IDENTITY)),
    ("workspace_id", Ignored(NO_IDENTITY)),
    ("billing_policy", Ignored("nothing is billed")),
    ("compaction", Refused(&[], "summaries are made by the client")),
    ("thread", Refused(&[], "conversations are not stored; send the messages")),
    ("fallbacks", Ignored("there is one model")),
    ("fallback_credit_token", Ignored("there is one model")),
    ("container", Refused(&[], "containers are not supported")),
    ("mcp_servers", Refused(&["[]"], "servers of tools are not supported; send tools")),
    ("response_format", Refused(&[], "use output_config")),
    ("stop", Refused(&[], "use stop_sequences")),
];

/// Fields of vLLM, SGLang, llama.cpp and others that change a reply.
pub const FOREIGN: &[FieldRule] = &[
    ("guided_json", Refused(&[], USE_FORMAT)),
    ("guided_regex", Refused(&[], USE_FORMAT)),
    ("guided_choice", Refused(&[], "use guided_regex or response_format")),
    ("guided_grammar", Refused(&[], "use response_format with type grammar (Lark or GBNF)")),
    ("guided_decoding_backend", Ignored("there is one")),
    ("guided_whitespace_pattern", Refused(&[], USE_FORMAT)),
    ("structured_outputs", Refused(&[], USE_FORMAT)),
    ("structural_tag", Refused(&[], USE_FORMAT)),
    ("json_schema", Refused(&[], USE_FORMAT)),
    ("grammar", Refused(&["\"\""], "use text.format with type grammar (Lark or GBNF)")),
    ("grammar_lazy", Refused(&["false"], "use tools")),
    ("format", Refused(&[], USE_FORMAT)),
    ("regex", Refused(&[], "use response_format with type grammar and syntax regex")),
    ("ebnf", Refused(&[], "use response_format with type grammar (Lark or GBNF)")),
    ("mirostat", Refused(&["0"], NO_SAMPLER)),
    ("mirostat_mode", Refused(&["0"], NO_SAMPLER)),
    ("mirostat_tau", Ignored("mirostat is not supported")),
    ("mirostat_eta", Ignored("mirostat is not supported")),
    ("typical_p", Refused(&["1", "1.0"], NO_SAMPLER)),
    ("typ_p", Refused(&["1", "1.0"], NO_SAMPLER)),
    ("tfs_z", Refused(&["1", "1.0"], NO_SAMPLER)),
    ("top_a", Refused(&["0", "0.0"], NO_SAMPLER)),
    ("top_n_sigma", Refused(&["-1", "-1.0", "0"], NO_SAMPLER)),
    ("dynatemp_range", Refused(&["0", "0.0"], NO_SAMPLER)),
    ("dry_multiplier", Refused(&["0", "0.0"], NO_SAMPLER)),
    ("xtc_probability", Refused(&["0", "0.0"], NO_SAMPLER)),
    ("samplers", Refused(&[], "the order of samplers is fixed")),
    ("repetition_penalty", Refused(&["1", "1.0"], "use repeat_penalty")),
    ("length_penalty", Refused(&["1", "1.0"], "beam search is not supported")),
    ("use_beam_search", Refused(&["false"], "beam search is not supported")),
    ("min_tokens", Refused(&["0"], "a minimum length is not supported")),
    ("n_predict", Refused(&[], "use max_tokens")),
    ("bad_words", Refused(&["[]"], "use logit_bias")),
    ("allowed_token_ids", Refused(&["[]"], "use logit_bias")),
    ("stop_token_ids", Refused(&["[]"], "use stop")),
    ("logits_processors", Refused(&["[]"], "use logit_bias")),
    ("cache_prompt", Ignored(ALL_CACHED)),
    ("id_slot", Ignored("requests choose no slot")),
    ("timings_per_token", Ignored("timings are in the last chunk")),
    ("skip_special_tokens", Ignored("special tokens are never part of the text")),
    ("include_stop_str_in_output", Refused(&["false"], "stop strings are never part of the reply")),
    ("add_generation_prompt", Refused(&["true"], "a reply is always begun")),
    ("continue_final_message", Refused(&["false"], "a message cannot be continued")),
    ("documents", Refused(&["[]"], "put documents into the messages")),
];
