"""Which method trains which role under each optimizer, how its steps grow with width, and constants of its own.

| optimizer | matrix, expert, router | head | embedding, vector, conv |
|---|---|---|---|
| adamw | adamw | adamw | adamw |
| muon, normuon, muonball, rmnp | the method of that name | adamw | adamw |
| dmuon | muon | adamw | adamw |
| muonh | muonh | adamh | adamw |
| hadam | nadam | adamw | adamw |
| lion | lion | lion | lion |
| torch_muon, galore, conda, apollo, apollo_mini, shampoo | the method of that name | adamw | adamw |

adamh goes along AdamW's direction on a hypersphere. Any other optimizer trains every role in its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_gpt.scaling.base import LEARNED_ROLES

HIDDEN = ("matrix", "expert", "router")  # both dimensions grow with width, but for a router's rows
ORTHOGONAL = ("muon", "normuon", "muonh", "muonball")  # a step's spectral norm is the same at any width
WITH_MOMENTUM = (*ORTHOGONAL, "dmuon", "rmnp")  # their momentum is the Plan's
ON_A_SPHERE = ("muonh", "adamh", "muonball")  # the norm is held, so there is nothing to decay
KEEPS_ITS_START = ("muonh", "adamh")  # the norm is the initial one: zero stays zero

METHODS: dict[str, dict[str, str]] = {
    "adamw": {},
    "hadam": dict.fromkeys(HIDDEN, "nadam"),
    "lion": dict.fromkeys(LEARNED_ROLES, "lion"),
    "muonh": {**dict.fromkeys(HIDDEN, "muonh"), "head": "adamh"},
    "dmuon": dict.fromkeys(HIDDEN, "muon"),
    **{name: dict.fromkeys(HIDDEN, name) for name in ("muon", "normuon", "muonball", "rmnp")},
}
CAUTIOUS = tuple(METHODS)  # these know cautious weight decay
METHODS |= {
    name: dict.fromkeys(HIDDEN, name) for name in ("torch_muon", "galore", "conda", "apollo", "apollo_mini", "shampoo")
}

# How a step's effect grows with the width n at one rate, as powers of n for (matrix and expert, router): what
# muP's rates undo. A step may change outputs of size 1 by a constant, so its spectral norm has to go as
# sqrt(R / C) of an R x C map (arXiv:2310.17813): not at all for matrices, whose sides grow together, and as
# n^-1/2 for routers, whose R is fixed. Every singular value of an orthogonal matrix is 1, so its spectral norm
# is its factor. Rows of fixed length and Adam's entries of fixed size line up with the n inputs instead
# (arXiv:2203.03466), and give sqrt(n) and n. Measured as coord_check does, widths 64 to 512 under muP: with
# factors 1, n^-1/2 and 1/n on matrices the stream of rmnp changes as n^0.9, n^-0.1, n^-0.6 (16 steps), that of dmuon
# with the other rates near 0 as n^0.4, n^-0.1, n^-0.6 (2 steps).
GROWTH: dict[str, tuple[float, float]] = {
    "spectral": (0, 0),  # orthogonal times sqrt(R / C)
    "clip": (0, 0.5),  # times max(1, sqrt(R / C)), for routers 1
    "original": (0, 0.5),  # the same under torch's name
    "none": (0, 0.5),
    "rms": (0.5, 1),  # times 0.2 sqrt(max(R, C)): entries as large as AdamW's, which do not line up
    "match_rms_adamw": (0.5, 1),
    "rows": (0.5, 0.5),  # rows of length max(1, sqrt(R / C))
    "adam": (1, 1),
}
STEPS = {
    **dict.fromkeys((*ORTHOGONAL, "scion", "scion_light"), "spectral"),
    "torch_muon": "original",
    "mars_shampoo": "clip",
    "dmuon": "rms",
    "rmnp": "rows",
}
# These step tables in ways of their own, where muP counts on Adam's entries of size 1 and multiplies logits by 1 / n.
# Scion: signs over C = n, in both. MARS-Shampoo: V x n orthogonal times sqrt(V / n), so entries of n^-1/2 and a
# spectral norm that needs no multiplier.
TABLES: dict[str, dict[str, float]] = {
    **{name: {"embedding": -1.0, "head": -1.0} for name in ("scion", "scion_light")},
    "mars_shampoo": {"embedding": -0.5, "head": -1.0},
}

# Constants that differ from the Plan's: what they multiply is not what Adam's multiply, or the optimizer's paper
# says that they matter. None is the Plan's.
OWN: dict[str, dict[str, Any]] = {
    "adabelief": {"eps": 1e-16},  # on the variance too, which is far smaller than Adam's second moment
    "adopt": {"eps": 1e-6},
    "adan": {"betas": (0.98, 0.92, 0.99)},  # of the gradient, its differences, and squares
    "ademamix": {"betas": (None, None, 0.999)},  # the third is of the slow momentum
    "torch_muon": {"eps": 1e-7},  # on the norm that Newton-Schulz divides by
    "came": {"betas": (None, None, 0.9999)},  # of the confidence
}


def method_of(optimizer: str, role: str) -> str:
    """The method that trains a role."""
    return METHODS[optimizer].get(role, "adamw") if optimizer in METHODS else optimizer


def steps_of(optimizer: str, args: Mapping[str, Any]) -> str:
    """How long the steps of an optimizer are for matrices, a key of GROWTH. args: --optimizer_args."""
    own = STEPS.get(optimizer, "adam")
    given = args.get("adjust_lr_fn" if optimizer == "torch_muon" else "adjust")
    return given if own != "adam" and isinstance(given, str) and given in GROWTH else own


def growth(optimizer: str, args: Mapping[str, Any]) -> dict[str, float]:
    """Role -> power of the width with which the effect of a step grows; see GROWTH."""
    matrix, router = GROWTH[steps_of(optimizer, args)]
    hidden = {"matrix": matrix, "expert": matrix, "router": router}
    return dict.fromkeys(LEARNED_ROLES, 0.0) | hidden | TABLES.get(optimizer, {})


def constants(
    optimizer: str, args: Mapping[str, Any], betas: tuple[float, float], eps: float
) -> tuple[tuple[float, ...], float]:
    """(betas, eps) of an optimizer: as --optimizer_args give them, else its own, else the Plan's, which are passed."""
    own = {**OWN.get(optimizer, {}), **args}
    planned = own.get("betas", betas)
    return tuple(b if b is not None else betas[i] for i, b in enumerate(planned)), own.get("eps", eps)
