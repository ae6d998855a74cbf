//! The table of clients that `kimi launch` knows. An entry has the client's program, the command that installs it, and a
//! function that sets its variables and arguments; docs/clients.md has the same by hand.

use super::plan::LaunchPlan;
use serde_json::{Value, json};

/// The model that a client is set up for.
pub struct ServedModel {
    /// The address of the server, without `/v1` and without a slash at the end.
    pub url: String,
    pub id: String,
    /// The API key; servers without keys accept any.
    pub key: String,
    /// Context size in tokens, where the server reports it.
    pub context: Option<u64>,
}

impl ServedModel {
    fn openai(&self) -> String {
        format!("{}/v1", self.url)
    }

    /// The most tokens of a reply: a quarter of the context, because clients reserve them in it.
    fn max_output(&self) -> Option<u64> {
        self.context.map(|context| (context / 4).clamp(1, MAX_OUTPUT_TOKENS))
    }
}

/// Upper bound on tokens of a reply, the default of Claude Code.
const MAX_OUTPUT_TOKENS: u64 = 32_000;
/// How long clients wait for text: the prefill of a long prompt may take minutes on a CPU.
const TIMEOUT_SECONDS: u64 = 3600;

/// A client in the table.
pub struct LaunchClient {
    /// The name on the command line.
    pub name: &'static str,
    pub title: &'static str,
    pub program: &'static str,
    pub install: &'static str,
    /// Traffic to other hosts that the variables turn off.
    pub silenced: &'static str,
    pub setup: fn(&ServedModel, &mut LaunchPlan),
}

/// All clients, in the order of the help.
pub const CLIENTS: &[LaunchClient] = &[
    LaunchClient {
        name: "claude",
        title: "Claude Code",
        program: "claude",
        install: "npm install -g @anthropic-ai/claude-code",
        silenced: "telemetry, error reports and updates",
        setup: claude,
    },
    LaunchClient {
        name: "codex",
        title: "Codex",
        program: "codex",
        install: "npm install -g @openai/codex",
        silenced: "analytics and update checks",
        setup: codex,
    },
    LaunchClient {
        name: "opencode",
        title: "opencode",
        program: "opencode",
        install: "npm install -g opencode-ai",
        silenced: "updates, sharing and the download of model lists",
        setup: opencode,
    },
    LaunchClient {
        name: "kimi-code",
        title: "Kimi Code",
        program: "kimi",
        install: "npm install -g @moonshot-ai/kimi-code",
        silenced: "telemetry and updates",
        setup: kimi_code,
    },
    LaunchClient {
        name: "qwen",
        title: "Qwen Code",
        program: "qwen",
        install: "npm install -g @qwen-code/qwen-code",
        silenced: "usage statistics and updates",
        setup: qwen,
    },
    LaunchClient {
        name: "aider",
        title: "aider",
        program: "aider",
        install: "python -m pip install aider-chat",
        silenced: "analytics and update checks",
        setup: aider,
    },
    LaunchClient {
        name: "openwebui",
        title: "Open WebUI",
        program: "open-webui",
        install: "python -m pip install open-webui",
        silenced: "telemetry, update checks and downloads",
        setup: open_webui,
    },
    LaunchClient {
        name: "llm",
        title: "llm",
        program: "llm",
        install: "python -m pip install llm",
        silenced: "",
        setup: llm,
    },
];

fn claude(model: &ServedModel, plan: &mut LaunchPlan) {
    plan.set("ANTHROPIC_BASE_URL", &model.url);
    plan.set("ANTHROPIC_AUTH_TOKEN", &model.key);
    // A key would take precedence over the token, and the client asks whether it may use it.
    plan.unset("ANTHROPIC_API_KEY");
    let models = [
        "ANTHROPIC_MODEL",
        "ANTHROPIC_SMALL_FAST_MODEL",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "CLAUDE_CODE_SUBAGENT_MODEL",
    ];
    plan.set_each(&models, &model.id);
    if let (Some(context), Some(output)) = (model.context, model.max_output()) {
        plan.set_default("CLAUDE_CODE_MAX_CONTEXT_TOKENS", context);
        plan.set_default("CLAUDE_CODE_MAX_OUTPUT_TOKENS", output);
    }
    plan.set_default("API_TIMEOUT_MS", TIMEOUT_SECONDS * 1000);
    plan.set("CLAUDE_CODE_ATTRIBUTION_HEADER", 0);
    plan.set("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", 1);
}

fn codex(model: &ServedModel, plan: &mut LaunchPlan) {
    plan.set("KIMI_SERVER_KEY", &model.key);
    let provider = "model_providers.kimi";
    let mut settings = vec![
        ("model_provider".to_owned(), json!("kimi")),
        ("model".to_owned(), json!(model.id)),
        (format!("{provider}.name"), json!("kimi")),
        (format!("{provider}.base_url"), json!(model.openai())),
        (format!("{provider}.env_key"), json!("KIMI_SERVER_KEY")),
        (format!("{provider}.wire_api"), json!("responses")),
        (format!("{provider}.stream_idle_timeout_ms"), json!(TIMEOUT_SECONDS * 1000)),
        ("check_for_update_on_startup".to_owned(), json!(false)),
        ("analytics.enabled".to_owned(), json!(false)),
    ];
    if let Some(context) = model.context {
        settings.push(("model_context_window".to_owned(), json!(context)));
    }
    // The values are JSON, which for strings, numbers and booleans is also TOML.
    plan.args(settings.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]));
}

