"""What ArchScale (microsoft/ArchScale, release of March 2026) plans: its formulas in plain Python, without lit_gpt.

`plan(case)` is ArchScale's; `plan(case, {numbers})` is what it would be with those departures of docs/departures.md.
benchmarks/departures.py compares it, with all of them, to the Plans of this project. Families: transformer,
transformer_gqa4_w8, transformer_gqa4_h2_moe, transformer_gqa4_moe, sambay.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, sqrt
from typing import Any

VOCABULARY = 32000
# Departures that change a number of a Plan, as docs/departures.md numbers them.
TYING, COUNT, DECAY_DEFAULT, MUON_ALONE, WARMUP_GIVEN = 33, 34, 38, 47, 41
LAST_STEP, MICRO_BATCH, RATE_SCALE, EPS, VECTORS_OFF_SPHERE = 42, 27, 51, 48, 50
DECAY_GIVEN, DECAY_OF_VECTORS = 39, 37
ALL = frozenset(
    {TYING, COUNT, DECAY_DEFAULT, MUON_ALONE, WARMUP_GIVEN, LAST_STEP, MICRO_BATCH, RATE_SCALE, EPS}
    | {VECTORS_OFF_SPHERE, DECAY_GIVEN, DECAY_OF_VECTORS}
)


@dataclass(frozen=True)
class Case:
    """What was typed. hps: base hyper-parameters that were given. ranks: processes."""

    train_name: str
    family: str
    depth: int
    ar: int | None = None
    sparsity: int = 8
    top_k: int = 8
    shared: bool = False
    ctx_len: int = 4096
    micro_bsz: int = 2
    ranks: int = 1
    total_bsz: float | None = None
    max_tokens: float | None = None
    hps: dict[str, Any] = field(default_factory=dict)

    @property
    def experts(self) -> bool:
        """Whether the family is a mixture of experts."""
        return self.family.endswith("_moe")


@dataclass(frozen=True)
class Shape:
    """One depth of a family: width n, heads H of h, key-value heads K, hidden width I."""

    depth: int
    n: int
    heads: int
    head_dim: int
    kv_heads: int
    hidden: int


DEFAULTS = {"d0": 8, "eta0": 6e-4, "b0": 2**21, "t0": 9.5e9, "hd0": 128, "weight_decay": 0.1, "eps": 1e-8}
DEFAULTS |= {"warmup_tokens": 1e9, "beta1": 0.9, "beta2": 0.95, "muon_beta": 0.95, "min_lr_mult": 0.0}
DEFAULTS |= {"w_init_scale": 1.0, "weight_lr_scale": 1.0}


def shape(case: Case, depth: int) -> Shape:
    """Widths of the family at a depth; --ar is that of the target and of the base."""
    ratio = case.ar or (124 if case.family == "sambay" else 128)
    wide = 2 if "_h2" in case.family else 1
    fixed = wide == 2 or case.family == "sambay"  # their heads have 128 at any aspect ratio
    n, heads = ratio * depth, wide * depth
    kv_heads = 4 if "gqa4" in case.family else depth // 4
    return Shape(depth, n, heads, 128 if fixed else n // heads, kv_heads, (32 if "_w8" in case.family else 4) * n)


def formula(case: Case, depth: int) -> float:
    """ArchScale's count of parameters: a cubic in the depth, and attention where the name says transformer."""
    s = shape(case, depth)
    ratio = s.n / depth
    dense = "transformer" in case.family
    count = (12 * ratio**2 if dense else 14.5 * ratio**2 + 144 * ratio) * depth**3
    if "v2scale" in case.train_name:
        count += s.n * VOCABULARY * (1 if "_tie" in case.train_name else 2)
    return count + (2 * ratio * depth**2 * (s.heads + s.kv_heads) * s.head_dim if dense else 0)


