"""About how many bytes a forward pass keeps for the backward pass, without running one.

What is kept follows from two things: the recomputation policy, which the trainer reads too (parallel/recompute.py), and
what a compiler keeps of a block that is not recomputed. The latter is a rule, chosen by measurements on an H200
(docs/performance.md, Memory): what goes into or comes out of a matrix product or a kernel, each tensor once, but no
product that is only added to something; the rest is cheap and computed again inside the backward kernels.

Both are read off one forward pass of a few tokens on the meta device, at the level of torch's functions (Tensor views
still know their base there). So no mixer has to declare anything, and what is kept grows with the tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lit_gpt.config.model import ModelConfig
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops import attention, grouped_gemm
from lit_gpt.ops.backends import Backend, observed
from lit_gpt.ops.loss import CHUNK_LOGITS
from lit_gpt.parallel.recompute import KEPT_OPERATIONS, Recompute

SAMPLE = 251  # tokens of that pass; a prime, so that a dimension of this size counts tokens
PRODUCTS = (F.linear, torch.matmul, Tensor.matmul)
SUMS = ("add", "__add__", "__radd__", "__iadd__")  # names: `a + b` and torch.add arrive as different functions

# input: of a block. product: out of a matrix product. attention: out of softmax attention. added: a product that is
# only added to something. other: the rest of the rule.
Kind = Literal["input", "product", "attention", "added", "other"]
Layers = list[Counter[Kind]]


def kinds_kept(recompute: Recompute) -> tuple[Kind, ...]:
    """What stays of a layer until its backward pass under --act_ckpt."""
    if recompute == "off":
        return ("input", "product", "attention", "other")
    return ("input", *(KEPT_OPERATIONS if recompute == "selective" else ()))  # type: ignore[return-value]


def kept_by_layers(model: GPT, expert_parallel: bool = False) -> Layers:
    """Bytes per token that each layer of a model on the meta device keeps, by kind.

    expert_parallel: tokens travel to their experts, and on average as many rows arrive as are sent.
    Raises NeedsValues for a model with a mixer that reads numbers out of its tensors.
    """
    notes = _Notes()
    with torch.no_grad(), notes.of_blocks(model, expert_parallel), observed(notes.kernel), notes:
        try:
            model(torch.zeros(1, SAMPLE, dtype=torch.long, device="meta"))
        except RuntimeError as error:
            if "meta tensor" not in str(error):  # torch's words wherever a number is asked of one
                raise
            raise NeedsValues(str(error)) from error
    return notes.layers


class NeedsValues(Exception):
    """A model cannot be followed without the values of its tensors."""


def of_layers(layers: Layers, tokens: int, recompute: Recompute) -> tuple[float, float]:
    """(bytes that the layers keep, bytes that one of them computes again in its backward pass)."""
    kinds = kinds_kept(recompute)
    kept = sum(layer[kind] for layer in layers for kind in kinds)
    again = (sum(layer[kind] for kind in kinds_kept("off") if kind not in kinds) for layer in layers)
    return tokens * kept, tokens * max(again)


def of_loss(config: ModelConfig, tokens: int, chunked: bool, dtype: torch.dtype) -> float:
    """Bytes around the head: the logits that exist at once, the final state, the head's gradient.

    chunked: a chunk's logits in fp32 and three times their gradient (as computed, padded, and of the chunk
    before), which is what was measured; the head's weight cast, its gradient and a chunk's part of it.
    Otherwise all logits in fp32, their log-softmax and its gradient.
    """
    vocab, n = config.padded_vocab_size, config.n_embd
    state = tokens * n * (4 + 2 * dtype.itemsize)  # of the last block; normalised; its gradient
    if not chunked:
        return state + 12 * tokens * vocab
    at_once = min(tokens, max(CHUNK_LOGITS // vocab, 1))
    return state + at_once * vocab * (4 + 3 * dtype.itemsize) + vocab * n * (8 + dtype.itemsize)


class _Notes(TorchFunctionMode):
    """Counts each tensor of SAMPLE tokens the first time that it plays a part in the rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Layers = []
        self.inside = False  # a block; embedding, last norm and head are of_loss's
        self.given: dict[Any, Any] = {}
        self.seen: dict[Tensor, Kind] = {}  # by identity, which is how tensors hash

    @contextmanager
    def of_blocks(self, model: GPT, expert_parallel: bool) -> Iterator[None]:
        """A new layer wherever a block begins, also one that several layers share."""

        def enter(block: torch.nn.Module, args: tuple[Any, ...]) -> None:
            self.layers.append(Counter())
            self.inside = True
            stream, _, shared, *_ = args
            self.note("input", (stream, shared))
            mixtures = (m for m in block.modules() if isinstance(m, MixtureOfExperts))
            self.layers[-1]["other"] += sum(_of_experts(m, model.compute_dtype, expert_parallel) for m in mixtures)

        def leave(*_: Any) -> None:
            self.inside = False

        with ExitStack() as hooks:
            for block in model.blocks:
                hooks.enter_context(block.register_forward_pre_hook(enter))
                hooks.enter_context(block.register_forward_hook(leave))
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.note("other", args[0])
            self.note("product", result)
        elif func.__name__ in SUMS:  # a sum needs none of its terms for its gradients
            for term in filter(self._is_product, map(_base, args[:2])):
                self._count(term, "added")
        return result

    def kernel(self, row: Backend, arguments: tuple[Any, ...]) -> Any:
        """Of a kernel only the ends are noted, whichever row of its table it is."""
        if row in grouped_gemm.BACKENDS.values():  # see _of_experts
            a_PK, b_EKN, *_ = arguments
            return a_PK.new_empty(len(a_PK), b_EKN.shape[-1])
        self.note("other", arguments)
        result = self._shapes(row, arguments)
        self.note("attention" if row in attention.BACKENDS.values() else "other", result)
        return result

    def _shapes(self, row: Backend, arguments: tuple[Any, ...]) -> Any:
        """What a kernel gives, computed once for arguments of the same shapes: some are long loops in plain torch."""
        key = row, *((x.shape, x.dtype) if isinstance(x, Tensor) else repr(x) for x in tree_leaves(arguments))
        if key not in self.given:
            self.given[key] = row.kernel(*arguments)
        # Library kernels write a token's heads next to each other, which plain torch need not.
        return tree_map_only(Tensor, partial(torch.empty_like, memory_format=torch.contiguous_format), self.given[key])

    def note(self, kind: Kind, tree: Any) -> None:
        """Count the floating-point tensors of a nest of tuples."""
        for x in tree_leaves(tree):
            counts = isinstance(x, Tensor) and x.is_floating_point() and SAMPLE in x.shape[:2] and self.inside
            if counts and (base := _base(x)) not in self.seen:
                self._count(base, kind)

    def _count(self, x: Tensor, kind: Kind) -> None:
        size = x.numel() * x.element_size() // SAMPLE
        if (before := self.seen.get(x)) is not None:
            self.layers[-1][before] -= size
        self.layers[-1][kind] += size
        self.seen[x] = kind

    def _is_product(self, x: Any) -> bool:
        return isinstance(x, Tensor) and self.seen.get(x) == "product"


def _base(x: Any) -> Any:
    """What a view is a view of: it keeps all of that alive."""
    return x if not isinstance(x, Tensor) or x._base is None else x._base


def _of_experts(moe: MixtureOfExperts, dtype: torch.dtype, expert_parallel: bool) -> int:
    """Of every pair the up projection, see ops.experts; of one that travelled its rows too, there and back."""
    _, hidden, n = moe.up.shape
    return moe.experts.active * (hidden + 2 * n * expert_parallel) * dtype.itemsize
