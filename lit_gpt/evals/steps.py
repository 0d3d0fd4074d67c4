"""Decoding token by token as one CUDA graph: the launches of a step's hundreds of kernels take longer than their work.

A graph runs the same kernels on the same memory again, so only values on the device may say how far a sequence is:

- Keys and values go to places that are used again: the token at p, counted from the start of its row's document, is at
  place p modulo the window, or p where a layer sees all. The order of keys does not matter to a softmax.
- What a recurrent layer makes anew, its state and the last inputs of its convolution, is copied back to where it was.
- Positions are a tensor that a step adds one to.

Shapes: B rows, S places, n model width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.evals.decoding import Decoder, States
from lit_gpt.model import GPT
from lit_gpt.nn.cache import History, KVCache
from lit_gpt.nn.context import Contexts, Keys
from lit_gpt.nn.mixers.attention import Attention, AttentionCache, readers_of
from lit_gpt.nn.recurrent import RecurrentCache
from lit_gpt.ops import ring
from lit_gpt.ops.attention import Mask

FEW_TOKENS = 8  # recording takes about as long as so many steps


class Ring:
    """A History of B rows whose places are reused."""

    def __init__(self, history: History, start_B: Tensor, length: int, next_B: Tensor, aligned: int):
        """What the history remembers of `length` tokens, of which those before start_B are not seen.

        next_B: how many tokens each row has seen, kept up to date by others. aligned: the last dimension becomes a
        multiple of it.
        """
        kept = history.buffer[:, max(0, history.end - history.keep) : history.end]
        size = min(history.max_len, history.max_len if history.wanted is None else history.wanted + 1)
        rows_B1, place_S = torch.arange(len(kept), device=kept.device)[:, None], torch.arange(size, device=kept.device)
        last_B1 = (length - 1 - start_B)[:, None]
        token_BS = last_B1 - (last_B1 - place_S) % size  # the last one at each place; negative where there is none
        column_BS = start_B[:, None] + token_BS - (length - kept.shape[1])
        self.buffer = F.pad(kept[rows_B1, column_BS.clamp(min=0)], (0, -kept.shape[-1] % aligned))
        self.rows_B, self.next_B, self.size = rows_B1[:, 0], next_B, size

    def append(self, new_B1: Tensor) -> Tensor:
        """Every place, with one more token in each row."""
        new = F.pad(new_B1[:, 0], (0, self.buffer.shape[-1] - new_B1.shape[-1]))
        self.buffer[self.rows_B, self.next_B % self.size] = new
        return self.buffer


def worthwhile(model: GPT, tokens: int) -> bool:
    """Whether so many more tokens come sooner by a graph."""
    return _has_kernel(model) and tokens >= FEW_TOKENS and supported(model)


def _has_kernel(model: GPT) -> bool:
    """Whether attention over places is by a kernel, and not by plain torch; see ops.attention."""
    config = model.config
    return ring.runs(model.wte.weight.device, model.compute_dtype, config.head_dim) and not config.attn_sink


def supported(model: GPT) -> bool:
    """Whether a step of the model can be a graph: softmax attention over one window, recurrent layers, no experts."""
    config = model.config
    for i, spec in enumerate(config.layers):
        mixer = model.blocks[model.block_of[i]].mixer  # type: ignore[union-attr]
        narrow = any(config.layers[reader].window != spec.window for reader in readers_of(config, i))
        # A layer that sees itself alone keeps nothing that a place could be filled with.
        if narrow or spec.window == 1 or spec.experts or not _known(mixer):
            return False
    return True


def _known(mixer: Any) -> bool:
    """Whether a mixer works on places: attention whose class says so itself, or one that has a state."""
    if isinstance(mixer, Attention):
        fits = mixer.value_heads == 1 or mixer.head_dim % ring.ALIGNED == 0
        # Not what it inherits: a plugin's kind of attention may do more with its keys, and not know of this.
        return fits and vars(type(mixer)).get("softmax_only", False)
    cache = mixer.new_cache(1, 1, torch.device("meta"), torch.float32)
    return not getattr(mixer, "attends", False) and (cache is None or type(cache) is RecurrentCache)


class Steps:
    """Goes on with the rows of a decoder, one token each at a time; the decoder is used up.

    On a CPU it does the same work, step by step.
    """

    def __init__(self, decoder: Decoder):
        self.decoder, self.model = decoder, decoder.model
        self.model.check_length(decoder.length + 1)  # recording takes a step, and a GPU does not survive a wrong index
        batch, device = len(decoder.start_B), decoder.start_B.device
        self.tokens_B1 = torch.zeros(batch, 1, dtype=torch.long, device=device)
        # The start of a row is that of its last document, whose tokens alone it sees.
        self.seen_B = decoder.length - decoder.start_B
        apart = decoder.doc_ids_BS is not None
        self.positions = self.seen_B[:, None].clone() if apart else self.seen_B.new_full((1,), decoder.length)
        for cache in decoder.caches:
            if isinstance(cache, AttentionCache) and cache.kv is not None:
                self._turn(cache.kv, decoder.start_B)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits_B1V: Tensor | None = None
        if device.type == "cuda":
            # The current device is the first one: what another one does would not be recorded.
            with torch.cuda.device(device):
                self._capture(_side_stream(device))

    def __call__(self, tokens_B1: Tensor) -> Tensor:
        """Logits after one more token of each row, (B, 1, V); good until the next call."""
        self.decoder.length += 1
        self.model.check_length(self.decoder.length)
        self.tokens_B1.copy_(tokens_B1)
        if self.graph is None:
            return self._step()
        self.graph.replay()
        assert self.logits_B1V is not None
        return self.logits_B1V

    def _turn(self, kv: KVCache, start_B: Tensor) -> None:
        aligned = ring.ALIGNED if _has_kernel(self.model) else 1  # plain attention takes them as they are
        places = start_B, self.decoder.length, self.seen_B, aligned
        kv.k, kv.v = (cast(Any, Ring(one, *places)) for one in (kv.k, kv.v))

    def _step(self) -> Tensor:
        decoder, model, before = self.decoder, self.model, self._kept()
        stream = decoder._enter(self.tokens_B1, self.positions, None)
        stream = decoder._run(range(len(decoder.caches)), stream, self._contexts(), States())
        logits = model.logits(model.final(stream))
        for (owner, name), tensor in before.items():
            new = getattr(owner, name)
            if new is not tensor:
                tensor.copy_(new)
                setattr(owner, name, tensor)
        self.seen_B += 1
        self.positions += 1
        return logits

    def _contexts(self) -> Contexts:
        """Those of one token, with the places that each window has."""
        found = self.model.contexts(self.positions, None, Keys(1, None), self.tokens_B1)
        longest = self._longest()
        for (window, base), context in found.items():
            size = longest if window is None else min(window, longest)
            used_B = (self.seen_B + 1).clamp(max=size).int()
            found[window, base] = context._replace(mask=Mask("ring", ring.places(used_B, size)))
        return found

    def _longest(self) -> int:
        """Places of a layer that sees all tokens."""
        kv = (cache.kv for cache in self.decoder.caches if isinstance(cache, AttentionCache) and cache.kv is not None)
        return max((cast(Any, one).k.size for one in kv), default=0)

    def _kept(self) -> dict[tuple[Any, str], Tensor]:
        """(owner, name) -> what a step makes anew, and the next one reads."""
        owners = [cache for cache in self.decoder.caches if cache is not None] + [self.decoder]
        names = ("state", "conv", "seen_B", "before_B1D")
        found = {(owner, name): getattr(owner, name, None) for owner in owners for name in names}
        return {place: tensor for place, tensor in found.items() if tensor is not None}

    def _capture(self, side: torch.cuda.Stream) -> None:
        """Run a step once, which compiles kernels and allocates, and record another."""
        values = [*self._kept().values(), self.seen_B, self.positions]
        before = [tensor.clone() for tensor in values]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # as torch.cuda.graph asks for
            self._step()
        torch.cuda.current_stream().wait_stream(side)
        for tensor, value in zip(values, before):
            tensor.copy_(value)
        self.graph, failed = torch.cuda.CUDAGraph(), None
        # On a stream of this device: the default one stays on the device that had the first graph. By thread: a
        # checkpoint may be on its way to the host meanwhile, in another one.
        with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
            try:
                self.logits_B1V = self._step()
            except torch.OutOfMemoryError as error:  # the end of the recording would raise another one
                failed = error
        if failed is not None:
            raise failed


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace, on Hopper of 32 MiB, for each stream that it ever ran on."""
    return torch.cuda.Stream(device)
