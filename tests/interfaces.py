"""Clients of Anthropic's and Ollama's interfaces against `kimi serve`. Each call is a line of a table: the client, the call, its status, the tokens of its prompt, and those of them that were reused.
clients.py runs these functions; launch.py has the same table of coding agents.
"""
import json

import anthropic
import ollama
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import completion_create_params as text_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

SCHEMA = {"type": "object", "properties": {"answer": {"enum": ["yes", "no"]}}, "required": ["answer"], "additionalProperties": False}
WEATHER = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Paris"]}}, "required": ["city"], "additionalProperties": False}


# The types of request bodies in the official clients, by path.
REQUESTS = {
    "/v1/chat/completions": [completion_create_params.CompletionCreateParamsBase],
    "/v1/completions": [text_create_params.CompletionCreateParamsBase],
    "/v1/responses": [response_create_params.ResponseCreateParamsBase],
    "/v1/messages": [message_create_params.MessageCreateParamsBase, beta_create_params.MessageCreateParamsBase],
}


def prompt_tokens(usage):
    return usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens


def anthropic_python(base, key, table):
    client = anthropic.Anthropic(base_url=base, api_key=key, max_retries=0)
    row = lambda call, usage: table.row("anthropic", call, 200, prompt_tokens(usage), usage.cache_read_input_tokens)
    system = [{"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=%d;"},
              {"type": "text", "text": "Answer in one word. " * 20, "cache_control": {"type": "ephemeral"}}]
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    messages, known = [], 0
    for turn in range(3):
        messages.append({"role": "user", "content": f"Question {turn}: is it?"})
        system[0]["text"] = f"x-anthropic-billing-header: cc_version=2; cch={turn};"
        how = dict(model="tiny", max_tokens=40, system=system, messages=messages, output_config=config)
        count = client.messages.count_tokens(**{k: how[k] for k in ("model", "system", "messages")}).input_tokens
        if turn == 1:
            with client.messages.stream(**how) as stream:
                text = "".join(stream.text_stream)
                message = stream.get_final_message()
            assert text == message.content[0].text, (text, message)
        else:
            message = client.messages.create(**how)
        assert json.loads(message.content[0].text)["answer"] in ("yes", "no") and message.stop_reason == "end_turn", message
        assert prompt_tokens(message.usage) == count, (message.usage, count)
        assert message.usage.cache_read_input_tokens >= known, (message.usage, known)
        row(f"turn {turn + 1}", message.usage)
        known = prompt_tokens(message.usage)
        messages.append({"role": "assistant", "content": message.content})
    tool = {"name": "get_weather", "description": "The weather of a city", "input_schema": WEATHER}
    says = [{"role": "user", "content": "Weather?"}]
    how = dict(model="tiny", max_tokens=200, tools=[tool, {"type": "web_search_20250305", "name": "web_search"}])
    with client.messages.stream(**how, messages=says, tool_choice={"type": "tool", "name": "get_weather"}) as stream:
        called = stream.get_final_message()
    call = next(block for block in called.content if block.type == "tool_use")
    assert call.input["city"] in ("Oslo", "Paris") and called.stop_reason == "tool_use", called
    row("tool call", called.usage)
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "rain"} for block in called.content if block.type == "tool_use"]
    says += [{"role": "assistant", "content": called.content}, {"role": "user", "content": results}]
    answered = client.messages.create(**{**how, "max_tokens": 4}, messages=says)
    assert answered.usage.cache_read_input_tokens >= prompt_tokens(called.usage), (answered.usage, called.usage)
    row("tool result", answered.usage)
    assert client.models.list().data[0].id == "tiny"

    def refused(kind, client=client, **how):
        try:
            client.messages.create(**{"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "x"}], **how})
        except kind as error:
            assert error.body["error"]["type"], error.body
            return table.row("anthropic", kind.__name__, error.status_code)
        raise AssertionError(f"{how} was not refused")
    refused(anthropic.BadRequestError, extra_body={"temperature": 9})
    refused(anthropic.NotFoundError, model="other")
    refused(anthropic.AuthenticationError, client=anthropic.Anthropic(base_url=base, api_key="wrong", max_retries=0))


def ollama_python(base, key, table):
    client = ollama.Client(host=base, headers={"Authorization": f"Bearer {key}"})
    row = lambda call, reply: table.row("ollama", call, 200, reply.prompt_eval_count)
    assert client.list().models[0].model == "tiny" and client.ps().models[0].model == "tiny"
    assert "tools" in client.show("tiny").capabilities
    says = [{"role": "user", "content": "Is it?"}]
    whole = client.chat("tiny", says, format=SCHEMA, keep_alive="5m", options={"temperature": 0, "num_ctx": 2048})
    assert json.loads(whole.message.content)["answer"] in ("yes", "no") and whole.done_reason == "stop", whole
    row("chat", whole)
    parts = list(client.chat("tiny", says, format=SCHEMA, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content and parts[-1].done, parts
    row("chat, streamed", parts[-1])
    def get_weather(city: str) -> str:
        """The weather of a city"""
    client.chat("tiny", says, tools=[get_weather], think=False, options={"num_predict": 4})
    calls = [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]
    says += [{"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "rain", "tool_name": "get_weather"}]
    row("tool result", client.chat("tiny", says, tools=[get_weather], options={"num_predict": 4}))
    text = client.generate("tiny", "Once", options={"num_predict": 4, "stop": ["zzz"]})
    assert text.done and text.eval_count <= 4, text
    row("generate", text)
    assert client.generate("tiny", "").done_reason == "load"
    try:
        client.chat("other", says)
    except ollama.ResponseError as error:
        table.row("ollama", "ResponseError", error.status_code)
        assert error.status_code == 404, error


NODE = """
import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import assert from "node:assert";
const [base, key] = process.argv.slice(2);
const [schema, weather] = JSON.parse(process.argv[4]);
const client = new Anthropic({ baseURL: base, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Is it?" }];
const how = { model: "tiny", max_tokens: 40, messages, output_config: { format: { type: "json_schema", schema } } };
const whole = await client.messages.create(how);
assert.ok(["yes", "no"].includes(JSON.parse(whole.content[0].text).answer));
const final = await client.messages.stream(how).finalMessage();
assert.equal(final.content[0].text, whole.content[0].text);
assert.ok(final.usage.cache_read_input_tokens > 0);
const tools = [{ name: "get_weather", input_schema: weather }];
const called = await client.messages.stream({ model: "tiny", max_tokens: 200, messages, tools, tool_choice: { type: "any" } }).finalMessage();
assert.ok(["Oslo", "Paris"].includes(called.content[0].input.city));
assert.ok((await client.messages.countTokens({ model: "tiny", messages })).input_tokens > 0);
await assert.rejects(client.messages.create({ ...how, max_tokens: 0 }), Anthropic.BadRequestError);
const local = new Ollama({ host: base, headers: { Authorization: "Bearer " + key } });
assert.equal((await local.list()).models[0].name, "tiny");
const reply = await local.chat({ model: "tiny", messages, format: schema });
assert.ok(["yes", "no"].includes(JSON.parse(reply.message.content).answer));
let text = "";
for await (const part of await local.generate({ model: "tiny", prompt: "Once", stream: true, options: { num_predict: 4 } })) text += part.response;
await assert.rejects(local.chat({ model: "other", messages }));
"""
