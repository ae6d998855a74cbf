"""Muon for the matrices between embedding and head, AdamW for all other parameters."""
import torch
import torch.distributed as dist


class Muon(torch.optim.Optimizer):
    """Momentum with updates orthogonalised by Newton-Schulz iteration (Jordan et al. 2024); each stacked expert is a matrix of
    its own. Matrices of equal shape are batched."""

    def __init__(self, params, lr, momentum=0.95, decay=0.01):
        super().__init__(params, dict(lr=lr, base=lr, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(m, group["momentum"]).view(-1, *p.shape[-2:])
                shapes.setdefault(p.shape[-2:], []).append((p, g))
            for (rows, cols), members in shapes.items():
                steps = shared_out(torch.cat([g for _, g in members]))
                scale = group["lr"] * max(1, rows / cols) ** 0.5
                for (p, _), u in zip(members, steps.split([len(g) for _, g in members])):
                    p.mul_(1 - group["lr"] * group["decay"]).add_(u.view_as(p), alpha=-scale)


def shared_out(g):
    """`orthogonal` of a batch, with the matrices divided among the workers."""
    if not dist.is_initialized():
        return orthogonal(g).float()
    rank, workers = dist.get_rank(), dist.get_world_size()
    out = torch.zeros_like(g)
    share = slice(rank * len(g) // workers, (rank + 1) * len(g) // workers)
    out[share] = orthogonal(g[share])
    dist.all_reduce(out)
    return out


def orthogonal(g, steps=5):
    """Approximates the nearest orthogonal matrices of a batch."""
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.mT if tall else x


def optimizers(model, lr, adam_lr):
    matrices, others = [], []
    for name, p in model.named_parameters():
        hidden = p.ndim >= 2 and min(p.shape[-2:]) >= 64 and not name.startswith(("model.embed", "lm_head"))
        (matrices if hidden else others).append(p)
    adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    for group in adam.param_groups:
        group["base"] = adam_lr
    return Muon(matrices, lr), adam
