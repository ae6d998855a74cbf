"""Measures the demonstration model in every quantization: size, accuracy, perplexity, KL divergence from F32, and llama.cpp's
perplexity (by the xllamacpp wheel) with the same file on the same windows.

    python table.py KIMI CHECKPOINT [QUESTIONS]          prints a Markdown table
"""
import json, math, os, pathlib, subprocess, sys, tempfile
import numpy as np
import xllamacpp
from tokens import Tokenizer

HERE = pathlib.Path(__file__).parent
TYPES = ["f32", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m", "q2_k"]
WINDOW, WINDOWS, PEER_WINDOWS = 512, 64, 1


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def peer_perplexity(path, ids, vocab):
    """Perplexity over the second half of each window, by one request per position for the next token's log-probabilities."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = WINDOW + 8, 1, 0, False
    server = xllamacpp.Server(params)
    nll = []
    for at in range(0, PEER_WINDOWS * WINDOW, WINDOW):
        window = ids[at:at + WINDOW]
        for n in range(WINDOW // 2 + 1, WINDOW):
            request = {"prompt": window[:n], "n_predict": 1, "n_probs": vocab, "temperature": 0, "ignore_eos": False}
            step = server.handle_completions(request)["choices"][0]["logprobs"]["content"][0]
            nll.append(-next(t["logprob"] for t in step["top_logprobs"] if t["id"] == window[n]))
    return math.exp(np.mean(nll))


def main():
    kimi, checkpoint = sys.argv[1], sys.argv[2]
    questions = sys.argv[3] if len(sys.argv) > 3 else "200"
    prose = HERE / "prose/heldout.txt"
    tokenizer = Tokenizer(f"{checkpoint}/tiktoken.model")
    ids = tokenizer.encode(prose.read_text())
    vocab = tokenizer.base + 256
    print("| | bytes | 1k | 4k | perplexity | KL divergence | same top | perplexity, ours : llama.cpp's |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        baseline = f"{folder}/baseline"
        for kind in TYPES:
            path = f"{folder}/{kind}.gguf"
            run(kimi, "convert", checkpoint, "--type", kind, "-o", path)
            how = [] if kind != "f32" else ["--cache-type", "f32"]
            measured = json.loads(run(kimi, "eval", "-m", path, *how, "--lengths", "1024,4096", "--questions", questions,
                                      "--windows", "0", "--json"))
            right = [100 * sum(t["right"] for t in kinds.values()) / sum(t["asked"] for t in kinds.values())
                     for kinds in measured["lengths"].values()]
            against = ["--save-baseline" if kind == "f32" else "--baseline", baseline]
            score = lambda windows, *more: json.loads(run(
                kimi, "perplexity", "-m", path, "-f", str(prose), "--windows", str(windows), "--json", *how, *more))
            all_windows, few = score(WINDOWS, *against), score(PEER_WINDOWS)
            theirs = peer_perplexity(path, ids, vocab)
            print(f"| {kind.upper()} | {os.path.getsize(path):,} | {right[0]:.1f} % | {right[1]:.1f} % | "
                  f"{all_windows['perplexity']:.3f} | {all_windows.get('kl_mean', 0):.5f} | "
                  f"{100 * all_windows.get('same_top', 1):.1f} % | {few['perplexity']:.3f} : {theirs:.3f} |", flush=True)


if __name__ == "__main__":
    main()
