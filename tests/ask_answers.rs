//! The order and the marks of answers of `kimi ask`, with an endpoint that gives prepared replies, and with the built-in
//! model.
#![cfg(unix)]

mod common;

use common::{kimi_command, terminal, text};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const FILE: &str = "The Hartwell mill ground 1,234 tonnes in 1998.\nMara Velt keeps it.\n";

/// Starts an endpoint that answers chats with these replies in turn; returns its URL and the messages that it receives.
fn endpoint(replies: &'static [&'static str]) -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = Arc::new(Mutex::new(Vec::new()));
    let chats = received.clone();
    std::thread::spawn(move || {
        let mut replies = replies.iter();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let from = head.len();
                reader.read_line(&mut head).unwrap();
                if let Some(n) = head[from..].to_lowercase().strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let start = |status: &str| format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
            if head.starts_with("GET") {
                stream.write_all((start("404 Not Found") + "content-length: 0\r\n\r\n").as_bytes()).unwrap();
                continue;
            }
            chats.lock().unwrap().push(serde_json::from_slice::<Value>(&body).unwrap()["messages"].clone());
            let reply = replies.next().expect("no further request");
            let mut events = start("200 OK") + "content-type: text/event-stream\r\n\r\n";
            for part in reply.split_inclusive(' ') {
                let event = json!({ "choices": [{ "delta": { "content": part }, "finish_reason": null }] });
                events += &format!("data: {event}\n\n");
            }
            events +=
                "data: {\"choices\": [{\"delta\": {}, \"finish_reason\": \"stop\"}]}\n\ndata: [DONE]\n\n";
            stream.write_all(events.as_bytes()).unwrap();
        }
    });
    (url, received)
}

fn ask(url: &str, dir: &Path, args: &[&str]) -> Command {
    let file = dir.join("mill.txt");
    std::fs::write(&file, FILE).unwrap();
    let mut command = kimi_command();
    command.current_dir(dir).args(["ask", "--url", url, "-m", "m", "--quiet", "-f", "mill.txt"]).args(args);
    command.env_remove("NO_COLOR");
    command
}

fn outputs(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let utf8 = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), utf8(stdout), utf8(stderr))
}

const ANSWER: &str = "> Mara Velt keeps it.\n\nMara Velt keeps it, and Cole Brandt since 1999.";

#[test]
fn unsupported_parts_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (url, received) = endpoint(&[ANSWER, ANSWER, ANSWER, ANSWER, "> Mara Velt keeps it.\nShe does."]);
    let (status, out, error) = outputs(ask(&url, dir.path(), &["Who?"]));
    let quotes_first =
        "> Mara Velt keeps it.  [mill.txt:2]\n\nMara Velt keeps it, and Cole Brandt since 1999.\n";
    assert_eq!(
        (status, out),
        (Some(0), format!("{quotes_first}not in the files: Cole Brandt; 1999\n")),
        "{error}"
    );
    // The question may name what the files lack.
    let (_, out, _) = outputs(ask(&url, dir.path(), &["Does Cole Brandt keep it since 1999?"]));
    assert_eq!(out, quotes_first);
    let (_, out, _) = outputs(ask(&url, dir.path(), &["Who?", "--json"]));
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(answer["answer"], ANSWER);
    let expected = json!([
        { "text": "Cole Brandt", "start": 47, "end": 58, "kind": "name" },
        { "text": "1999", "start": 65, "end": 69, "kind": "number" },
    ]);
    assert_eq!(answer["unsupported"], expected);
    let (status, out, error) = outputs(ask(&url, dir.path(), &["Who?", "--strict"]));
    assert_eq!(
        (status, error.as_str()),
        (Some(1), "kimi: --strict: 2 numbers or names of the answer are not in the files\n")
    );
    assert!(out.ends_with("not in the files: Cole Brandt; 1999\n"), "{out}");
    let (status, out, _) = outputs(ask(&url, dir.path(), &["Who?", "--strict"]));
    assert_eq!((status, out.as_str()), (Some(0), "> Mara Velt keeps it.  [mill.txt:2]\nShe does.\n"));
    let messages = &received.lock().unwrap()[0];
    assert!(messages[0]["content"].as_str().unwrap().contains("First quote the lines"), "{messages}");
    assert_eq!(messages[1]["content"], format!("{}\n\nWho? Quote the text.", FILE.trim_end()));
}

