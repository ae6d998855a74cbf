//! Explanations of cache misses: ten kinds of change, each with its cause in the response and in the metrics.

use crate::support::{TestServer, cached_engine, other_model, post, with_template};
use kernels::backend::CacheFormat;
use kernels::cpu::Cpu;
use kimi::prefix_cache::options::StoreOptions;
use kimi::runtime::engine::Engine;
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};

const CHAT: &str = "/v1/chat/completions";

fn message(role: &str, text: &str) -> Value {
    json!({ "role": role, "content": text })
}

/// A text of about `words` words that no other test uses.
fn text(topic: &str, words: usize) -> String {
    (0..words).map(|i| format!("{topic} {}", i * 7 % 100)).collect::<Vec<_>>().join(" and ")
}

/// A server whose prefix cache holds all prompts of these tests.
fn server() -> TestServer {
    static ENGINE: LazyLock<Arc<Engine<Cpu>>> = LazyLock::new(|| {
        let store = StoreOptions { cache_ram: Some(512 << 20), ..StoreOptions::in_memory() };
        cached_engine(store, CacheFormat::F16)
    });
    TestServer::of(ENGINE.clone())
}

async fn send(server: &TestServer, body: Value) -> Value {
    let mut body = body;
    body.as_object_mut()
        .unwrap()
        .extend(json!({ "max_tokens": 4, "ignore_eos": true }).as_object().unwrap().clone());
    server.ok(CHAT, body).await
}

/// Sends two requests; returns the timings of the second.
async fn timings(server: &TestServer, first: Value, second: Value) -> Value {
    send(server, first).await;
    send(server, second).await["timings"].clone()
}

fn cause(timings: &Value) -> &str {
    timings["cause"]["name"].as_str().unwrap_or_else(|| panic!("{timings}"))
}

/// A conversation of five messages about a topic, of which the reply is not the model's.
fn conversation(topic: &str) -> Vec<Value> {
    vec![
        message("system", &text(&format!("{topic} rule"), 20)),
        message("user", &text(&format!("{topic} question"), 20)),
        message("assistant", &text(&format!("{topic} answer"), 20)),
        message("user", &text(&format!("{topic} remark"), 20)),
        message("assistant", "I see."),
        message("user", "Go on."),
    ]
}

