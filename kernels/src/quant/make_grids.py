#!/usr/bin/env python3
"""Makes the codebooks of the IQ1, IQ2 and IQ3 formats from the tables in llama.cpp's Python package `gguf`.

usage: make_grids.py      writes grids.bin beside this file and kernels/cuda/grids.cuh

grids.bin holds an entry as 16 bits, little endian: eight digits of two bits, or four digits of three bits, the first weight
lowest. A digit numbers a value of the format's codebook. grids.cuh holds the same digits in four bits each, in which form
they are selectors of `__byte_perm`. The tables are llama.cpp's (MIT; see THIRD-PARTY.md).
"""
import pathlib

import numpy as np
from gguf import quants

HERE = pathlib.Path(__file__).parent
# In the order of grids.rs. The files of IQ1_M have the grid of IQ1_S.
NAMES = "IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ1_S".split()


def digits(name):
    """The grid [entries, 8 or 4] as indices of its values."""
    cls = getattr(quants, name)
    cls.init_grid()
    grid = cls.grid.reshape(cls.grid_shape)
    out = np.searchsorted(np.array(cls.grid_map, np.float32), grid)
    assert (np.array(cls.grid_map, np.float32)[out] == grid).all()
    return out


def packed(grid, bits):
    return (grid.astype(np.uint64) << np.arange(grid.shape[1], dtype=np.uint64) * np.uint64(bits)).sum(1)


def table(name, grid):
    """A look-up in C; its table is in a module only where it is called. Entries of four digits have 16 bits, of eight 32."""
    wide = grid.shape[1] == 8
    texts = [f"0x{v:0{8 if wide else 4}x}," for v in packed(grid, 4)]
    per_line = 10 if wide else 14
    lines = [" ".join(texts[i:i + per_line]) for i in range(0, len(texts), per_line)]
    head = f"__device__ __forceinline__ u32 grid_{name.lower()}(u32 n) {{"
    table = f"    static const {'u32' if wide else 'u16'} entries[{len(grid)}] = {{"
    return "\n".join([head, table, *("        " + line for line in lines), "    };", "    return __ldg(entries + n);", "}"])


def main():
    grids = {name: digits(name) for name in NAMES}
    bits = {8: 2, 4: 3}
    data = b"".join(packed(grid, bits[grid.shape[1]]).astype("<u2").tobytes() for grid in grids.values())
    (HERE / "grids.bin").write_bytes(data)
    text = "\n\n".join(table(name, grid) for name, grid in grids.items())
    (HERE.parents[1] / "cuda/grids.cuh").write_text(f"""\
// Codebooks of the IQ1, IQ2 and IQ3 formats: four bits a weight, the index of its value. Made by
// kernels/src/quant/make_grids.py from llama.cpp's tables (MIT; see THIRD-PARTY.md). Next: grid.cuh, which uses them.
#pragma once
#include "common.cuh"

{text}
""")


main()
