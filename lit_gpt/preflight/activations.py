"""About how many bytes a forward pass keeps for the backward pass, without running one.

What is kept follows from two things: the recomputation policy, which the trainer reads too (parallel/recompute.py), and
what a compiler keeps of a block that is not recomputed. The latter is a rule, chosen by measurements on an H200
(docs/performance_details.md, How memory is estimated): what goes into or comes out of a matrix product or a kernel,
each tensor once, but no product that is only added to something; the rest is cheap and computed again inside the
backward kernels. Under "cheap" what goes into a product or into attention is computed again, too.

Both are read off one forward pass of a few tokens on the meta device, at the level of torch's functions, where a view
still knows its base. So no mixer has to declare what it keeps, and the bytes of a real batch follow by proportion. Only
what a kernel takes beside its arguments and results cannot be seen: its row in lit_gpt.ops says it (Backend.memory).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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
from lit_gpt.ops.fp8 import RECIPES, operand_itemsize
from lit_gpt.ops.loss import even_chunk
from lit_gpt.parallel.fp8 import in_8_bits
from lit_gpt.parallel.recompute import Recompute

# Tokens of that pass. It is a prime, which no width or number of heads is: a dimension of this size counts tokens.
SAMPLE = 251
NORMS = (F.rms_norm, F.layer_norm)
PRODUCTS = (F.linear, torch.matmul, Tensor.matmul)
SUMS = ("add", "__add__", "__radd__", "__iadd__")  # names: `a + b` and torch.add arrive as different functions

# input: of a block. product: out of a matrix product. attention: out of softmax attention. kernel: into or out of
# another kernel. added: a product that is only added to something. middle: the same where a norm of the block reads the
# sum. copied: a product of which attention reads copies, which take as much memory: queries, keys and values. other:
# the rest of the rule. made: not kept, but made by a kernel for itself within its backward pass.
Kind = Literal["input", "product", "attention", "kernel", "added", "middle", "copied", "other", "made"]
Layers = list[Counter[Kind]]


def kinds_kept(recompute: Recompute) -> tuple[Kind, ...]:
    """The kinds of tensors that a layer keeps until its backward pass under this --act_ckpt."""
    kinds: dict[Recompute, tuple[Kind, ...]] = {
        "off": ("input", "product", "middle", "attention", "kernel", "other"),
        "cheap": ("input", "product", "middle", "copied", "attention", "kernel"),
        "selective": ("input", "product", "middle", "copied", "attention"),
        "full": ("input",),
    }
    return kinds[recompute]


def kept_by_layers(model: GPT, expert_parallel: bool = False, fp8: str | None = None) -> Layers:
    """Bytes per token that each layer of a model on the meta device keeps, by kind.

    expert_parallel: whether tokens travel to their experts on other ranks; on average, as many arrive as are sent.
    fp8: the recipe by which maps multiply in 8 bits.
    Raises NeedsValues for a model with a mixer that reads numbers out of its tensors.
    """
    notes = _Notes()
    with (
        torch.no_grad(),
        notes.in_8_bits(model, fp8),
        notes.of_blocks(model, expert_parallel),
        observed(notes.kernel),
        notes,
    ):
        try:
            model(torch.zeros(1, SAMPLE, dtype=torch.long, device="meta"))
        except RuntimeError as error:
            if "meta tensor" not in str(error):  # torch's words wherever a number is asked of one
                raise
            raise NeedsValues(str(error)) from error
    return notes.layers


class NeedsValues(Exception):
    """A model cannot be followed without the values of its tensors."""


def of_layers(layers: Layers, tokens: int, recompute: Recompute, on_host: Sequence[int] = ()) -> tuple[float, float]:
    """Two numbers of bytes for a batch of `tokens` tokens.

    The first is what all layers keep, but those `on_host`, of which one at a time is on its way. The second is what
    the backward pass of the largest layer makes, which exists for one layer at a time: what is computed again, the
    gradients of its products, and what kernels make for themselves.
    """
    kinds = kinds_kept(recompute)
    sizes = [sum(layer[kind] for kind in kinds) for layer in layers]
    kept = sum(sizes) - sum(sizes[i] for i in on_host) + max((sizes[i] for i in on_host), default=0)
    made: tuple[Kind, ...] = (*(kind for kind in kinds_kept("off") if kind not in kinds), "product", "made")
    return tokens * kept, tokens * max(sum(layer[kind] for kind in made) for layer in layers)


def of_tables(config: ModelConfig, tokens: int, dtype: torch.dtype) -> float:
    """Bytes between the token table and the first layer: the norm there and the smear keep what they read and what they
    make, in `dtype`. An H200 measured 4.0 and 4.5 bytes for each number in bf16 (docs/performance_details.md). Dropout
    of the embeddings keeps its mask.
    """
    numbers = tokens * config.n_embd * (config.embedding_norm + config.token_smear)
    return 2 * dtype.itemsize * numbers + tokens * _of_dropout(config, 1)


def of_loss(
    config: ModelConfig, tokens: int, chunked: bool, dtype: torch.dtype, few: bool = False, narrow: bool = False
) -> float:
    """Bytes around the head: the logits that exist at once, the final state, the head's gradient.

    chunked: the loss is computed for a chunk of tokens at a time, see ops/loss.py; few: for a small one; narrow: of
    logits in `dtype`. A chunk has its logits, in fp32 (4 bytes) unless they are narrow, and their gradient in `dtype`.
    The head has its weight cast to `dtype`, and its gradient in fp32 (4 bytes). Otherwise there are all logits, their
    log-softmax and its gradient, in fp32 (3 x 4 bytes), and with a soft cap the logits once more.
    """
    vocab, n = config.padded_vocab_size, config.n_embd
    state = tokens * n * (4 + 2 * dtype.itemsize)  # of the last block; normalised; its gradient
    if not chunked:
        return state + (16 if config.logit_softcap else 12) * tokens * vocab
    at_once = even_chunk(tokens, vocab, few=few)
    logits = dtype.itemsize if narrow else 4
    return state + at_once * vocab * (logits + dtype.itemsize) + vocab * n * (4 + dtype.itemsize)


class _Notes(TorchFunctionMode):
    """Counts each tensor of SAMPLE tokens once, at the first operation for which the rule keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: Layers = []
        self.inside = False  # whether a block runs; of_loss counts the last norm and the head
        self.added: list[Tensor] = []  # what the layer added since its last norm
        self.given: dict[Any, Any] = {}  # kernel and shapes of its arguments -> its result
        self.narrow: dict[Tensor, Tensor] = {}  # a tensor in a wider dtype -> what it was cast from
        self.seen: dict[Tensor, Kind] = {}  # by identity, which is how tensors hash

    @contextmanager
    def of_blocks(self, model: GPT, expert_parallel: bool) -> Iterator[None]:
        """Begin a new layer wherever a block begins; a block that several layers share begins several."""

        def enter(block: torch.nn.Module, args: tuple[Any, ...]) -> None:
            self.layers.append(Counter())
            self.inside, self.added = True, []
            stream, _, shared, *_ = args
            self.note("input", (stream, shared))
            self.layers[-1]["kernel"] += _of_dropout(model.config, 1 + (getattr(block, "ffn", None) is not None))
            for moe in (m for m in block.modules() if isinstance(m, MixtureOfExperts)):
                kept, made = _of_experts(moe, model.compute_dtype, expert_parallel)
                self.layers[-1].update({"kernel": kept, "made": made})

        def leave(*_: Any) -> None:
            self.inside = False

        with ExitStack() as hooks:
            for block in model.blocks:
                hooks.enter_context(block.register_forward_pre_hook(enter))
                hooks.enter_context(block.register_forward_hook(leave))
            yield

    @contextmanager
    def in_8_bits(self, model: GPT, recipe: str | None) -> Iterator[None]:
        """Within it maps that multiply in 8 bits are noted as such; a library's recipe keeps what bf16 keeps."""
        chosen = {} if recipe is None or RECIPES[recipe].library else in_8_bits(model, recipe)[0]
        maps = [m for group in chosen.values() for m in group]
        for m in maps:
            m.scaled = _InEightBits(self, recipe)  # type: ignore[assignment]
        try:
            yield
        finally:
            for m in maps:
                m.scaled = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            # Of rows that were cast to fp32 a GPU keeps what they were: ops/parts.py multiplies these.
            self.note("other", self.narrow.get(args[0], args[0]))
            self.note("product", result)
        elif func is Tensor.to and result.itemsize > args[0].itemsize:
            self.narrow[result] = args[0]
        elif func.__name__ in SUMS:  # a sum needs none of its terms for its gradients
            for term in map(_whole, args[:2]):  # a part of a product has other parts, which are read elsewhere
                if self._is_product(term):
                    self._count(term, "added")
                    self.added.append(term)
        elif func is F.embedding:  # within a layer: what a gate is multiplied with
            self.note("other", result)
        elif func in NORMS and self.inside:
            while self.added:
                self._count(self.added.pop(), "middle")
        elif func is Tensor.clone and self._is_product(base := _base(args[0])):
            self._count(base, "copied")
        return result

    def kernel(self, row: Backend, on_gpu: Backend, arguments: tuple[Any, ...]) -> Any:
        """Note a kernel's arguments, its result, and what it says that a GPU's backend has beside them."""
        if row in grouped_gemm.BACKENDS.values():  # see _of_experts
            a_PK, b_EKN, *_ = arguments
            return a_PK.new_empty(len(a_PK), b_EKN.shape[-1])
        of_softmax = row in attention.BACKENDS.values()
        self.note("other" if of_softmax else "kernel", arguments)
        result = self._shapes(row, arguments)
        self.note("attention" if of_softmax else "kernel", result)
        if self.inside:
            memory = on_gpu.memory(*arguments)
            self.layers[-1].update({"kernel": round(memory.kept), "made": round(memory.made)})
        return result

    def _shapes(self, row: Backend, arguments: tuple[Any, ...]) -> Any:
        """A kernel's result; computed once for arguments of the same shapes, since plain torch has long loops."""
        key = row, *((x.shape, x.dtype) if isinstance(x, Tensor) else repr(x) for x in tree_leaves(arguments))
        if key not in self.given:
            self.given[key] = row.kernel(*arguments)
        # Library kernels write a token's heads next to each other, which plain torch need not.
        return tree_map_only(Tensor, partial(torch.empty_like, memory_format=torch.contiguous_format), self.given[key])

    def note(self, kind: Kind, tree: Any) -> None:
        """Count the floating-point tensors in `tree` (nested tuples) that have a row for each token and are new."""
        for x in tree_leaves(tree):
            counts = isinstance(x, Tensor) and x.is_floating_point() and SAMPLE in x.shape[:2] and self.inside
            if counts and (base := _base(x)) not in self.seen:
                self._count(base, kind)

    def _count(self, x: Tensor, kind: Kind) -> None:
        """Add a tensor's bytes per token to the layer; one that was counted before moves to `kind`."""
        size = x.numel() * x.element_size() // SAMPLE
        if (before := self.seen.get(x)) is not None:
            self.layers[-1][before] -= size
        self.layers[-1][kind] += size
        self.seen[x] = kind

    def _is_product(self, x: Any) -> bool:
        return isinstance(x, Tensor) and self.seen.get(x) == "product"


