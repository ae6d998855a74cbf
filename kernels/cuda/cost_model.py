"""Predicts the time of a kernel from its counts: cards, shared memory, and launches of a token of the published 48B shape.

A launch takes the gap to its predecessor, a ramp, and the longer of its bytes at the memory's rate and its instructions at
the issue rate; both are stretched where blocks leave SMs idle. `cost` supplies the counts. Next: cost_cases.py.
"""
from dataclasses import dataclass
from math import ceil

GAP = 1.2e-6     # between dependent nodes of a graph
# The same where kernels are launched programmatically. Between two empty kernels of a graph at 1,755 MHz this saved 0.96 us
# (pegainfer issue 569); three quarters of that are counted. In llama.cpp (pull request 22522) it saved 4 to 10 % of a token.
OVERLAPPING_GAP = 0.5e-6
RAMP = 1.0e-6    # until the first loads have arrived and after the last results have left
SERIAL = 1.0e-6  # of a kernel without a counted loop, and of a norm in the last block: a reduction or a chain of loads
MEMORY = 0.92    # attainable share of the memory's rate
ISSUE = 0.8      # attainable share of the issue slots
SM_SHARE = 2.0   # one SM draws at most this multiple of its share of the memory's rate
TENSOR_CYCLES = 4 / 0.35  # of mma.m16n8k16 on an H200: 35 % of the peak, which FlashAttention-2 reaches there (arXiv 2407.08608)
TILE_SHARED = 8 * 33 * 4  # cycles of shared memory for 16 rows of attention: 33 ldmatrix.x4 in each of 8 warps
ASSUMPTIONS = (
    f"model: {GAP * 1e6} us between launches, {OVERLAPPING_GAP * 1e6} us between programmatic ones from sm_90 on (nothing is counted for prefetched weights), {RAMP * 1e6} us of ramp, {SERIAL * 1e6} us for small ops, {MEMORY:.0%} of the memory's rate, {ISSUE:.0%} of issue "
    f"slots, an SM draws {SM_SHARE:.0f}x its share of the memory's rate, 16 rows of attention take {TILE_SHARED} cycles of shared memory; all experts in GPU memory; F16 caches"
)
# Mix and depth of the decoded tokens that are predicted.
TOKENS = [("Q4_K_M", 0), ("Q4_K_M", 32_768), ("Q4_K_M", 131_072), ("Q4_K_M", 1_048_576), ("Q2_K", 0)]
MIXTURES = 26  # layers of experts


@dataclass
class Card:
    name: str
    arch: str
    sms: int
    ghz: float
    tb_s: float


CARDS = [
    Card("H200", "sm_90", 132, 1.755, 4.8),
    Card("RTX 4090", "sm_89", 128, 2.52, 1.008),
    Card("RTX 3090", "sm_86", 82, 1.695, 0.936),
    Card("RTX 5090", "sm_120", 170, 2.407, 1.792),
]

# Bytes of shared memory, threads and blocks of an SM.
LIMITS = {"sm_86": (102_400, 1536, 16), "sm_89": (102_400, 1536, 24), "sm_90": (233_472, 2048, 32), "sm_120": (102_400, 1536, 24)}

# Bytes of shared memory per block at the published shape, by the name or its part before the format.
SHARED = {
    "attend_tensor_F16": 99_328, "attend_tensor_Q8_0": 99_328, "attend_materialized": 86_016, "delta_chunks": 53_376, "materialize": 40_960, "gemm": 39_424,
    "gemm_F32": 8_960, "gemm_F16": 8_960, "gemm_BF16": 8_960, "best_of_parts": 32_900, "best_of_part": 8_324,
    "delta_apply": 21_760, "append_norm": 132, "delta_step_128": 8_192, "delta_rule_128": 7_680, "materialize_weights": 4_224, "merge": 3_072,
    "attend_plain": 2_560, "matmul_route": 2_056, "route": 2_052, "group_pairs": 2_048, "fresh": 768, "ffn_up": 128, "ffn_down": 360,
    "rms_norm": 132, "gated_rms_norm": 132, "l2_norm": 132,
}

# Stored bytes of 32 weights.
BYTES_PER_32 = {
    "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q2_K": 10.5, "Q3_K": 13.75, "Q4_K": 18, "Q5_K": 22,
    "Q6_K": 26.25, "IQ1_S": 6.25, "IQ1_M": 7, "IQ2_XXS": 8.25, "IQ2_XS": 9.25, "IQ2_S": 10.25, "IQ3_XXS": 12.25,
    "IQ3_S": 13.75, "IQ4_NL": 18, "IQ4_XS": 17, "MXFP4": 17,
}
PAIRED = ["Q4_K", "Q5_K", "Q6_K"]  # a thread reads 64 weights at once
ROW_BYTES = 1152  # of an F16 cache row


