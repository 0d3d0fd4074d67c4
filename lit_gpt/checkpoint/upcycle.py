"""Upcycling: a dense model's checkpoint as the start of the same model with mixtures of experts (arXiv:2212.05055).

Experts are k times narrower than the dense network (see nn.moe), so it is cut into k slices of its hidden units, whose
outputs sum to its own, and each expert is a copy of one: arXiv:2410.07524, section 3, "virtual groups".

- A group is K experts in a row, one of each slice; shared experts are the last slices. What is
  left over at the end copies the first slices once more and joins the last group.
- The router's rows are the same within a group, so the K best experts of a token are one whole group: equal scores go
  to the lower index, and so does what is left over.
- Gates that sum to 1 are then 1/K each, under sqrt_gate K^-1/2. Down projections are divided by them.

Rows are equal, but that does not make scores equal: a matrix product may add up each column in another order. So a
row is c (e_a - e_b), with c a power of two: both products are exact, and a sum of two terms has one value in any order.
Groups have coordinates a and b of their own, and c keeps the rows about as long as those that were drawn: a very
sparse random projection (Li, Hastie and Church, 2006), and a router like any other once it learns. It spreads tokens as
evenly as dense rows do: on a trained model of width 32 the largest of 4 and 8 groups had 2.3 and 3.9 times the mean,
with dense rows 2.3 and 3.7 (means over 4 layers and 40 draws).

Megatron-LM repeats dense random rows instead, whose scores may differ in their last bits, and spreads the factor over
all maps of an expert, as its cube root.

Shapes: E routed experts, K of them per token, k slices (K, and one for each shared expert), G groups, N = n width,
H hidden width of an expert, M rows of its up projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gpt.checkpoint.forward_pass import forward_pass, model_of
from lit_gpt.checkpoint.state import Tensors
from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts, hidden_width
from lit_gpt.nn.router import choose_experts, choose_tokens
from lit_gpt.ops.expert_activation import MAPS
from lit_gpt.scaling.base import Multipliers
from lit_gpt.scaling.plan import difference
from lit_gpt.utils.files import understood

# Of the forward pass: what --init_from may change in any model, as for a longer context.
FREE = ("window", "rope_base", "yarn_scale", "yarn_context", "yarn_truncate", "yarn_windows")
SAMPLES = 4096  # tokens that the mean gate is estimated on: to a percent or so


class Upcycling(NamedTuple):
    """What is made of a dense checkpoint; no mixtures where it is of the same kind as the model.

    mixtures: name in the model -> the layer. unlike: why logits are not the dense model's at the start.
    """

    mixtures: dict[str, MixtureOfExperts]
    unlike: tuple[str, ...] = ()

    def dense_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the dense networks' tensors, by name."""
        return {n: s for name, moe in self.mixtures.items() for n, s in _dense_shapes(name, moe).items()}

    def owns(self, name: str) -> bool:
        """Whether a tensor of the model belongs to a mixture."""
        return any(name.startswith(f"{mixture}.") for mixture in self.mixtures)

    def said(self, others: int) -> str:
        """A sentence about it. others: how many tensors were copied as they are."""
        e, count = next(iter(self.mixtures.values())).experts, len(self.mixtures)
        what = f"slices of 1/{e.top_k}" if e.top_k > 1 else "whole copies"
        copies, more = divmod(e.routed, e.active)
        each = f"{copies} or {copies + 1} of each" if more else f"{copies} of each"
        factors = sorted({f"{_factors(moe)[0]:.4g}" for moe in self.mixtures.values()})
        shared = f", and {count * e.shared} shared experts" if e.shared else ""
        start = "logits at the start equal the dense model's"
        if self.unlike:
            start = f"the start is not exact: {'; '.join(self.unlike)}"
        return (
            f"init_from: {count} dense feed-forward networks became {count} x {e.routed} experts ({what}, {each}, down "
            f"projections times {' or '.join(factors)}){shared}; routers start anew; {others} other tensors copied; "
            f"{start}."
        )


