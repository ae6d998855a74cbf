"""Predicts two more cases of the published model in Q4_K_M: decode with experts in RAM, and prefill at a depth.

The launches are those of kernels/src/cuda: experts.rs and graph.rs; matmul.rs, delta.rs, materialized.rs and composed.rs.
"""
from dataclasses import replace
from math import ceil, comb, exp

import cost_model as model
from cost_model import Launch, MIXES, MIXTURES, small

MIX = MIXES["Q4_K_M"]

# Experts in RAM.
COPY = 6e-6       # a small copy in either direction: 5 to 7 us a call of cudaMemcpyAsync (arXiv 2602.21548)
ISSUE_CALL = 2.5e-6  # of the host per launch of a kernel or graph (NVIDIA's blog on straight-line graphs)
START = 5e-6      # from the launch on an idle device to the first instruction
CHOOSE = 5e-6     # of the host per mixture: places of the experts, waking the threads, the sum of the results
UPLOADED = 4.4    # experts uploaded to the cache a token (README.md: 24 GiB, skewed)
HITS = 0.8
RAM_GB_S = [40, 60, 80]
GOAL_IN_RAM = 200
IN_RAM = (
    f"model: a small copy takes {COPY * 1e6:.0f} us, a launch {ISSUE_CALL * 1e6} us of the host and {START * 1e6:.0f} us on an idle device, the host's choice of places {CHOOSE * 1e6:.0f} us; "
    f"misses are binomial and read once; {UPLOADED} experts a token are uploaded, read and written by the CPU before the next graph, read by the device beside the misses"
)


def in_ram(card, records, hits, gb_s):
    """Seconds of a decoded token at depth 0 by term. A mixture takes the longer of its hits on the device and its misses on the CPU."""
    bytes, rate, chosen = model.expert_bytes(MIX), gb_s * 1e9, 8
    graphs = model.outside_mixtures(0, MIX) + [small("rms_norm", MIXTURES)]
    on_device = [model.total(model.mixture(MIX, 1 + n, False), card, records) / MIXTURES for n in range(chosen + 1)]
    mixture = device_only = 0
    for missed in range(chosen + 1):
        likely = comb(chosen, missed) * (1 - hits) ** missed * hits ** (chosen - missed)
        # The copy of the places and two launches; then the host computes the misses and uploads their sum.
        device = COPY + START + on_device[chosen - missed]
        host = 4 * ISSUE_CALL + missed * bytes / rate + COPY if missed else 0
        mixture += likely * max(device, host)
        device_only += likely * device
    uploaded = UPLOADED * bytes / rate
    return {
        "graphs": model.total(graphs, card, records),
        "starts of 27 graphs": 27 * START,
        "three downloads": MIXTURES * 3 * COPY,
        "choice of places": MIXTURES * CHOOSE,
        "hits and shared": MIXTURES * device_only,
        "misses beyond them": MIXTURES * (mixture - device_only),
        "sum": MIXTURES * (model.GAP + model.RAMP + model.SERIAL),
        "copies for uploads": 2 * uploaded,
        "uploads' reads": uploaded,
    }


def rate_in_ram(card, records, hits, gb_s):
    return 1 / sum(in_ram(card, records, hits, gb_s).values())


def hits_needed(card, records, gb_s):
    """The hit rate in % for the goal, or None."""
    return next((h for h in range(100) if rate_in_ram(card, records, h / 100, gb_s) >= GOAL_IN_RAM), None)


# Prefill. Batches as the program takes them far inside a prompt: --batch 512 and 2,048 (the default where all experts fit), doubled.
BATCHES = [1024, 4096]
DEPTH = 32_768
GOAL_PREFILL = 15_000
LONE_WARP = 0.5  # issue share of delta_apply, which has one warp per scheduler
LOW_ISSUE = 0.6  # another share of the issue slots, for the dependence on it
CHUNK_ROWS, SLAB = 4096, 512
PREFILL = (
    f"model: an expert's vectors are Poisson, tiles of 64; tensor instructions of attention at 35 % of their peak; "
    f"{LONE_WARP:.0%} of issue slots for delta_apply, which has one warp per scheduler; elementwise ops at the memory's rate; the host keeps ahead"
)


def rows(kernel, what, times, bytes):
    """An op on the rows of a batch, bound by memory."""
    return replace(small(kernel, times, 10_000, bytes), what=what)


def gemm(format, what, times, n, cols, vectors, tiles=None):
    """A product of matrices in `format`, n x cols, with vectors in so many tiles of 64; with `tiles`, those of experts."""
    side, deep = (64, 16) if format == "F32" else (128, 128)
    blocks = ceil(n / side) * (tiles or ceil(vectors / 64))
    stored = n * cols / 32 * (128 if format == "F32" else model.BYTES_PER_32[format]) * (256 if tiles else 1)
    units = [(f"gemm_{format}", blocks * ceil(cols / deep))]
    return Launch(f"gemm_{format}", what, times, blocks, units, stored + vectors * (cols + 4 * n))


