//! Questions about files: both interfaces, uploaded and inline files, the prefix cache, citations, and reading ahead.

use crate::files::{FILES, upload, with_files};
use crate::support::{TestServer, cached_engine, options, post};
use crate::test_files::pdf;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt;
use kernels::backend::CacheFormat;
use kimi::prefix_cache::options::StoreOptions;
use serde_json::{Value, json};
use std::path::Path;
use tower::ServiceExt;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

/// A text of about 600 tokens with two facts.
fn text() -> String {
    let filler: String =
        (0..40).map(|i| format!("In year {i} the harbour was quiet and nothing happened.\n")).collect();
    format!("{filler}Mara Velt lives\nin Dunmore since 1990.\n{filler}")
}

/// A server with a prefix cache on disk and files.
fn server(dir: &Path) -> TestServer {
    let store = StoreOptions {
        cache_ram: Some(64 << 20),
        cache_dir: Some(dir.join("cache")),
        cache_size: Some(1 << 30),
        ..StoreOptions::default()
    };
    TestServer::of_with(cached_engine(store, CacheFormat::F16), with_files(&dir.join("files")))
}

fn in_responses(part: Value, question: &str) -> Value {
    let content = json!([part, { "type": "input_text", "text": question }]);
    json!({ "input": [{ "role": "user", "content": content }], "max_output_tokens": 2 })
}

fn in_chat(file: Value, question: &str) -> Value {
    let content = json!([{ "type": "text", "text": question }, { "type": "file", "file": file }]);
    json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 2 })
}

