//! Describes the model in the forms of Ollama and llama.cpp's server.

use crate::generation::sample::Sampling;
use crate::io::units::shortest_decimal;
use crate::serve::api::ollama::{
    OllamaDetails, OllamaModel, OllamaModels, OllamaShowRequest, OllamaShown, OllamaVersion,
};
use crate::serve::api::schemas::OllamaRefusals;
use crate::serve::api::{Modalities, Props};
use crate::serve::app::{App, Ready, ReplySource};
use crate::serve::body::RequestBody;
use crate::serve::clock::rfc3339;
use crate::serve::errors::ApiError;
use crate::serve::logprobs;
use crate::serve::upstream::UpstreamModel;
use crate::serve::usage::FINGERPRINT;
use axum::Json;
use axum::extract::State;
use models::gguf::read::Gguf;
use models::gguf::{TensorInfo, Value as Metadatum};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// The version of Ollama whose interface is served; clients require a minimum.
const VERSION: &str = "0.12.6";
/// A time that does not come: the model stays loaded.
const NEVER: &str = "9999-12-31T23:59:59Z";

/// Returns the version of the interface
#[utoipa::path(get, path = "/api/version", responses((status = 200, description = "The version", body = OllamaVersion), OllamaRefusals))]
pub async fn version() -> Json<OllamaVersion> {
    Json(OllamaVersion { version: VERSION })
}

/// Lists the served model under each of its names
#[utoipa::path(get, path = "/api/tags", responses((status = 200, description = "The models", body = OllamaModels), OllamaRefusals))]
pub async fn tags(State(app): State<Arc<App>>) -> Result<Json<OllamaModels>, ApiError> {
    models(&app).map(|models| Json(OllamaModels { models }))
}

/// Lists the loaded model under each of its names
#[utoipa::path(get, path = "/api/ps", responses((status = 200, description = "The models", body = OllamaModels), OllamaRefusals))]
pub async fn ps(State(app): State<Arc<App>>) -> Result<Json<OllamaModels>, ApiError> {
    let context = app.context_length()?;
    let loaded = |model: OllamaModel| OllamaModel {
        expires_at: Some(NEVER.to_owned()),
        size_vram: Some(0),
        context_length: context,
        ..model
    };
    models(&app).map(|models| Json(OllamaModels { models: models.into_iter().map(loaded).collect() }))
}

fn models(app: &App) -> Result<Vec<OllamaModel>, ApiError> {
    let (size, digest, details) = match app.source()? {
        ReplySource::Local(Ready { engine, .. }) => {
            (engine.file.file_bytes(), digest(&engine.file), details(&engine.file))
        }
        ReplySource::Upstream(upstream) => (0, upstream_digest(upstream), OllamaDetails::default()),
    };
    let describe = |name: &String| OllamaModel {
        name: name.clone(),
        model: name.clone(),
        modified_at: rfc3339(app.started),
        size,
        digest: digest.clone(),
        details: details.clone(),
        expires_at: None,
        size_vram: None,
        context_length: None,
    };
    Ok(app.options.names.iter().map(describe).collect())
}

/// Returns the properties of the served model
#[utoipa::path(
    post,
    path = "/api/show",
    request_body = OllamaShowRequest,
    responses((status = 200, description = "The properties", body = OllamaShown), OllamaRefusals)
)]
pub async fn show(State(app): State<Arc<App>>, body: RequestBody) -> Result<Json<OllamaShown>, ApiError> {
    let request: OllamaShowRequest = body.part()?;
    app.check_model(request.model.or(request.name).as_deref())?;
    let ready = match app.source()? {
        ReplySource::Local(ready) => ready,
        ReplySource::Upstream(upstream) => return Ok(Json(shown_upstream(&app, upstream))),
    };
    let (file, template) = (&ready.engine.file, ready.template());
    let mut capabilities = vec!["completion"];
    capabilities.extend(template.mentions("tool").then_some("tools"));
    capabilities.extend(template.mentions("<think>").then_some("thinking"));
    let entry = |(key, value): &(String, Metadatum)| Some((key.clone(), scalar(value)?));
    let mut model_info: Map<String, Value> = file.metadata.0.iter().filter_map(entry).collect();
    model_info.insert("general.parameter_count".to_owned(), parameters(file).into());
    Ok(Json(OllamaShown {
        modelfile: format!("FROM {}\n", app.model_name()),
        parameters: ollama_parameters(&ready.sampling),
        template: template.source().to_owned(),
        details: details(file),
        model_info,
        capabilities,
        modified_at: rfc3339(app.started),
    }))
}

/// Returns what is known of the model of an upstream server.
fn shown_upstream(app: &App, upstream: &UpstreamModel) -> OllamaShown {
    let context = upstream.context.map(|tokens| ("general.context_length".to_owned(), tokens.into()));
    OllamaShown {
        modelfile: format!("FROM {}\n", app.model_name()),
        parameters: String::new(),
        template: String::new(),
        details: OllamaDetails::default(),
        model_info: context.into_iter().collect(),
        capabilities: vec!["completion", "tools"],
        modified_at: rfc3339(app.started),
    }
}

