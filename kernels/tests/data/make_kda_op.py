"""Makes kda_op.safetensors: the gated delta rule alone, inputs in f32 and the truth rounded from f64 to f32.

    python make_kda_op.py GOLDEN OUT

GOLDEN is the op golden of the project's numpy reference (float64; inputs q, k, v, g, beta, S0 and truth o, S,
[tokens, heads, dim] and [heads, dk, dv]). Cases: gates of two small models' first KDA layer, slow decay, decay
down to e^-148 a token (harsh), one token, and all keys equal.
"""
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

golden, out = sys.argv[1:]
save_file({name: np.ascontiguousarray(a, np.float32) for name, a in load_file(golden).items()}, out)
