"""Linear maps and the token table: fp32 master weights, compute in the activations' dtype.

There is no autocast in this project. A weight is cast where it is used; under FSDP2 it
arrives already cast and nothing happens here.
With --fp8 the maps of blocks multiply in 8 bits while they train (ops/fp8.py); parallel/fp8.py says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.ops.fp8 import ScaledWeights, TorchaoWeights
from lit_gpt.ops.fp8_engine import EngineWeights
from lit_gpt.roles import Role, role

FEW_ROWS = 32  # whose products read weights about as fast as they can be copied


class Linear(nn.Module):
    """A linear map, y = x W^T + b, with W (fan_out, fan_in) of role "matrix" unless given, and b of role "vector".

    gain: of W's start. scores, blocks: what its rows are made of, for `role`: maps=2, heads=16.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        bias: bool = False,
        weight_role: Role = "matrix",
        gain: float = 1.0,
        scores: bool = False,
        **blocks: int,
    ):
        super().__init__()
        self.weight = role(nn.Parameter(torch.empty(fan_out, fan_in)), weight_role, gain=gain, scores=scores, **blocks)
        self.bias = role(nn.Parameter(torch.empty(fan_out)), "vector", 0.0) if bias else None
        # With --fp8: this weight in 8 bits, or its group's, see together.
        self.scaled: ScaledWeights | TorchaoWeights | EngineWeights | None = None

    def forward(self, x: Tensor, *, along_time: bool = False) -> Tensor:
        """(..., fan_in) -> (..., fan_out), in x's dtype. along_time: see product."""
        if self.scaled is not None and self.training:
            return self.pieces(x, [self.weight.shape[0]])[0]
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return product(x, self.weight.to(x.dtype), bias, along_time)

    def halves(self, x: Tensor, along_time: Sequence[bool] = ()) -> list[Tensor]:
        """The output's two halves; see pieces."""
        return self.pieces(x, [self.weight.shape[0] // 2] * 2, along_time)

    def pieces(self, x: Tensor, widths: Sequence[int], along_time: Sequence[bool] = ()) -> list[Tensor]:
        """The output in pieces of these widths, as one product each.

        Splitting after one product makes backward join activation-sized gradients, which
        costs more (two halves: 4 % of a step at n = 1024 on an H200) than the larger product saves.
        along_time: of each piece, see product.
        """
        biases = [None] * len(widths) if self.bias is None else self.bias.to(x.dtype).split(list(widths))
        if self.scaled is not None and self.training:  # one product, which joins the gradients as it casts them
            return [_plus(y, b) for y, b in zip(self.scaled.products(x, [self.weight], widths), biases)]
        # Split before the cast, and by one number where it can be: torch's compiler then may compute the casts again in
        # backward (--act_ckpt cheap). What it knows as an operation on a list of sizes it keeps.
        weights = self.weight.split(widths[0] if len(set(widths)) == 1 else list(widths))
        along = along_time or [False] * len(weights)
        return [product(x, w.to(x.dtype), b, a) for w, b, a in zip(weights, biases, along)]

    def flops(self) -> float:
        """Forward matmul FLOPs per token: 2 per weight."""
        return 2.0 * self.weight.numel()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, along_time: bool = False) -> Tensor:
    """x W^T + b, (..., fan_out). along_time: laid out in memory as (fan_out, ...), for kernels that read along time.

    It is W x^T then, and no copy: matrix products read and write either layout, here and in backward, as in mamba_ssm's
    own module. Products in 8 bits do not, and come as they are; kernels copy what they cannot read.
    """
    if not along_time:
        return F.linear(x, weight, bias)
    y = (weight @ x.flatten(0, -2).t()).unflatten(1, x.shape[:-1]).movedim(0, -1)
    return _plus(y, bias)


def lies_along_time(x_BTC: Tensor) -> bool:
    """Whether x is (C, B, T) in memory, as `product` lays it out for kernels along time."""
    return x_BTC.movedim(-1, 0).is_contiguous() and not x_BTC.is_contiguous()


def laid_along_time(x_BTC: Tensor) -> Tensor:
    """x as (C, B, T) in memory; a copy where it is not."""
    return x_BTC.movedim(-1, 0).contiguous().movedim(0, -1)


def gated(x_BTC: Tensor, gate_BTC: Tensor) -> Tensor:
    """x silu(gate), in the layout that both have."""
    if lies_along_time(x_BTC) and lies_along_time(gate_BTC):
        # A compiler lays out a result by the order of its dimensions, so they are put in that of the memory.
        return (x_BTC.movedim(-1, 0) * F.silu(gate_BTC.movedim(-1, 0))).movedim(0, -1)
    return x_BTC * F.silu(gate_BTC)


def last_linear(config: ModelConfig, fan_in: int, bias: bool = False) -> Linear:
    """The last map of a branch, to the model's width. With zero_output it starts at zero, and has a role of its own."""
    return Linear(fan_in, config.n_embd, bias=bias, weight_role="output" if config.zero_output else "matrix")


def together(*maps: Linear | None) -> tuple[Linear, ...]:
    """Maps that act only as one, through `joint` or `as_one`, without those None; kept by the module that they are of.

    `groups` finds them there. The maps do not know of it, since tensors of modules in a circle are freed late.
    """
    return tuple(m for m in maps if m is not None)


def groups(module: nn.Module) -> dict[str, tuple[Linear, ...]]:
    """The maps inside `module` that act together or alone, in their order, by the name of the first."""
    names = {m: name for name, m in module.named_modules() if isinstance(m, Linear)}
    kept = [v for m in module.modules() for v in vars(m).values() if isinstance(v, tuple) and v]
    first = {m: group for group in kept if all(isinstance(m, Linear) for m in group) for m in group}
    return {name: first.get(m, (m,)) for m, name in names.items() if first.get(m, (m,))[0] is m}


def joint(x: Tensor, *maps: Linear, along_time: bool = False) -> list[Tensor]:
    """Several maps of one input as one matrix product, which is faster than one after the other.

    Attention with one product for queries, keys and values, and padded heads: 334k to 388k tokens/s at d8 on an H200
    (docs/performance_details.md). The weights stay apart, so that Muon sees each map as a matrix of its own.
    Of a few rows, as in cached decoding, joining the weights would cost more than their product.
    along_time: see product.
    """
    widths = [m.weight.shape[0] for m in maps]
    if maps[0].scaled is not None and maps[0].training:
        parts: Sequence[Tensor] = maps[0].scaled.products(x, [m.weight for m in maps], widths)
    elif x.numel() < FEW_ROWS * x.shape[-1]:
        return [m(x, along_time=along_time) for m in maps]
    else:
        parts = as_one(x, *maps, along_time=along_time).split(widths, dim=-1)
    return [_plus(p, None if m.bias is None else m.bias.to(x.dtype)) for p, m in zip(parts, maps)]


def is_one(x: Tensor, *maps: Linear) -> bool:
    """Whether `joint` of these maps is `as_one` and a split: without biases, in x's dtype, and not of a few rows."""
    in_8_bits = maps[0].scaled is not None and maps[0].training
    return not in_8_bits and x.numel() >= FEW_ROWS * x.shape[-1] and all(m.bias is None for m in maps)


def as_one(x: Tensor, *maps: Linear, along_time: bool = False) -> Tensor:
    """The outputs of maps without biases side by side, as one product that is not split. along_time: see product."""
    weights = [m.weight for m in maps]
    if maps[0].scaled is not None and maps[0].training:
        return maps[0].scaled.products(x, weights, [sum(w.shape[0] for w in weights)])[0]
    return product(x, torch.cat([w.to(x.dtype) for w in weights]), None, along_time)


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


class Embedding(nn.Module):
    """The token table (vocab, n), or that of positions."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.weight = role(nn.Parameter(torch.empty(vocab, width)), "embedding")

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the table, (B, T, n), in dtype."""
        return F.embedding(tokens_BT, self.weight).to(dtype)


class Head(nn.Module):
    """The output projection (vocab, n), for whoever computes logits or a loss with it."""

    def __init__(self, width: int, vocab: int):
        super().__init__()
        self.weight = role(nn.Parameter(torch.empty(vocab, width)), "head")

    def forward(self, h_BTD: Tensor, use: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """use(h_BTD, weight). FSDP2 gathers the weight for this call, and reduces its gradient right after."""
        return use(h_BTD, self.weight)
