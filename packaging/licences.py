#!/usr/bin/env python3
"""Writes the licence texts of all crates that are linked into the program for a target, as their licences require."""

import argparse
import json
import pathlib
import subprocess
import sys

NAMES = ("licen", "copying", "notice", "copyright", "unlicense")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def metadata(target):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def linked(graph):
    """The ids of the packages in the program: its normal dependencies, without build scripts and tests."""
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    root = next(p["id"] for p in graph["packages"] if p["name"] == "kimi" and p["source"] is None)
    found, queue = set(), [root]
    while queue:
        package = queue.pop()
        if package in found:
            continue
        found.add(package)
        for dep in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dep["dep_kinds"]):
                queue.append(dep["pkg"])
    return found


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.lower().startswith(NAMES)]
    return [path.read_text(encoding="utf-8", errors="replace").strip() for path in files]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="target triple of the program")
    graph = metadata(parser.parse_args().target)
    crates = linked(graph)
    packages = [p for p in graph["packages"] if p["id"] in crates and p["source"] is not None]
    if len(packages) < 50:
        sys.exit(f"expected the crates of the program, found {len(packages)}")
    out = sys.stdout.buffer
    # Many crates share a text to the byte: it is printed once, below the names of all of them.
    by_text = {}
    for package in sorted(packages, key=lambda p: (p["name"], p["version"])):
        title = f"{package['name']} {package['version']} ({package['license'] or 'see its licence file'})"
        for text in texts(package) or ["The package has no licence file; the terms are those of the licence named above."]:
            by_text.setdefault(text, []).append(title)
    for text, titles in by_text.items():
        out.write(("\n".join(titles) + "\n\n" + text + "\n\n" + "-" * 80 + "\n").encode())


if __name__ == "__main__":
    main()
