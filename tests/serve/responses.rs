//! `/v1/responses`, with and without streaming.

use crate::support::{TestServer, post};
use axum::http::StatusCode;
use serde_json::{Value, json};

const RESPONSES: &str = "/v1/responses";

/// The events of a stream, as name and JSON.
async fn events(server: &TestServer, body: Value) -> Vec<Value> {
    let (status, text) = server.send(post(RESPONSES, &body)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let mut events = Vec::new();
    for block in text.split_terminator("\n\n") {
        let (name, data) = block.split_once('\n').unwrap();
        let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), event["type"].as_str());
        assert_eq!(event["sequence_number"], events.len());
        events.push(event);
    }
    events
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

fn form() -> Value {
    json!({ "format": { "type": "grammar", "grammar": "start: \"left \" (\"left\" | \"right\")" } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_is_the_same_whole_and_as_events() {
    let server = TestServer::new();
    let request = json!({ "model": "tiny", "input": "Which?", "instructions": "Be brief.", "text": form() });
    let whole = server.ok(RESPONSES, request.clone()).await;
    assert_eq!(
        (&whole["object"], &whole["status"], &whole["store"]),
        (&json!("response"), &json!("completed"), &json!(false))
    );
    let item = &whole["output"][0];
    assert_eq!(
        (&item["type"], &item["role"], &item["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    let text = item["content"][0]["text"].as_str().unwrap();
    assert!(["left left", "left right"].contains(&text), "{whole}");
    assert_eq!(
        whole["usage"]["total_tokens"],
        whole["usage"]["input_tokens"].as_u64().unwrap() + whole["usage"]["output_tokens"].as_u64().unwrap()
    );
    let mut streamed = request;
    streamed["stream"] = json!(true);
    let events = events(&server, streamed).await;
    assert_eq!(
        kinds(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let deltas: String = events.iter().filter_map(|e| e["delta"].as_str()).collect();
    assert_eq!(deltas, text);
    assert_eq!(events.last().unwrap()["response"]["output"][0]["content"], item["content"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_and_its_output_are_accepted_as_input() {
    let server = TestServer::new();
    let schema = json!({ "type": "object", "properties": { "n": { "enum": [1, 2] } }, "required": ["n"], "additionalProperties": false });
    let tools = json!([{ "type": "function", "name": "pick", "parameters": schema, "strict": true }]);
    let first = json!({ "input": "Pick one", "tools": tools, "tool_choice": { "type": "function", "name": "pick" },
        "parallel_tool_calls": false, "max_output_tokens": 100, "stream": true });
    let events = events(&server, first).await;
    assert_eq!(
        kinds(&events)[2..],
        [
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let call = events.last().unwrap()["response"]["output"][0].clone();
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!([1, 2].contains(&arguments["n"].as_i64().unwrap()), "{call}");
    let output = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": "done" });
    let input =
        json!([{ "role": "user", "content": [{ "type": "input_text", "text": "Pick one" }] }, call, output]);
    let second = server.ok(RESPONSES, json!({ "input": input, "tools": tools })).await;
    assert!(second["usage"]["input_tokens"].as_u64() > call["usage"]["input_tokens"].as_u64(), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_response_is_incomplete_and_unsupported_fields_are_refused() {
    let server = TestServer::new();
    let form = json!({ "format": { "type": "grammar", "syntax": "regex", "grammar": "(a b c d )+" } });
    let cut = server.ok(RESPONSES, json!({ "input": "x", "max_output_tokens": 3, "text": form })).await;
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    for (param, body) in [
        ("input", json!({ "input": 5 })),
        ("input[0]", json!({ "input": [{ "type": "item_reference", "id": "x" }] })),
        (
            "input[1]",
            json!({ "input": [{ "role": "user", "content": "x" }, { "type": "function_call_output", "output": "x" }] }),
        ),
        ("previous_response_id", json!({ "input": "x", "previous_response_id": "resp_1" })),
        ("include", json!({ "input": "x", "include": ["file_search_call.results"] })),
        ("max_tokens", json!({ "input": "x", "max_output_tokens": 0 })),
        (
            "tools[0].type",
            json!({ "input": "x", "tools": [{ "type": "web_search" }], "tool_choice": "required" }),
        ),
        ("background", json!({ "input": "x", "background": true })),
        ("temperature", json!({ "input": "x", "temperature": 9 })),
    ] {
        let (status, answer) = server.post(RESPONSES, body.clone()).await;
        assert_eq!(
            (status.as_u16(), answer["error"]["param"].as_str()),
            (400, Some(param)),
            "{body}: {answer}"
        );
    }
}