class _InEightBits:
    """Stands where ops.fp8.ScaledWeights does, whose products keep their input as a cast of their own."""

    def __init__(self, notes: _Notes, recipe: str):
        self.notes, self.itemsize = notes, operand_itemsize(recipe)

    def products(self, x: Tensor, weights: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
        """See ScaledWeights."""
        self.notes.layers[-1]["kernel"] += x.numel() // SAMPLE * self.itemsize
        y = x.new_empty(*x.shape[:-1], sum(widths))
        self.notes.note("product", y)
        return list(y.split(list(widths), dim=-1))


def _base(x: Any) -> Any:
    """The tensor that a view shows a part of, since a view keeps all of it alive; any other value as it is."""
    return x if not isinstance(x, Tensor) or x._base is None else x._base


def _whole(x: Any) -> Any:
    """The tensor of which this is another view, all of it; None where it shows a part only."""
    base = _base(x)
    return base if isinstance(x, Tensor) and x.numel() == base.numel() else None


def _of_dropout(config: ModelConfig, masks: int) -> int:
    """Bytes per token of so many masks, of a byte for each entry: a compiler draws none of them again for backward."""
    return masks * config.n_embd * (config.dropout > 0)


def _of_experts(moe: MixtureOfExperts, dtype: torch.dtype, expert_parallel: bool) -> tuple[int, int]:
    """Bytes per token that the experts keep, and that their backward pass makes (ops/experts.py).

    Each pair of a token and one of its experts keeps what the up projection gives, its gate (4 bytes), its expert and
    its place in both orders (8 + 8 + 4). A pair that travels to its expert's rank also keeps two rows of the model's
    width, one for each way. The router keeps two more tensors like its logits, in fp32. Backward makes most when it has
    a row of the output's gradient, the gradients of both sides of the activation, and the gated activation.
    """
    (_, hidden, n), inner = moe.up.shape, moe.down.shape[-1]
    pairs, size = moe.experts.mean_active, dtype.itemsize
    kept = pairs * ((hidden + 2 * n * expert_parallel) * size + 24) + 2 * 4 * moe.experts.routed
    return int(kept), int(pairs * (n + hidden + 2 * inner) * size)


def of_expert_weights(model: GPT, share: float = 1.0) -> float:
    """Bytes of the gradients of one layer's experts in the compute dtype, which its backward pass has until it ends.

    They come when some of what _of_experts says is gone, so the estimate is too high by the smaller of the two. share:
    of the weights that are at hand.
    """
    mixtures = (m for m in model.modules() if isinstance(m, MixtureOfExperts))
    most = max((m.up.numel() + m.down.numel() for m in mixtures), default=0)
    return share * most * model.compute_dtype.itemsize
