"""Splits a checkpoint's model.safetensors into shards with an index, as Hugging Face does.

usage: shard.py CHECKPOINT SHARDS
"""
import json
import os
import struct
import sys

folder, count = sys.argv[1], int(sys.argv[2])
single = f"{folder}/model.safetensors"
with open(single, "rb") as f:
    length, = struct.unpack("<Q", f.read(8))
    header = json.loads(f.read(length))
    start = 8 + length
    header.pop("__metadata__", None)
    names = sorted(header)
    total = sum(e - b for b, e in (header[n]["data_offsets"] for n in names))
    weight_map = {}
    for shard in range(count):
        mine = names[len(names) * shard // count:len(names) * (shard + 1) // count]
        name = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        head, at = {"__metadata__": {"format": "pt"}}, 0
        for n in mine:
            begin, end = header[n]["data_offsets"]
            head[n] = dict(header[n], data_offsets=[at, at + end - begin])
            weight_map[n] = name
            at += end - begin
        text = json.dumps(head, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(f"{folder}/{name}", "wb") as out:
            out.write(struct.pack("<Q", len(text)))
            out.write(text)
            for n in mine:
                begin, end = header[n]["data_offsets"]
                f.seek(start + begin)
                out.write(f.read(end - begin))
with open(f"{folder}/model.safetensors.index.json", "w") as out:
    json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, out)
os.remove(single)
