"""Cached decoding: a prompt in one call (the prefill), then token by token, from what each layer remembers.

The layers are those of the training forward (lit_gpt.model.GPT); what is here is the cache, and which work a call
that only asks for the last position may leave out:

- Layers at the end that keep nothing of their own, the second half of YOCO (arXiv:2405.05254, section 3.3), are
  computed for the last position alone. docs/performance_details.md has what that saves.
- Softmax attention before them has one query; only its keys and values are made for all positions.

What a layer keeps between calls is bounded by what later ones need: keys and values of the positions in its window (or
in that of a layer that reads them), the state of a recurrent layer; see lit_gpt.nn.cache.

Shapes: B rows, T tokens of a call, S positions so far with this call's, n model width.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor

from lit_gpt.model import GPT
from lit_gpt.nn.block import Block, Stream
from lit_gpt.nn.cache import extend, rows_of, select_rows
from lit_gpt.nn.context import Context, Contexts, Keys
from lit_gpt.nn.mixers import SharedState
from lit_gpt.nn.mixers.attention import Attention
from lit_gpt.ops.boundaries import doc_positions

States = dict[int | None, SharedState | None]  # what each layer so far shares with later ones


class Decoder:
    """Rows of tokens that a model goes on with, call after call.

    length: tokens of each row so far. caches: what each layer remembers of them, None for a layer without memory.
    """

    def __init__(self, model: GPT, batch: int, max_len: int):
        """batch rows of at most max_len tokens, on the model's device; nothing has been seen."""
        device, dtype = model.wte.weight.device, model.compute_dtype
        mixers = [cast(Any, model.blocks[b]).mixer for b in model.block_of]
        self.model, self.length = model, 0
        self.caches = [mixer.new_cache(batch, max_len, device, dtype) for mixer in mixers]
        self.doc_ids_BS: Tensor | None = None
        self.before_B1D: Tensor | None = None  # each row's last embedding, for the token smear of the next one
        # Where each row's last document starts, from which its rotary positions count.
        self.start_B = torch.zeros(batch, dtype=torch.long, device=device)

    def __call__(self, tokens_BT: Tensor, doc_ids_BT: Tensor | None = None, *, last_only: bool = False) -> Tensor:
        """Logits after each new token, (B, T, vocab_size), or after the last one, (B, 1, vocab_size). See `hidden`."""
        return self.model.logits(self.hidden(tokens_BT, doc_ids_BT, last_only=last_only))

    def hidden(self, tokens_BT: Tensor, doc_ids_BT: Tensor | None = None, *, last_only: bool = False) -> Tensor:
        """What the head reads, (B, T, n), or (B, 1, n) with last_only.

        doc_ids_BT: as in GPT.forward, in the first call only; what comes later continues each row's last document.
        Positions count from the start of each, also where training counted through (doc_positions): what is before
        the last one is padding here, which must not move the learned positions of what comes after it.
        """
        model, length, depth = self.model, tokens_BT.shape[1], len(self.caches)
        positions, keys = self._see(length, doc_ids_BT)
        contexts, states = model.contexts(positions, doc_ids_BT, keys, tokens_BT), States()
        stream = self._enter(tokens_BT, positions, doc_ids_BT)
        if length == 1 or not last_only:  # one new token is the last position already
            return model.final(self._run(range(depth), stream, contexts, states))
        # In order: layers for all positions, one layer whose last query is enough, layers for the last position.
        ends, tail = model.contexts(positions[..., -1:], None, keys, tokens_BT[:, -1:]), self._tail()
        stream = self._run(range(tail - 1), stream, contexts, states)
        stream = self._last_query(tail - 1, stream, contexts, ends, states)
        states = {i: _of_last_position(state) for i, state in states.items()}
        return model.final(self._run(range(tail, depth), stream, ends, states))

    def select(self, index_R: Tensor) -> None:
        """Go on with these rows only; a row that is there several times can be continued in several ways."""
        for cache in self.caches:
            if cache is not None:
                select_rows(cache, index_R)
        self._take_rows(self, index_R)

    def extend(self, count: int) -> None:
        """Room for so many tokens more than max_len said, where nobody knew how long the rows would become."""
        for cache in self.caches:
            if cache is not None:
                extend(cache, count)

    def copies(self, count: int) -> Decoder:
        """So many rows that each go on from where this one row is, which stays as it is."""
        index_R = torch.zeros(count, dtype=torch.long, device=self.start_B.device)
        other = copy(self)
        other.caches = [None if cache is None else rows_of(cache, index_R) for cache in self.caches]
        self._take_rows(other, index_R)
        return other

    def _take_rows(self, other: Decoder, index_R: Tensor) -> None:
        """Give `other`, which may be this one, these rows of what is remembered outside the layers."""
        other.start_B = self.start_B[index_R]
        other.doc_ids_BS = None if self.doc_ids_BS is None else self.doc_ids_BS[index_R]
        other.before_B1D = None if self.before_B1D is None else self.before_B1D[index_R]

    def _enter(self, tokens_BT: Tensor, positions: Tensor, doc_ids_BT: Tensor | None) -> Stream:
        """The stream that enters the first layer."""
        x_BTD, before_B1D = self.model.embed(tokens_BT, positions), self.before_B1D
        if self.model.smear is not None:
            self.before_B1D = x_BTD[:, -1:].clone()  # a view would keep all embeddings of the call
        return self.model.enter(x_BTD, doc_ids_BT, before_B1D)

    def _see(self, count: int, doc_ids_BT: Tensor | None) -> tuple[Tensor, Keys]:
        """Take account of `count` more tokens per row: their positions, (T,) or (B, T), and all keys so far."""
        assert doc_ids_BT is None or self.length == 0, "documents start in the first call of cached decoding only"
        positions = torch.arange(self.length, self.length + count, device=self.start_B.device)
        if doc_ids_BT is not None:
            self.doc_ids_BS, positions = doc_ids_BT, doc_positions(doc_ids_BT)
            self.start_B = count - 1 - positions[:, -1]
        elif self.doc_ids_BS is not None:
            more = self.doc_ids_BS[:, -1:].expand(-1, count)
            self.doc_ids_BS = torch.cat([self.doc_ids_BS, more], dim=1)
            positions = positions - self.start_B[:, None]
        self.length += count
        self.model.check_length(self.length)
        return positions, Keys(self.length, self.doc_ids_BS)

    def _tail(self) -> int:
        """The first of the layers at the end that keep nothing of their own; the depth where the last one does."""
        return 1 + max((i for i, cache in enumerate(self.caches) if cache is not None), default=0)

    def _inputs(self, layer: int, contexts: Contexts, states: States) -> tuple[Block, Context, SharedState | None]:
        spec = self.model.config.layers[layer]
        block = cast(Block, self.model.blocks[self.model.block_of[layer]])
        return block, contexts[spec.window, spec.rope_base], states.get(spec.shares)

    def _run(self, layers: Iterable[int], stream: Stream, contexts: Contexts, states: States) -> Stream:
        """The stream after these layers; adds what they share to `states`."""
        for i in layers:
            _, context, shared = self._inputs(i, contexts, states)
            stream, states[i] = self.model.layer(i, stream, context, shared, self.caches[i])
        return stream

    def _last_query(self, layer: int, stream: Stream, contexts: Contexts, ends: Contexts, states: States) -> Stream:
        """The stream's last position after a layer that keeps something of all positions.

        A mixer whose forward is Attention's computes one query; any other one all positions, of which the last stays.
        contexts: of all positions. ends: of the last one.
        """
        block, context, shared = self._inputs(layer, contexts, states)
        mixer = cast(Attention, block.mixer)
        if type(mixer).forward is not Attention.forward:
            return _last(self._run([layer], stream, contexts, states))
        stream = self.model.mark(layer, stream)
        branch, skip = block.read(block.enter(stream), block.norm1, block.skip1)
        q, k, v = mixer.heads(branch, context, shared, self.caches[layer])
        end = self._inputs(layer, ends, states)[1]
        q = q[:, -1:]
        y = mixer.attend(q, mixer.near(q, k), mixer.near(q, v), end)
        h, state = mixer.finish(branch[:, -1:], y, (k, v))
        end_stream = _last(stream)
        out, states[layer] = block.after_mixer(end_stream, branch[:, -1:], skip[:, -1:], h, state, context)
        return Stream(out.x, out.total, None, end_stream.first, end_stream.middle)


def _last(stream: Stream) -> Stream:
    """The stream at its last position, (B, 1, n); without what routers did."""
    return Stream(*(None if x is None else x[:, -1:] for x in stream._replace(routed=None)))  # type: ignore[arg-type]


def _of_last_position(state: SharedState | None) -> SharedState | None:
    """What a layer shares with later ones that compute the last position: its memory there, all keys and values."""
    return None if state is None else SharedState(state.kv, None if state.memory is None else state.memory[:, -1:])
