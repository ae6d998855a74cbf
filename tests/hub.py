"""Shares a cache between `kimi` and the official package huggingface_hub, in both directions, against a hub on loopback.

usage: hub.py KIMI HUB      (the binary, and the example `hub`, which serves a directory of repositories)
"""
import json, os, random, subprocess, sys, tempfile
from pathlib import Path

from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

REPO = "user/Kimi-Test-GGUF"
FILES = {
    "kimi-Q4_K_M.gguf": 20 << 20,
    "README.md": 300,
    "bf16/kimi-bf16-00001-of-00002.gguf": 2 << 20,
    "bf16/kimi-bf16-00002-of-00002.gguf": 1 << 20,
}


def contents(name):
    return random.Random(name).randbytes(FILES[name])


class Hub:
    """The hub as a process; `fetched` reads how often it sent bytes of large files."""

    def __init__(self, program, directory):
        self.log = Path(directory) / "log"
        self.process = subprocess.Popen([program, Path(directory) / "repos"], stdout=open(self.log, "w"))
        while not self.log.read_text().endswith("\n"):
            assert self.process.poll() is None, "the hub did not start"
        self.url = self.log.read_text().splitlines()[0]

    def fetched(self):
        import time
        time.sleep(0.2)
        return self.log.read_text().splitlines()[1:]

    def end(self):
        self.process.kill()
        self.process.wait()


def kimi(program, cache, url, *args, offline=False):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env |= {"HF_HUB_CACHE": str(cache), "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "1" if offline else "0"}
    done = subprocess.run([program, *args], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_cache(cache, names):
    """The package finds the files, the revision and the branch, and warns about nothing."""
    info = scan_cache_dir(cache)
    assert not info.warnings, info.warnings
    [repo] = info.repos
    assert repo.repo_id == REPO and repo.repo_type == "model", repo
    [revision] = repo.revisions
    assert revision.refs == {"main"}, revision
    found = {str(file.file_path.relative_to(revision.snapshot_path)): file.size_on_disk for file in revision.files}
    assert found == {name: FILES[name] for name in names}, found


def theirs_reads_ours(program, hub, cache):
    for kind in ["Q4_K_M", "bf16"]:
        path = kimi(program, cache, hub.url, "pull", f"{REPO}:{kind}").strip()
        assert Path(path).read_bytes() == contents(str(Path(path).relative_to(next((cache / "models--user--Kimi-Test-GGUF/snapshots").iterdir()))))
    names = [name for name in FILES if name.endswith("gguf")]
    check_cache(cache, names)
    before = hub.fetched()
    for name in names:
        local = hf_hub_download(REPO, name, cache_dir=cache, endpoint=hub.url, local_files_only=True)
        assert Path(local).read_bytes() == contents(name), name
        assert local == try_to_load_from_cache(REPO, name, cache_dir=cache), name
        # With the network too: nothing is fetched again.
        assert hf_hub_download(REPO, name, cache_dir=cache, endpoint=hub.url) == local
    assert hub.fetched() == before, hub.fetched()
    # The package adds a file beside ours, and we still read the snapshot.
    hf_hub_download(REPO, "README.md", cache_dir=cache, endpoint=hub.url)
    check_cache(cache, FILES)


def ours_reads_theirs(program, hub, cache):
    for name in FILES:
        hf_hub_download(REPO, name, cache_dir=cache, endpoint=hub.url)
    before = hub.fetched()
    listed = json.loads(kimi(program, cache, hub.url, "models", "--json", offline=True))
    assert sorted(model["name"] for model in listed) == [f"{REPO}:BF16", f"{REPO}:Q4_K_M"], listed
    for kind, name in [("q4_k_m", "kimi-Q4_K_M.gguf"), ("bf16", "bf16/kimi-bf16-00001-of-00002.gguf")]:
        local = hf_hub_download(REPO, name, cache_dir=cache, endpoint=hub.url, local_files_only=True)
        for offline in [True, False]:
            assert kimi(program, cache, hub.url, "pull", f"{REPO}:{kind}", offline=offline).strip() == local
        assert kimi(program, cache, hub.url, "models", "path", f"{REPO}:{kind}").strip() == local
    assert hub.fetched() == before, hub.fetched()
    kimi(program, cache, hub.url, "models", "remove", f"{REPO}:bf16", "--yes")
    check_cache(cache, ["kimi-Q4_K_M.gguf", "README.md"])


def main(program, server):
    with tempfile.TemporaryDirectory() as directory:
        for name in FILES:
            path = Path(directory) / "repos" / REPO / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents(name))
        hub = Hub(server, directory)
        try:
            for test in [theirs_reads_ours, ours_reads_theirs]:
                cache = Path(directory) / test.__name__
                cache.mkdir()
                test(program, hub, cache)
                print(f"{test.__name__}: passed")
        finally:
            hub.end()


if __name__ == "__main__":
    main(*sys.argv[1:])
