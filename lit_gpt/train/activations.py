"""About how many bytes a forward pass keeps for the backward pass, without running one.

The rule: of every block its input, and what goes into or comes out of its matrix products and library kernels,
each tensor once, but no product that is only added to something; compiled code computes the rest again. It is
read off a pass of a few tokens on the meta device, so no mixer has to declare anything, and what is kept grows
with the tokens.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from lit_gpt import ops
from lit_gpt.config.model import ModelConfig
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops import attention, grouped_gemm
from lit_gpt.ops.loss import CHUNK_LOGITS

SAMPLE = 251  # tokens of that pass; a prime, so that a dimension of this size counts tokens

# Matrix product -> which of its arguments is the activations.
PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}

# input: of a block. product: of a matrix product or softmax attention. added: products that are only added to
# something. other: the rest of the rule.
Kind = Literal["input", "product", "added", "other"]
Layers = list[Counter[Kind]]

# --act_ckpt -> what is kept of every layer; the rest is kept of one layer at a time.
KEPT: dict[str, tuple[Kind, ...]] = {
    "off": ("input", "product", "other"),
    "selective": ("input", "product", "added"),
    "full": ("input",),
}


def kept_by_layers(model: GPT, expert_parallel: bool = False) -> Layers:
    """Bytes per token that each layer of a model on the meta device keeps, by kind.

    expert_parallel: tokens travel to their experts, and on average as many rows arrive as are sent.
    """
    notes = _Notes(model, expert_parallel)
    with torch.no_grad(), _observed_kernels(notes), notes:
        model.hidden(torch.zeros(1, SAMPLE, dtype=torch.long, device="meta"))
    return notes.layers


def of_layers(layers: Layers, tokens: int, recompute: str) -> float:
    """Bytes that the layers keep under --act_ckpt `recompute`, and what one of them computes again."""
    kept = sum(layer[kind] for layer in layers for kind in KEPT[recompute])
    again = 0 if recompute == "off" else max(sum(layer[kind] for kind in KEPT["off"]) for layer in layers)
    return tokens * (kept + again)


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


class _Notes(TorchDispatchMode):
    """Counts each tensor of SAMPLE tokens the first time that it plays a part in the rule."""

    def __init__(self, model: GPT, expert_parallel: bool):
        super().__init__()
        self.layers: Layers = []
        self.expert_parallel = expert_parallel
        self.itemsize = model.compute_dtype.itemsize
        self.seen: dict[int, tuple[Kind, torch.UntypedStorage]] = {}  # kept alive, so that none takes its place
        self.done: dict[Any, tuple[Any, Counter[Kind]]] = {}
        shared = {spec.shares for spec in model.config.layers}
        for i, b in enumerate(model.block_of):
            spec, block = model.config.layers[i], model.blocks[b]
            key = replace(spec, shares=None if spec.shares is None else 0), i in shared
            block.forward = partial(self.layer, key, block, type(block).forward)

    def layer(self, key: Any, block: torch.nn.Module, forward: Callable[..., Any], stream: Any, *args: Any) -> Any:
        """A block's forward; layers of one kind are run once."""
        if key not in self.done:
            self.layers.append(Counter())
            self.note("input", (stream, args[1]))
            for module in block.modules():
                if isinstance(module, MixtureOfExperts):
                    self.layers[-1]["other"] += self.of_experts(module)
            self.done[key] = forward(block, stream, *args), self.layers[-1]
        else:
            self.layers.append(self.done[key][1])
        after, lent = self.done[key][0]
        return tree_map_only(Tensor, torch.empty_like, after), lent

    def of_experts(self, moe: MixtureOfExperts) -> int:
        """Of every pair the up projection, see ops.experts; of one that travelled its rows too, there and back."""
        _, hidden, n = moe.up.shape
        return moe.experts.active * (hidden + 2 * n * self.expert_parallel) * self.itemsize

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self.note("other", args[PRODUCTS[func]])
            self.note("product", result)
        elif func is torch.ops.aten.add.Tensor:
            self.forget_terms(args[:2])
        return result

    def note(self, kind: Kind, tree: Any) -> None:
        """Count the floating-point tensors of a nest of tuples."""
        for x in tree_leaves(tree):
            if isinstance(x, Tensor) and x.is_floating_point() and SAMPLE in x.shape[:2]:
                storage = x.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen[storage._cdata] = kind, storage
                    self.layers[-1][kind] += storage.nbytes() // SAMPLE

    def forget_terms(self, terms: Any) -> None:
        """A sum needs none of its terms for its gradients."""
        for x in terms:
            key = x.untyped_storage()._cdata if isinstance(x, Tensor) else None
            if key in self.seen and self.seen[key][0] == "product":
                storage = self.seen[key][1]
                self.seen[key] = "added", storage
                self.layers[-1].update({"product": -(storage.nbytes() // SAMPLE), "added": storage.nbytes() // SAMPLE})


@contextmanager
def _observed_kernels(notes: _Notes) -> Iterator[None]:
    """Within it every row of every operation's table stands for a kernel: only its ends are noted."""
    modules = [importlib.import_module(f"{ops.__name__}.{m.name}") for m in pkgutil.iter_modules(ops.__path__)]
    tables = {m.__name__: m.BACKENDS for m in modules if hasattr(m, "BACKENDS")}
    before = {name: dict(table) for name, table in tables.items()}
    for name, table in tables.items():
        kind: Kind = "product" if name == attention.__name__ else "other"
        stand_in = _experts if name == grouped_gemm.__name__ else None
        table.update({key: row._replace(run=stand_in or _observed(row.run, notes, kind)) for key, row in table.items()})
    try:
        yield
    finally:
        for name, table in tables.items():
            table.update(before[name])


def _observed(run: Callable[..., Any], notes: _Notes, kind: Kind) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        notes.note("other", args)
        with _disable_current_modes():
            # Library kernels write a token's heads next to each other.
            result = tree_map_only(Tensor, Tensor.contiguous, run(*args))
        notes.note(kind, result)
        return result

    return kernel


def _experts(a_PK: Tensor, b_EKN: Tensor, ends_E: Tensor, largest: int | None) -> Tensor:
    """A grouped product's shape; what it keeps is counted as a whole."""
    return a_PK.new_empty(len(a_PK), b_EKN.shape[-1])