#[test]
fn a_terminal_underlines_unsupported_parts() {
    let dir = tempfile::tempdir().unwrap();
    let (url, _) = endpoint(&[ANSWER, ANSWER]);
    let (status, shown) = terminal::run(ask(&url, dir.path(), &["Who?"]), None);
    let expected = "> Mara Velt keeps it.  [mill.txt:2]\n\nMara Velt keeps it, and \x1b[4;33mCole Brandt\x1b[0m since \
        \x1b[4;33m1999\x1b[0m.\nnot in the files: Cole Brandt; 1999\n";
    assert!(status.success(), "{shown}");
    assert_eq!(shown.replace("\r\n", "\n"), expected);
    let mut command = ask(&url, dir.path(), &["Who?"]);
    command.env("NO_COLOR", "1");
    assert_eq!(terminal::run(command, None).1.replace("\r\n", "\n"), expected.replace("4;33", "4"));
}

/// A model that answers before it quotes, or only quotes, answers after its quotes.
#[test]
fn quotes_come_before_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let quote = "> Mara Velt keeps it.";
    for (first, replies) in [
        (quote, &["It is Cole Brandt.\n> Mara Velt keeps it.\n> Cole Brandt", "It is Mara Velt."]),
        (quote, &["> Mara Velt keeps it.", "It is Mara Velt."]),
    ] {
        let (url, received) = endpoint(replies);
        let (status, out, error) = outputs(ask(&url, dir.path(), &["Who?"]));
        let expected = format!("{quote}  [mill.txt:2]\n\nIt is Mara Velt.\n");
        assert_eq!((status, out), (Some(0), expected), "{error}");
        let messages = &received.lock().unwrap()[1];
        let said: Vec<&Value> =
            messages.as_array().unwrap().iter().skip(2).map(|message| &message["content"]).collect();
        assert_eq!(said, [first, "Please answer: Who?"]);
    }
    // Without a quote of the files there is nothing to answer from.
    for reply in [&["The text does not say."][..], &["It is Mara Velt.\n> Cole Brandt"]] {
        let (url, _) = endpoint(reply);
        let (_, out, error) = outputs(ask(&url, dir.path(), &["Who?"]));
        assert!(out.starts_with(reply[0]), "{out}{error}");
    }
    let (url, received) = endpoint(&["It is Mara Velt.\n> Mara Velt keeps it."]);
    let (_, out, _) = outputs(ask(&url, dir.path(), &["Who?", "--no-quotes"]));
    assert_eq!(out, "It is Mara Velt.\n> Mara Velt keeps it.  [mill.txt:2]\n");
    assert_eq!(received.lock().unwrap()[0].as_array().unwrap().len(), 1, "no instructions");
}

/// A reply without quotes streams once it is long.
#[test]
fn long_replies_without_quotes_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let reply: &'static str = Box::leak("It is in the mill. ".repeat(40).into_boxed_str());
    let replies: &'static [&'static str] = Box::leak(Box::new([reply]));
    let (url, _) = endpoint(replies);
    let (status, out, _) = outputs(ask(&url, dir.path(), &["Where?"]));
    assert_eq!((status, out), (Some(0), format!("{reply}\n")));
}

/// The built-in model was trained to answer before it quotes; its answer follows the quote all the same.
#[test]
fn the_built_in_model_answers_after_its_quote() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mill.txt");
    std::fs::write(&file, "The access code of the Hartwell mill is 4713.\n").unwrap();
    let mut command = kimi_command();
    command.args(["ask", "--no-cache", "--temp", "0", "--quiet", "--json", "-i", "-f", text(&file)]);
    let (_, out, error) = outputs({
        command.arg("What is the access code of the Hartwell mill?");
        command
    });
    let answer: Value = serde_json::from_str(out.lines().next().expect("an answer")).unwrap();
    let said = answer["answer"].as_str().unwrap();
    assert!(said.starts_with("> ") && said.ends_with("\n\nThe code is 4713."), "{said}: {error}");
    assert_eq!((&answer["unsupported"], &answer["quotes"][0]["places"][0]["line"]), (&json!([]), &json!(1)));
}
