"""A stand-in for ArchScale's checkpoints: its tensors at small sizes, and its forward pass written out by hand.

Names, layouts and formulas are those of microsoft/ArchScale, release of March 2026. One sequence, float64, loops
over tokens and heads: what it computes can be read beside that code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
VOCAB = 320  # 256 bytes, the end of a document, and padding


@dataclass
class Sizes:
    """kinds: of each layer's mixer. experts: S, k, whether one is shared, square-root gates.

    post: skip paths are normalised, with gains of their own, and every fourth layer has a skip projection.
    """

    depth: int
    n: int
    heads: int
    groups: int
    head: int
    kinds: list[str]
    windows: list[int | None]
    mup: bool = False
    scaled_logits: bool = True
    tied: bool = False
    bias: bool = False
    rope: float | None = 10_000.0
    gated: bool = False
    qk_norm: bool = False
    layernorm: bool = False
    post: bool = False
    memory: str = "mamba"
    experts: tuple[int, int, bool, bool] | None = None
    state: State = field(default_factory=dict, init=False)

    @property
    def inner(self) -> int:  # of Mamba-2: whole heads of 64, a multiple of 8 of them
        return 512 * math.ceil(2 * self.n / 512)


def sambay(n_kinds: int, recurrent: str = "mamba", every: int = 2) -> list[str]:
    """Section 5.2 of the reference."""
    half = n_kinds // 2
    first = [recurrent if i % every == 0 else "attention" for i in range(half)]
    second = [recurrent, "attention"] + ["gmu" if i % 2 == 0 else "cross" for i in range(half + 2, n_kinds)]
    return first + second


def make(s: Sizes) -> State:
    """Tensors with ArchScale's names, each away from what would leave it out."""
    draw = torch.Generator().manual_seed(0)
    s.state = state = {}

    def put(name: str, *shape: int) -> None:
        noise = torch.randn(shape, generator=draw)
        state[name] = 1 + 0.3 * noise if len(shape) == 1 else noise * shape[-1] ** -0.5

    def norm(name: str, width: int) -> None:
        put(f"{name}.weight", width)
        if s.layernorm:
            put(f"{name}.bias", width)

    def linear(name: str, out: int, into: int, bias: bool = False) -> None:
        put(f"{name}.weight", out, into)
        if bias:
            put(f"{name}.bias", out)

    put("transformer.wte.weight", VOCAB, s.n)
    put("lm_head.weight", VOCAB, s.n)
    if s.tied:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    norm("transformer.ln_f", s.n)
    for i, kind in enumerate(s.kinds):
        block = f"transformer.h.{i}"
        norm(f"{block}.norm_1", s.n)
        norm(f"{block}.norm_2", s.n)
        if s.post:
            put(f"{block}.norm_1.weight1", s.n)
            put(f"{block}.norm_2.weight1", s.n)
            if i % 4 == 3:
                linear(f"{block}.skip_proj", s.n, s.n)
        MAKERS[kind](s, f"{block}.attn", put, linear)
        if s.experts is None:
            linear(f"{block}.mlp.w1", 8 * s.n, s.n, s.bias)
            linear(f"{block}.mlp.w3", s.n, 4 * s.n, s.bias)
        else:
            sparsity, k, shared, _ = s.experts
            count, width = sparsity * k - shared, 4 * s.n // k
            linear(f"{block}.mlp.router", count, s.n)
            put(f"{block}.mlp.mods_in.weight", count, 2 * width, s.n)
            put(f"{block}.mlp.mods_out.weight", count, s.n, width)
            if shared:
                linear(f"{block}.mlp.shared_mod_in", 2 * width, s.n)
                linear(f"{block}.mlp.shared_mod_out", s.n, width)
    return state


def _attention(s, name, put, linear) -> None:
    linear(f"{name}.q_proj", s.heads * s.head, s.n, s.bias)
    linear(f"{name}.k_proj", s.groups * s.head, s.n)
    linear(f"{name}.v_proj", s.groups * s.head, s.n, s.bias)
    _finish(s, name, linear)
    if s.qk_norm:
        put(f"{name}.q_norm.weight", s.head)
        put(f"{name}.k_norm.weight", s.head)


def _finish(s, name, linear) -> None:
    if s.gated:
        linear(f"{name}.g_proj", s.heads, s.n, s.bias)
    linear(f"{name}.proj", s.n, s.heads * s.head, s.bias)


