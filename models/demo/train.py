"""Trains the demonstration model and writes a checkpoint in the published layout.

    python train.py --data DATA --out OUT --minutes 100        on the GPU if there is one, else on the CPU

DATA is the output of prepare.py. Texts grow with progress: short ones teach lookup, long ones lookup at a distance.
model.safetensors (BF16), config.json, tiktoken.model, tokenizer_config.json and curve.jsonl are written to OUT every few
minutes and at the end; --init OUT/model.safetensors --start PROGRESS resumes from there.
"""
import argparse, json, math, pathlib, random, shutil, time
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from documents import Prose, conversation
from model import Kimi, load_config
from optimizer import optimizers
from tokens import Tokenizer

HERE = pathlib.Path(__file__).parent
# (progress up to here, longest text, tokens a step)
COURSE = [(0.40, 320, 4096), (0.55, 640, 4096), (0.70, 1280, 4096), (0.85, 2560, 8192), (1.0, 12288, 8192)]


class Batches(torch.utils.data.IterableDataset):
    """Conversations of similar length, padded: (ids [B,T+1], kind [B,T]: 0 nothing, 1 text, 2 answer)."""

    def __init__(self, data, seed, progress, course, workers, drill):
        self.data, self.seed, self.progress, self.course, self.workers = data, seed, progress, course, workers
        self.drill = drill

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        rng = random.Random(self.seed * 1000 + (worker.id if worker else 0))
        tokenizer, prose = Tokenizer(self.data / "tiktoken.model"), Prose(self.data / "train.txt")
        while True:
            p = self.progress.value
            _, longest, size = next(c for c in self.course if p <= c[0] or c is self.course[-1])
            length = int(math.exp(rng.uniform(math.log(max(120, longest / 24)), math.log(longest))))
            rows = []
            for _ in range(max(1, size // length // self.workers)):
                if rng.random() < 0.05:
                    ids, kinds = tokenizer.plain(" ".join(prose.run(rng, length * 4)))
                else:
                    most = max(8, min(64, length // 40))
                    drill = length < 2000 and rng.random() < self.drill
                    turns = conversation(rng, prose, length, rng.randint(6, most), drill)
                    ids, kinds = tokenizer.chat(turns)
                rows.append((ids[:length * 5 // 4 + 40], kinds[:length * 5 // 4 + 40]))
            width = max(len(ids) for ids, _ in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            kinds = torch.zeros(len(rows), width, dtype=torch.uint8)
            for i, (row, kind) in enumerate(rows):
                ids[i, :len(row)] = torch.tensor(row)
                kinds[i, :len(row)] = torch.tensor(kind, dtype=torch.uint8)
            yield ids, kinds[:, 1:]


def losses(model, ids, kinds, text_share):
    """Mean loss on answers, mean loss on a random share of the text, and the number of answer tokens predicted."""
    hidden = model(ids[:, :-1]).flatten(0, 1)
    kinds, target = kinds.flatten(), ids[:, 1:].flatten()
    keep = (kinds == 2) | ((kinds == 1) & (torch.rand(kinds.shape, device=ids.device) < text_share))
    at = keep.nonzero()[:, 0]
    logits = model.lm_head(hidden[at]).float()
    loss = F.cross_entropy(logits, target[at], reduction="none")
    answer = kinds[at] == 2
    right = (logits.argmax(-1) == target[at])[answer].float().mean()
    return loss[answer].mean(), loss[~answer].mean(), right


def rate(progress):
    """Learning-rate factor: warm-up, three times the rate at first, then linear decay to zero over the last half."""
    return min(progress / 0.01 + 0.02, 3.0 if progress < 0.2 else 1.0, max(0.0, (1 - progress) / 0.5))


def save(model, out, data, tensors=None):
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors or model.export(), str(out / "model.safetensors.part"), metadata={"format": "pt"})
    (out / "model.safetensors.part").rename(out / "model.safetensors")
    for source in (HERE / "config.json", HERE / "tokenizer_config.json", data / "tiktoken.model"):
        shutil.copy(source, out / source.name)


def average(model, workers):
    """Averages the workers' gradients and expert loads in one all-reduce."""
    parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    loads = [b for n, b in model.named_buffers() if n.endswith(".load")]
    flat = torch.cat([x.flatten() for x in parts + loads])
    dist.all_reduce(flat)
    flat /= workers
    for p, g in zip(model.parameters(), flat.split([x.numel() for x in parts + loads])):
        p.grad = g.view_as(p)
    for b, x in zip(loads, flat[-sum(b.numel() for b in loads):].split([b.numel() for b in loads])):
        b.copy_(x)


def main():
    a = arguments()
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "rendezvous").unlink(missing_ok=True)
    if a.workers == 1:
        return work(0, a)
    torch.multiprocessing.spawn(work, args=(a,), nprocs=a.workers)


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--minutes", type=float, default=100)
    p.add_argument("--tokens", type=float, help="how many to see, instead of minutes")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--start", type=float, default=0.0, help="progress to begin at, to go on with a checkpoint")
    p.add_argument("--init", type=pathlib.Path, help="checkpoint to go on with")
    p.add_argument("--lr", type=float, default=0.004)
    p.add_argument("--adam-lr", type=float, default=0.001)
    p.add_argument("--drill", type=float, default=0.1, help="share of the short texts that are about trades alone")
    p.add_argument("--longest", type=int, help="longest text throughout, instead of the course's")
    p.add_argument("--step-tokens", type=int, default=8192)
    p.add_argument("--workers", type=int, default=1, help="processes of one thread each that share every step (CPU)")
    return p.parse_args()


def work(rank, a):
    torch.manual_seed(a.seed)                             # the same weights in every worker
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if a.workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{(a.out / 'rendezvous').absolute()}", rank=rank, world_size=a.workers)
    model = Kimi(load_config(HERE / "config.json")).to(device)
    if a.init:
        model.load_exported(load_file(str(a.init)))
    muon, adam = optimizers(model, a.lr, a.adam_lr)
    progress = torch.multiprocessing.Value("d", a.start)
    larger = 16 if device == "cuda" else 1                # a GPU wants steps of 64k tokens and more
    course = [(1.0, a.longest, a.step_tokens)] if a.longest else [(p, n, size * larger) for p, n, size in COURSE]
    batches = torch.utils.data.DataLoader(Batches(a.data, a.seed * 100 + rank, progress, course, a.workers, a.drill),
                                          batch_size=None, num_workers=8 if device == "cuda" else 1, prefetch_factor=4)
    start, saved, seen, sums = time.time(), time.time(), 0, []
    curve = open(a.out / "curve.jsonl", "a")
    for step, (ids, kinds) in enumerate(batches):
        part = seen / a.tokens if a.tokens else (time.time() - start) / (60 * a.minutes)
        done = torch.tensor(a.start + (1 - a.start) * part)
        if a.workers > 1:
            dist.broadcast(done, 0)
        done = progress.value = done.item()
        if done >= 1:
            break
        with torch.autocast(device, dtype=torch.bfloat16):
            answer, text, right = losses(model, ids.to(device), kinds.to(device), 0.25)
            loss = answer + 0.2 * text
        loss.backward()
        if a.workers > 1:
            average(model, a.workers)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not norm.isfinite():                           # the same on every worker: the gradients are shared
            raise SystemExit(f"step {step}: expected a finite gradient, found {norm}; the last checkpoint is whole")
        for optimizer in (muon, adam):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * rate(done)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for layer in model.model.layers:
            if hasattr(layer, "block_sparse_moe"):
                layer.block_sparse_moe.balance(0.002 * min(1, rate(done) * 2))
        seen += ids.numel() * a.workers
        sums.append((answer.item(), text.item(), right.item()))
        if rank == 0 and step % 25 == 24:
            means = [sum(x) / len(sums) for x in zip(*sums)]
            line = dict(step=step + 1, minutes=round((time.time() - start) / 60, 2), progress=round(done, 4), tokens=seen,
                        longest=ids.shape[1], answer=round(means[0], 4), text=round(means[1], 4), right=round(means[2], 4))
            curve.write(json.dumps(line) + "\n")
            curve.flush()
            print(line, flush=True)
            sums = []
        if rank == 0 and time.time() - saved > 240:
            save(model, a.out, a.data)
            saved = time.time()
    if rank == 0:
        save(model, a.out, a.data)


if __name__ == "__main__":
    main()
