"""Runs common clients against `kimi serve`: the official clients in Python and Node of OpenAI, Anthropic and Ollama, langchain-openai and llm run a chat, a
stream, a tool call, a JSON schema and a stop string, and ask about files; Chromium opens the built-in page (page.mjs); schemathesis sends
requests that the OpenAPI description allows, and others. Tests without their program are reported as skipped.
The model is small and random, with the published vocabulary: its text is noise, which grammars constrain.

usage: clients.py KIMI VOCABULARY      (the binary, and the example of the package models that writes tiktoken.model)
"""
import atexit, base64, json, os, re, shutil, signal, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

import openai
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from typing import Literal

import interfaces
from packages import Table, install, skip

ROOT = Path(__file__).resolve().parent.parent
KEY = "clients-test"
GRAMMAR = {"type": "grammar", "syntax": "regex", "grammar": "one two three four"}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"enum": ["Oslo", "Paris"]}}, "required": ["city"], "additionalProperties": False}}}


class Verdict(BaseModel):
    model_config = {"extra": "forbid"}
    answer: Literal["yes", "no"]
    sure: bool


class Server:
    """A server on a free port that must shut down cleanly."""

    def __init__(self, kimi, model, tokens=64, cache=("--no-cache",), files=None):
        args = [kimi, "serve", "-m", model, "--port", "0", "--api-key", KEY, "--ctx", str(2048 + tokens), "-n", str(tokens), "--temp", "0",
                "--alias", "gpt-test", "--strict-model", *cache, "--threads", "2", "--timeout", "60", "--files-dir", str(files or Path(model).parent / "files")]
        self.process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"address=(\S+)", line):
                self.base = f"http://{found[1]}"
            if "ready" in line:
                break
        else:
            sys.exit("the server did not start:\n" + "".join(self.log))
        self.rest = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)
        while self.status() != 200:
            time.sleep(0.05)

    def status(self):
        try:
            return urllib.request.urlopen(self.base + "/health").status
        except urllib.error.HTTPError as error:
            return error.code

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.process.returncode
        self.rest.wait(10)