/// Returns the properties of the server, in the form of llama.cpp's
#[utoipa::path(
    get,
    path = "/props",
    responses((status = 200, description = "The properties", body = Props), crate::serve::api::schemas::Refusals)
)]
pub async fn props(State(app): State<Arc<App>>) -> Result<Json<Props>, ApiError> {
    let ready = match app.source()? {
        ReplySource::Local(ready) => ready,
        ReplySource::Upstream(upstream) => return Ok(Json(upstream_props(&app, upstream))),
    };
    let (engine, tokenizer) = (&ready.engine, ready.tokenizer());
    let token = |id: Option<u32>| id.map(|id| logprobs::text(tokenizer, id)).unwrap_or_default();
    let ids = tokenizer.special_ids();
    Ok(Json(Props {
        default_generation_settings: json!({ "n_ctx": engine.context, "params": props_params(app.options.max_tokens, &ready.sampling) }),
        total_slots: ready.limits.slots,
        model_alias: app.model_name().to_owned(),
        model_path: app.model_name().to_owned(),
        modalities: Modalities { vision: false, audio: false },
        chat_template: ready.template().source().to_owned(),
        bos_token: token(ids.bos),
        eos_token: token(ids.eos),
        build_info: FINGERPRINT,
    }))
}

/// The parameters of requests that set none, with llama.cpp's names.
fn props_params(max_tokens: usize, sampling: &Sampling) -> Value {
    json!({
        "n_predict": max_tokens,
        "temperature": shortest_decimal(sampling.temperature),
        "top_k": sampling.top_k,
        "top_p": shortest_decimal(sampling.top_p),
        "min_p": shortest_decimal(sampling.min_p),
        "repeat_penalty": shortest_decimal(sampling.repeat_penalty),
        "repeat_last_n": context_or(sampling.repeat_last_n),
        "presence_penalty": shortest_decimal(sampling.presence_penalty),
        "frequency_penalty": shortest_decimal(sampling.frequency_penalty),
    })
}

/// The same parameters in the syntax of a Modelfile.
fn ollama_parameters(sampling: &Sampling) -> String {
    let lines = [
        ("temperature", sampling.temperature.to_string()),
        ("top_k", sampling.top_k.to_string()),
        ("top_p", sampling.top_p.to_string()),
        ("min_p", sampling.min_p.to_string()),
        ("repeat_penalty", sampling.repeat_penalty.to_string()),
        ("repeat_last_n", context_or(sampling.repeat_last_n).to_string()),
    ];
    lines.map(|(name, value)| format!("{name:<30} {value}")).join("\n")
}

/// A number of recent tokens as both programs write it: -1 is the whole context.
fn context_or(tokens: usize) -> i64 {
    i64::try_from(tokens).unwrap_or(-1)
}

fn upstream_props(app: &App, upstream: &UpstreamModel) -> Props {
    Props {
        default_generation_settings: json!({
            "n_ctx": upstream.context,
            "params": { "n_predict": app.options.max_tokens },
        }),
        total_slots: upstream.parallel,
        model_alias: app.model_name().to_owned(),
        model_path: app.model_name().to_owned(),
        modalities: Modalities { vision: false, audio: false },
        chat_template: String::new(),
        bos_token: String::new(),
        eos_token: String::new(),
        build_info: FINGERPRINT,
    }
}

fn scalar(value: &Metadatum) -> Option<Value> {
    Some(match value {
        Metadatum::U8(n) => json!(n),
        Metadatum::I8(n) => json!(n),
        Metadatum::U16(n) => json!(n),
        Metadatum::I16(n) => json!(n),
        Metadatum::U32(n) => json!(n),
        Metadatum::I32(n) => json!(n),
        Metadatum::U64(n) => json!(n),
        Metadatum::I64(n) => json!(n),
        Metadatum::F32(n) => json!(shortest_decimal(*n)),
        Metadatum::F64(n) => json!(n),
        Metadatum::Bool(b) => json!(b),
        Metadatum::String(text) => json!(text),
        Metadatum::Array(_) => return None,
    })
}

fn parameters(file: &Gguf) -> u64 {
    let count = |tensor: &TensorInfo| tensor.shape.iter().fold(1, |n: u64, size| n.saturating_mul(*size));
    file.tensors.iter().map(count).fold(0, u64::saturating_add)
}

fn details(file: &Gguf) -> OllamaDetails {
    let parameter_size = match parameters(file) as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n => format!("{:.1}M", n / 1e6),
    };
    // The format of most bytes.
    let mut bytes = BTreeMap::new();
    file.tensors
        .iter()
        .for_each(|tensor| *bytes.entry(tensor.format.name().to_owned()).or_insert(0) += tensor.bytes);
    let most = bytes.into_iter().max_by_key(|(_, bytes)| *bytes);
    let family = file.str("general.architecture").unwrap_or_default().to_owned();
    OllamaDetails {
        parent_model: String::new(),
        format: "gguf",
        families: vec![family.clone()],
        family,
        parameter_size,
        quantization_level: most.map(|(format, _)| format).unwrap_or_default(),
    }
}

fn digest(file: &Gguf) -> String {
    let mut hasher = DefaultHasher::new();
    file.headers().for_each(|header| header.hash(&mut hasher));
    shown_digest(&hasher)
}

fn upstream_digest(upstream: &UpstreamModel) -> String {
    let mut hasher = DefaultHasher::new();
    (upstream.url(), upstream.name()).hash(&mut hasher);
    shown_digest(&hasher)
}

fn shown_digest(hasher: &DefaultHasher) -> String {
    format!("{:016x}", hasher.finish()).repeat(4)
}