def _cross(s, name, put, linear) -> None:
    linear(f"{name}.q_proj", s.heads * s.head, s.n, s.bias)
    _finish(s, name, linear)


def _differential(s, name, put, linear) -> None:
    _attention(s, name, put, linear)
    _lambdas(s, name, put)


def _differential_cross(s, name, put, linear) -> None:
    _cross(s, name, put, linear)
    _lambdas(s, name, put)


def _lambdas(s, name, put) -> None:
    for vector in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
        put(f"{name}.da.{vector}", s.head, 1)  # shaped as a matrix, so that it is around 0
        s.state[f"{name}.da.{vector}"] = s.state[f"{name}.da.{vector}"][:, 0] * 0.1
    put(f"{name}.da.subln.weight", 2 * s.head)


def _mamba(s, name, put, linear) -> None:
    rank = math.ceil(s.n / 16)
    linear(f"{name}.in_proj", 4 * s.n, s.n)
    put(f"{name}.conv1d.weight", 2 * s.n, 1, 4)
    put(f"{name}.conv1d.bias", 2 * s.n)
    linear(f"{name}.x_proj", rank + 32, 2 * s.n)
    linear(f"{name}.dt_proj", 2 * s.n, rank, True)
    put(f"{name}.A_log", 2 * s.n, 16)
    put(f"{name}.D", 2 * s.n)
    linear(f"{name}.out_proj", s.n, 2 * s.n)


def _mamba2(s, name, put, linear) -> None:
    heads = s.inner // 64
    linear(f"{name}.in_proj", 2 * s.inner + 256 + heads, s.n)
    put(f"{name}.conv1d.weight", s.inner + 256, 1, 4)
    put(f"{name}.conv1d.bias", s.inner + 256)
    for vector in ("dt_bias", "A_log", "D"):
        put(f"{name}.{vector}", heads)
    put(f"{name}.norm.weight", s.inner)
    linear(f"{name}.out_proj", s.n, s.inner)


def _gdn(s, name, put, linear) -> None:
    heads = math.ceil(int(0.75 * s.n) / 256)
    for part, width in (("q", 256), ("k", 256), ("v", 512)):
        linear(f"{name}.{part}_proj", heads * width, s.n)
        put(f"{name}.{part}_conv1d.weight", heads * width, 1, 4)
    linear(f"{name}.a_proj", heads, s.n)
    linear(f"{name}.b_proj", heads, s.n)
    put(f"{name}.A_log", heads)
    put(f"{name}.dt_bias", heads)
    linear(f"{name}.g_proj", heads * 512, s.n)
    put(f"{name}.norm.weight", heads * 512)
    linear(f"{name}.o_proj", s.n, heads * 512)


def _gmu(s, name, put, linear) -> None:
    width = {"mamba": 2 * s.n, "mamba2": s.inner, "gdn": math.ceil(int(0.75 * s.n) / 256) * 512}[s.memory]
    linear(f"{name}.gmu.in_proj", width, s.n, s.bias)
    linear(f"{name}.gmu.out_proj", s.n, width, s.bias)
    if s.memory != "mamba":
        put(f"{name}.gmu.norm.weight", width)


MAKERS = {
    "attention": _attention,
    "cross": _cross,
    "differential": _differential,
    "differential_cross": _differential_cross,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "gdn": _gdn,
    "gmu": _gmu,
}


def logits(state: State, s: Sizes, ids: list[int]) -> Tensor:
    """(T, vocabulary) in float64."""
    return _Pass({name: t.double() for name, t in state.items()}, s).run(torch.tensor(ids))


