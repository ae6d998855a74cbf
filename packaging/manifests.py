#!/usr/bin/env python3
"""Fills the Homebrew formula and the Scoop manifest with a version, the address of the repository and checksums.

The files in packaging/ have example.com and zeros in their place. The results are written to a directory.
"""

import argparse
import json
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parent
TEMPLATES = ("homebrew/kimi-local.rb", "scoop/kimi-local.json")
EXAMPLE = "https://example.com/OWNER/kimi"
ARCHIVE = re.compile(r"kimi-(?P<version>[0-9][^/\"]*?)-(?P<target>(?:x86_64|aarch64)-[a-z0-9_-]+)\.(?:tar\.gz|zip)")
ZEROS = "0" * 64


def checksums(path):
    """SHA-256 by file name, from the output of sha256sum."""
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {name.strip().lstrip("*"): digest for digest, name in pairs}


def fill(template, version, url, sums):
    """Replaces version and address; the zeros after the name of an archive become its checksum."""
    old = ARCHIVE.search(template)["version"]
    text = template.replace(EXAMPLE, url).replace(old, version)
    out, archive = [], None
    for line in text.splitlines(keepends=True):
        if found := ARCHIVE.search(line):
            archive = found[0]
        if ZEROS in line:
            if archive not in sums:
                sys.exit(f"{archive}: expected its checksum, found none")
            line = line.replace(ZEROS, sums[archive])
        out.append(line)
    return "".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", required=True)
    parser.add_argument("--url", required=True, help="address of the repository")
    parser.add_argument("sums", type=pathlib.Path, help="SHA256SUMS of the archives")
    parser.add_argument("output", type=pathlib.Path, help="directory for the manifests")
    args = parser.parse_args()
    sums = checksums(args.sums)
    for name in TEMPLATES:
        text = fill((FOLDER / name).read_text(), args.version, args.url, sums)
        if name.endswith(".json"):
            json.loads(text)
        (args.output / pathlib.Path(name).name).write_text(text)


if __name__ == "__main__":
    main()
