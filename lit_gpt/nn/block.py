"""One layer: a token mixer, then a feed-forward network, each around the residual stream."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn import mlp
from lit_gpt.nn.context import Context
from lit_gpt.nn.dropout import drop
from lit_gpt.nn.linear import Linear
from lit_gpt.nn.mixers import SharedState, build_mixer
from lit_gpt.nn.moe import MixtureOfExperts, Routed
from lit_gpt.nn.norm import build_norm
from lit_gpt.roles import role
from lit_gpt.scaling.base import Multipliers

# Gain of the path around a branch at the start, so that a post-norm block begins as nearly only its branch. The value
# is that of ArchScale's token skipgain; LayerScale (arXiv:2103.17239, section 2) is the same idea for the branch.
SKIP_GAIN_START = 1e-4


class Stream(NamedTuple):
    """What flows from block to block.

    x: (B, T, n), the residual stream. total: the sum of all branches, only under skip="sum".
    routed: what the last block's router did, None where it has none.
    first: what entered the first block, only with residual_scalars. middle: the stream after half of the layers, once
    it is known, only with backout. A block reads first, and returns neither.
    """

    x: Tensor
    total: Tensor | None = None
    routed: Routed | None = None
    first: Tensor | None = None
    middle: Tensor | None = None


class ResidualScalars(nn.Module):
    """What a layer reads: r x + e x0, of the stream and of what entered the first layer (modded-nanogpt, nanochat)."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        stream, first = config.starts.at(layer_index, config.depth)
        self.stream = role(nn.Parameter(torch.empty(1)), "residual_scalar", stream)
        self.first = role(nn.Parameter(torch.empty(1)), "scalar", first)

    def forward(self, x_BTD: Tensor, first_BTD: Tensor) -> Tensor:
        """(B, T, n), in x's dtype; the numbers themselves are not rounded to it."""
        return (self.stream * x_BTD + self.first * first_BTD).to(x_BTD.dtype)


