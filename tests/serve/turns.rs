//! Prefix caching in the server: continued conversations, and prompts that several clients send at the same time.

use crate::support::{TestServer, chat, options};
use futures_util::future::join_all;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn number(answer: &Value, place: &str) -> u64 {
    answer.pointer(place).and_then(Value::as_u64).unwrap_or_else(|| panic!("{place}: {answer}"))
}

/// Five turns, each with the messages of the earlier ones: only the new tokens are prefilled.
async fn converse(first: &str, how: Value) {
    let (caching, fresh) = (TestServer::with_cache(), TestServer::new());
    let mut messages = vec![json!({ "role": "user", "content": first.repeat(30) })];
    let (mut known, mut cut_otherwise) = (0, 0);
    for turn in 0..5 {
        let mut request =
            json!({ "messages": messages, "temperature": 1.5, "seed": turn, "max_tokens": 200 });
        request.as_object_mut().unwrap().extend(how.as_object().unwrap().clone());
        let answer = caching.ok(CHAT, request.clone()).await;
        assert_eq!(answer["choices"][0]["finish_reason"], how["ends"], "{answer}");
        let (prompt, reply) =
            (number(&answer, "/usage/prompt_tokens"), number(&answer, "/usage/completion_tokens"));
        assert_eq!(number(&answer, "/timings/prompt_n"), prompt - known, "turn {turn}: {answer}");
        assert_eq!(number(&answer, "/usage/prompt_tokens_details/cached_tokens"), known);
        known = prompt + reply;
        request["max_tokens"] = json!(1);
        let anew = fresh.ok(CHAT, request).await;
        cut_otherwise += usize::from(number(&anew, "/usage/prompt_tokens") != prompt);
        let message = answer["choices"][0]["message"].clone();
        let call = message["tool_calls"][0]["id"].clone();
        messages.push(message);
        messages.push(match call {
            Value::Null => json!({ "role": "user", "content": format!("And then? {turn}") }),
            id => json!({ "role": "tool", "tool_call_id": id, "content": format!("nothing on page {turn}") }),
        });
    }
    // Seven tokens may be retokenized otherwise.
    assert!(
        cut_otherwise > 0 || how["ends"] == "length",
        "the tokenizer cuts these replies otherwise than the model made them"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_prefills_only_new_tokens() {
    let form = json!({ "type": "grammar", "syntax": "regex", "grammar": "[a-z ]{30,40}" });
    converse("Say something. ", json!({ "response_format": form, "ends": "stop" })).await;
    let long = json!({ "type": "grammar", "syntax": "regex", "grammar": "[a-z ]{300}" });
    converse("Be brief. ", json!({ "response_format": long, "max_tokens": 7, "ends": "length" })).await;
    let words = json!({ "type": "string", "pattern": "^[a-z ]{30,40}$" });
    let parameters = json!({ "type": "object", "properties": { "query": words }, "required": ["query"], "additionalProperties": false });
    let tool = json!({ "type": "function", "function": { "name": "search", "parameters": parameters } });
    let how = json!({ "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false, "ends": "tool_calls" });
    converse("Look it up. ", how).await;
}

async fn prefilled_tokens(server: &TestServer) -> u64 {
    let metrics = server.get("/metrics").await.1;
    let line = metrics.lines().find(|l| l.starts_with("kimi_prompt_tokens_total ")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_prefilled_once_for_all_its_replies() {
    // Fewer slots than replies: the later ones find the prefix in the cache, too.
    let (caching, fresh) = (TestServer::with_cache_and_slots(3), TestServer::with(options(), 3));
    let how = json!({ "n": 5, "temperature": 1.5, "seed": 5, "max_tokens": 12 });
    let request = chat(&"Several of these, please. ".repeat(40), how);
    let (kept, anew) = (caching.ok(CHAT, request.clone()).await, fresh.ok(CHAT, request).await);
    assert_eq!(kept["choices"], anew["choices"]);
    assert_eq!(kept["usage"], anew["usage"]);
    let prompt = number(&kept, "/usage/prompt_tokens");
    assert_eq!((prefilled_tokens(&caching).await, prefilled_tokens(&fresh).await), (prompt, 5 * prompt));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_document_is_prefilled_once() {
    let (caching, fresh) = (TestServer::with_cache(), TestServer::new());
    let document = json!({ "role": "system", "content": "All of this is known. ".repeat(60) });
    let ask = |server, i: usize| {
        let question = json!({ "role": "user", "content": format!("Question {i}?") });
        let request = json!({ "messages": [document, question], "max_tokens": 8 + i, "ignore_eos": true });
        async move { TestServer::ok(server, CHAT, request).await }
    };
    let together = join_all((0..8).map(|i| ask(&caching, i))).await;
    for (i, answer) in together.iter().enumerate() {
        assert_eq!(answer["choices"], ask(&fresh, i).await["choices"]);
    }
    let all: u64 = together.iter().map(|a| number(a, "/usage/prompt_tokens")).sum();
    let (one, read) = (all / 8, prefilled_tokens(&caching).await);
    assert!(read < one + 8 * 16, "{read} of {all} tokens read");
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_of_a_constrained_call_are_streamed() {
    let parameters = json!({ "type": "object", "properties": { "text": { "type": "string", "minLength": 20 } },
        "required": ["text"], "additionalProperties": false });
    let tool = json!({ "type": "function", "function": { "name": "write", "parameters": parameters } });
    let how = json!({ "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 60, "stream": true });
    let events = TestServer::new().stream(CHAT, chat("Write", how)).await;
    let deltas: Vec<&Value> =
        events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"][0]).filter(|d| !d.is_null()).collect();
    assert!(deltas.len() > 5, "{events:?}");
    assert_eq!((&deltas[0]["function"]["name"], &deltas[0]["type"]), (&json!("write"), &json!("function")));
    assert!(deltas[1..].iter().all(|d| d["index"] == 0 && d.get("id").is_none()));
    let arguments: String = deltas.iter().filter_map(|d| d["function"]["arguments"].as_str()).collect();
    assert!(arguments.starts_with("{"), "{arguments}");
}
