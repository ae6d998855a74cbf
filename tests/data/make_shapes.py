"""Makes golden/shapes.safetensors: logits of the float64 reference on the checkpoints that shapes.json describes.

usage: make_shapes.py [--check]     --check computes them again and compares them with the file
"""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "reference"))
import gen_tiny  # noqa: E402
from kimi_ref import KimiRef  # noqa: E402
from logits import clear_prompt  # noqa: E402

GOLDEN = HERE / "golden/shapes.safetensors"
TOKENS = 24


def compute():
    """NAME.ids and NAME.logits of each case."""
    tensors = {}
    for name, case in json.loads((HERE / "shapes.json").read_text()).items():
        with tempfile.TemporaryDirectory() as folder:
            fields = dict(field.split("=") for field in case["fields"])
            gen_tiny.main(folder, case["preset"], case["seed"], {key: int(value) for key, value in fields.items()})
            ids, logits = clear_prompt(KimiRef(folder), TOKENS)
        tensors |= {f"{name}.ids": np.array(ids), f"{name}.logits": logits}
    return tensors


def check(found, expected):
    assert found.keys() == expected.keys(), f"{sorted(found)} in the file, expected {sorted(expected)}"
    for name, value in expected.items():
        apart = np.abs(found[name] - value).max() / np.abs(value).max()
        # The order of sums in a matrix product is the BLAS library's.
        assert apart <= (0 if name.endswith(".ids") else 1e-12), f"{name}: {apart:.1e} of the maximum"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check(load_file(GOLDEN), compute())
    else:
        save_file(compute(), GOLDEN)