class SkipPath(nn.Module):
    """Post-norm: what happens to the normalised stream on its way into the branch and around it.

    branch_gain: with decoupled_norm. gain: with skip_gain. projection: where the layer has one.
    """

    def __init__(self, config: ModelConfig, projected: bool):
        super().__init__()
        n = config.n_embd
        self.branch_gain = role(nn.Parameter(torch.empty(n)), "vector", 1.0) if config.decoupled_norm else None
        self.gain = role(nn.Parameter(torch.empty(n)), "vector", SKIP_GAIN_START) if config.skip_gain else None
        self.projection = Linear(n, n) if projected else None

    def forward(self, s_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """(the input of the branch, what is added to the branch's output); both (B, T, n)."""
        branch = s_BTD if self.branch_gain is None else s_BTD * self.branch_gain.to(s_BTD.dtype)
        skip = s_BTD if self.gain is None else s_BTD * self.gain.to(s_BTD.dtype)
        return branch, skip if self.projection is None else self.projection(skip)

    def flops(self) -> float:
        """Forward matmul FLOPs per token."""
        return 0.0 if self.projection is None else self.projection.flops()


class Block(nn.Module):
    """One layer: norm, mixer, norm, feed-forward network. Its LayerSpec says which; ModelConfig says how they join.

    Pre-norm: x + m f(norm(x)), with x in the stream's dtype. Reordered: x + m norm(f(x)). Post-norm: s + m f(s) with
    s = norm(x), gains and projection on either path, in compute_dtype. m is the residual
    multiplier. Branches compute in compute_dtype. Parallel (arXiv:2204.02311, section 2): x + m (f(s) + g(s)), with
    s = norm(x) and both the mixer f and the network g reading it.
    """

    def __init__(self, config: ModelConfig, layer_index: int, multipliers: Multipliers, compute_dtype: torch.dtype):
        super().__init__()
        self.residual, self.skip, self.compute_dtype = multipliers.residual, config.skip, compute_dtype
        self.reordered, self.parallel = config.reordered_norm, config.parallel_block
        self.dropout = config.dropout
        projected = config.layers[layer_index].skip_projection
        # With decoupled_norm the gain is on the branch alone (see SkipPath), so the norm itself has none.
        self.scalars = ResidualScalars(config, layer_index) if config.residual_scalars else None
        self.norm1 = build_norm(config, gain=not config.decoupled_norm)
        self.skip1 = SkipPath(config, projected) if config.post_norm else None
        self.mixer = build_mixer(config, layer_index, multipliers)
        mixture = config.layers[layer_index].experts
        router = multipliers.router
        self.ffn = MixtureOfExperts(config, layer_index, router) if mixture else mlp.build(config, layer_index)
        self.shares_ffn = config.layers[layer_index].memory == "ffn"
        if self.ffn is not None and not self.parallel:
            self.norm2 = build_norm(config, gain=not config.decoupled_norm)
            self.skip2 = SkipPath(config, False) if config.post_norm else None

    def forward(
        self, stream: Stream, context: Context, shared: SharedState | None = None, cache: Any = None
    ) -> tuple[Stream, SharedState | None]:
        """The stream after this layer, and what later layers read of it.

        shared: what the layer reads of an earlier one. cache: what its mixer remembers, in cached decoding.
        """
        branch, skip = self.read(self.enter(stream), self.norm1, self.skip1)
        h, state = pair(self.mixer, self.mixer(branch, context, shared, cache), branch)
        return self.after_mixer(stream, branch, skip, h, state, context)

    def after_mixer(
        self, stream: Stream, branch: Tensor, skip: Tensor, h: Tensor, state: SharedState | None, context: Context
    ) -> tuple[Stream, SharedState | None]:
        """The rest of `forward`. h, state: what the mixer made of the branch. branch, skip: see `read`."""
        h = drop(self.result(h, self.norm1), context.dropout, 0, self.dropout)
        if self.parallel and self.ffn is not None:
            return self.both(stream, branch, skip, h, context), state
        return self.feed_forward(self.write(stream, skip, h), state, context)

    def enter(self, stream: Stream) -> Tensor:
        """The residual stream as this layer reads it, (B, T, n)."""
        if self.scalars is None:
            return stream.x
        assert stream.first is not None
        return self.scalars(stream.x, stream.first)

    def feed_forward(
        self, stream: Stream, state: SharedState | None, context: Context
    ) -> tuple[Stream, SharedState | None]:
        """The layer's second half. state: what the mixer shares."""
        if self.ffn is None:
            return stream, state
        branch, skip = self.read(stream.x, self.norm2, self.skip2)
        if isinstance(self.ffn, MixtureOfExperts):
            h, routed = self.ffn(branch, context.experts)
            return self.write(stream, skip, self.second(h, context), routed), state
        if not self.shares_ffn:
            return self.write(stream, skip, self.second(self.ffn(branch), context)), state
        h, memory = self.ffn.with_memory(branch)  # type: ignore[operator]
        stream = self.write(stream, skip, self.second(h, context))
        # A new tuple: torch 2.11 compiles no block that returns one made by _replace.
        return stream, SharedState(None if state is None else state.kv, memory)

    def both(self, stream: Stream, branch: Tensor, skip: Tensor, h: Tensor, context: Context) -> Stream:
        """A parallel block's stream: h, what the mixer made of the branch, and what the network makes of it, added."""
        if isinstance(self.ffn, MixtureOfExperts):
            f, routed = self.ffn(branch, context.experts)
        else:
            f, routed = self.ffn(branch), None  # type: ignore[misc]
        return self.write(stream, skip, h + drop(f, context.dropout, 1, self.dropout), routed)

    def read(self, x_BTD: Tensor, norm: nn.Module, skip_path: SkipPath | None) -> tuple[Tensor, Tensor]:
        """(the input of a branch, what goes around it and is added to its output); both (B, T, n)."""
        if self.reordered:
            return x_BTD.to(self.compute_dtype), x_BTD
        normed = norm(x_BTD, self.compute_dtype)
        return (normed, x_BTD) if skip_path is None else skip_path(normed)

    def result(self, h_BTD: Tensor, norm: nn.Module) -> Tensor:
        """What a branch adds to the stream: its output, behind the norm where the model has it there."""
        return norm(h_BTD, self.compute_dtype) if self.reordered else h_BTD

    def second(self, h_BTD: Tensor, context: Context) -> Tensor:
        """What the feed-forward network adds to the stream."""
        return drop(self.result(h_BTD, self.norm2), context.dropout, 1, self.dropout)

    def write(self, stream: Stream, skip_BTD: Tensor, h_BTD: Tensor, routed: Routed | None = None) -> Stream:
        """The stream after a branch whose output is h_BTD.

        Sums are in the stream's dtype: torch promotes a branch in bf16 where the stream is fp32. Dozens of small
        branches are added to it, which bf16 with its 8 bits would round away.
        """
        if self.skip == "add":
            return Stream(torch.add(skip_BTD, h_BTD, alpha=self.residual), routed=routed)
        if self.skip == "none":
            return Stream(h_BTD, routed=routed)
        # skip="sum": a branch reads the branch before it alone, and the last norm reads the sum of all of them.
        assert stream.total is not None
        return Stream(h_BTD, torch.add(stream.total, h_BTD, alpha=self.residual), routed)

    def flops(self, context_length: int) -> float:
        """Forward matmul FLOPs per token, averaged over the positions of a sequence."""
        flops = self.mixer.flops(context_length)  # type: ignore[operator]
        flops += 0.0 if self.skip1 is None else self.skip1.flops()
        return flops + (0.0 if self.ffn is None else self.ffn.flops())


def pair(mixer: nn.Module, result: Any, x_BTD: Tensor) -> tuple[Tensor, SharedState | None]:
    """What a mixer made of x. Raises UserError for what would train in silence: a tensor of two rows is taken apart
    as if it were a pair, and an output of another shape may be broadcast.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError(
            f"forward of the mixer {type(mixer).__name__} returned a {type(result).__name__}; return the output and "
            "what it shares with other layers: `return y_BTD, None`."
        )
    if result[0].shape != x_BTD.shape:
        raise UserError(
            f"forward of the mixer {type(mixer).__name__} made {tuple(result[0].shape)} of {tuple(x_BTD.shape)}; its "
            "output must have the shape of its input, (batch, tokens, width)."
        )
    return result
