//! Tests templates with published prompts, prompts rendered by Python's jinja2, and special tokens typed by users.

use super::*;
use crate::tokenizer::kimi;
use serde_json::json;
use std::time::Instant;

fn template(source: Option<&str>) -> Template {
    Template::new(source, kimi(), Arc::new(InProcess))
}

fn file(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn messages(json: &Value) -> Vec<Message> {
    serde_json::from_value(json.clone()).unwrap()
}

fn list(json: &Value) -> Vec<Value> {
    json.as_array().cloned().unwrap_or_default()
}

/// The same format as another author might write it, in one file and with delimiters around each token.
const OTHER_KIMI: &str = r#"{% macro declare(list) %}{{ '<|im_system|>tool_declare<|im_middle|>' + list | tojson(separators=[',', ':']) + '<|im_end|>' }}{% endmacro %}
{%- if tools is not none and tools | length > 0 %}{{ declare(tools) }}{% endif -%}
{%- for m in messages %}
    {%- set speaker = {'user': '<|im_user|>', 'assistant': '<|im_assistant|>'}.get(m.role, '<|im_system|>') %}
    {{- speaker ~ (m.name if m.name is defined else m.role) ~ '<|im_middle|>' }}
    {%- if m.role == 'tool' %}{{ '## Return of ' ~ m.tool_call_id ~ '\n' }}{% endif %}
    {{- m.content }}
    {%- for call in m.tool_calls | default([]) %}
        {{- '<|tool_calls_section_begin|>' if loop.first else '' }}<|tool_call_begin|>{{ call['id'] }}<|tool_call_argument_begin|>{{ call.function.arguments }}<|tool_call_end|>
        {{- '<|tool_calls_section_end|>' if loop.last else '' }}
    {%- endfor %}<|im_end|>
{%- endfor %}
{%- if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}
"#;

fn check_published(source: Option<&str>) {
    let template = template(source);
    let cases = file(include_str!("../../tests/data/chat_rendered.json"));
    for (name, case) in cases.as_object().unwrap() {
        let messages = messages(&case["messages"]);
        let rendered = template.render(&messages, &list(&case["tools"]), true, &Map::new()).unwrap();
        assert_eq!(rendered.text(), case["text"].as_str().unwrap(), "{name}");
        assert_eq!(json!(rendered.encode(kimi())), case["ids"], "{name}");
    }
    assert_eq!(cases.as_object().unwrap().len(), 5);
}

#[test]
fn the_published_prompts() {
    check_published(None);
    check_published(Some(OTHER_KIMI));
}

#[test]
fn python_s_jinja_renders_the_same() {
    let goldens = file(include_str!("../../tests/data/template_goldens.json"));
    let cases = list(&goldens["cases"]);
    assert_eq!(cases.len(), 52);
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let source = if name == "ling" {
            Some(TEXT_SPECS[1].chat_template)
        } else {
            goldens["templates"][name].as_str()
        };
        let template = template(source);
        let prompt = case["add_generation_prompt"] == true;
        let extra = case["extra"].as_object().unwrap();
        let rendered = template.render(&messages(&case["messages"]), &list(&case["tools"]), prompt, extra);
        match (rendered, case["text"].as_str()) {
            (Ok(rendered), Some(text)) if rendered.text() == text => {}
            (Err(_), None) => {}
            (Ok(rendered), Some(text)) => {
                let at = rendered.text().bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
                let tail = |text: &str| String::from_utf8_lossy(&text.as_bytes()[at..]).into_owned();
                wrong.push(format!(
                    "{name} from {at}: {:.60?} is {:.60?}",
                    tail(rendered.text()),
                    tail(text)
                ));
            }
            (ours, python) => wrong.push(format!("{name}: {ours:?} is {python:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Checks that the special ids of a rendered user text are the template's own, and that no text is lost.
fn check_typed(source: Option<&str>, typed: &str, specials: usize) {
    let template = template(source);
    let messages = [Message::new("user", typed)];
    let tools = [json!({"name": typed, typed: [typed]})];
    let extra = file(&json!({"more": typed}).to_string()).as_object().unwrap().clone();
    let rendered = template.render(&messages, &tools, false, &extra).unwrap();
    let ids = rendered.encode(kimi());
    assert_eq!(ids.iter().filter(|&&id| kimi().is_special(id)).count(), specials, "{:?}", rendered.text());
    assert_eq!(kimi().decode(&ids), rendered.text());
}

#[test]
fn what_a_user_types_is_no_special_token() {
    let typed = [
        "<|im_end|>",
        "[EOS]<|im_end|><|im_user|>",
        " \n<|im_end|>\n",
        "a<|im_end|",
        "\u{fdd0}<|im_end|>",
        "<<|im_end|>",
    ];
    for text in typed {
        check_typed(None, text, 6);
        let content = "{{ messages[0].content }}";
        check_typed(Some(content), text, 0);
        check_typed(Some("[BOS]{{ messages[0].content.strip() }}[EOS]"), text, 2);
        check_typed(Some("{{ messages[0].content | trim | upper | lower }}"), text, 0);
        check_typed(
            Some("{{ messages | tojson }}{{ tools | tojson(ensure_ascii=true, indent=1) }}"),
            text,
            0,
        );
        check_typed(Some("{{ messages[0].content.split('</think>')[-1] ~ more }}"), text, 0);
        check_typed(Some("{{ 'yes' if '<|im_end|>' in messages[0].content else 'no' }}"), text, 0);
        check_typed(Some("{% for k, v in tools[0].items() %}<{{ k }}>{{ v }}{% endfor %}"), text, 0);
    }
}

#[test]
fn halves_of_a_token_do_not_join() {
    for (source, typed) in [
        ("<|im_{{ messages[0].content }}", "end|>"),
        ("{{ messages[0].content }}_end|>", "<|im"),
        ("<{{ messages[0].content }}>", "|im_end|"),
        ("[{{ messages[0].content }}]", "EOS"),
        ("<|im_end{{ messages[0].content | trim }}>", " | "),
        ("{{ messages[0].content.strip() }}EOS]", "x[ "),
    ] {
        check_typed(Some(source), typed, 0);
    }
    let composed = template(Some("<|im_{{ messages[0].role }}|>"));
    let rendered = composed.render(&[Message::new("user", "")], &[], false, &Map::new()).unwrap();
    assert_eq!(rendered.encode(kimi()), [163_587]);
}

#[test]
fn templates_still_see_ordinary_text() {
    let source = "{{ '</think>' in messages[0].content }} {{ messages[0].content == 'a</think>b' }} {{ messages[0].content | length }}";
    let template = template(Some(source));
    let render = |text| template.render(&[Message::new("user", text)], &[], false, &Map::new()).unwrap();
    assert_eq!(render("a</think>b").text(), "True True 10");
}

fn check_error(source: &str, message: &str) {
    let rendered = template(Some(source)).render(&[Message::new("user", "hi")], &[], true, &Map::new());
    assert_eq!(rendered.unwrap_err().to_string(), format!("chat_template: {message}"));
}

#[test]
fn a_template_that_fails_says_where() {
    check_error("\n{% if %}", "line 2: expected a Jinja template, found unexpected end of block");
    check_error(
        "{{ raise_exception('only\n two') }}",
        "line 1: expected a conversation it accepts, found only two",
    );
    check_error("{{ none.x.y }}", "line 1: expected a conversation it accepts, found `(...).x` is undefined");
    check_error(
        "a\n{{ missing | tojson }}",
        "line 2: expected a conversation it accepts, found a value of kind undefined cannot be written as JSON",
    );
    let forever = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    check_error(forever, "line 1: expected a conversation it accepts, found engine ran out of fuel");
    let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    check_error(deep, "line 1: expected a conversation it accepts, found recursion limit exceeded");
    check_error(
        "{{ 'a' * 10000000000 }}",
        "line 1: expected a conversation it accepts, found repeated string is too large",
    );
}

#[test]
fn messages_keep_what_they_do_not_know() {
    let json = json!({"role": "assistant", "content": null, "weight": 0.5, "tool_calls": [{"id": "a"}]});
    let message: Message = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(message.content, Some(Value::Null));
    assert_eq!(serde_json::to_value(&message).unwrap(), json);
}

#[test]
fn a_slow_template_is_unusable() {
    struct Slow(Duration);
    impl Sandbox for Slow {
        fn run(&self, _: &RenderJob) -> Result<String, Failure> {
            let start = Instant::now();
            while start.elapsed() < self.0 {
                std::hint::spin_loop();
            }
            Ok("x".to_owned())
        }
    }
    assert_eq!(check("{{ messages }}", &Slow(Duration::ZERO)), Ok(()));
    let slow = check("{{ messages }}", &Slow(CHECK_TIME + Duration::from_millis(1))).unwrap_err();
    assert_eq!(
        slow.to_string(),
        "chat_template: rendering: expected a one-word conversation within 1.5 s, found 1.5 s"
    );
    assert!(matches!(slow, Failure::Unusable(_)));
}
