//! A server with a small random model and the published vocabulary, and helpers for requests to it.

use crate::common::{checkpoint, convert};
use crate::kimi_vocabulary;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use kernels::backend::CacheFormat;
use kernels::cpu::Cpu;
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::handle::EngineHandle;
use kimi::runtime::options::LoadOptions;
use kimi::runtime::sampling_options::SamplingOptions;
use kimi::scheduler::SchedulerLimits;
use kimi::serve::{App, FileOptions, HostPolicy, HttpLimits, ServeOptions, router, spawn_scheduler};
use models::gguf::write::{Layout, Writer};
use models::gguf::{Metadata, Value as Metadatum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use tower::ServiceExt;

/// The model file and its directory.
static MODEL: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let model = model(dir.path(), 9);
    (dir, model)
});

/// The engine without a prefix cache, and the one with it.
static ENGINES: LazyLock<[Arc<Engine<Cpu>>; 2]> = LazyLock::new(|| {
    let engine = |ram| open(&MODEL.1, StoreOptions { cache_ram: Some(ram), ..StoreOptions::nothing() });
    [engine(0), engine(64 << 20)]
});

/// Converts a random checkpoint with the published vocabulary.
fn model(dir: &Path, seed: u32) -> PathBuf {
    let fields = ["vocab_size=163840", "hidden_size=64", "num_hidden_layers=4", "num_experts=8"];
    let source = checkpoint(dir, "tiny", seed, &fields);
    std::fs::write(source.join("tiktoken.model"), kimi_vocabulary::tiktoken_model()).unwrap();
    let config = Path::new("models/tests/data/tokenizer_config.json");
    std::fs::copy(config, source.join("tokenizer_config.json")).unwrap();
    convert(&source, "q8_0")
}

fn load_options(model: &Path, store: StoreOptions) -> LoadOptions {
    LoadOptions {
        model: Some(model.to_owned()),
        threads: Some(2),
        ctx: Some(2048),
        batch: Some(64),
        store,
        ..LoadOptions::default()
    }
}

fn open(model: &Path, store: StoreOptions) -> Arc<Engine<Cpu>> {
    Arc::new(Engine::open(&load_options(model, store)).unwrap())
}

/// An engine of the same model with another prefix cache or data type of the KV cache.
pub fn cached_engine(store: StoreOptions, cache_type: CacheFormat) -> Arc<Engine<Cpu>> {
    let args = LoadOptions { cache_type: Some(cache_type), ..load_options(&MODEL.1, store) };
    Arc::new(Engine::open(&args).unwrap())
}

/// An engine of the same model with another chat template.
pub fn with_template(template: &str) -> Arc<Engine<Cpu>> {
    let path = MODEL.0.path().join("template.jinja");
    std::fs::write(&path, template).unwrap();
    let store = StoreOptions { cache_ram: Some(64 << 20), ..StoreOptions::in_memory() };
    let args = LoadOptions { chat_template: Some(path), ..load_options(&MODEL.1, store) };
    Arc::new(Engine::open(&args).unwrap())
}

/// An engine of a model with the same vocabulary and other weights.
pub fn other_model(store: StoreOptions) -> Arc<Engine<Cpu>> {
    open(&model(MODEL.0.path(), 10), store)
}

/// An engine of the same model with scales that make every logit NaN.
pub fn broken() -> Arc<Engine<Cpu>> {
    rewritten(ENGINES[0].file.metadata.clone(), |name| name == "output.weight")
}

/// An engine of the same model with another metadata value.
pub fn with_metadata(key: &str, value: Metadatum) -> Arc<Engine<Cpu>> {
    let mut metadata = ENGINES[0].file.metadata.clone();
    metadata.set(key, value);
    rewritten(metadata, |_| false)
}

/// An engine of the same weights but for some tensors, which have NaN scales.
fn rewritten(metadata: Metadata, is_broken: impl Fn(&str) -> bool) -> Arc<Engine<Cpu>> {
    let dir = tempfile::tempdir().unwrap();
    let (good, path) = (&ENGINES[0].file, dir.path().join("rewritten.gguf"));
    let tensors = good.tensors.iter().map(|t| (t.name.clone(), t.format, t.shape.clone())).collect();
    let mut writer = Writer::create(&path, Layout::new(metadata, tensors).unwrap()).unwrap();
    for tensor in &good.tensors {
        let bytes = good.bytes(tensor);
        match is_broken(&tensor.name) {
            true => writer.write(&vec![0xff; bytes.len()]).unwrap(),
            false => writer.write(&bytes).unwrap(),
        }
    }
    writer.finish().unwrap();
    open(&path, StoreOptions::nothing())
}

