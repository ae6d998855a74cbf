"""Compares llama.cpp's mixes with `kimi convert --size` of the same bytes on the demonstration model: KL divergence from F32 and
accuracy. Each program uses its own importance matrix of the same text, the files of `kimi imatrix`'s built-in calibration text, which
also gives the sensitivities; nothing is measured on the held-out text before the files are complete. Writes docs/results/sizes.json and
prints a table.

    python sizes.py KIMI LLAMA_BIN CHECKPOINT [--questions 200] [--windows 64] [--folder FOLDER]

LLAMA_BIN is a folder with llama-imatrix and llama-quantize (tests/imatrix.py says how to build them). Both files are run by kimi.
With --folder a stopped run resumes: the F32 model, baseline, matrices and finished rows are kept there.
"""
import argparse, datetime, json, os, pathlib, subprocess, sys, tempfile

HERE = pathlib.Path(__file__).parent
CALIBRATION = HERE.parents[1] / "src/commands/imatrix/calibration"
# Characters of one kind of text before the next kind, about a window of 512 tokens.
PIECE = 1800
# Nominal bits per weight and the mix. The files of this small model have more: its embedding and output are a quarter of it.
MIXES = [(2.1, "IQ2_XXS"), (2.5, "IQ2_S"), (3.0, "IQ3_XXS"), (3.5, "IQ3_S"), (4.0, "IQ4_XS"), (4.5, "Q4_K_S"), (5.5, "Q5_K_S")]


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr[-2000:]}")
    return done


def calibration_text():
    """Prose, code, Chinese and chats of the built-in calibration text in turn, chats with the model's special tokens."""
    kinds = [(CALIBRATION / name).read_text() for name in ("prose.txt", "code.txt", "chinese.txt")]
    chats = json.loads((CALIBRATION / "chats.json").read_text())
    message = "<|im_{0}|>{0}<|im_middle|>{1}<|im_end|>".format
    kinds.append("".join(message(role, text) for chat in chats for role, text in chat))
    return "".join(kind[at:at + PIECE] for at in range(0, max(map(len, kinds)), PIECE) for kind in kinds)


class Models:
    """Measures files against the F32 model."""

    def __init__(self, args, folder):
        self.args, self.folder = args, pathlib.Path(folder)
        self.f32, self.baseline = self.folder / "f32.gguf", self.folder / "baseline"
        if not self.baseline.exists():
            run(args.kimi, "convert", args.checkpoint, "--type", "f32", "-o", self.f32, "--force")
            self.score(self.f32, "--save-baseline", self.baseline)

    def score(self, path, *more):
        return json.loads(run(self.args.kimi, "perplexity", "-m", path, "-f", HERE / "prose/heldout.txt", "--windows", self.args.windows,
                              "--cache-type", "f32", "--json", *more).stdout)

    def measure(self, path):
        score = self.score(path, "--baseline", self.baseline)
        result = {"bytes": os.path.getsize(path), "kl": round(score["kl_mean"], 5), "same_top": round(100 * score["same_top"], 1)}
        if int(self.args.questions):
            asked = json.loads(run(self.args.kimi, "eval", "-m", path, "--lengths", "1024", "--questions", self.args.questions,
                                   "--windows", "0", "--json").stdout)
            kinds = [kind for length in asked["lengths"].values() for kind in length.values()]
            result["right"] = round(100 * sum(k["right"] for k in kinds) / sum(k["asked"] for k in kinds), 1)
        return result


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi"), p.add_argument("llama"), p.add_argument("checkpoint"), p.add_argument("--folder")
    p.add_argument("--questions", default="200"), p.add_argument("--windows", default="64"), p.add_argument("--sensitivity", default="8")
    args = p.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        models = Models(args, args.folder or temporary)
        ours, theirs, text = (models.folder / name for name in ("kimi.imatrix", "llama.imatrix", "calibration.txt"))
        text.write_text(calibration_text())
        # Computes what is missing, so a stopped run resumes.
        run(args.kimi, "imatrix", "-m", models.f32, "-f", text, "--parse-special", "-o", ours, "--sensitivity", args.sensitivity)
        if not theirs.exists():
            run(f"{args.llama}/llama-imatrix", "-m", models.f32, "-f", text, "--parse-special", "-o", theirs, "-c", "512", "--no-ppl")
        for bits, mix in MIXES:
            finished = models.folder / f"{mix}.json"
            if finished.exists():
                rows.append(json.loads(finished.read_text()))
                continue
            file, sized = models.folder / f"{mix}.gguf", models.folder / "sized.gguf"
            run(f"{args.llama}/llama-quantize", "--imatrix", theirs, models.f32, file, mix, "2")
            size = os.path.getsize(file)
            note = run(args.kimi, "convert", models.f32, "--size", size, "--imatrix", ours, "-o", sized, "--force").stderr
            expected = float(note.split("expected KL divergence ")[1].split()[0])
            row = {"bits": bits, "mix": mix, "llama.cpp": models.measure(file), "kimi": {**models.measure(sized), "expected_kl": expected}}
            rows.append(row)
            finished.write_text(json.dumps(row))
            a, b = row["kimi"], row["llama.cpp"]
            print(f"{bits} {mix}: {b['bytes']:,} bytes KL {b['kl']} | {a['bytes']:,} bytes KL {a['kl']} ({100 * (1 - a['kl'] / b['kl']):.1f} % "
                  f"less; expected {expected}), right {b.get('right')} | {a.get('right')}", flush=True)
    record = {
        "title": "KL divergence by size: llama.cpp's mixes and convert --size",
        "command": "python models/demo/sizes.py KIMI LLAMA_BIN models/demo/checkpoint",
        "date": str(datetime.date.today()),
        "machine": "CPU backend, whose results do not depend on threads or instruction set",
        "model": "demonstration model, 9.5 M parameters",
        "conditions": f"KL divergence from F32, with an F32 cache, over {args.windows} windows of 512 tokens of held-out prose; importance matrices of each program from the built-in calibration text",
        "rows": rows,
    }
    (HERE.parents[1] / "docs/results/sizes.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
