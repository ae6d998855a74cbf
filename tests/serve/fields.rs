//! Fields of requests: what is accepted without effect, what is refused, and the table in `docs/fields.md`.

use crate::support::{TestServer, chat, options};
use kimi::serve::ServeOptions;
use kimi::serve::fields::{Handling, Interface, ollama, table};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const CHAT: &str = "/v1/chat/completions";

fn body(interface: Interface, more: Value) -> Value {
    let mut body = match interface {
        Interface::Chat => json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 }),
        Interface::Completions => json!({ "prompt": "x", "max_tokens": 1 }),
        Interface::Responses => json!({ "input": "x", "max_output_tokens": 1 }),
        Interface::Messages => json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 }),
    };
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn the_table_in_docs_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fields.md");
    if std::env::var_os("UPDATE_FIELDS").is_some() {
        std::fs::write(path, table()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), table());
}

/// The fields with an effect are those of the request types, which the OpenAPI description lists.
#[tokio::test(flavor = "multi_thread")]
async fn used_fields_are_those_of_the_request_types() {
    let text = TestServer::new().get("/openapi.json").await.1;
    let described: Value = serde_json::from_str(&text).unwrap();
    let properties = |name: &str| -> BTreeSet<String> {
        let schema = &described["components"]["schemas"][name];
        assert!(schema["properties"].is_object(), "{name}: {schema}");
        schema["properties"].as_object().unwrap().keys().cloned().collect()
    };
    for (interface, types) in [
        (Interface::Chat, &["ChatRequest", "Generation", "GuidedDecoding"][..]),
        (Interface::Completions, &["CompletionRequest", "Generation", "GuidedDecoding"]),
        (Interface::Responses, &["ResponseRequest"]),
        (Interface::Messages, &["MessagesRequest"]),
    ] {
        let read: BTreeSet<String> = types.iter().flat_map(|name| properties(name)).collect();
        let fields = interface.fields();
        let used = fields.iter().filter(|(_, handling)| matches!(handling, Handling::Used(_)));
        assert_eq!(used.map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(), read, "{interface:?}");
    }
    let [chat, generate, _] = ollama::sections();
    for ((title, fields), kind) in [(chat, "OllamaChatRequest"), (generate, "OllamaGenerateRequest")] {
        let schema = &described["components"]["schemas"][kind];
        let parts = schema["allOf"].as_array().unwrap_or_else(|| panic!("{schema}"));
        let own = parts.iter().filter_map(|part| part["properties"].as_object()).flat_map(|own| own.keys());
        let read: BTreeSet<String> = own.cloned().chain(properties("OllamaOptions")).collect();
        let acting = fields.iter().filter(|(_, handling)| !matches!(handling, Handling::Ignored(_)));
        assert_eq!(acting.map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(), read, "{title}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listed_field_is_accepted_or_refused_as_listed() {
    let server = TestServer::new();
    for interface in Interface::ALL {
        for (name, handling) in interface.fields() {
            let send = |value: Value| server.post(interface.path(), body(interface, json!({ name: value })));
            match handling {
                Handling::Used(_) => {}
                Handling::Ignored(_) => {
                    let (status, answer) = send(json!({ "any": ["thing"] })).await;
                    assert_eq!(status, 200, "{interface:?} {name}: {answer}");
                }
                Handling::Refused(harmless, _) => {
                    let (status, answer) = send(json!({ "any": ["thing"] })).await;
                    assert_eq!(status, 400, "{interface:?} {name}: {answer}");
                    assert!(answer["error"]["message"].as_str().unwrap().contains(name), "{answer}");
                    for value in harmless {
                        let (status, answer) = send(serde_json::from_str(value).unwrap()).await;
                        assert_eq!(status, 200, "{interface:?} {name}: {answer}");
                    }
                    assert_eq!(send(Value::Null).await.0, 200, "{interface:?} {name}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn misspelt_fields_are_refused_with_the_right_name() {
    let server = TestServer::new();
    for (interface, name, meant) in [
        (Interface::Chat, "maxTokens", "max_tokens"),
        (Interface::Chat, "temprature", "temperature"),
        (Interface::Chat, "reponse_format", "response_format"),
        (Interface::Completions, "stops", "stop"),
        (Interface::Responses, "max_output_token", "max_output_tokens"),
        (Interface::Messages, "stop_sequence", "stop_sequences"),
    ] {
        let (status, answer) = server.post(interface.path(), body(interface, json!({ name: 1 }))).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(
            (status.as_u16(), message),
            (400, &*format!("{name}: unknown field; did you mean {meant}?"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_other_models_are_accepted() {
    let server = TestServer::new();
    for how in [
        json!({ "reasoning_effort": "high" }),
        json!({ "store": true, "verbosity": "low" }),
        json!({ "truncation": "auto" }),
        json!({ "chat_template_kwargs": { "thinking": true, "enable_thinking": false } }),
        json!({ "tools": [{ "type": "web_search" }] }),
        json!({ "tools": [{ "type": "custom", "name": "patch" }], "tool_choice": "auto" }),
    ] {
        let mut body = chat("x", how);
        body["max_tokens"] = json!(1);
        server.ok(CHAT, body).await;
    }
    for how in [
        json!({ "reasoning": { "effort": "high", "summary": "auto" }, "store": true, "truncation": "auto" }),
        json!({ "tools": [{ "type": "web_search" }, { "type": "local_shell" }], "tool_choice": "auto" }),
    ] {
        server.ok("/v1/responses", body(Interface::Responses, how)).await;
    }
    let unlimited = chat(
        "x",
        json!({ "max_tokens": -1, "response_format": { "type": "grammar", "grammar": "start: \"ab\"" } }),
    );
    assert_eq!(server.ok(CHAT, unlimited).await["choices"][0]["message"]["content"], "ab");
    let (status, answer) = server.post(CHAT, chat("x", json!({ "max_tokens": -2 }))).await;
    assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("max_tokens")));
}

#[tokio::test(flavor = "multi_thread")]
async fn formats_by_the_names_of_other_engines_are_enforced() {
    let server = TestServer::new();
    let schema = json!({ "enum": ["left", "right"] });
    for how in [
        json!({ "guided_json": schema }),
        json!({ "guided_json": schema.to_string() }),
        json!({ "json_schema": schema }),
        json!({ "guided_regex": "\"(left|right)\"" }),
        json!({ "response_format": { "type": "json_schema", "schema": schema } }),
        json!({ "response_format": { "type": "json_object", "schema": schema } }),
    ] {
        let answer = server.ok(CHAT, chat("x", how.clone())).await;
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(["\"left\"", "\"right\""].contains(&content), "{how}: {answer}");
    }
    let text = server.ok("/v1/completions", json!({ "prompt": "x", "guided_json": schema })).await;
    assert!(["\"left\"", "\"right\""].contains(&text["choices"][0]["text"].as_str().unwrap()), "{text}");
    for (param, how) in [
        ("guided_json", json!({ "guided_json": "{" })),
        ("response_format", json!({ "guided_json": schema, "guided_regex": "a" })),
    ] {
        let (status, answer) = server.post(CHAT, chat("x", how)).await;
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!(param)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_model_name_is_accepted_unless_the_server_is_strict() {
    let server = TestServer::with(ServeOptions { strict_model: false, ..options() }, 1);
    let answer = server.ok(CHAT, chat("x", json!({ "model": "gpt-5", "max_tokens": 1 }))).await;
    assert_eq!(answer["model"], "tiny");
}