/// The engine of the servers without a prefix cache.
pub fn engine() -> Arc<Engine<Cpu>> {
    ENGINES[0].clone()
}

/// The options of the tests' servers.
pub fn options() -> ServeOptions {
    ServeOptions {
        sampling: SamplingOptions {
            temperature: Some(0.0),
            top_p: Some(1.0),
            seed: Some(1),
            ..SamplingOptions::default()
        },
        max_tokens: 16,
        queue: 100,
        queue_bytes: 64 << 20,
        timeout: None,
        max_body: 1 << 20,
        http: HttpLimits::default(),
        hosts: HostPolicy::Any,
        keys: vec![],
        share_prefix_cache: false,
        cors: vec![],
        names: vec!["tiny".into()],
        strict_model: true,
        log_prompts: false,
        explain: false,
        files: FileOptions { dir: None, bytes: 1 << 20 },
    }
}

/// A server and its shared state.
pub struct TestServer {
    pub app: Arc<App>,
    pub router: Router,
}

impl TestServer {
    /// A server that has not loaded its model yet.
    pub fn loading(options: ServeOptions) -> TestServer {
        let app = App::new(options);
        TestServer { router: router(app.clone()), app }
    }

    /// A server that runs up to `slots` replies at a time.
    pub fn with(options: ServeOptions, slots: usize) -> TestServer {
        TestServer::on(0, options, slots)
    }

    /// A server with a prefix cache.
    pub fn with_cache() -> TestServer {
        TestServer::with_cache_and_slots(8)
    }

    /// A server with a prefix cache and `slots` slots.
    pub fn with_cache_and_slots(slots: usize) -> TestServer {
        TestServer::on(1, options(), slots)
    }

    fn on(engine: usize, options: ServeOptions, slots: usize) -> TestServer {
        TestServer::within(engine, options, SchedulerLimits::new(slots, 1 << 30))
    }

    /// A server with these limits, without a prefix cache (0) or with one (1).
    pub fn within(engine: usize, options: ServeOptions, limits: SchedulerLimits) -> TestServer {
        let server = TestServer::loading(options);
        // The thread ends with the server.
        drop(spawn_scheduler(&server.app, EngineHandle::Cpu(ENGINES[engine].clone()), limits));
        server
    }

    /// A server that runs another model.
    pub fn of(engine: Arc<Engine<Cpu>>) -> TestServer {
        TestServer::of_with(engine, options())
    }

    /// A server that runs another model with other options.
    pub fn of_with(engine: Arc<Engine<Cpu>>, options: ServeOptions) -> TestServer {
        let server = TestServer::loading(options);
        drop(spawn_scheduler(&server.app, EngineHandle::Cpu(engine), SchedulerLimits::new(8, 1 << 30)));
        server
    }

    pub fn new() -> TestServer {
        TestServer::with(options(), 8)
    }

    /// Status and text of the response to a request.
    pub async fn send(&self, request: Request<Body>) -> (StatusCode, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    /// Status and JSON of the response to a JSON request.
    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let (status, text) = self.send(post(path, &body)).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}")))
    }

    /// The JSON of a response with status 200.
    pub async fn ok(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer
    }

    /// Status and text of the response to a GET request.
    pub async fn get(&self, path: &str) -> (StatusCode, String) {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// The JSON of each event of a stream but the last, which is `[DONE]`.
    pub async fn stream(&self, path: &str, body: Value) -> Vec<Value> {
        let (status, text) = self.send(post(path, &body)).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let events: Vec<&str> = text.split_terminator("\n\n").filter(|event| *event != ":").collect();
        assert_eq!(events.last(), Some(&"data: [DONE]"), "{text}");
        let json = |event: &&str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events[..events.len() - 1].iter().map(json).collect()
    }
}

/// A POST request with a JSON body.
pub fn post(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

/// The body of a chat request with one message and more fields.
pub fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({ "model": "tiny", "messages": [{ "role": "user", "content": text }] });
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    body
}
