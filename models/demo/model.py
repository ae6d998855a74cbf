"""A small trainable Kimi Linear in PyTorch with the published layout, names and mathematics.

Parameter names are those of the published checkpoint, except that the experts of a layer are stacked during training;
`export` splits them. `kda` is chunkwise (WY form) and differentiable on any device; on CUDA flash-linear-attention's kernel is used.
"""
import json, math, shutil
import torch
import torch.nn as nn
import torch.nn.functional as F

try:
    from fla.ops.kda import chunk_kda
except ImportError:
    chunk_kda = None

CHUNK = 16
torch._dynamo.config.recompile_limit = 64


def compiled(f):
    """Fuses elementwise chains on the CPU, if a compiler is available."""
    return torch.compile(f, dynamic=True) if shutil.which("g++") else f


def kda(q, k, v, g, beta):
    """o_t = S_t^T q_t,  S_t = (I - beta_t k_t k_t^T) diag(e^g_t) S_{t-1} + beta_t k_t v_t^T.   q,k,v,g [B,T,H,D], beta [B,T,H].

    Chunks of 16, decays factored around the chunk's middle row: exact while the log-decays of eight tokens sum to
    more than -80 in each channel; beyond that the factors are clamped (such a channel has decayed to zero).
    """
    if q.is_cuda and chunk_kda is not None:
        return chunk_kda(q, k, v, g, beta, scale=1.0)[0]
    b, t, h, d = q.shape
    n, c = -(-t // CHUNK), CHUNK

    def chunks(x):                                        # [B,T,H,D] -> [N, B*H, C, D]
        x = F.pad(x, (0, 0, 0, 0, 0, n * c - t))
        return x.view(b, n, c, h, -1).permute(1, 0, 3, 2, 4).reshape(n, b * h, c, -1)

    q, k, v, g, beta = chunks(q), chunks(k), chunks(v), chunks(g), chunks(beta[..., None])
    W, U, P, Q, K, end = within(q, k, v, g, beta)
    S = q.new_zeros(b * h, d, v.shape[-1])
    out = []
    for w, u, p, q, k, e in zip(*(x.unbind() for x in (W, U, P, Q, K, end))):
        new = torch.baddbmm(u, w, S, alpha=-1)
        out.append(torch.baddbmm(p @ new, q, S))
        S = torch.baddbmm(e * S, k, new)
    o = torch.stack(out).view(n, b, h, c, -1).permute(1, 0, 3, 2, 4).reshape(b, n * c, h, -1)
    return o[:, :t]


@compiled
def within(q, k, v, g, beta):
    """Computes everything of a chunk that does not depend on its initial state.   q,k,v,g [N,B*H,C,D], beta [N,B*H,C,1]."""
    c, d = q.shape[2:]
    G = g.cumsum(2)
    mid, last = G[:, :, c // 2:c // 2 + 1], G[:, :, -1:]
    up, down = (G - mid).clamp(-80, 80).exp(), (mid - G).clamp(-80, 80).exp()
    ku, kd, qu = k * up, k * down, q * up
    strict = torch.ones(c, c, dtype=torch.bool, device=q.device).tril(-1)
    A = beta * (ku @ kd.mT).masked_fill(~strict, 0.0)     # above the diagonal it may be infinite
    P = (qu @ kd.mT).masked_fill(~strict, 0.0) + torch.diag_embed((q * k).sum(-1))
    decay = G.exp()
    rhs = torch.cat([k * decay, v], -1) * beta
    eye = torch.eye(c, device=q.device)
    # (I + A)^-1 with A nilpotent of index 16
    A2 = A @ A
    A4 = A2 @ A2
    inverse = (eye - A) @ (eye + A2) @ (eye + A4) @ (eye + A4 @ A4)
    W, U = (inverse @ rhs).split([d, v.shape[-1]], -1)
    Q, K, end = q * decay, (k * (last - G).exp()).mT.contiguous(), last.exp().mT
    return W, U, P, Q, K, end


def l2_norm(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


@compiled
def rms_norm(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class ShortConv(nn.Module):
    """Causal depthwise convolution, then SiLU. weight [C,1,taps]; the last tap multiplies the newest token."""

    def __init__(self, channels, taps):
        super().__init__()
        w = torch.randn(channels, 1, taps) * 0.2
        w[:, :, -1] += 0.8
        self.weight = nn.Parameter(w)

    def forward(self, x):                                 # [B,T,C]
        return convolve(x, self.weight)


@compiled
def convolve(x, weight):
    x = x.float()
    taps = weight.shape[-1]
    x = F.pad(x, (0, 0, taps - 1, 0))
    t = x.shape[1] - taps + 1
    return F.silu(sum(x[:, j:j + t] * weight[:, 0, j] for j in range(taps)))


def linear(rows, cols, std=None):
    layer = nn.Linear(cols, rows, bias=False)
    nn.init.normal_(layer.weight, std=std or cols ** -0.5)
    return layer


class KimiDeltaAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        la, hidden = c["linear_attn_config"], c["hidden_size"]
        self.heads, self.dim = la["num_heads"], la["head_dim"]
        width = self.heads * self.dim
        for n in "qkv":
            setattr(self, n + "_proj", linear(width, hidden))
            setattr(self, n + "_conv1d", ShortConv(width, la["short_conv_kernel_size"]))
        self.A_log = nn.Parameter(torch.empty(1, 1, self.heads, 1).uniform_(1, 8).log())
        dt = torch.exp(torch.rand(width) * (math.log(0.1) - math.log(0.0005)) + math.log(0.0005))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.b_proj = linear(self.heads, hidden)
        self.f_a_proj, self.f_b_proj = linear(self.dim, hidden), linear(width, self.dim)
        self.g_a_proj, self.g_b_proj = linear(self.dim, hidden), linear(width, self.dim)
        self.o_norm = RMSNorm(self.dim, c["rms_norm_eps"])
        self.o_proj = linear(hidden, width, 0.5 * width ** -0.5)

    def forward(self, x):
        split = lambda y: y.view(*y.shape[:2], self.heads, self.dim)
        q, k, v = (split(getattr(self, n + "_conv1d")(getattr(self, n + "_proj")(x))) for n in "qkv")
        z = split(self.f_b_proj(self.f_a_proj(x)))
        o = kda(*gates(q, k, v, z, self.A_log, split(self.dt_bias[None, None]), self.b_proj(x)))
        y = gated(o, split(self.g_b_proj(self.g_a_proj(x))), self.o_norm.weight, self.o_norm.eps)
        return self.o_proj(y.flatten(2))


@compiled
def gates(q, k, v, z, A_log, dt_bias, beta):
    g = -A_log.exp() * F.softplus(z.float() + dt_bias)
    return l2_norm(q) * q.shape[-1] ** -0.5, l2_norm(k), v, g, torch.sigmoid(beta.float())


@compiled
def gated(o, z, weight, eps):
    return (o * torch.rsqrt(o.square().mean(-1, keepdim=True) + eps) * weight) * torch.sigmoid(z.float())


class LatentAttention(nn.Module):
    """Multi-head latent attention without positions, with materialized keys and values."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.rank = c["num_attention_heads"], c["kv_lora_rank"]
        self.nope, self.pe, self.v_dim = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        hidden = c["hidden_size"]
        self.q_proj = linear(self.heads * (self.nope + self.pe), hidden)
        self.kv_a_proj_with_mqa = linear(self.rank + self.pe, hidden)
        self.kv_a_layernorm = RMSNorm(self.rank, c["rms_norm_eps"])
        self.kv_b_proj = linear(self.heads * (self.nope + self.v_dim), self.rank)
        self.o_proj = linear(hidden, self.heads * self.v_dim, 0.5 * (self.heads * self.v_dim) ** -0.5)

    def forward(self, x):
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, self.heads, -1).transpose(1, 2)
        latent, pe = self.kv_a_proj_with_mqa(x).split([self.rank, self.pe], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(b, t, self.heads, -1).transpose(1, 2)
        k, v = kv.split([self.nope, self.v_dim], -1)
        k = torch.cat([k, pe[:, None].expand(-1, self.heads, -1, -1)], -1)
        o = F.scaled_dot_product_attention(q, k, F.pad(v, (0, q.shape[-1] - self.v_dim)), is_causal=True)
        return self.o_proj(o[..., :self.v_dim].transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_proj, self.up_proj = linear(inner, hidden), linear(inner, hidden)
        self.down_proj = linear(hidden, inner, 0.5 * inner ** -0.5)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    """Sigmoid router: experts are chosen by biased scores and weighted by unbiased ones; one ungated shared expert."""

    def __init__(self, c):
        super().__init__()
        n, hidden, inner = c["num_experts"], c["hidden_size"], c["moe_intermediate_size"]
        self.top, self.scale = c["num_experts_per_token"], c["routed_scaling_factor"]
        self.gate = linear(n, hidden)
        self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("load", torch.zeros(n))
        self.w1 = nn.Parameter(torch.randn(n, inner, hidden) * hidden ** -0.5)
        self.w3 = nn.Parameter(torch.randn(n, inner, hidden) * hidden ** -0.5)
        self.w2 = nn.Parameter(torch.randn(n, hidden, inner) * 0.5 * inner ** -0.5)
        self.shared_experts = MLP(hidden, inner * c["num_shared_experts"])

    def forward(self, x):
        flat = x.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            s = torch.sigmoid(F.linear(flat.float(), self.gate.weight))
        chosen = (s + self.bias).topk(self.top, -1).indices
        w = s.gather(1, chosen)
        w = w / (w.sum(-1, keepdim=True) + 1e-20) * self.scale
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.w1))
        if self.training:
            self.load += counts
        rows = order // self.top
        inputs = flat[rows].split(counts.tolist())
        parts = [F.linear(F.silu(F.linear(y, a)) * F.linear(y, b), d)
                 for y, a, b, d in zip(inputs, self.w1, self.w3, self.w2)]
        y = torch.cat(parts).float() * w.flatten()[order, None]
        return torch.zeros_like(flat, dtype=torch.float32).index_add(0, rows, y).view_as(x) + self.shared_experts(x)

    @torch.no_grad()
    def balance(self, rate):
        """Auxiliary-loss-free balancing: lowers the bias of busy experts and raises that of idle ones."""
        self.bias += rate * torch.sign(self.load.mean() - self.load)
        self.bias -= self.bias.mean()
        self.load.zero_()


class Layer(nn.Module):
    def __init__(self, c, i):
        super().__init__()
        hidden, eps = c["hidden_size"], c["rms_norm_eps"]
        full = i + 1 in c["linear_attn_config"]["full_attn_layers"]
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.self_attn = LatentAttention(c) if full else KimiDeltaAttention(c)
        dense = i < c["first_k_dense_replace"]
        self.ffn_name = "mlp" if dense else "block_sparse_moe"
        setattr(self, self.ffn_name, MLP(hidden, c["intermediate_size"]) if dense else MoE(c))

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + getattr(self, self.ffn_name)(self.post_attention_layernorm(x))


class Kimi(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        hidden = config["hidden_size"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config["vocab_size"], hidden)
        nn.init.normal_(self.model.embed_tokens.weight, std=1.0)
        self.model.layers = nn.ModuleList(Layer(config, i) for i in range(config["num_hidden_layers"]))
        self.model.norm = RMSNorm(hidden, config["rms_norm_eps"])
        self.lm_head = linear(config["vocab_size"], hidden, 0.2 * hidden ** -0.5)

    def forward(self, ids):
        """The normalized last hidden states [B,T,hidden]; apply `lm_head` to those whose logits are needed."""
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return self.model.norm(x)

    def export(self, dtype=torch.bfloat16):
        """Tensors by the published names."""
        out = {}
        for name, x in self.state_dict().items():
            parts = name.split(".")
            if parts[-1] in ("w1", "w2", "w3"):
                for e, w in enumerate(x):
                    out[".".join(parts[:-1] + ["experts", str(e), parts[-1], "weight"])] = w
            elif name.endswith("block_sparse_moe.bias"):
                out[name.replace("bias", "gate.e_score_correction_bias")] = x
            elif not name.endswith(".load"):
                out[name] = x
        keep = lambda n: n.endswith(("A_log", "dt_bias"))
        return {n: (x.float() if keep(n) else x.to(dtype)).contiguous().clone() for n, x in out.items()}

    def load_exported(self, tensors):
        """The inverse of `export`."""
        state = {}
        for name, x in self.state_dict().items():
            parts = name.split(".")
            if parts[-1] in ("w1", "w2", "w3"):
                stem = ".".join(parts[:-1])
                state[name] = torch.stack([tensors[f"{stem}.experts.{e}.{parts[-1]}.weight"].float() for e in range(len(x))])
            elif name.endswith("block_sparse_moe.bias"):
                state[name] = tensors[name.replace("bias", "gate.e_score_correction_bias")].float()
            else:
                state[name] = tensors[name].float() if name in tensors else x
        self.load_state_dict(state)


def load_config(path):
    return json.loads(open(path).read())