fn tool(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name, "parameters": { "type": "object", "properties": {} } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_tools_are_named() {
    let server = server();
    let messages = conversation("tools");
    let with = |names: &[&str]| {
        let tools: Vec<Value> = names.iter().map(|name| tool(name)).collect();
        json!({ "messages": messages, "tools": tools })
    };
    let found = timings(&server, with(&["read", "write"]), with(&["read", "search"])).await;
    assert_eq!(cause(&found), "tools", "{found}");
    assert!(found["cause"]["message"].is_null(), "{found}");
    let found = timings(&server, with(&["read"]), json!({ "messages": messages })).await;
    assert_eq!(cause(&found), "tools", "{found}");
    let metrics = server.get("/metrics").await.1;
    assert!(metrics.contains("kimi_prefix_misses_total{cause=\"tools\"}"), "{metrics}");
    assert!(metrics.contains("kimi_prefilled_tokens_total{cause=\"tools\"}"), "{metrics}");
}

/// The interfaces of Anthropic and of responses name the cause too, in a field that their clients ignore.
#[tokio::test(flavor = "multi_thread")]
async fn all_interfaces_for_chats_name_the_cause() {
    let server = server();
    let rules = text("interface rule", 40);
    let system = |hour: usize| format!("It is {hour}. {rules}");
    let question = text("interface", 40);
    let data = |line: &str| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok();

    let messages =
        |hour| json!({ "system": system(hour), "max_tokens": 4, "messages": [message("user", &question)] });
    server.ok("/v1/messages", messages(9)).await;
    let found = server.ok("/v1/messages", messages(10)).await;
    assert_eq!(cause(&found["timings"]), "system", "{found}");
    let prefilled = found["timings"]["prompt_n"].as_u64();
    assert_eq!(prefilled, found["usage"]["cache_creation_input_tokens"].as_u64(), "{found}");
    let mut request = messages(11);
    request["stream"] = true.into();
    let events = server.send(post("/v1/messages", &request)).await.1;
    let events: Vec<Value> = events.lines().filter_map(data).collect();
    let delta = events.iter().find(|event| event["type"] == "message_delta").unwrap();
    assert_eq!((cause(&delta["timings"]), &delta["timings"]["cause"]["role"]), ("system", &json!("system")));
    assert!(events[0]["message"].get("timings").is_none(), "{}", events[0]);

    let response = |hour| json!({ "instructions": system(hour), "input": question, "max_output_tokens": 4 });
    let found = server.ok("/v1/responses", response(12)).await;
    assert_eq!(cause(&found["timings"]), "system", "{found}");
    let mut request = response(13);
    request["stream"] = true.into();
    let events = server.send(post("/v1/responses", &request)).await.1;
    let events: Vec<Value> = events.lines().filter_map(data).collect();
    assert!(events[0]["response"].get("timings").is_none(), "{}", events[0]);
    let last = events.last().unwrap();
    assert_eq!(cause(&last["response"]["timings"]), "system", "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_header_is_named() {
    let server = server();
    let (first, mut second) = (conversation("header"), conversation("header"));
    second[0] = message("system", &format!("{} Today is Monday.", text("header rule", 20)));
    let found = timings(&server, json!({ "messages": first }), json!({ "messages": second })).await;
    assert_eq!((cause(&found), &found["cause"]["role"]), ("system", &json!("system")), "{found}");
    assert_eq!(found["cause"]["message"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_reminder_is_named() {
    let server = server();
    let reminder = "<system-reminder>\nThe list of tasks is empty. Do not mention it.\n</system-reminder>\n";
    let (mut first, mut second) = (conversation("reminder"), conversation("reminder"));
    first.truncate(2);
    first[1] = message("user", &format!("{reminder}{}", text("reminder question", 20)));
    second[5] = message("user", &format!("{reminder}Go on."));
    let found = timings(&server, json!({ "messages": first }), json!({ "messages": second })).await;
    assert_eq!((cause(&found), &found["cause"]["message"]), ("reminder", &json!(1)), "{found}");
    // A system message between the turns moves to the end.
    let (mut first, mut second) = (conversation("moving"), conversation("moving"));
    first.insert(2, message("system", "The list of tasks is empty."));
    second.push(message("system", "The list of tasks is empty."));
    let found = timings(&server, json!({ "messages": first }), json!({ "messages": second })).await;
    assert_eq!((cause(&found), &found["cause"]["message"]), ("reminder", &json!(2)), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_template_is_named() {
    let template = "{% if enable_thinking %}Think. {% endif %}{% for m in messages %}<|im_user|>{{ m.role }}<|im_middle|>\
        {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}";
    let server = TestServer::of(with_template(template));
    let with = |thinking: bool| json!({ "messages": conversation("template"), "chat_template_kwargs": { "enable_thinking": thinking } });
    // The first difference is the first token of the prompt, so that nothing is common.
    let found = timings(&server, with(false), with(true)).await;
    assert_eq!(cause(&found), "template", "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_history_is_named() {
    let server = server();
    let (first, mut second) = (conversation("trim"), conversation("trim"));
    second.drain(1..3);
    second.extend([message("assistant", "Gladly."), message("user", "And then?")]);
    let found = timings(&server, json!({ "messages": first }), json!({ "messages": second })).await;
    assert_eq!((cause(&found), &found["cause"]["message"]), ("trimmed", &json!(1)), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_message_is_named_with_its_number_and_role() {
    let server = server();
    for (index, role) in [(1, "user"), (2, "assistant"), (3, "user")] {
        let topic = format!("edit {index}");
        let (first, mut second) = (conversation(&topic), conversation(&topic));
        second[index] = message(role, &format!("Rather: {}", text(&topic, 30)));
        let found = timings(&server, json!({ "messages": first }), json!({ "messages": second })).await;
        let place = (&found["cause"]["message"], &found["cause"]["role"]);
        assert_eq!((cause(&found), place), ("message", (&json!(index), &json!(role))), "{found}");
        // What precedes the edited message is restored.
        assert!(found["cache_n"].as_u64().unwrap() > 40 * index as u64, "{found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tokens_of_the_same_text_are_named() {
    let server = server();
    let body = json!({ "content": text("tokenization", 30) });
    let ids = server.ok("/tokenize", body).await["tokens"].as_array().unwrap().clone();
    let mut spelled = ids[..20].to_vec();
    // The next word by its letters.
    for letter in
        server.ok("/detokenize", json!({ "tokens": [ids[20]] })).await["content"].as_str().unwrap().chars()
    {
        let tokens = server.ok("/tokenize", json!({ "content": letter.to_string() })).await;
        spelled.extend(tokens["tokens"].as_array().unwrap().clone());
    }
    spelled.extend(ids[21..].iter().cloned());
    assert_ne!(ids, spelled);
    let complete = |prompt: Vec<Value>| json!({ "prompt": prompt, "max_tokens": 2 });
    server.ok("/v1/completions", complete(ids)).await;
    let found = server.ok("/v1/completions", complete(spelled)).await["timings"].clone();
    assert_eq!((cause(&found), &found["cause"]["common_n"]), ("tokenization", &json!(20)), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_and_another_cache_type_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreOptions {
        cache_ram: Some(64 << 20),
        cache_dir: Some(dir.path().into()),
        ..StoreOptions::default()
    };
    let body = json!({ "messages": [message("user", &text("key", 200))] });
    let first = cached_engine(store.clone(), CacheFormat::F16);
    send(&TestServer::of(first.clone()), body.clone()).await;
    first.store.flush();
    let restarted = TestServer::of(cached_engine(store.clone(), CacheFormat::F16));
    let again = send(&restarted, body.clone()).await["timings"].clone();
    assert!(again["cache_n"].as_u64().unwrap() > 200, "{again}");
    let other = TestServer::of(cached_engine(store.clone(), CacheFormat::Q8_0));
    let found = send(&other, body.clone()).await["timings"].clone();
    assert_eq!(cause(&found), "cache_type", "{found}");
    let other = TestServer::of(other_model(store));
    let found = send(&other, body).await["timings"].clone();
    assert_eq!(cause(&found), "model", "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_prefix_is_named() {
    // A snapshot takes about 1 MiB, most of it logits.
    let store = StoreOptions { cache_ram: Some(4 << 20), ..StoreOptions::in_memory() };
    let server = TestServer::of(cached_engine(store, CacheFormat::F16));
    let ask = |topic: &str| json!({ "messages": [message("user", &text(topic, 40))] });
    send(&server, ask("evicted")).await;
    for other in ["some", "more", "other", "topics"] {
        let found = send(&server, ask(other)).await["timings"].clone();
        assert_eq!(cause(&found), "new", "{found}");
    }
    let found = send(&server, ask("evicted")).await["timings"].clone();
    assert_eq!((cause(&found), &found["cache_n"]), ("evicted", &json!(0)), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_and_continued_prompts_are_no_change() {
    let server = server();
    let mut messages = vec![message("user", &text("growth", 30))];
    let answer = send(&server, json!({ "messages": messages })).await;
    assert_eq!(cause(&answer["timings"]), "new");
    let again = send(&server, json!({ "messages": messages })).await;
    assert!(again["timings"].get("cause").is_none(), "a whole prompt was cached: {again}");
    messages.extend([answer["choices"][0]["message"].clone(), message("user", "Go on.")]);
    let found = send(&server, json!({ "messages": messages })).await["timings"].clone();
    assert_eq!(cause(&found), "continued", "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_question_about_a_pasted_document_prefills_the_question() {
    let server = server();
    let document = text("document", 200);
    let ask = |question: &str| json!({ "messages": [message("user", &format!("{document}\n\n{question}"))] });
    let found = timings(&server, ask("Which number is first?"), ask("How many are there?")).await;
    assert!(found["prompt_n"].as_u64().unwrap() < 16, "{found}");
    assert_eq!((cause(&found), &found["cause"]["message"]), ("message", &json!(0)), "{found}");
}

/// Agents send reminders before the question, and leave the last one out in the next request.
#[tokio::test(flavor = "multi_thread")]
async fn a_reminder_that_is_left_out_prefills_only_what_follows() {
    let server = server();
    let part = |text: &str| json!({ "type": "text", "text": text });
    let note = format!("<system-reminder>\n{}\n\nIt ends.\n</system-reminder>\n", text("note", 200));
    let date = "<system-reminder>\nThe date is Tuesday.\n\nNo more.\n</system-reminder>";
    let user = |parts: Vec<Value>| json!({ "role": "user", "content": parts });
    let first = user(vec![part(&note), part(date), part("Hello.")]);
    let second = user(vec![part(&note), part("Hello.")]);
    let found = timings(
        &server,
        json!({ "messages": [first] }),
        json!({ "messages": [second, message("assistant", "Hi."), message("user", "Again.")] }),
    )
    .await;
    assert!(found["prompt_n"].as_u64().unwrap() < 40, "{found}");
}
