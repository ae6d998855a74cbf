"""Attacks `kimi` with generated inputs: files, checkpoints, templates, grammars, requests, documents, caches, endpoints.

usage: run.py KIMI [--full | --seconds S | --count N] [--seed N] [--only KIND,...] [--jobs 2] [--out DIR] [--resume]
       run.py KIMI --only KIND --seed N --first INDEX --count 1      (repeats one case)

--full runs as many cases of each kind as the README says; --seconds divides the time among the kinds, with a fresh seed if
there is no --seed. Each failure is printed in a line and saved in a folder with input, command and output.
Exit code 1 if there is any.
"""
import argparse, json, multiprocessing, os, random, shlex, shutil, signal, stat, sys, tempfile, time, traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
import checkpoints, configs, disk_full, documents, endpoints, gguf, grammars, kill, model, prefix_cache, requests, templates

FIXED_SEED = 17
# Class, cases of a full run, and share of the time of a short run, by kind.
KINDS = {
    "gguf": (gguf.Inspect, 10_000, 2),
    "generate": (gguf.Generate, 3_000, 3),
    "requantize": (gguf.Requantize, 1_000, 1),
    "checkpoints": (checkpoints.Checkpoints, 2_000, 3),
    "cache": (prefix_cache.PrefixCache, 2_000, 3),
    "templates": (templates.Templates, 1_000, 3),
    "grammars": (grammars.Grammars, 1_000, 3),
    "requests": (requests.Requests, 5_000, 2),
    "documents": (documents.Documents, 1_000, 2),
    "endpoints": (endpoints.Endpoints, 500, 2),
    "configs": (configs.Configs, 3_000, 2),
    "kill": (kill.Kill, 200, 3),
    "disk": (disk_full.DiskFull, 300, 2),
}
SHOWN = 40  # failures per kind that are printed and saved; the others are only counted


class Plan:
    """The cases to run of one kind."""

    def __init__(self, kind, seed, first, count, seconds):
        self.kind, self.seed, self.first, self.count, self.seconds = kind, seed, first, count, seconds


