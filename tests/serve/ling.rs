//! A server with a random Ling model: reasoning that the prompt opens, and tool calls in Ling's markup, which a grammar guarantees.

use crate::common::ling_with_text;
use crate::support::{TestServer, chat};
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use kimi::runtime::options::LoadOptions;
use serde_json::{Value, json};
use std::sync::Arc;

const CHAT: &str = "/v1/chat/completions";

fn server() -> TestServer {
    let dir = tempfile::tempdir().unwrap();
    let model = Some(ling_with_text(dir.path(), "q8_0", &["num_nextn_predict_layers=1"]));
    let store = StoreOptions { cache_ram: Some(64 << 20), ..StoreOptions::nothing() };
    let options = LoadOptions { model, threads: Some(2), batch: Some(64), store, ..LoadOptions::default() };
    TestServer::of(Arc::new(Engine::open(&options).unwrap()))
}

fn weather() -> Value {
    let properties = json!({ "city": { "enum": ["Paris", "Oslo"] }, "days": { "type": "integer", "minimum": 1, "maximum": 3 } });
    let parameters = json!({ "type": "object", "properties": properties, "required": ["city", "days"], "additionalProperties": false });
    json!({ "type": "function", "function": { "name": "get_weather", "parameters": parameters } })
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_is_a_field_of_its_own() {
    let server = server();
    let message = |answer: &Value| answer["choices"][0]["message"].clone();
    let thinking = message(&server.ok(CHAT, chat("Why?", json!({ "max_tokens": 12 }))).await);
    assert!(thinking["reasoning_content"].as_str().is_some_and(|text| !text.is_empty()), "{thinking}");
    let off = json!({ "max_tokens": 12, "chat_template_kwargs": { "enable_thinking": false } });
    let answer = message(&server.ok(CHAT, chat("Why?", off)).await);
    assert!(answer["reasoning_content"].is_null() && answer["content"].is_string(), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_required_call_is_answered_and_called_again() {
    let server = server();
    let how = json!({ "tools": [weather()], "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 300 });
    let whole = server.ok(CHAT, chat("Weather?", how.clone())).await;
    let choice = &whole["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&call["id"], &call["function"]["name"]),
        (&json!("functions.get_weather:0"), &json!("get_weather"))
    );
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(["Paris", "Oslo"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
    assert!((1..=3).contains(&arguments["days"].as_i64().unwrap()), "{arguments}");
    let mut streamed = chat("Weather?", how.clone());
    streamed["stream"] = json!(true);
    let events = server.stream(CHAT, streamed).await;
    let calls = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str());
    assert_eq!(calls.collect::<String>(), call["function"]["arguments"]);
    // The call and its result are part of the next prompt; ids count the calls of the conversation.
    let mut next = chat("Weather?", how);
    let result = json!({ "role": "tool", "tool_call_id": call["id"], "content": "rain" });
    next["messages"].as_array_mut().unwrap().extend([choice["message"].clone(), result]);
    let answer = server.ok(CHAT, next).await;
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["id"], "functions.get_weather:1", "{answer}");
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&answer) > tokens(&whole) + 20, "{answer}");
}