def expert_tiles(tokens):
    """Tiles of 64 vectors of 256 experts that are selected equally often."""
    mean, tiles, p = tokens * 8 / 256, 0.0, exp(-tokens * 8 / 256)
    for vectors in range(1, int(4 * mean) + 64):
        p *= mean / vectors
        tiles += p * ceil(vectors / 64)
    return round(256 * tiles)


def delta(tokens):
    """The delta rule in chunks of 32 tokens, slab by slab."""
    chunks, slabs = SLAB // 32, ceil(tokens / SLAB)
    scratch = 32 * chunks * 4 * (4 * 32 * 128 + 32 * 32 + 128)
    made = Launch("delta_chunks", "delta rule", 20 * slabs, 32 * chunks, [("delta_chunks", 32 * chunks)], scratch + SLAB * 4096 * 16)
    applied = Launch("delta_apply", "delta rule", 20 * slabs, 128, [("delta_apply", 128 * chunks)], scratch + SLAB * 4096 * 4, issue=LONE_WARP)
    return [made, applied]


def materialized(tokens, depth):
    """Attention of a batch behind `depth` rows, in chunks of the cache."""
    launches, queries = [small("embed_Q8_0", 14, 4096), small("materialize_weights", 7, 4096, 4e7)], ceil(tokens / 128)
    for first in range(0, depth + tokens, CHUNK_ROWS):
        n = min(CHUNK_ROWS, depth + tokens - first)
        # Tiles of 64 keys that each 128 queries attend to: all of a chunk before the batch, half of one inside.
        seen = [min(n, max(0, depth + 128 * (q + 1) - first)) / 64 for q in range(queries)]
        tiles = 32 * sum(ceil(t) for t in seen)
        made = 64 * ceil(n / 128)
        kv = 32 * n * 256 * 2
        launches += [
            rows("latent_rows", "", 7, n * 2304),
            Launch("materialize", "", 7, made, [("materialize", made * 16)], kv, tensor=made * 16 * 8 * 32),
            Launch("attend_materialized", "", 7, 32 * queries, [("attend_materialized", tiles)], kv + tokens * 4096 * 8, tensor=tiles * 8 * 160),
        ]
    return launches


def prefill(tokens, depth):
    """The launches of a batch behind `depth` rows, by part."""
    f32 = 4 * tokens
    tiles, pairs = expert_tiles(tokens), 8 * tokens
    kda = [gemm("Q4_K", "q, k, v", 50, 4096, 2304, tokens), gemm("Q6_K", "v", 10, 4096, 2304, tokens)]
    kda += [gemm("Q8_0", "low ranks", 40, 128, 2304, tokens), gemm("Q8_0", "beta", 20, 32, 2304, tokens)]
    kda += [gemm("Q8_0", "f_b, g_b", 40, 4096, 128, tokens), gemm("Q4_K", "output", 20, 2304, 4096, tokens)]
    mla = [gemm("Q4_K", "q", 7, 6144, 2304, tokens), gemm("Q8_0", "kv_a", 7, 576, 2304, tokens), gemm("Q4_K", "output", 7, 2304, 4096, tokens)]
    experts = [gemm("Q4_K", "gate, up", 2 * MIXTURES, 1024, 2304, pairs, tiles)]
    experts += [gemm(f, "down", layers, 2304, 1024, pairs, tiles) for f, layers in MIX.down.items()]
    dense = [gemm("Q4_K", "shared gate, up", 2 * MIXTURES, 1024, 2304, tokens), gemm("Q4_K", "gate, up", 2, 9216, 2304, tokens)]
    dense += [gemm(f, "shared down", layers, 2304, 1024, tokens) for f, layers in MIX.down.items()] + [gemm("Q6_K", "down", 1, 2304, 9216, tokens)]
    router = [gemm("F32", "router", MIXTURES, 256, 2304, tokens), rows("route", "", MIXTURES, 256 * f32), small("group_pairs", MIXTURES)]
    wide, narrow, inner = 4096 * f32, 2304 * f32, 1024 * f32
    elementwise = [
        rows("short_conv", "q, k, v", 60, 2 * wide), small("conv_tail", 60), rows("l2_norm", "q, k", 40, 2 * wide),
        rows("kda_decay", "", 20, 2 * wide), small("apply_sigmoid", 20), small("quantise", 40, 4096, 128 * f32),
        rows("gated_rms_norm", "", 20, 3.25 * wide), rows("quantise", "MLA output", 7, 1.25 * wide),
        rows("rms_norm", "", 62, 4.25 * narrow), small("append", 14, 512),
        rows("silu_mul", "experts", MIXTURES, 8 * 3 * inner), rows("quantise", "experts", MIXTURES, 8 * 1.25 * inner),
        rows("silu_mul", "dense", 1, 27 * inner), rows("quantise", "dense", 1, 11.25 * inner),
        rows("weighted_sum", "", MIXTURES, 9 * narrow), rows("silu_mul", "shared", MIXTURES, 3 * inner),
        rows("quantise", "shared", MIXTURES, 1.25 * inner), rows("add", "shared", MIXTURES, 3 * narrow),
    ]
    last = [small("embed_Q4_K", 1), model.matrix("matvec1_Q6_K", "logits", 1, 163_840, 2304)]
    return {
        "GEMM, experts": experts, "GEMM, KDA": kda, "GEMM, MLA": mla, "GEMM, shared and dense": dense, "router": router,
        "delta rule": delta(tokens), "attention": materialized(tokens, depth), "elementwise": elementwise, "embedding, logits": last,
    }