fn opencode(model: &ServedModel, plan: &mut LaunchPlan) {
    let mut entry = json!({ "name": model.id });
    if let (Some(context), Some(output)) = (model.context, model.max_output()) {
        entry["limit"] = json!({ "context": context, "output": output });
    }
    let name = format!("kimi/{}", model.id);
    let mut models = json!({});
    models[&model.id] = entry;
    let config = json!({
        "provider": {
            "kimi": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "kimi",
                "options": { "baseURL": model.openai(), "apiKey": model.key, "timeout": false },
                "models": models,
            },
        },
        "model": name,
        "small_model": name,
        "autoupdate": false,
        "share": "disabled",
    });
    plan.set("OPENCODE_CONFIG_CONTENT", config);
    plan.set("OPENCODE_DISABLE_MODELS_FETCH", 1);
}

fn kimi_code(model: &ServedModel, plan: &mut LaunchPlan) {
    plan.set("KIMI_MODEL_PROVIDER_TYPE", "openai");
    plan.set("KIMI_MODEL_BASE_URL", model.openai());
    plan.set("KIMI_MODEL_API_KEY", &model.key);
    plan.set("KIMI_MODEL_NAME", &model.id);
    plan.set("KIMI_MODEL_CAPABILITIES", "tool_use");
    if let (Some(context), Some(output)) = (model.context, model.max_output()) {
        plan.set_default("KIMI_MODEL_MAX_CONTEXT_SIZE", context);
        plan.set_default("KIMI_MODEL_MAX_OUTPUT_SIZE", output);
    }
    plan.set("KIMI_DISABLE_TELEMETRY", 1);
    plan.set("KIMI_CODE_NO_AUTO_UPDATE", 1);
}

fn qwen(model: &ServedModel, plan: &mut LaunchPlan) {
    plan.set("OPENAI_BASE_URL", model.openai());
    plan.set("OPENAI_API_KEY", &model.key);
    plan.set("OPENAI_MODEL", &model.id);
    let mut generation = json!({ "timeout": TIMEOUT_SECONDS * 1000 });
    if let (Some(context), Some(output)) = (model.context, model.max_output()) {
        generation["contextWindowSize"] = context.into();
        plan.set_default("QWEN_CODE_MAX_OUTPUT_TOKENS", output);
    }
    // Defaults of the system, which the user's own settings override.
    let settings = json!({
        "general": { "enableAutoUpdate": false },
        "privacy": { "usageStatisticsEnabled": false },
        "model": { "generationConfig": generation },
    });
    plan.set_file("QWEN_CODE_SYSTEM_DEFAULTS_PATH", "qwen.json", pretty(&settings));
    plan.args(["--auth-type", "openai"]);
}

fn aider(model: &ServedModel, plan: &mut LaunchPlan) {
    let name = format!("openai/{}", model.id);
    plan.set("AIDER_OPENAI_API_BASE", model.openai());
    plan.set("AIDER_OPENAI_API_KEY", &model.key);
    plan.set_each(&["AIDER_MODEL", "AIDER_WEAK_MODEL", "AIDER_EDITOR_MODEL"], &name);
    plan.set_default("AIDER_TIMEOUT", TIMEOUT_SECONDS);
    if let (Some(context), Some(output)) = (model.context, model.max_output()) {
        let limits = json!({
            "max_input_tokens": context,
            "max_output_tokens": output,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
            "litellm_provider": "openai",
            "mode": "chat",
        });
        let mut models = json!({});
        models[&name] = limits;
        plan.set_file("AIDER_MODEL_METADATA_FILE", "aider.json", pretty(&models));
    }
    plan.set_each(&["AIDER_ANALYTICS", "AIDER_CHECK_UPDATE", "AIDER_SHOW_MODEL_WARNINGS"], "false");
}

fn open_webui(model: &ServedModel, plan: &mut LaunchPlan) {
    plan.set("OLLAMA_BASE_URL", &model.url);
    plan.set("OLLAMA_API_CONFIGS", json!({ "0": { "enable": true, "key": model.key } }));
    plan.set("DEFAULT_MODELS", &model.id);
    plan.set_default("AIOHTTP_CLIENT_TIMEOUT", TIMEOUT_SECONDS);
    // Otherwise the address is stored in the client's database and wins at later starts.
    plan.set_each(&["ENABLE_PERSISTENT_CONFIG", "ENABLE_OPENAI_API"], "false");
    plan.set("OFFLINE_MODE", "true");
    plan.set_each(&["DO_NOT_TRACK", "SCARF_NO_ANALYTICS"], "true");
    plan.set("ANONYMIZED_TELEMETRY", "false");
    // Its default port is that of `kimi serve`.
    plan.args(["serve", "--host", "127.0.0.1", "--port", "3000"]);
}

fn llm(model: &ServedModel, plan: &mut LaunchPlan) {
    let models = json!([{
        "model_id": "kimi",
        "model_name": model.id,
        "api_base": model.openai(),
        "supports_schema": true,
        "supports_tools": true,
    }]);
    plan.set("OPENAI_API_KEY", &model.key);
    // JSON is also YAML.
    plan.set_dir("LLM_USER_PATH", "extra-openai-models.yaml", pretty(&models));
    plan.set("LLM_MODEL", "kimi");
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}
