#!/usr/bin/env python3
"""Times the chunkwise KDA of flash-linear-attention, for comparison with `kimi gpu-check --only times`: the same heads,
channels and tokens, one sequence, forward pass with final state. Needs a GPU, torch, triton and `pip install fla-core`.

  fla.py [TOKENS ...]      default: 1024, 8192 and 65536
"""
import statistics, sys

import torch
import torch.nn.functional as F
from fla.ops.kda import chunk_kda

HEADS, DIM, ROUNDS = 32, 128, 20


def inputs(tokens):
    """Normalised queries and keys, log-decays down to -0.1 and a state, as in gpu-check."""
    make = dict(device="cuda", dtype=torch.bfloat16)
    q, k = (F.normalize(torch.randn(1, tokens, HEADS, DIM, **make), dim=-1) for _ in range(2))
    g = -0.1 * torch.rand(1, tokens, HEADS, DIM, device="cuda", dtype=torch.float32)
    state = torch.full((1, HEADS, DIM, DIM), 0.1, device="cuda", dtype=torch.float32)
    beta = torch.full((1, tokens, HEADS), 0.5, **make)
    return dict(q=q, k=k, v=k.clone(), g=g, beta=beta, initial_state=state, output_final_state=True)


def milliseconds(run):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def main():
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    for tokens in [int(n) for n in sys.argv[1:]] or [1024, 8192, 65536]:
        x = inputs(tokens)
        with torch.inference_mode():
            run = lambda: chunk_kda(**x)
            for _ in range(5):  # compiles and chooses block sizes
                milliseconds(run)
            median = statistics.median(milliseconds(run) for _ in range(ROUNDS))
        print(f"chunk_kda {HEADS} x {DIM} x {DIM}, {tokens} tokens: {1000 * median:.1f} us")


main()