class _Pass:
    def __init__(self, w: State, s: Sizes):
        self.w, self.s = w, s
        self.kv: tuple[Tensor, Tensor] | None = None
        self.memory: Tensor | None = None

    def run(self, ids: Tensor) -> Tensor:
        s, x = self.s, self.w["transformer.wte.weight"][ids]
        factor = 1 / math.sqrt(2 * s.depth) if s.mup else 1.0
        for i, kind in enumerate(s.kinds):
            block = f"transformer.h.{i}"
            mixer = {"cross": self.attention, "differential": self.attention, "differential_cross": self.attention}
            mix = mixer.get(kind) or getattr(self, kind)
            h, skip = self.read(x, block, 1)
            x = skip + mix(h, f"{block}.attn", i) * factor
            h, skip = self.read(x, block, 2)
            x = skip + (self.mlp(h, f"{block}.mlp") if s.experts is None else self.moe(h, f"{block}.mlp")) * factor
        x = self.norm(x, "transformer.ln_f")
        x = x * (8 / s.depth if s.mup and s.scaled_logits else 1.0)
        return x @ self.w["lm_head.weight"].T

    def read(self, x: Tensor, block: str, half: int) -> tuple[Tensor, Tensor]:
        """What the branch reads, and what goes around it."""
        name = f"{block}.norm_{half}"
        if not self.s.post:
            return self.norm(x, name), x
        plain = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        skip = plain * self.w[f"{name}.weight1"]
        if half == 1 and f"{block}.skip_proj.weight" in self.w:
            skip = self.linear(skip, f"{block}.skip_proj")
        return plain * self.w[f"{name}.weight"], skip

    def norm(self, x: Tensor, name: str) -> Tensor:
        if self.s.layernorm:
            return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-5)
        return self.rms(x, name)

    def rms(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w[f"{name}.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def mlp(self, x: Tensor, name: str) -> Tensor:
        gate, up = self.linear(x, f"{name}.w1").chunk(2, -1)
        return self.linear(F.silu(gate) * up, f"{name}.w3")

    def moe(self, x: Tensor, name: str) -> Tensor:
        assert self.s.experts is not None
        _, k, shared, square_root = self.s.experts
        scores = self.linear(x, f"{name}.router") * (8 / self.s.depth if self.s.mup and self.s.scaled_logits else 1.0)
        rows = []
        for token, row in zip(x, scores):
            best = row.topk(k - shared)
            gates = best.values.softmax(-1)
            gates = gates.sqrt() if square_root else gates
            y = torch.zeros_like(token)
            for g, expert in zip(gates, best.indices):
                h = self.w[f"{name}.mods_in.weight"][expert] @ token
                y = y + g * (self.w[f"{name}.mods_out.weight"][expert] @ (F.silu(h[::2]) * h[1::2]))
            rows.append(y)
        out = torch.stack(rows)
        if shared:
            gate, up = self.linear(x, f"{name}.shared_mod_in").chunk(2, -1)
            own = self.linear(F.silu(gate) * up, f"{name}.shared_mod_out")
            out = (out + own) * (0.5**0.5 if square_root else 1.0)
        return out

    def attention(self, x: Tensor, name: str, layer: int) -> Tensor:
        s, kind = self.s, self.s.kinds[layer]
        q = self.linear(x, f"{name}.q_proj").unflatten(-1, (s.heads, s.head))
        own = not kind.endswith("cross")
        if own:
            k, v = (self.linear(x, f"{name}.{p}_proj").unflatten(-1, (s.groups, s.head)) for p in "kv")
            if s.qk_norm:
                q, k = self.rms(q, f"{name}.q_norm"), self.rms(k, f"{name}.k_norm")
            self.kv = (self.rotated(k), v)
        assert self.kv is not None
        k, v = self.kv
        q = self.rotated(q)
        scale = math.sqrt(128) / s.head if s.mup else 1 / math.sqrt(s.head)
        T = len(x)
        far = torch.arange(T)[:, None] - torch.arange(T)
        window = s.windows[layer]
        hidden = (far < 0) | (far >= (window or T))

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            """Of (T, H, D), (T, G, D) and (T, G, E)."""
            share = q.shape[1] // k.shape[1]
            heads = []
            for h in range(q.shape[1]):
                scores = (q[:, h] @ k[:, h // share].T * scale).masked_fill(hidden, -math.inf)
                heads.append(scores.softmax(-1) @ v[:, h // share])
            return torch.stack(heads, 1)

        if kind.startswith("differential"):
            da = f"{name}.da."
            first = attend(q[:, 0::2], k[:, 0::2], torch.cat([v[:, 0::2], v[:, 1::2]], -1))
            second = attend(q[:, 1::2], k[:, 1::2], torch.cat([v[:, 0::2], v[:, 1::2]], -1))
            start = 0.8 - 0.6 * math.exp(-0.3 * layer)
            one, two = ((self.w[f"{da}lambda_q{i}"] * self.w[f"{da}lambda_k{i}"]).sum().exp() for i in (1, 2))
            y = self.rms(first - (one - two + start) * second, f"{da}subln") * (1 - start)
            y = y.unflatten(-1, (2, s.head)).flatten(1, 2)
        else:
            y = attend(q, k, v)
        if s.gated:
            y = y * self.linear(x, f"{name}.g_proj").sigmoid()[..., None]
        return self.linear(y.flatten(1), f"{name}.proj")

    def rotated(self, x: Tensor) -> Tensor:
        """Half-split: dimension j with j + half."""
        if self.s.rope is None:
            return x
        half = x.shape[-1] // 2
        angles = torch.arange(len(x)).double()[:, None] * self.s.rope ** (-torch.arange(half).double() / half)
        cos, sin, a, b = angles.cos()[:, None], angles.sin()[:, None], x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def conv(self, x: Tensor, name: str) -> Tensor:
        """Depthwise, causal, four taps, then silu."""
        padded = F.pad(x.T[None], (3, 0))
        y = F.conv1d(padded, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), groups=x.shape[1])
        return F.silu(y[0].T)

    def mamba(self, x: Tensor, name: str, layer: int) -> Tensor:
        x, z = self.linear(x, f"{name}.in_proj").chunk(2, -1)
        x = self.conv(x, f"{name}.conv1d")
        rank = self.w[f"{name}.dt_proj.weight"].shape[1]
        low, B, C = self.linear(x, f"{name}.x_proj").split([rank, 16, 16], -1)
        dt = F.softplus(self.linear(low, f"{name}.dt_proj"))
        A = -self.w[f"{name}.A_log"].exp()
        h, rows = torch.zeros_like(A), []
        for t in range(len(x)):
            h = (dt[t, :, None] * A).exp() * h + (dt[t] * x[t])[:, None] * B[t]
            rows.append(h @ C[t] + self.w[f"{name}.D"] * x[t])
        self.memory = torch.stack(rows)
        return self.linear(self.memory * F.silu(z), f"{name}.out_proj")

    def mamba2(self, x: Tensor, name: str, layer: int) -> Tensor:
        inner, heads = self.s.inner, self.s.inner // 64
        z, xBC, dt = self.linear(x, f"{name}.in_proj").split([inner, inner + 256, heads], -1)
        x, B, C = self.conv(xBC, f"{name}.conv1d").split([inner, 128, 128], -1)
        dt, A = F.softplus(dt + self.w[f"{name}.dt_bias"]), -self.w[f"{name}.A_log"].exp()
        x = x.unflatten(-1, (heads, 64))
        h, rows = torch.zeros(heads, 64, 128).double(), []
        for t in range(len(x)):
            h = (dt[t] * A).exp()[:, None, None] * h + (dt[t][:, None] * x[t])[..., None] * B[t]
            rows.append((h @ C[t] + self.w[f"{name}.D"][:, None] * x[t]).flatten())
        self.memory = torch.stack(rows)
        return self.linear(self.rms(self.memory * F.silu(z), f"{name}.norm"), f"{name}.out_proj")

    def gdn(self, x: Tensor, name: str, layer: int) -> Tensor:
        q, k, v = (self.conv(self.linear(x, f"{name}.{p}_proj"), f"{name}.{p}_conv1d") for p in "qkv")
        q, k, v = q.unflatten(-1, (-1, 256)), k.unflatten(-1, (-1, 256)), v.unflatten(-1, (-1, 512))
        q, k = (p / (p.square().sum(-1, keepdim=True) + 1e-6).sqrt() for p in (q, k))
        beta = 2 * self.linear(x, f"{name}.b_proj").sigmoid()
        a = self.linear(x, f"{name}.a_proj") + self.w[f"{name}.dt_bias"]
        g = -self.w[f"{name}.A_log"].exp() * F.softplus(a)
        S, rows = torch.zeros(q.shape[1], 256, 512).double(), []
        for t in range(len(x)):
            S = g[t].exp()[:, None, None] * S
            error = v[t] - torch.einsum("hk,hkv->hv", k[t], S)
            S = S + torch.einsum("hk,hv->hkv", k[t], beta[t][:, None] * error)
            rows.append(torch.einsum("hk,hkv->hv", q[t] * 256**-0.5, S).flatten())
        self.memory = torch.stack(rows)
        y = self.memory * F.silu(self.linear(x, f"{name}.g_proj"))
        return self.linear(self.rms(y, f"{name}.norm"), f"{name}.o_proj")

    def gmu(self, x: Tensor, name: str, layer: int) -> Tensor:
        assert self.memory is not None
        y = F.silu(self.linear(x, f"{name}.gmu.in_proj")) * self.memory
        if self.s.memory != "mamba":
            y = self.rms(y, f"{name}.gmu.norm")
        return self.linear(y, f"{name}.gmu.out_proj")