def actual(case: Case, depth: int) -> int:
    """The parameters that a token uses, layer by layer."""
    s, name = shape(case, depth), f"_{case.train_name}_"
    n, inner, rank = s.n, 2 * s.n, ceil(s.n / 16)
    mlp = 3 * n * s.hidden  # gate, up and down; of experts the k that are used
    mlp += n * (case.sparsity * case.top_k - case.shared) if case.experts else 0  # router
    query = 2 * n * s.heads * s.head_dim  # and output
    gate = n * s.heads if "_ga_" in name else 0
    norms = 2 * s.head_dim if "_qknorm_" in name else 0
    full = query + 2 * n * s.kv_heads * s.head_dim + gate + norms
    cross = query + gate + norms // 2
    mamba = 2 * n * inner + 4 * inner + inner  # in_proj; kernels of 4 taps, with a bias
    mamba += inner * (rank + 2 * 16) + rank * inner + inner  # x_proj; dt_proj, with a bias
    mamba += inner * 16 + inner + inner * n  # A_log; D; out_proj
    unit = n * inner + inner * n  # gate and output of a Gated Memory Unit
    half = depth // 2
    mixers = depth * full
    if case.family == "sambay":
        # Recurrent at 0, 2, ..., m; windows at the odd layers below m; full attention at m + 1; then units and cross.
        mixers = (half // 2 + 1) * mamba + half // 2 * full + full + (half // 2 - 1) * (unit + cross)
    tables = n * VOCABULARY * (1 if "_tie_" in name else 2) if "v2scale" in case.train_name else 0
    return mixers + depth * (mlp + 2 * n) + n + tables


def plan(case: Case, departures: Collection[int] = ()) -> dict[str, Any]:
    """Field -> value: ArchScale's chain from the base to every parameter group, with some departures."""
    name, d, hps = case.train_name, case.depth, {**DEFAULTS, **case.hps}
    muonh, muon, ball = "muonh" in name, "muon" in name, "muonball" in name
    mup, original = "mup" in name or muonh, "_ori_mup" in name
    trains_muon = muon and (mup or MUON_ALONE in departures)
    width = hps["d0"] / d  # ArchScale's ratio of widths
    micro = case.micro_bsz if case.ctx_len == 4096 or MICRO_BATCH in departures else 1
    multiple = case.ranks * micro * case.ctx_len
    batch = int(((case.total_bsz or hps["b0"]) + multiple // 2) // multiple) * multiple
    count = actual if COUNT in departures else formula
    sizes = [count(case, depth) for depth in (d, int(hps["d0"]))]
    tokens = int(case.max_tokens or Fraction(hps["t0"]) * Fraction(sizes[0]) / Fraction(sizes[1]))
    rate = hps["eta0"] * sqrt(batch / hps["b0"])
    rate *= sqrt(width) if mup and not original else 1
    rate *= (tokens / hps["t0"]) ** -0.32 if muonh else 1
    matrix_rate = rate * (width if mup and not muon else 1)
    hybrid = mup and ("hadam" in name or ball)
    matrix_rate *= hps["weight_lr_scale"] if hybrid or RATE_SCALE in departures else 1
    base_decay = _decay(case, hps, departures)
    decay = base_decay * (width if muon and (mup or MUON_ALONE not in departures) else 1)
    table_decay = base_decay if mup and DECAY_OF_VECTORS in departures else decay
    spheres = muonh or ball
    warmup_is_given = WARMUP_GIVEN in departures and "warmup_tokens" in case.hps
    full_at_once = "midtrain" in name or (muon and not warmup_is_given)
    warmup = 0.0 if full_at_once else hps["warmup_tokens"]
    warmup = warmup / hps["t0"] * tokens if "super_mup" in name else warmup
    return {
        "parameters": sizes[0],
        "base parameters": sizes[1],
        "tokens": tokens,
        "batch": batch,
        "steps": ceil(tokens / batch) if LAST_STEP in departures else tokens // batch,
        "warm-up": warmup,
        "rate of embedding, head, vectors": rate,
        "rate of matrices": matrix_rate,
        "decay of embedding, vectors": 0.0 if mup and not original else table_decay,
        "decay of head": 0.0 if muonh or (mup and not original) else table_decay,
        "decay of matrices": 0.0 if spheres else decay,
        "independent decay": "v2scale" in name,
        "betas": (hps["beta1"], hps["beta2"]),
        "betas follow the schedule": "super_mup" in name,
        "momentum": hps["muon_beta"],
        "eps": hps["eps"] if EPS in departures or not trains_muon else 1e-8,
        **_schedule(name),
        "final rate": hps["min_lr_mult"],
        "label smoothing": 0.1 if "_ls_" in name else 0.0,
        "largest gradient norm": 1.0,
        "context": case.ctx_len,
        **_methods(case, departures, trains_muon),
        **_multipliers(case, hps, mup, original),
        **_starts(case, mup, trains_muon, departures),
    }


def _decay(case: Case, hps: dict[str, float], departures: Collection[int]) -> float:
    """The base's weight decay: none on spheres, whatever was given."""
    sphere = "muonh" in case.train_name or "muonball" in case.train_name
    if "weight_decay" in case.hps and (DECAY_GIVEN in departures or not sphere):
        return hps["weight_decay"]
    if sphere:
        return 0.0
    return 4e-5 if "v2scale" in case.train_name and DECAY_DEFAULT in departures else hps["weight_decay"]


def _schedule(name: str) -> dict[str, Any]:
    """Name, shape of the tail after a stable part, and the tail's share of what follows warm-up."""
    tail = "cosine" if "wsd" in name and "cosine" in name else "linear"
    kind = "wsd" if "wsd" in name else "cosine" if "cosine" in name else "linear"
    return {"schedule": (kind, tail, 2 / 7)}


def _methods(case: Case, departures: Collection[int], trains_muon: bool) -> dict[str, str]:
    """Who trains what."""
    name = case.train_name
    kinds = [kind for kind in ("muonh", "muonball", "muon") if kind in name]
    matrices = kinds[0] if trains_muon else "nadam" if "hadam" in name and "mup" in name else "adamw"
    sphere = matrices == "muonh"
    on_sphere = sphere and case.family == "sambay" and VECTORS_OFF_SPHERE not in departures
    return {
        "method of matrices": matrices,
        "method of head": "adamh" if sphere else "adamw",
        "method of vectors": "adamw, A_log adamh" if on_sphere else "adamw",
        "method of embedding": "adamw",
    }


def _multipliers(case: Case, hps: dict[str, float], mup: bool, original: bool) -> dict[str, Any]:
    """Constants of the forward pass."""
    d, h, name = case.depth, shape(case, case.depth).head_dim, case.train_name
    return {
        "logits times": hps["d0"] / d if mup and "muonh" not in name else 1.0,
        "branches times": 1 / sqrt(2 * d) if (mup and not original) or "_dsca_" in name else 1.0,
        "softmax scale": sqrt(hps["hd0"]) / h if mup else h**-0.5,
        "router logits times": hps["d0"] / d if mup and "muon" not in name else 1.0,
    }


def _starts(case: Case, mup: bool, trains_muon: bool, departures: Collection[int]) -> dict[str, Any]:
    """Initial distributions: N(0, std) as ("normal", std, gain), U(+-1/sqrt(fan_in)) as ("fan_in_uniform", 0, gain)."""
    tied = "_tie" in case.train_name
    matrix = ("fan_in_uniform", 0.0) if mup else ("normal", 0.02)
    shrunk = mup and tied and TYING not in departures
    gain = case.hps.get("w_init_scale", 1.0)
    return {
        "start of embedding": ("normal", 0.02 if tied else 1e-4, 1.0),
        "start of head": ("normal", 0.02, gain),
        "start of matrices": (*matrix, gain),
        "start of projections": (*matrix, gain / sqrt(2 * case.depth) if shrunk else gain),
        "start of experts": (*matrix, gain),
        "start of routers": (*(matrix if mup and trains_muon else ("normal", 0.02)), gain),
        "start of convolutions": ("fan_in_uniform", 0.0, 1.0),
    }