# Of these the size holds for each format that has none of its own.
PER_FORMAT = ["gemm", "matmul_route", "fresh", "ffn_up", "ffn_down"]


def shared_bytes(kernel):
    of_format = [SHARED[name] for name in PER_FORMAT if kernel.startswith(name + "_")]
    return SHARED.get(kernel, of_format[0] if of_format else 0)


def blocks_per_sm(record):
    """Blocks of a kernel that an SM holds at once."""
    shared, threads, blocks = LIMITS[record["arch"]]
    warps = ceil(record["threads"] / 32)
    registers = ceil(record["registers"] * 32 / 256) * 256 * warps
    return min(blocks, threads // record["threads"], 65_536 // registers, shared // (record["shared"] + 1024))


def at_perfect_issue(record):
    """The rate that the issue slots allow: of memory for streaming kernels, of operations for a GEMM."""
    rates = {}
    for card in CARDS:
        if card.arch != record["arch"] or not record["per_unit"]:
            continue
        slots = 4 * card.sms * card.ghz * 1e9
        warps = record["threads"] / 32
        if record["unit"] == "32 weights":
            rates[card.name] = f"{slots * 32 / record['per_unit'] * record['bytes_per_32'] / 1e12:.1f} TB/s"
        elif record["unit"] == "16 rows":
            rates[card.name] = f"{slots / (record['per_unit'] * warps) * 16 * ROW_BYTES / 1e12:.1f} TB/s"
        else:
            rates[card.name] = f"{slots / (record['per_unit'] * warps) * 2 * 128 * 64 * 128 / 1e12:.0f} Top/s"
    return {"rates": rates} if rates else {}


@dataclass
class Launch:
    """Launches of one shape: their number per token, blocks, bytes, and units of main loops over all threads.

    The loops are those of the kernel itself, or for matrices of several formats those of the kernels of each.
    """

    kernel: str
    what: str
    times: int
    blocks: int
    units: list  # [(kernel, units)], empty for small ops
    bytes: float
    norm: bool = False    # whether the last block computes the norm of the result
    issue: float = ISSUE  # attainable share of the issue slots
    tensor: float = 0     # tensor instructions of all warps, where they may take longer than all instructions
    shared: float = 0     # cycles of an SM's shared memory for all blocks, where they may


def matrix(kernel, what, times, rows, cols, copies=1, together=1, norm=False):
    """A product of one vector with `copies` x `together` matrices, the latter in one block.

    Lanes share a row as kernels/src/cuda chooses them: those that waste the fewest iterations; 32 rows of gate and up share a block.
    """
    units = copies * together * rows * cols / 32
    format = next(f for f in BYTES_PER_32 if kernel.endswith("_" + f))
    pieces = cols // (64 if format in PAIRED else 32)
    lanes = min([32, 16, 8, 4], key=lambda n: ceil(pieces / n) * n)
    rows_of_block = 32 if kernel.startswith("ffn_up") else 128 / lanes
    return Launch(kernel, what, times, ceil(copies * rows / rows_of_block), [(kernel, units)], units * BYTES_PER_32[format], norm)


def mixed(what, times, *parts):
    """Products of one input with matrices of several formats: (format, rows) of each."""
    of = [matrix(f"matvec1_{format}", "", times, rows, 2304) for format, rows in parts]
    units = [unit for launch in of for unit in launch.units]
    return Launch("mixed1", what, times, sum(l.blocks for l in of), units, sum(l.bytes for l in of))


def small(kernel, times, blocks=1, bytes=0.0):
    return Launch(kernel, "", times, blocks, [], bytes)


@dataclass
class Mix:
    """The formats that `kimi convert --type` gives to the tensors of the published model (convert/src/mix_rules.rs).

    With each format of v and of the experts' down projections: the number of layers.
    """

    name: str
    base: str  # of the embedding, q, k, gate and up
    v: dict
    output: str
    down: dict
    dense_down: str
    logits: str = "Q6_K"


MIXES = {
    "Q4_K_M": Mix("Q4_K_M", "Q4_K", {"Q6_K": 10, "Q4_K": 10}, "Q4_K", {"Q4_K": 14, "Q6_K": 12}, "Q6_K"),
    "Q2_K": Mix("Q2_K", "Q2_K", {"Q3_K": 20}, "Q3_K", {"Q3_K": 26}, "Q3_K"),
}


def expert_bytes(mix):
    """The bytes of an expert, on average over the layers."""
    down = sum(BYTES_PER_32[format] * layers for format, layers in mix.down.items()) / MIXTURES
    return 1024 * 2304 / 32 * (2 * BYTES_PER_32[mix.base] + down)


def mixture(mix, experts, norm=True):
    """The launches of the mixtures, with so many experts of a token, the shared one included."""
    up = matrix(f"ffn_up_{mix.base}", "experts, shared", MIXTURES, 1024, 2304, experts, 2)
    return [up] + [matrix(f"ffn_down_{format}", "experts, norm", layers, 2304, 1024, 1, experts, norm) for format, layers in mix.down.items()]


def token(depth, mix=MIXES["Q4_K_M"]):
    """The launches of one decoded token: 20 KDA layers and 7 MLA layers, one of them dense, the others with mixtures."""
    return outside_mixtures(depth, mix) + mixture(mix, 9)


def outside_mixtures(depth, mix):
    """The launches of a decoded token without the experts'."""
    parts = max(1, min(256, 1 << max(0, ceil(depth / 128) - 1).bit_length()))
    base = mix.base
    launches = [small(f"embed_{base}", 1), small("rms_norm", 1)]
    for v, layers in mix.v.items():
        launches.append(mixed(f"q, k, v {v}, low ranks", layers, (base, 8192), (v, 4096), ("Q8_0", 288)))
    launches += [
        matrix("fresh_Q8_0", "f_b, g_b", 20, 8192, 128),
        small("delta_step_128", 20, 32, 2 * 4 * 32 * 128 * 128 + 4e5),
        matrix(f"matvec1_{mix.output}", "output, norm", 27, 2304, 4096, norm=True),
        mixed("MLA q, kv_a", 7, (base, 6144), ("Q8_0", 576)),
        small("append_norm", 7),
        matrix("fresh_Q8_0", "k_b", 7, 32 * 512, 128),
        Launch("attend_tensor_F16", f"{depth} rows", 7, parts, [("attend_tensor_F16", depth / 16)], depth * ROW_BYTES, shared=depth / 16 * TILE_SHARED),
    ]
    if parts > 1:
        launches.append(small("merge", 7, 128, parts * 32 * 514 * 4))
    return launches + [
        matrix("fresh_Q8_0", "v_b", 7, 32 * 128, 512),
        matrix(f"ffn_up_{base}", "dense", 1, 9216, 2304, 1, 2),
        matrix(f"ffn_down_{mix.dense_down}", "dense, norm", 1, 2304, 9216, norm=True),
        small("matmul_route_F32", MIXTURES, 256, 256 * 2304 * 4),
        matrix(f"matvec1_{mix.logits}", "logits", 1, 163_840, 2304),
        small("best_of_part", 1, 80, 163_840 * 4),
        small("best_of_parts", 1),
    ]


def gap(card, serial=False):
    """The time between two launches on a card, programmatic ones unless `serial`."""
    return GAP if serial or int(card.arch[3:]) < 90 else OVERLAPPING_GAP


def seconds(launch, card, records, serial=False):
    """The predicted time of one launch on a card, which overlaps with the one before it unless `serial`."""
    of = {r["kernel"]: r for r in records if r["arch"] == card.arch}
    # The fullest SM decides: it takes ceil(blocks / SMs) of the blocks.
    share = launch.blocks / card.sms
    moved = launch.bytes / (card.tb_s * 1e12 * min(MEMORY, SM_SHARE * min(1, share)))
    if not launch.units:
        return gap(card, serial) + RAMP + SERIAL + moved
    inner, outside = 0, 0
    for kernel, units in launch.units:
        record = of[kernel]
        warps = record["threads"] / 32
        inner += units * record["per_unit"] * (1 / 32 if record["unit"] == "32 weights" else warps)
        outside = max(outside, warps * record["outside"])
    slots = 4 * card.ghz * 1e9
    issued = (inner / launch.blocks + outside) * ceil(share) / slots / launch.issue
    multiplied = launch.tensor / launch.blocks * ceil(share) * TENSOR_CYCLES / slots
    shared = launch.shared / launch.blocks * ceil(share) / (card.ghz * 1e9)
    return gap(card, serial) + RAMP + max(issued, moved, multiplied, shared) + SERIAL * launch.norm


def total(launches, card, records, serial=False):
    """Seconds of all launches."""
    return sum(launch.times * seconds(launch, card, records, serial) for launch in launches)


def described(launch, mix, depth, records):
    times = {card.name: round(seconds(launch, card, records) * 1e6, 2) for card in CARDS}
    return {"kernel": launch.kernel, "what": launch.what, "mix": mix, "depth": depth, "times": launch.times,
            "bytes": launch.bytes, "blocks": launch.blocks, "microseconds": times}