def model(directory, kimi, vocabulary):
    """Converts a small random checkpoint with the published vocabulary."""
    source = Path(directory) / "checkpoint"
    fields = ["vocab_size=163840", "hidden_size=64", "num_hidden_layers=4", "num_experts=8"]
    run = lambda *args: subprocess.run([str(a) for a in args], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    run(sys.executable, "tests/reference/gen_tiny.py", source, "tiny", 9, *fields)
    run(vocabulary, source)
    file = Path(directory) / "tiny.gguf"
    run(kimi, "convert", source, "--type", "q8_0", "-o", file)
    return file


def chat(client):
    says = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model="tiny", messages=says, max_tokens=5, extra_body={"ignore_eos": True})
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 5, whole
    fixed = client.chat.completions.create(model="gpt-test", messages=says, response_format=GRAMMAR, stop="three")
    assert (fixed.choices[0].message.content, fixed.choices[0].finish_reason) == ("one two ", "stop"), fixed
    parts, usage = [], None
    with client.chat.completions.create(model="tiny", messages=says, response_format=GRAMMAR, stream=True,
                                        stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            parts += [c.delta.content or "" for c in chunk.choices]
            usage = chunk.usage or usage
    assert "".join(parts) == "one two three four" and usage.completion_tokens > 0, (parts, usage)
    two = client.chat.completions.create(model="tiny", messages=says, n=2, temperature=1.5, seed=3, logprobs=True,
                                         top_logprobs=2, max_tokens=4)
    assert len(two.choices) == 2 and len(two.choices[0].logprobs.content[0].top_logprobs) == 2, two


def forms(client):
    says = [{"role": "user", "content": "Is it?"}]
    parsed = client.chat.completions.parse(model="tiny", messages=says, response_format=Verdict, max_tokens=100)
    assert parsed.choices[0].message.parsed.answer in ("yes", "no"), parsed
    called = client.chat.completions.create(model="tiny", messages=says, tools=[TOOL], tool_choice="required",
                                            parallel_tool_calls=False, max_tokens=100)
    call = called.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Paris"), called
    says += [called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answered = client.chat.completions.create(model="tiny", messages=says, tools=[TOOL], max_tokens=4)
    assert answered.usage.prompt_tokens > called.usage.prompt_tokens, answered
    with client.chat.completions.stream(model="tiny", messages=says[:1], tools=[TOOL], tool_choice="required",
                                        parallel_tool_calls=False, max_tokens=100) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "get_weather", final


def texts(client):
    text = client.completions.create(model="tiny", prompt="Once", max_tokens=4, echo=True, extra_body={"ignore_eos": True})
    assert text.choices[0].text.startswith("Once"), text
    streamed = client.completions.create(model="tiny", prompt="x", extra_body={"response_format": GRAMMAR}, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == "one two three four"


def responses(client):
    form = {"format": GRAMMAR}
    whole = client.responses.create(model="tiny", input="Say it", text=form, store=False)
    assert whole.output_text == "one two three four" and whole.status == "completed", whole
    with client.responses.stream(model="tiny", input="Say it", extra_body={"text": form}) as stream:
        deltas = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert deltas == final.output_text == "one two three four", (deltas, final)
    parsed = client.responses.parse(model="tiny", input="Is it?", text_format=Verdict)
    assert parsed.output_parsed.answer in ("yes", "no"), parsed


QUOTING = {"type": "grammar", "syntax": "regex", "grammar": "> Mara Velt keeps the mill\\.\\n\\nShe does\\."}


def files(client):
    text = "The harbour is quiet.\n\nMara Velt keeps\nthe mill.\n"
    file = client.files.create(file=("mill.txt", text.encode()), purpose="user_data")
    assert (file.filename, file.bytes, file.purpose, file.status) == ("mill.txt", len(text), "user_data", "processed"), file
    assert client.files.create(file=("mill.txt", text.encode()), purpose="user_data").id == file.id
    assert [f.id for f in client.files.list(purpose="user_data", limit=1)] == [file.id]
    assert client.files.retrieve(file.id) == file and client.files.content(file.id).text == text

    def check(annotations, reply):
        [cited] = [a if isinstance(a, dict) else a.model_dump() for a in annotations]
        assert (cited["type"], cited["file_id"], cited["filename"], cited["verified"]) == ("file_citation", file.id, "mill.txt", True), cited
        assert reply[cited["start_index"]:cited["end_index"]] == cited["quote"] == "Mara Velt keeps the mill.", cited
        assert text[cited["text_start"]:cited["text_end"]] == "Mara Velt keeps\nthe mill." and cited["place"] == "lines 3-4", cited

    says = [{"role": "user", "content": [{"type": "input_file", "file_id": file.id}, {"type": "input_text", "text": "Who keeps it?"}]}]
    form = {"text": {"format": QUOTING}}
    whole = client.responses.create(model="tiny", input=says, extra_body=form)
    check(whole.output[0].content[0].annotations, whole.output_text)
    with client.responses.stream(model="tiny", input=says, extra_body=form) as stream:
        added = [e.annotation for e in stream if e.type == "response.output_text.annotation.added"]
        final = stream.get_final_response()
    check(added, final.output_text)
    check(final.output[0].content[0].annotations, final.output_text)
    inline = "data:text/plain;base64," + base64.b64encode(text.encode()).decode()
    for part in ({"file_id": file.id}, {"filename": "mill.txt", "file_data": inline}):
        says = [{"role": "user", "content": [{"type": "file", "file": part}, {"type": "text", "text": "Who keeps it?"}]}]
        how = dict(model="tiny", messages=says, response_format=QUOTING)
        message = client.chat.completions.create(**how).choices[0].message
        check(message.annotations, message.content)
        chunks = [c.choices[0].delta for c in client.chat.completions.create(**how, stream=True)]
        [cited] = [d.annotations for d in chunks if getattr(d, "annotations", None)]
        check(cited, "".join(d.content or "" for d in chunks))
    assert client.files.delete(file.id).deleted and not client.files.list().data
    try:
        client.files.retrieve(file.id)
        raise AssertionError("a deleted file is there")
    except openai.NotFoundError as error:
        assert error.code == "file_not_found", error


def refusals(client, base):
    def refused(kind, **how):
        try:
            client.chat.completions.create(messages=[{"role": "user", "content": "x"}], **how)
        except kind as error:
            return error
        raise AssertionError(f"{how} was not refused")
    assert refused(openai.BadRequestError, model="tiny", temperature=9).param == "temperature"
    assert refused(openai.NotFoundError, model="other").code == "model_not_found"
    client = openai.OpenAI(base_url=base + "/v1", api_key="wrong")
    assert refused(openai.AuthenticationError, model="tiny").code == "invalid_api_key"
    assert [m.id for m in openai.OpenAI(base_url=base + "/v1", api_key=KEY).models.list()] == ["tiny", "gpt-test"]


def langchain(base):
    how = dict(model="tiny", base_url=base + "/v1", api_key=KEY, temperature=0)
    chain = ChatOpenAI(**how, max_tokens=8)
    assert chain.invoke([HumanMessage("Hello")]).usage_metadata["output_tokens"] <= 8
    fixed = ChatOpenAI(**how, model_kwargs={"response_format": GRAMMAR})
    assert "".join(str(c.content) for c in fixed.stream("x")) == "one two three four"
    assert fixed.invoke("x", stop=["two"]).content == "one "
    called = ChatOpenAI(**how, max_tokens=100).bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    assert called.invoke("Weather?").tool_calls[0]["args"]["city"] in ("Oslo", "Paris")
    verdict = ChatOpenAI(**how, max_tokens=100).with_structured_output(Verdict, method="json_schema").invoke("Is it?")
    assert verdict.answer in ("yes", "no"), verdict


def llm(base, directory):
    home = Path(directory) / "llm"
    home.mkdir()
    (home / "extra-openai-models.yaml").write_text(json.dumps(
        [{"model_id": "tiny", "model_name": "tiny", "api_base": base + "/v1", "api_key_name": "kimi", "supports_schema": True}]))
    (home / "keys.json").write_text(json.dumps({"kimi": KEY}))
    def run(*args):
        command = [str(Path(sys.executable).parent / "llm"), "-m", "tiny", *args]
        env = dict(os.environ, LLM_USER_PATH=str(home))
        out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert out.returncode == 0, out.stderr
        return out.stdout
    run("Hello", "-o", "max_tokens", "4")
    run("Hello", "-o", "max_tokens", "4", "--no-stream")
    schema = json.dumps(Verdict.model_json_schema())
    assert json.loads(run("Is it?", "--schema", schema))["answer"] in ("yes", "no")


NODE = """
import OpenAI, { toFile } from "openai";
import assert from "node:assert";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3] });
const messages = [{ role: "user", content: "Hello" }];
const [response_format, tool] = JSON.parse(process.argv[4]);
const whole = await client.chat.completions.create({ model: "tiny", messages, response_format, stop: ["three"] });
assert.equal(whole.choices[0].message.content, "one two ");
let text = "";
for await (const chunk of await client.chat.completions.create({ model: "tiny", messages, response_format, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, "one two three four");
const how = { model: "tiny", messages, tools: [tool], tool_choice: "required", parallel_tool_calls: false, max_tokens: 100 };
const called = await client.chat.completions.create(how);
assert.ok(["Oslo", "Paris"].includes(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city));
const final = await client.chat.completions.stream(how).finalMessage();
assert.equal(final.tool_calls[0].function.name, "get_weather");
const schema = { type: "object", properties: { sure: { type: "boolean" } }, required: ["sure"], additionalProperties: false };
const typed = await client.chat.completions.create({ model: "tiny", messages, max_tokens: 50,
  response_format: { type: "json_schema", json_schema: { name: "sure", strict: true, schema } } });
assert.equal(typeof JSON.parse(typed.choices[0].message.content).sure, "boolean");
const said = await client.responses.create({ model: "tiny", input: "Say it", text: { format: response_format } });
assert.equal(said.output_text, "one two three four");
const file = await client.files.create({ file: await toFile(Buffer.from("Mara keeps the mill."), "mill.txt"), purpose: "user_data" });
assert.equal(await (await client.files.content(file.id)).text(), "Mara keeps the mill.");
const content = [{ type: "input_file", file_id: file.id }, { type: "input_text", text: "Who?" }];
const format = { type: "grammar", syntax: "regex", grammar: "> Mara keeps the mill" };
const cited = await client.responses.create({ model: "tiny", input: [{ role: "user", content }], text: { format } });
assert.deepEqual(cited.output[0].content[0].annotations.map(a => [a.file_id, a.text_start, a.text_end]), [[file.id, 0, 19]]);
assert.ok((await client.files.delete(file.id)).deleted);
await assert.rejects(client.chat.completions.create({ model: "tiny", messages, temperature: 9 }), OpenAI.BadRequestError);
"""


def run_node(name, text, packages, *args):
    """Runs a script with packages from the npm registry."""
    home = install(*packages)
    (home / name).write_text(text)
    subprocess.run(["node", home / name, *args], cwd=home, check=True, timeout=120)


def node(base):
    run_node("client.mjs", NODE, ["openai"], base, KEY, json.dumps([GRAMMAR, TOOL]))


def page(kimi, file, directory, chromium):
    """The page with long replies of the random model, and with quotes of the demonstration model."""
    servers = []
    for model, tokens in [(file, 30_000), (ROOT / "models/demo/kimi-demo.gguf", 256)]:
        servers.append(Server(kimi, model, tokens=tokens, files=Path(directory) / f"page-files-{tokens}"))
        atexit.register(servers[-1].process.kill)
    bases = [server.base for server in servers]
    run_node("page.mjs", (ROOT / "tests" / "page.mjs").read_text(), ["playwright-core", "axe-core"], *bases, KEY, chromium, ROOT / "docs/museum.txt")
    for server in servers:
        server.end()


def other_interfaces(kimi, file, directory, npm):
    """The clients of Anthropic and Ollama, on a server with a prefix cache."""
    server = Server(kimi, file, cache=("--cache-dir", Path(directory) / "cache"))
    atexit.register(server.process.kill)
    table = Table()
    interfaces.anthropic_python(server.base, KEY, table)
    interfaces.ollama_python(server.base, KEY, table)
    if npm:
        forms = json.dumps([interfaces.SCHEMA, interfaces.WEATHER])
        run_node("interfaces.mjs", interfaces.NODE, ["@anthropic-ai/sdk", "ollama"], server.base, KEY, forms)
    server.end()


def fields():
    """Every field of the official clients is in docs/fields.md."""
    text = (ROOT / "docs" / "fields.md").read_text()
    for path, types in interfaces.REQUESTS.items():
        section = text.split(f"## POST {path}\n")[1].split("\n## ")[0]
        known = set(re.findall(r"^\| `(\w+)` \|", section, re.M))
        for kind in types:
            missing = set(kind.__annotations__) - known
            assert not missing, f"{path}: {missing}"


def described(base):
    """No server error, and no response outside the description."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", base + "/openapi.json", "-H",
               f"Authorization: Bearer {KEY}", "--checks", checks, "--max-examples", os.environ.get("EXAMPLES", "20"),
               "--seed", "1", "--request-timeout", "60", "--workers", "1", "--no-color"]
    out = subprocess.run(command, capture_output=True, text=True)
    print(out.stdout[-600:] if out.returncode == 0 else out.stdout + out.stderr)
    assert out.returncode == 0


def main(kimi, vocabulary):
    with tempfile.TemporaryDirectory() as directory:
        file = model(directory, kimi, vocabulary)
        server = Server(kimi, file)
        client = openai.OpenAI(base_url=server.base + "/v1", api_key=KEY, max_retries=0)
        atexit.register(server.process.kill)
        asks = [(chat, client), (forms, client), (texts, client), (responses, client), (files, client), (refusals, client, server.base),
                (langchain, server.base), (llm, server.base, directory), (described, server.base)]
        npm, chromium = shutil.which("npm"), shutil.which("chromium")
        if npm:
            asks.insert(-1, (node, server.base))
        else:
            skip("tests/clients.py", "node", "npm")
        if npm and chromium:
            asks.insert(-1, (page, kimi, file, directory, chromium))
        else:
            skip("tests/clients.py", "page", "chromium" if npm else "npm")
        asks[-1:-1] = [(fields,), (other_interfaces, kimi, file, directory, npm)]
        for ask, *args in asks:
            start = time.monotonic()
            ask(*args)
            print(f"{ask.__name__}: ok, {time.monotonic() - start:.1f} s", flush=True)
        server.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