def upcycling(path: Path, meta: Mapping[str, Any], model: nn.Module) -> Upcycling:
    """What has to be made of the checkpoint that `meta` describes.

    Raises UserError for a dense model that is not the model's own but for its experts.
    """
    if not isinstance(model, GPT) or model.config.experts is None or "model" not in meta:
        return Upcycling({})
    config = model.config
    with understood(path):
        if meta["model"].get("experts"):
            return Upcycling({})
        dense = model_of(meta)
    fixed, free, multipliers = zip(_description(*dense), _description(config, model.multipliers))
    _check_same(path, difference(*fixed))
    _check_slices(path, config, model.config.experts.top_k)
    mixtures = {name: m for name, m in model.named_modules() if isinstance(m, MixtureOfExperts)}
    changed = difference(*free) + difference(*multipliers, "multipliers")
    return Upcycling(mixtures, (*_unlike_gates(model.config.experts), *changed))


def _description(config: ModelConfig, multipliers: Multipliers) -> tuple[dict[str, Any], ...]:
    """(what must agree, what need not but changes logits, the multipliers) of a model without its experts, by name."""
    layers = tuple(replace(spec, experts=False) for spec in config.layers)
    forward = forward_pass(config.replace(layers=layers, experts=None), multipliers)
    values = forward["model"] | {"intermediate_size": config.intermediate_size}  # which is cut into slices
    free = {name: value for name, value in values.items() if name.rpartition(".")[2] in FREE}
    return {name: value for name, value in values.items() if name not in free}, free, forward["multipliers"]


def _check_same(path: Path, wrong: list[str], shown: int = 6) -> None:
    if wrong:
        more = f" and {len(wrong) - shown} more" if len(wrong) > shown else ""
        raise UserError(
            f"{path} is a dense model, and only its own mixture of experts can start from it. There -> here: "
            f"{', '.join(wrong[:shown])}{more}. Give the dense run's options beside those of experts."
        )


def _check_slices(path: Path, config: ModelConfig, k: int) -> None:
    width, squared = config.intermediate_size, any(s.experts and s.ffn == "relu2" for s in config.layers)
    if squared and 3 * width // 2 != k * hidden_width(config, "relu2"):
        raise UserError(
            f"{path} has relu2 networks of {3 * width // 2} hidden units, which are not {k} slices of one size. Give a "
            f"--top_k with which {width} / top_k is even."
        )


def _unlike_gates(e: Experts) -> list[str]:
    """Why the experts of a token do not sum to the dense network."""
    choice, some = e.routing == "expert_choice", e.routed > e.active
    reasons = {
        "experts choose tokens, so a token may have more or fewer than one of each slice": choice and some,
        "gates of router_gate all change from token to token, and only their mean is undone": (
            not choice and e.gate == "all" and some
        ),
        f"expert_capacity {e.capacity} drops tokens": e.capacity is not None and e.capacity * e.active < e.routed,
    }
    return [reason for reason, holds in reasons.items() if holds]


def _dense_shapes(name: str, moe: MixtureOfExperts) -> dict[str, tuple[int, ...]]:
    n, wide = moe.down.shape[1], moe.down.shape[2] * moe.experts.top_k
    return {f"{name}.up.weight": (MAPS[moe.kind] * wide, n), f"{name}.down.weight": (n, wide)}


def dense_places(name: str, moe: MixtureOfExperts) -> Tensors:
    """Room for the dense network of one layer, whole and on the host, by its names in the checkpoint."""
    return {n: torch.empty(shape, dtype=moe.down.dtype) for n, shape in _dense_shapes(name, moe).items()}