def work(plan, args, base, job, results):
    """Runs every `jobs`th case of a plan in one worker, until the plan or its time ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    scratch = tempfile.mkdtemp(dir=base, prefix=f"{plan.kind}-{job}-")
    done, failures, attacker = 0, 0, None
    try:
        attacker = KINDS[plan.kind][0](args.kimi, base, scratch)
        skipped = getattr(attacker, "skipped", None)
        end = time.monotonic() + plan.seconds if plan.seconds else None
        index = plan.first + job
        while not skipped and index < plan.first + plan.count and (end is None or time.monotonic() < end):
            fault = one(attacker, plan, args, index, scratch, failures, results)
            done, failures, index = done + 1, failures + bool(fault), index + args.jobs
            if fault and hasattr(attacker, "renew"):
                attacker.renew()
        results.put(("end", done, failures, skipped))
    except (Exception, SystemExit):
        results.put(("broken", traceback.format_exc()))
    finally:
        if hasattr(attacker, "close"):
            attacker.close()
        shutil.rmtree(scratch, ignore_errors=True)


def one(attacker, plan, args, index, scratch, failures, results):
    directory = os.path.join(scratch, "case")
    os.mkdir(directory)
    try:
        command, run, fault = attacker.case(random.Random(f"{plan.seed} {plan.kind} {index}"), directory)
    except Exception:
        command, run, fault = traceback.format_exc(), None, "the generator is broken: " + traceback.format_exc()[-300:]
    fault = fault and " ".join(fault.split())[:400]
    if fault:
        where = save(plan, args, index, directory, command, run, fault) if failures * args.jobs < SHOWN else None
        results.put(("failure", index, fault, where))
    for name in os.listdir(scratch):
        if name == "case":
            remove(directory)
    return fault


def remove(directory):
    for top, _, _ in os.walk(directory):
        os.chmod(top, 0o700)
    shutil.rmtree(directory)


def save(plan, args, index, directory, command, run, fault):
    """Saves the input, the command and the output of a failure."""
    where = os.path.join(args.out, f"{plan.kind}-{plan.seed}-{index}")
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    left_out = copy(directory, where)
    text = command if isinstance(command, str) else shlex.join(command)
    with open(os.path.join(where, "command.txt"), "w") as file:
        file.write("".join(f"# not copied: {line!r}\n" for line in left_out[:100]))
        file.write(f"{text}\n# {fault}\n# python tests/hostile/run.py {args.kimi} --only {plan.kind} --seed {plan.seed} --first {index} --count 1\n")
    for name in ("stdout", "stderr"):
        with open(os.path.join(where, name), "wb") as file:
            file.write(getattr(run, name, b"")[:1 << 20])
    return where


def copy(source, target):
    """Copies small regular files and lists the others."""
    left_out, room = [], 1 << 26
    for top, folders, names in os.walk(source):
        into = os.path.join(target, os.path.relpath(top, source))
        if len(into) > 2000:
            folders.clear()
            continue
        os.makedirs(into, exist_ok=True)
        for name in names + [f for f in folders if os.path.islink(os.path.join(top, f))]:
            path = os.path.join(top, name)
            about = os.lstat(path)
            if stat.S_ISLNK(about.st_mode):
                os.symlink(os.readlink(path), os.path.join(into, name))
            elif stat.S_ISREG(about.st_mode) and about.st_size <= room and os.access(path, os.R_OK):
                room -= about.st_size
                shutil.copy(path, os.path.join(into, name))
            else:
                left_out.append(f"{path}: {about}")
    return left_out


def attack(plan, args, base):
    """Runs a plan in all workers; returns the numbers of failures and of cases."""
    results, start = multiprocessing.Queue(), time.monotonic()
    workers = [multiprocessing.Process(target=work, args=(plan, args, base, job, results)) for job in range(args.jobs)]
    for worker in workers:
        worker.start()
    cases = failures = shown = ended = 0
    note = ""
    while ended < len(workers):
        message = results.get()
        if message[0] == "failure":
            _, index, fault, where = message
            if shown < SHOWN and where:
                print(f"FAILURE {plan.kind} seed {plan.seed} case {index}: {fault}: {where}", flush=True)
            shown += 1
        elif message[0] == "end":
            ended, cases, failures = ended + 1, cases + message[1], failures + message[2]
            note = f", skipped: {message[3]}" if message[3] else note
        else:
            print(f"FAILURE {plan.kind} seed {plan.seed}: the generator is broken\n{message[1]}", flush=True)
            ended, failures = ended + 1, failures + 1
    for worker in workers:
        worker.join()
    taken = time.monotonic() - start
    print(f"{plan.kind:<12} seed {plan.seed:<8} {cases:>6} cases {failures:>4} failures {taken:>7.1f} s{note}", flush=True)
    return failures, cases


def plans(args):
    names = args.only.split(",") if args.only else list(KINDS)
    if unknown := [name for name in names if name not in KINDS]:
        sys.exit(f"--only: expected some of {', '.join(KINDS)}, found {', '.join(unknown)}")
    if args.full or args.count:
        seed = FIXED_SEED if args.seed is None else args.seed
        return [Plan(n, seed, args.first, args.count or KINDS[n][1], None) for n in names]
    fresh = random.SystemRandom().randrange(1, 1 << 24) if args.seed is None else args.seed
    total = sum(KINDS[name][2] for name in names)
    return [Plan(n, fresh, 0, 1 << 40, args.seconds * KINDS[n][2] / total) for n in names]


def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("kimi")
    p.add_argument("--full", action="store_true"), p.add_argument("--resume", action="store_true")
    p.add_argument("--seconds", type=float, default=60), p.add_argument("--count", type=int), p.add_argument("--first", type=int, default=0)
    p.add_argument("--seed", type=int), p.add_argument("--only"), p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--out", default=os.path.join(ROOT, "target", "hostile"))
    args = p.parse_args()
    args.kimi, args.out = os.path.abspath(args.kimi), os.path.abspath(args.out)
    args.jobs = max(1, min(args.jobs, args.count or args.jobs))
    os.makedirs(args.out, exist_ok=True)
    todo = plans(args)
    print("seeds", *sorted({plan.seed for plan in todo}), flush=True)
    record = os.path.join(args.out, "progress.json")
    finished = json.load(open(record)) if args.resume and os.path.exists(record) else {}
    # In memory if possible: the program syncs its files, and a disk would dominate the time.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 1 << 30 else None
    failures = cases = 0
    with tempfile.TemporaryDirectory(dir=memory, prefix="kimi-hostile-") as base:
        # Once, before the workers start.
        for seed in (1, 3):
            model.build(args.kimi, base, seed=seed)
        for plan in todo:
            name = f"{plan.kind} {plan.seed} {plan.first} {plan.count}"
            if name in finished:
                found, count = finished[name]
                print(f"{plan.kind:<12} seed {plan.seed:<8} {count:>6} cases {found:>4} failures, done before", flush=True)
            else:
                found, count = finished[name] = attack(plan, args, base)
                with open(record, "w") as file:
                    json.dump(finished, file)
            failures, cases = failures + found, cases + count
    print(f"{cases} cases, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
