"""Runs `kimi serve --upstream`, `kimi chat --url` and `kimi ask --url` with llama.cpp's server (the xllamacpp wheel) behind them, on the
file of the built-in model. Greedy replies through every interface, whole and streamed, must equal llama.cpp's own.

usage: upstream.py KIMI [URL MODEL]      KIMI is the binary; with URL and MODEL, another server that runs already
"""
import contextlib, json, os, re, subprocess, sys, tempfile, urllib.error, urllib.request
from pathlib import Path

import anthropic
import ollama
import openai

ROOT = Path(__file__).resolve().parent.parent
TEXT = "The keeper of the Tiolmere museum is Mara Dellwood. The boat to Orvend leaves at nine.\n"
QUESTION = "Who keeps the Tiolmere museum?"
ASKED = [{"role": "user", "content": f"{TEXT}\n{QUESTION}"}]
TOKENS = 12


@contextlib.contextmanager
def llama_server():
    """llama.cpp's server in this process."""
    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = str(ROOT / "models/demo/kimi-demo.gguf")
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 2048, 1, 0, False
    params.port, params.use_jinja = 0, True
    server = xllamacpp.Server(params)
    yield server.listening_address


@contextlib.contextmanager
def front(kimi, url, *args):
    """`kimi serve` in front of a server."""
    command = [kimi, "serve", "--upstream", url, "--port", "0", "--temp", "0", *args]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        log = []
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"page: +(\S+)/", line):
                yield found[1]
                break
        else:
            sys.exit("the server did not start:\n" + "".join(log))
    finally:
        process.terminate()
        assert process.wait(30) == 0, process.returncode


def post(base, path, body):
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        return json.load(urllib.request.urlopen(request))
    except urllib.error.HTTPError as error:
        sys.exit(f"{path}: {error.code}: {error.read().decode()}")


def direct(url, model):
    """The greedy reply of the server itself."""
    body = {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": TOKENS}
    return post(url, "/v1/chat/completions", body)["choices"][0]["message"]["content"]


def replies(base):
    """The reply by the official client of each interface, whole and streamed."""
    client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0)
    whole = client.chat.completions.create(model="m", messages=ASKED, max_tokens=TOKENS)
    assert whole.usage.prompt_tokens > 20 and 0 < whole.usage.completion_tokens <= TOKENS, whole
    yield "chat completion", whole.choices[0].message.content
    stream = client.chat.completions.create(model="m", messages=ASKED, max_tokens=TOKENS, stream=True)
    yield "streamed chat completion", "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    yield "response", client.responses.create(model="m", input=ASKED, max_output_tokens=TOKENS).output_text
    stream = client.responses.create(model="m", input=ASKED, max_output_tokens=TOKENS, stream=True)
    yield "streamed response", "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    claude = anthropic.Anthropic(base_url=base, api_key="none", max_retries=0)
    message = claude.messages.create(model="m", messages=ASKED, max_tokens=TOKENS)
    assert message.usage.output_tokens > 0 and message.stop_reason in ("end_turn", "max_tokens"), message
    yield "message", message.content[0].text
    with claude.messages.stream(model="m", messages=ASKED, max_tokens=TOKENS) as stream:
        yield "streamed message", "".join(stream.text_stream)
    client = ollama.Client(host=base)
    options = {"num_predict": TOKENS}
    yield "Ollama chat", client.chat(model="m", messages=ASKED, options=options).message.content
    stream = client.chat(model="m", messages=ASKED, options=options, stream=True)
    yield "streamed Ollama chat", "".join(part.message.content for part in stream)
    yield "Ollama completion", client.generate(model="m", prompt=ASKED[0]["content"], options=options).response


def failures(base):
    """A refusal by the server behind reaches the client as one."""
    try:
        post_error = urllib.request.Request(base + "/v1/chat/completions", json.dumps(
            {"messages": [{"role": "user", "content": "word " * 20_000}]}).encode(), {"content-type": "application/json"})
        urllib.request.urlopen(post_error)
        sys.exit("a prompt beyond the context was accepted")
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        assert error.code == 400 and "upstream server: HTTP 400: " in text, text
        print(f"a prompt beyond the context: {error.code}: {json.loads(text)['error']['message'][:120]}")


def run(kimi, *args, text=None):
    env = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent"}
    done = subprocess.run([kimi, *args], input=text, capture_output=True, text=True, env=env, timeout=120)
    if done.returncode != 0:
        sys.exit(f"kimi {' '.join(args)}: {done.returncode}: {done.stderr}")
    return done.stdout


def commands(kimi, url, args):
    """`chat` and `ask` use the server without one of ours between."""
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "museum.txt"
        file.write_text(TEXT)
        how = ["--url", url, *args, "--temp", "0"]
        answer = json.loads(run(kimi, "ask", *how, "-f", str(file), "--json", "-n", "60", QUESTION))
        assert answer["prompt_tokens"] > 20, answer
        print(f"ask --url: {answer}")
        said = run(kimi, "chat", "--plain", *how, "-n", "12", text=f"{ASKED[0]['content'].replace(chr(10), ' ')}\n")
        assert said.strip(), said
        print(f"chat --url: {said.strip()!r}")


def check(kimi, url, model):
    named = ["--upstream-model", model] if model else []
    expected = direct(url, model or "m")
    print(f"directly: {expected!r}")
    with front(kimi, url, *named) as base:
        for what, found in replies(base):
            assert found == expected, f"{what}: {found!r} instead of {expected!r}"
            print(f"{what}: equal")
        health = json.load(urllib.request.urlopen(base + "/health"))
        assert health == {"status": "ready"}, health
        if not model:
            count = anthropic.Anthropic(base_url=base, api_key="none").messages.count_tokens(model="m", messages=ASKED)
            assert count.input_tokens > 20, count
            failures(base)
    commands(kimi, url, ["-m", model] if model else [])


def main(kimi, url=None, model=None):
    if url:
        return check(kimi, url, model)
    with llama_server() as address:
        check(kimi, address, None)


if __name__ == "__main__":
    main(*sys.argv[1:])