@torch.no_grad()
def mixture_of(name: str, moe: MixtureOfExperts, dense: Tensors) -> Tensors:
    """The whole tensors of a layer by name, made of its dense network; selection biases stay as they are.

    The router that was drawn says how long the new one's rows are, and in which order it uses coordinates.
    """
    k, maps, (_, n, hidden) = moe.experts.top_k, MAPS[moe.kind], moe.down.shape
    up_kMN = dense[f"{name}.up.weight"].view(maps, k, hidden, n).transpose(0, 1).reshape(k, maps * hidden, n)
    down_kNH = dense[f"{name}.down.weight"].view(n, k, hidden).transpose(0, 1)
    group_E, slice_E = groups(moe.experts)
    routed, shared = _factors(moe)
    made = {"router.weight": _rows(moe, group_E), "up": up_kMN[slice_E], "down": down_kNH[slice_E] * routed}
    if moe.shared is not None:  # the last slices, side by side: gates of all of them, then up maps of all of them
        s = int(moe.experts.shared)
        up_MN = up_kMN[-s:].reshape(s, maps, hidden, n).transpose(0, 1).reshape(-1, n)
        made |= {"shared.up.weight": up_MN, "shared.down.weight": down_kNH[-s:].transpose(0, 1).reshape(n, -1) * shared}
    return {f"{name}.{part}": tensor for part, tensor in made.items()}


def groups(e: Experts) -> tuple[Tensor, Tensor]:
    """Which group each routed expert is in, and which slice it has; both (E,)."""
    index_E = torch.arange(e.routed)
    return (index_E // e.active).clamp(max=e.routed // e.active - 1), index_E % e.active


def _rows(moe: MixtureOfExperts, group_E: Tensor) -> Tensor:
    """The router (E, n): c (e_a - e_b) for every group, with another pair a, b for each."""
    drawn_EN = moe.router.weight
    order_N, n, count = drawn_EN[0].argsort(stable=True).cpu(), drawn_EN.shape[1], int(group_E[-1]) + 1
    twice_G = 2 * torch.arange(count)
    a_G, b_G = order_N[twice_G % n], order_N[(twice_G + 1 + twice_G // n) % n]  # beyond n / 2 groups, pairs share one
    rows_GN = torch.zeros(count, n, dtype=drawn_EN.dtype)
    rows_GN[torch.arange(count), a_G], rows_GN[torch.arange(count), b_G] = _size(moe), -_size(moe)
    return rows_GN[group_E]


def _size(moe: MixtureOfExperts) -> float:
    """c, the power of two with which the rows are as long as those that were drawn, within a factor of sqrt(2).

    Of rows that were made with c it is c again.
    """
    drawn_EN = moe.router.weight.detach()
    _, exponent = math.frexp(drawn_EN.norm().item() * len(drawn_EN) ** -0.5)
    return math.ldexp(1.0, exponent - 1)


def _factors(moe: MixtureOfExperts) -> tuple[float, float]:
    """What the down projections of routed experts and of shared ones are multiplied by."""
    e = moe.experts
    outer = (1 + e.shared) ** 0.5 if e.sqrt_gate else 1.0  # undoes the division of both branches, see nn.moe
    exact = e.routed == e.active or (e.gate != "all" and e.routing == "token_choice")
    gate = (1 / e.active) ** (0.5 if e.sqrt_gate else 1.0) if exact else _mean_gate(moe)
    return outer / gate, outer


def _mean_gate(moe: MixtureOfExperts) -> float:
    """The mean gate of the experts that tokens get, where the router's inputs are independent, of variance 1."""
    e, spread = moe.experts, 2**0.5 * _size(moe) * moe.multiplier
    group_E, _ = groups(e)
    generator = torch.Generator().manual_seed(0)
    logits_TG = spread * torch.randn(SAMPLES, int(group_E[-1]) + 1, generator=generator, dtype=torch.float64)
    choose = choose_tokens if e.routing == "expert_choice" else choose_experts
    return choose(logits_TG[:, group_E], e)[0].mean().item()
