"""Compares the lock files with a local copy of RustSec's advisory database, without network access.

usage: advisories.py [DIR]      (default: $ADVISORY_DB, then ~/.cargo/advisory-db, where cargo-audit keeps it)

Exit code 1 if a locked version has a vulnerability; unmaintained and unsound crates are only reported.
"""
import os, re, sys, tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ["Cargo.lock", "fuzz/Cargo.lock", "tests/peer/Cargo.lock"]


def version(text):
    """A version as a sortable list of numbers; a pre-release sorts before its release."""
    core, _, pre = text.split("+")[0].partition("-")
    numbers = [int(n) for n in core.split(".")]
    return numbers + [0] * (3 - len(numbers)) + [0 if pre else 1, pre]


def matches(requirement, found):
    """Whether a version satisfies a requirement: `>= 1.2, < 2`, `^1.2.3`, `1.2`, `*`."""
    for part in filter(None, (p.strip() for p in requirement.split(","))):
        operator, text = re.fullmatch(r"(>=|<=|>|<|=|\^|~)?\s*(.+)", part).groups()
        if text == "*":
            continue
        bound = version(text)
        if operator in (None, "^", "~"):
            fixed = 1 + next((i for i in range(3) if bound[i]), 2) if operator != "~" else min(2, text.count(".") + 1)
            if not (found >= bound and found[:fixed] == bound[:fixed]):
                return False
        elif not {">=": found >= bound, "<=": found <= bound, ">": found > bound, "<": found < bound, "=": found == bound}[operator]:
            return False
    return True


def advisories(directory):
    """The advisories by package."""
    found = {}
    for path in sorted((directory / "crates").glob("*/*.md")):
        text = path.read_text()
        if block := re.search(r"```toml\n(.*?)```", text, re.S):
            entry = tomllib.loads(block[1])
            title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "")
            found.setdefault(entry["advisory"]["package"], []).append((entry, title))
    return found


def main():
    default = os.environ.get("ADVISORY_DB") or Path.home() / ".cargo" / "advisory-db"
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else default)
    if not (directory / "crates").is_dir():
        print(f"skipped: tests/advisories.py, needs a copy of the advisory database in {directory}")
        return
    known, vulnerable, count = advisories(directory), 0, 0
    newest = max((e["advisory"]["date"] for entries in known.values() for e, _ in entries), default="none", key=str)
    for lock in LOCKS:
        packages = tomllib.loads((ROOT / lock).read_text())["package"] if (ROOT / lock).exists() else []
        count += len(packages)
        for package in packages:
            for entry, title in known.get(package["name"], []):
                about, versions, found = entry["advisory"], entry.get("versions", {}), version(package["version"])
                if about.get("withdrawn") or any(matches(r, found) for key in ("patched", "unaffected") for r in versions.get(key, [])):
                    continue
                informational = about.get("informational")
                vulnerable += not informational
                print(f"{lock}: {package['name']} {package['version']}: {about['id']} {informational or 'VULNERABLE'}: {title}")
    print(f"advisories: {count} locked packages, {sum(map(len, known.values()))} advisories to {newest}, {vulnerable} vulnerabilities")
    sys.exit(1 if vulnerable else 0)


if __name__ == "__main__":
    main()