def prefill_times(card, records):
    """For each batch: seconds by part, and launches."""
    parts = {tokens: prefill(tokens, DEPTH) for tokens in BATCHES}
    seconds = {n: {part: model.total(launches, card, records, serial=True) for part, launches in of.items()} for n, of in parts.items()}
    return seconds, {n: sum(l.times for launches in of.values() for l in launches) for n, of in parts.items()}


def prefill_rate(card, records, tokens, issue=model.ISSUE):
    launches = [l for of in prefill(tokens, DEPTH).values() for l in of]
    return tokens / model.total([replace(l, issue=min(l.issue, issue)) for l in launches], card, records, serial=True)


def described(records):
    """Both cases for --json."""
    ram = [
        {"card": card.name, "hits": HITS, "ram_gb_s": rate, "microseconds": {term: round(t * 1e6, 1) for term, t in in_ram(card, records, HITS, rate).items()},
         "tokens_per_second": round(rate_in_ram(card, records, HITS, rate), 1)}
        for card in model.CARDS[1:] for rate in RAM_GB_S
    ]
    times, launches = prefill_times(model.CARDS[0], records)
    batches = [
        {"card": model.CARDS[0].name, "depth": DEPTH, "batch": n, "launches": launches[n], "microseconds": {part: round(t * 1e6, 1) for part, t in of.items()},
         "tokens_per_second": round(prefill_rate(model.CARDS[0], records, n))}
        for n, of in times.items()
    ]
    return {"experts_in_ram": ram, "prefill": batches}


def table(records):
    cards, middle = model.CARDS[1:], RAM_GB_S[len(RAM_GB_S) // 2]
    print(f"\n{IN_RAM}")
    print(f"one token of Q4_K_M at depth 0, experts in RAM, {HITS:.0%} hits, {middle} GB/s: microseconds")
    terms = {card.name: in_ram(card, records, HITS, middle) for card in cards}
    print(f"{'':24}" + "".join(f"{card.name:>10}" for card in cards))
    for term in terms[cards[0].name]:
        print(f"{term:24}" + "".join(f"{terms[card.name][term] * 1e6:>10.0f}" for card in cards))
    print(f"{'total':24}" + "".join(f"{sum(terms[card.name].values()) * 1e6:>10.0f}" for card in cards))
    for rate in RAM_GB_S:
        print(f"{f'tokens/s at {rate} GB/s':24}" + "".join(f"{rate_in_ram(card, records, HITS, rate):>10.0f}" for card in cards))
        print(f"{f'hits for {GOAL_IN_RAM} tokens/s, %':24}" + "".join(f"{hits_needed(card, records, rate) or '-':>10}" for card in cards))
    times, launches = prefill_times(model.CARDS[0], records)
    print(f"\n{PREFILL}")
    print(f"prefill of Q4_K_M at depth {DEPTH} on an H200: milliseconds of a batch of " + ", ".join(map(str, BATCHES)))
    for part in times[BATCHES[0]]:
        print(f"{part:24}" + "".join(f"{times[n][part] * 1e3:>10.1f}" for n in BATCHES))
    print(f"{'total':24}" + "".join(f"{sum(times[n].values()) * 1e3:>10.1f}" for n in BATCHES))
    print(f"{'launches':24}" + "".join(f"{launches[n]:>10}" for n in BATCHES))
    for issue in (model.ISSUE, LOW_ISSUE):
        print(f"{f'tokens/s, {issue:.0%} of issue':24}" + "".join(f"{prefill_rate(model.CARDS[0], records, n, issue):>10.0f}" for n in BATCHES))
