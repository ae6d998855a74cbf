"""Reference forward pass of Ling 3.0 (KDA with a bounded gate, gated MLA with RoPE, MoE) in numpy float64.

Reads a GGUF file of architecture bailingmoe3; quantized tensors are dequantized. Written for clarity, not speed, as kimi_ref.py:

    model = LingRef("ling.gguf")
    state = model.new_state()
    logits = model.forward([1, 2, 3], state)     # prefill, logits [3, vocab]
    drafts = model.draft([2, 3], state)          # logits of the MTP block after (1, 2) and (1, 2, 3)
"""
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from kimi_ref import F, causal_attention, keep_groups, kda_recurrent, l2_norm, rms_norm, short_conv, sigmoid, silu

ARCH = "bailingmoe3."


def rotate(x, positions, base):
    """RoPE of interleaved pairs. x [T,...,d]: channels 2i and 2i+1 turn by position * base^(-2i/d)."""
    d = x.shape[-1]
    angle = positions[:, None] * base ** (-np.arange(0, d, 2) / d)
    angle = angle.reshape(len(x), *[1] * (x.ndim - 2), d // 2)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    out[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return out


def swiglu(gate, up, limit):
    """silu(gate) * up; a limit above 0 clamps silu(gate) from above and up on both sides, so SiLU comes before the clamp."""
    act = silu(gate)
    return np.minimum(act, limit) * np.clip(up, -limit, limit) if limit > 0 else act * up


class LingRef:
    def __init__(self, path):
        reader = GGUFReader(path)
        field = lambda key, default=None: reader.fields[ARCH + key].contents() if ARCH + key in reader.fields else default
        self.w = {t.name: dequantize(t.data, t.tensor_type).astype(F).reshape(t.shape[::-1]) for t in reader.tensors}
        self.head = self.w.get("output.weight", self.w["token_embd.weight"])        # missing: tied
        self.vocab = len(self.head)
        self.eps = float(field("attention.layer_norm_rms_epsilon"))
        self.heads, self.kda_dim = field("attention.head_count"), field("kda.head_dim")
        self.taps, self.lower_bound = field("ssm.conv_kernel"), float(field("kda.gate_lower_bound"))
        self.qk, self.vd = field("attention.key_length_mla"), field("attention.value_length_mla")
        self.pe, self.latent = field("rope.dimension_count"), field("attention.kv_lora_rank")
        self.base = float(field("rope.freq_base", 10000.0))
        self.groups, self.kept = field("expert_group_count", 1), field("expert_group_used_count", 1)
        self.top_k, self.scale = field("expert_used_count"), float(field("expert_weights_scale", 1.0))
        self.normalized = field("expert_weights_norm", False)
        self.dense = field("leading_dense_block_count")
        blocks = field("block_count")
        self.layers = blocks - field("nextn_predict_layers", 0)                     # the block after them is the MTP block
        self.is_kda = [kv == 0 for kv in field("attention.head_count_kv")]
        self.limit, self.shared_limit = (field(key, [0.0] * blocks) for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp"))

    def new_state(self):
        state = {"position": 0, "hidden": np.zeros((0, self.w["output_norm.weight"].size), F)}
        for i, kda in enumerate(self.is_kda):
            if kda:
                state[i] = {"S": np.zeros((self.heads, self.kda_dim, self.kda_dim), F),
                            "conv": {n: np.zeros((self.taps - 1, self.heads * self.kda_dim), F) for n in "qkv"}}
            else:
                state[i] = {"latent": np.zeros((0, self.latent), F), "k_pe": np.zeros((0, self.pe), F)}
        return state

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T

    def norm(self, x, name):
        return rms_norm(x, self.w[name + ".weight"], self.eps)

    def kda(self, x, p, st, rec):
        """S_t = (I - b k k^T) Diag(a) S_{t-1} + b k v^T, o = S^T q; log a = lower_bound * sigmoid(exp(A_log) * (W_f x + dt_bias))."""
        split = lambda y: y.reshape(len(x), self.heads, self.kda_dim)
        qkv = {}
        for n in "qkv":
            weight = self.w[f"{p}ssm_conv1d_{n}.weight"].reshape(-1, self.taps)
            y, st["conv"][n] = short_conv(self.linear(x, f"{p}attn_{n}"), weight, st["conv"][n])
            qkv[n] = split(y)
        q, k, v = l2_norm(qkv["q"], self.eps) * self.kda_dim ** -0.5, l2_norm(qkv["k"], self.eps), qkv["v"]
        rate = self.w[p + "ssm_a"].reshape(1, self.heads, 1)                        # exp(A_log), one per head
        g = self.lower_bound * sigmoid(rate * split(self.linear(x, p + "ssm_f_a") + self.w[p + "ssm_dt.bias"]))
        beta = sigmoid(self.linear(x, p + "ssm_beta"))
        o = np.empty_like(v)
        for h in range(self.heads):
            o[:, h], st["S"][h] = kda_recurrent(q[:, h], k[:, h], v[:, h], g[:, h], beta[:, h], st["S"][h])
        y = self.norm(o, p + "ssm_norm") * sigmoid(split(self.linear(x, p + "ssm_g_a")))
        rec.update({p + "g": g, p + "o": o})
        return self.linear(y.reshape(len(x), -1), p + "attn_output")

    def mla(self, x, p, st, positions, rec):
        """Attention over a compressed cache whose k_pe is rotated already; each head's output is gated by sigmoid(W_gate x)."""
        n = len(x)
        if p + "attn_q_a.weight" in self.w:
            q = self.linear(self.norm(self.linear(x, p + "attn_q_a"), p + "attn_q_a_norm"), p + "attn_q_b")
        else:
            q = self.linear(x, p + "attn_q")
        q = q.reshape(n, self.heads, self.qk)                                       # per head: [nope | pe]
        nope = self.qk - self.pe
        q = np.concatenate([q[..., :nope], rotate(q[..., nope:], positions, self.base)], -1)
        kv = self.linear(x, p + "attn_kv_a_mqa")                                    # [latent | pe]
        st["latent"] = np.concatenate([st["latent"], self.norm(kv[:, :self.latent], p + "attn_kv_a_norm")])
        st["k_pe"] = np.concatenate([st["k_pe"], rotate(kv[:, self.latent:], positions, self.base)])
        k_nope = np.einsum("sr,hrd->shd", st["latent"], self.w[p + "attn_k_b.weight"])   # k_b [H,latent,nope]
        v = np.einsum("sr,hdr->shd", st["latent"], self.w[p + "attn_v_b.weight"])        # v_b [H,vd,latent]
        o = causal_attention(q, k_nope, v, st["k_pe"]) * sigmoid(self.linear(x, p + "attn_gate"))[..., None]
        rec.update({p + "latent": st["latent"][-n:], p + "k_pe": st["k_pe"][-n:], p + "o": o})
        return self.linear(o.reshape(n, -1), p + "attn_output")

    def mlp(self, x, p, kind, limit):
        return self.linear(swiglu(self.linear(x, f"{p}ffn_gate{kind}"), self.linear(x, f"{p}ffn_up{kind}"), limit), f"{p}ffn_down{kind}")

    def moe(self, x, p, i, rec):
        score = sigmoid(self.linear(x, p + "ffn_gate_inp"))
        biased = score + self.w[p + "exp_probs_b.bias"]
        kept = keep_groups(biased, self.groups, self.kept) if self.groups > 1 else biased
        chosen = np.argsort(-kept, -1, kind="stable")[:, :self.top_k]               # the bias chooses, but does not weigh
        weight = np.take_along_axis(score, chosen, -1)
        if self.normalized:
            weight = weight / weight.sum(-1, keepdims=True)
        weight = weight * self.scale
        gate, up, down = (self.w[f"{p}ffn_{n}_exps.weight"] for n in ("gate", "up", "down"))
        out = np.zeros_like(x)
        for e in np.unique(chosen):
            t, slot = np.nonzero(chosen == e)
            out[t] += weight[t, slot, None] * (swiglu(x[t] @ gate[e].T, x[t] @ up[e].T, self.limit[i]) @ down[e].T)
        rec.update({p + "score": score, p + "chosen": chosen, p + "weight": weight})
        return out + self.mlp(x, p, "_shexp", self.shared_limit[i])

    def layer(self, x, i, state, positions, rec):
        p = f"blk.{i}."
        h = self.norm(x, p + "attn_norm")
        x = x + (self.kda(h, p, state[i], rec) if self.is_kda[i] else self.mla(h, p, state[i], positions, rec))
        rec[p + "after_attn"] = x
        h = self.norm(x, p + "ffn_norm")
        x = x + (self.mlp(h, p, "", self.shared_limit[i]) if i < self.dense else self.moe(h, p, i, rec))
        rec[p + "after_ffn"] = x
        return x

    def forward(self, ids, state=None, rec=None):
        """Logits [T, vocab] of the T new tokens; state (from new_state) is carried and changed in place.

        state["hidden"] becomes the final, normalized hidden states [T, hidden], which the MTP block takes.
        """
        state = self.new_state() if state is None else state
        rec = {} if rec is None else rec
        positions = state["position"] + np.arange(len(ids))
        x = self.w["token_embd.weight"][np.asarray(ids)]
        for i in range(self.layers):
            x = self.layer(x, i, state, positions, rec)
        state["position"] += len(ids)
        state["hidden"] = self.norm(x, "output_norm")
        return state["hidden"] @ self.head.T

    def draft(self, ids, state, hidden=None, rec=None):
        """Logits [T, vocab] of the MTP block for T tokens, each with the hidden state that precedes it.

        `hidden` [T, hidden] is state["hidden"] of `forward`, or what an earlier draft left in state["draft_hidden"]:
        row t belongs to the token before ids[t]. The block attends over its own KV cache only.
        """
        i = self.layers
        p = f"blk.{i}."
        hidden = state["hidden"][-len(ids):] if hidden is None else hidden
        positions = len(state[i]["latent"]) + np.arange(len(ids))
        embedded = self.w["token_embd.weight"][np.asarray(ids)]
        both = np.concatenate([self.norm(embedded, p + "nextn.enorm"), self.norm(hidden, p + "nextn.hnorm")], -1)
        x = self.layer(self.linear(both, p + "nextn.eh_proj"), i, state, positions, {} if rec is None else rec)
        state["draft_hidden"] = self.norm(x, p + "layer_output_norm")
        return state["draft_hidden"] @ self.head.T