/// Prompt tokens of a response, and those that were cached.
fn usage(answer: &Value) -> (u64, u64) {
    let usage = &answer["usage"];
    let prompt = usage["input_tokens"].as_u64().or(usage["prompt_tokens"].as_u64()).unwrap();
    let details = if usage["input_tokens_details"].is_null() {
        "prompt_tokens_details"
    } else {
        "input_tokens_details"
    };
    (prompt, usage[details]["cached_tokens"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn later_questions_prefill_their_own_tokens_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let id = {
        let server = server(dir.path());
        let file = upload(&server, "harbour.txt", text().as_bytes()).await;
        let tokens = file["tokens"].as_u64().unwrap();
        let part = json!({ "type": "input_file", "file_id": file["id"] });
        let first = server.ok(RESPONSES, in_responses(part, "Where does Mara live?")).await;
        let (prompt, cached) = usage(&first);
        assert!(prompt > tokens && cached < 100, "{first}");
        // The other interface has the same prompt; a system message follows the files.
        let chat = in_chat(json!({ "file_id": file["id"] }), "Where does Mara live?");
        assert_eq!(usage(&server.ok(CHAT, chat.clone()).await), (prompt, prompt));
        let mut brief = chat;
        brief["messages"]
            .as_array_mut()
            .unwrap()
            .insert(0, json!({ "role": "system", "content": "Be brief." }));
        let (longer, cached) = usage(&server.ok(CHAT, brief).await);
        assert!(longer > prompt && cached == tokens, "{longer} {cached} {tokens}");
        let (_, again) = server.get(&format!("{FILES}/{}", file["id"].as_str().unwrap())).await;
        let again: Value = serde_json::from_str(&again).unwrap();
        assert_eq!((&again["tokens_read"], &again["ready"]), (&file["tokens"], &json!(true)));
        server.app.stop();
        file["id"].as_str().unwrap().to_owned()
    };
    let server = server(dir.path());
    let part = json!({ "type": "input_file", "file_id": id });
    let (_, text) = server.get(&format!("{FILES}/{id}")).await;
    let file: Value = serde_json::from_str(&text).unwrap();
    let tokens = file["tokens"].as_u64().unwrap();
    let (prompt, cached) = usage(&server.ok(RESPONSES, in_responses(part, "When did she come?")).await);
    assert!(cached == tokens && prompt - cached < 30, "{cached} of {prompt}, file {tokens}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_continues_after_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let file = upload(&server, "harbour.txt", text().as_bytes()).await;
    let mut body = in_chat(json!({ "file_id": file["id"] }), "Where does Mara live?");
    let first = server.ok(CHAT, body.clone()).await;
    let turns = body["messages"].as_array_mut().unwrap();
    turns.push(first["choices"][0]["message"].clone());
    turns.push(json!({ "role": "user", "content": "Since when?" }));
    let (prompt, cached) = usage(&server.ok(CHAT, body).await);
    assert!(cached >= usage(&first).0 && prompt - cached < 30, "{cached} of {prompt}");
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_files_are_read_like_uploaded_ones() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let file = upload(&server, "a.txt", b"Mara lives in Dunmore.").await;
    let stored = in_responses(json!({ "type": "input_file", "file_id": file["id"] }), "Where?");
    let prompt = usage(&server.ok(RESPONSES, stored).await).0;
    let data = "TWFyYSBsaXZlcyBpbiBEdW5tb3JlLg=="; // the same text
    for data in [data.to_owned(), format!("data:text/plain;base64,{data}")] {
        let inline = json!({ "filename": "a.txt", "file_data": data });
        assert_eq!(usage(&server.ok(CHAT, in_chat(inline, "Where?")).await), (prompt, prompt));
        let inline = json!({ "type": "input_file", "filename": "a.txt", "file_data": data });
        assert_eq!(usage(&server.ok(RESPONSES, in_responses(inline, "Where?")).await).0, prompt);
    }
    let two = json!([
        { "type": "input_file", "file_id": file["id"] },
        { "type": "input_file", "filename": "b.txt", "file_data": "QW5kIE9zbG8u" },
        { "type": "input_file", "file_id": file["id"] },
        { "type": "input_text", "text": "Where?" },
    ]);
    let body = json!({ "input": [{ "role": "user", "content": two }], "max_output_tokens": 2 });
    assert!(usage(&server.ok(RESPONSES, body).await).0 > prompt);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_files(dir.path()), 4);
    for (file, status, param) in [
        (json!({ "file_id": "file-00000000000000000000000000000000" }), 404, "file_id"),
        (json!({ "file_id": "../../etc/passwd" }), 404, "file_id"),
        (json!({ "file_data": "not Base64!" }), 400, "file_data"),
        (json!({ "file_data": "data:application/pdf,abc" }), 400, "file_data"),
        (json!({ "file_data": "", "filename": "a.txt" }), 400, "file_data"),
        (json!({ "filename": "a.txt" }), 400, "file"),
        (json!({ "file_data": "YQ==", "file_id": "file-1" }), 400, "file"),
    ] {
        let (found, answer) = server.post(CHAT, in_chat(file.clone(), "Why?")).await;
        assert_eq!((found.as_u16(), &answer["error"]["param"]), (status, &json!(param)), "{file}: {answer}");
        let mut part = file.clone();
        part["type"] = json!("input_file");
        let (found, answer) = server.post(RESPONSES, in_responses(part, "Why?")).await;
        assert_eq!((found.as_u16(), &answer["error"]["param"]), (status, &json!(param)), "{file}: {answer}");
    }
    let url = json!({ "type": "input_file", "file_url": "https://example.com/a.pdf" });
    let (status, answer) = server.post(RESPONSES, in_responses(url, "Why?")).await;
    assert!(status == StatusCode::BAD_REQUEST && answer.to_string().contains("file_url"), "{answer}");
    let part = json!([{ "type": "file", "file": { "file_data": "YQ==" } }]);
    let system =
        json!({ "messages": [{ "role": "system", "content": part }, { "role": "user", "content": "x" }] });
    assert_eq!(server.post(CHAT, system).await.0, StatusCode::BAD_REQUEST);
}

/// A reply with two texts in quotation marks, of which a file has one, and three lines of quotes, of which the last is in no
/// file.
fn quoting() -> &'static str {
    "So “the harbour was quiet”, not \"a mill\":\n> Mara Velt lives in Dunmore\n> \"quiet\"\n> Mara Welt\nÉnd"
}

/// Asserts that citations are those of [`quoting`] in [`text`].
fn check(annotations: &Value, reply: &str, id: &Value) {
    let all = annotations.as_array().unwrap_or_else(|| panic!("{annotations}"));
    let cut = |text: &str, start: &Value, end: &Value| -> String {
        let (start, end) = (start.as_u64().unwrap() as usize, end.as_u64().unwrap() as usize);
        text.chars().skip(start).take(end - start).collect()
    };
    assert_eq!(all.len(), 4, "{annotations}");
    for annotation in all {
        assert_eq!(annotation["type"], "file_citation");
        assert_eq!(
            cut(reply, &annotation["start_index"], &annotation["end_index"]),
            annotation["quote"].as_str().unwrap()
        );
    }
    let text = text();
    let [marked, mara, quiet, wrong] = [&all[0], &all[1], &all[2], &all[3]];
    assert_eq!(
        (cut(&text, &marked["text_start"], &marked["text_end"]), &marked["place"]),
        ("the harbour was quiet".into(), &json!("line 1"))
    );
    assert_eq!(
        (&mara["file_id"], &mara["filename"], &mara["verified"]),
        (id, &json!("harbour.txt"), &json!(true))
    );
    assert_eq!(cut(&text, &mara["text_start"], &mara["text_end"]), "Mara Velt lives\nin Dunmore");
    assert_eq!(mara["place"], "lines 41-42");
    assert_eq!(
        (cut(&text, &quiet["text_start"], &quiet["text_end"]), &quiet["place"]),
        ("quiet".into(), &json!("line 1"))
    );
    assert_eq!(
        (&wrong["verified"], &wrong["text_start"], &wrong["file_id"], &wrong["place"]),
        (&json!(false), &Value::Null, &Value::Null, &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn quotations_are_cited_in_both_interfaces_streamed_and_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_files(dir.path()), 8);
    let file = upload(&server, "harbour.txt", text().as_bytes()).await;
    let id = &file["id"];
    let grammar = format!("start: {}", json!(quoting()));
    let mut chat = in_chat(json!({ "file_id": id }), "Where?");
    chat["max_tokens"] = json!(100);
    chat["response_format"] = json!({ "type": "grammar", "grammar": grammar });
    let whole = server.ok(CHAT, chat.clone()).await;
    assert_eq!(whole["choices"][0]["message"]["content"], quoting());
    check(&whole["choices"][0]["message"]["annotations"], quoting(), id);
    chat["stream"] = json!(true);
    let chunks = server.stream(CHAT, chat).await;
    let delta = |chunk: &Value| chunk["choices"][0]["delta"].clone();
    let last = chunks.iter().rposition(|chunk| delta(chunk)["content"].is_string()).unwrap();
    check(&delta(&chunks[last])["annotations"], quoting(), id);
    assert_eq!(chunks[last + 1]["choices"][0]["finish_reason"], "stop");
    let mut response = in_responses(json!({ "type": "input_file", "file_id": id }), "Where?");
    response["max_output_tokens"] = json!(100);
    response["text"] = json!({ "format": { "type": "grammar", "grammar": grammar } });
    let whole = server.ok(RESPONSES, response.clone()).await;
    check(&whole["output"][0]["content"][0]["annotations"], quoting(), id);
    response["stream"] = json!(true);
    let (status, streamed) = server.send(post(RESPONSES, &response)).await;
    assert_eq!(status, StatusCode::OK);
    let data = streamed.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
    let added: Vec<&Value> =
        events.iter().filter(|event| event["type"] == "response.output_text.annotation.added").collect();
    check(&added.iter().map(|event| event["annotation"].clone()).collect(), quoting(), id);
    let indexes: Vec<&Value> = added.iter().map(|event| &event["annotation_index"]).collect();
    assert_eq!(indexes, [&json!(0), &json!(1), &json!(2), &json!(3)]);
    let content = &events.last().unwrap()["response"]["output"][0]["content"][0];
    check(&content["annotations"], quoting(), id);
    let plain = server.ok(CHAT, crate::support::chat("x", json!({ "max_tokens": 1 }))).await;
    assert!(plain["choices"][0]["message"]["annotations"].is_null(), "no files, no annotations");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_ahead_of_its_first_question() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let file = upload(&server, "harbour.txt", text().as_bytes()).await;
    let id = file["id"].as_str().unwrap();
    let read = async || {
        let (status, text) = server.send(post(&format!("{FILES}/{id}/read"), &json!({}))).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap()).collect::<Vec<Value>>()
    };
    let events = read().await;
    let (ready, reading) = events.split_last().unwrap();
    assert_eq!(
        (&ready["type"], &ready["file_id"], &ready["tokens"]),
        (&json!("file.ready"), &json!(id), &file["tokens"])
    );
    assert!(ready["reused"].as_u64().unwrap() < 100 && reading.len() > 3, "{events:?}");
    let read_so_far: Vec<u64> = reading.iter().map(|event| event["tokens_read"].as_u64().unwrap()).collect();
    assert!(
        read_so_far.is_sorted() && reading.iter().all(|event| event["type"] == "file.reading"),
        "{events:?}"
    );
    assert_eq!(read_so_far.last(), file["tokens"].as_u64().as_ref());
    assert_eq!(read().await.last().unwrap()["reused"], file["tokens"]);
    // Deleted, it leaves the prefix cache; uploaded again, it is read again.
    let delete =
        axum::http::Request::delete(format!("{FILES}/{id}")).body(axum::body::Body::empty()).unwrap();
    assert_eq!(server.send(delete).await.0, StatusCode::OK);
    let again = upload(&server, "harbour.txt", text().as_bytes()).await;
    assert!(again["id"] == file["id"] && again["tokens_read"] == 0, "{again}");
    assert!(read().await.last().unwrap()["reused"].as_u64().unwrap() < 100);
    let part = json!({ "type": "input_file", "file_id": id });
    let (prompt, cached) = usage(&server.ok(RESPONSES, in_responses(part, "Where does Mara live?")).await);
    assert!(Some(cached) == file["tokens"].as_u64() && prompt - cached < 30, "{cached} of {prompt}");
    // Without a directory files are only read from requests.
    let without = TestServer::with(options(), 4);
    let (status, text) = without.send(crate::files::upload_request("a.txt", b"x")).await;
    assert!(status == StatusCode::INSUFFICIENT_STORAGE && text.contains("--files-dir"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_that_is_stopped_stays_cached() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path());
    let file = upload(&server, "harbour.txt", text().repeat(2).as_bytes()).await;
    let id = file["id"].as_str().unwrap();
    let response = server.router.clone().oneshot(post(&format!("{FILES}/{id}/read"), &json!({}))).await;
    let mut body = response.unwrap().into_body();
    // Fewer than 256 tokens are not worth a snapshot.
    let mut last_read = 0;
    while last_read < 300 {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let text = std::str::from_utf8(&frame).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let events = data.map(|data| serde_json::from_str::<Value>(data).unwrap());
        last_read = events.filter_map(|event| event["tokens_read"].as_u64()).max().unwrap_or(0);
    }
    // The client leaves.
    drop(body);
    let mut cached = 0;
    while cached == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let (_, text) = server.get(&format!("{FILES}/{id}")).await;
        cached = serde_json::from_str::<Value>(&text).unwrap()["tokens_read"].as_u64().unwrap();
    }
    assert!(cached >= last_read, "{cached} of {last_read} tokens");
    let part = json!({ "type": "input_file", "file_id": id });
    let (_, reused) = usage(&server.ok(RESPONSES, in_responses(part, "Where does Mara live?")).await);
    assert!(reused >= last_read, "{reused} of {last_read} tokens");
}

const MESSAGES: &str = "/v1/messages";

/// A request about documents whose reply is a JSON object with a quotation.
fn in_messages(documents: Vec<Value>, quotation: &str) -> Value {
    let mut content = documents;
    content.push(json!({ "type": "text", "text": "Where?" }));
    let schema = json!({ "type": "object", "properties": { "q": { "const": quotation } }, "required": ["q"],
        "additionalProperties": false });
    json!({ "max_tokens": 100, "messages": [{ "role": "user", "content": content }],
        "output_config": { "format": { "type": "json_schema", "schema": schema } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_cite_documents_by_page_or_character() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::with(with_files(dir.path()), 8);
    let fact = "Mara Velt lives in Dunmore";
    let pages = ["Nothing.", fact].map(|text| format!("BT /F1 12 Tf ({text}) Tj ET"));
    let data = STANDARD.encode(pdf(&[&pages[0], &pages[1]]));
    let source = json!({ "type": "base64", "media_type": "application/pdf", "data": data });
    let report = json!({ "type": "document", "title": "report.pdf", "source": source, "citations": { "enabled": true } });
    let mut request = in_messages(vec![report.clone()], fact);
    let whole = server.ok(MESSAGES, request.clone()).await;
    let citation = &whole["content"][0]["citations"][0];
    let expected = json!({ "type": "page_location", "cited_text": fact, "document_index": 0, "document_title": "report.pdf",
        "file_id": citation["file_id"], "start_page_number": 2, "end_page_number": 3 });
    assert_eq!(*citation, expected, "{whole}");
    request["stream"] = json!(true);
    let (_, streamed) = server.send(post(MESSAGES, &request)).await;
    let data = streamed.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
    let added: Vec<&Value> =
        events.iter().filter(|event| event["delta"]["type"] == "citations_delta").collect();
    assert_eq!(
        added.iter().map(|event| &event["delta"]["citation"]).collect::<Vec<_>>(),
        [&expected],
        "{streamed}"
    );
    // An uploaded file after a plain text, which stays in the message.
    let file = upload(&server, "harbour.txt", text().as_bytes()).await;
    let inline =
        json!({ "type": "document", "source": { "type": "text", "media_type": "text/plain", "data": "x" } });
    let source = json!({ "type": "file", "file_id": file["id"] });
    let stored = json!({ "type": "document", "source": source, "citations": { "enabled": true } });
    let whole = server.ok(MESSAGES, in_messages(vec![inline, stored], fact)).await;
    let start = text().find(fact.split(" in").next().unwrap()).unwrap();
    let expected = json!([{ "type": "char_location", "cited_text": fact, "document_index": 1, "document_title": "harbour.txt",
        "file_id": file["id"], "start_char_index": start, "end_char_index": start + fact.len() }]);
    assert_eq!(whole["content"][0]["citations"], expected, "{whole}");
    // Without the switch there are no citations.
    let mut silent = report;
    silent["citations"] = json!({ "enabled": false });
    let whole = server.ok(MESSAGES, in_messages(vec![silent], fact)).await;
    assert!(
        whole["content"][0]["citations"].is_null() && whole["content"][0]["text"].to_string().contains(fact),
        "{whole}"
    );
    for (source, status) in [
        (json!({ "type": "file", "file_id": "file-1" }), 404),
        (json!({ "type": "url", "url": "https://example.com/a.pdf" }), 400),
        (json!({ "type": "base64", "data": "?" }), 400),
    ] {
        let document = json!({ "type": "document", "source": source });
        let (found, answer) = server.post(MESSAGES, in_messages(vec![document], fact)).await;
        assert_eq!(found.as_u16(), status, "{answer}");
    }
}
