"""GPT: the decoder-only language model that a ModelConfig describes.

Shapes: B batch, T tokens, D = n model width, V vocabulary.
Weights are not initialised here; see lit_gpt.init.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.data.varlen import doc_positions, document_offsets
from lit_gpt.nn import rotary
from lit_gpt.nn.block import Block, Stream
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Embedding, Linear
from lit_gpt.nn.mixers import Lent
from lit_gpt.nn.moe import MixtureOfExperts, Routed, stack
from lit_gpt.nn.norm import build_norm
from lit_gpt.ops import attention
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.loss import ChunkLoss, chunk_loss, linear_cross_entropy
from lit_gpt.roles import ROLES, roles_of
from lit_gpt.scaling.base import Multipliers


class Cache:
    """State of cached decoding: one entry per layer, and what was seen.

    length: tokens so far. doc_ids: (B, length) when the first call brought documents, else None;
    later tokens continue each row's last one. first_B: where that one starts, 0 without documents.
    """

    def __init__(self, layers: list[Any], batch: int, device: torch.device):
        self.layers, self.length = layers, 0
        self.doc_ids: Tensor | None = None
        self.first_B = torch.zeros(batch, dtype=torch.long, device=device)

    def see(self, count: int, doc_ids_BT: Tensor | None) -> None:
        """Take account of `count` more tokens per row."""
        assert doc_ids_BT is None or self.length == 0, "documents start in the first call of cached decoding only"
        if doc_ids_BT is not None:
            self.doc_ids = doc_ids_BT
            self.first_B = count - 1 - doc_positions(doc_ids_BT)[:, -1]
        elif self.doc_ids is not None:
            self.doc_ids = torch.cat([self.doc_ids, self.doc_ids[:, -1:].expand(-1, count)], dim=1)
        self.length += count


class _Keys(NamedTuple):
    """The positions that attention may see: how many, and their documents, (B, length) or None."""

    length: int
    doc_ids: Tensor | None


def _last(lent: Lent | None) -> Lent | None:
    """The memory of the last position; keys and values stay whole."""
    return lent if lent is None or lent.memory is None else lent._replace(memory=lent.memory[:, -1:])


class GPT(nn.Module):
    """Embedding, blocks, norm, head.

    multipliers: the Plan's constants inside the forward pass. compute_dtype: of every branch
    and of the head. residual_dtype: of the residual stream under pre-norm; under post-norm
    the stream is in compute_dtype. attention_backend, loss_backend: see lit_gpt.ops.
    kernels: "reference" keeps library kernels out of every operation but attention.
    expert_backend: of the experts' grouped matrix products.
    loss_chunk: tokens per chunk of the chunked loss. chunk_loss may be replaced by its
    compiled form.
    """

    def __init__(
        self,
        config: ModelConfig,
        multipliers: Multipliers = Multipliers(),  # noqa: B008 (frozen)
        *,
        compute_dtype: torch.dtype = torch.float32,
        residual_dtype: torch.dtype = torch.float32,
        attention_backend: str = "auto",
        kernels: str = "auto",
        expert_backend: str = "auto",
        loss_backend: str = "chunked",
        loss_chunk: int | None = None,
    ):
        super().__init__()
        self.config, self.multipliers, self.compute_dtype = config, multipliers, compute_dtype
        self.stream_dtype = compute_dtype if config.post_norm else residual_dtype
        self.attention_backend, self.kernels = attention_backend, kernels
        self.expert_backend = "reference" if kernels == "reference" else expert_backend
        self.loss_backend, self.loss_chunk = loss_backend, loss_chunk
        self.chunk_loss: ChunkLoss = chunk_loss
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        firsts = sorted({config.first_layer(i) for i in range(config.depth)})
        self.blocks = nn.ModuleList(Block(config, i, multipliers, compute_dtype) for i in firsts)
        self.block_of = [firsts.index(config.first_layer(i)) for i in range(config.depth)]
        mixers = [self.blocks[b].mixer for b in self.block_of]
        self.attending = [s for s, m in zip(config.layers, mixers) if getattr(m, "attends", False)]
        self.norm = build_norm(config)
        head = None if config.tie_embeddings else Linear(config.n_embd, config.padded_vocab_size, weight_role="head")
        self.head = head

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        *,
        doc_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
        label_smoothing: float = 0.0,
        routing: Literal["with", "only"] | None = None,
    ) -> Tensor | Routed | tuple[Tensor, Routed]:
        """Logits (B, T, vocab_size) in at least fp32, or with targets the summed loss, a scalar.

        targets_BT: next tokens; ops.loss.IGNORE where there is none. doc_ids_BT: integers that
        change at document boundaries; attention stays inside a document. cache: tokens_BT
        continue what it has seen, and are added to it; doc_ids_BT in its first call only.
        routing: of a model with experts, return (that, what the routers did) or the second "only".
        """
        h_BTD, routed = self._states(tokens_BT, doc_ids_BT=doc_ids_BT, cache=cache)
        if routing == "only":
            return stack(routed)
        result = self.logits(h_BTD) if targets_BT is None else self._loss(h_BTD, targets_BT, label_smoothing)
        return result if routing is None else (result, stack(routed))

    def _loss(self, h_BTD: Tensor, targets_BT: Tensor, label_smoothing: float) -> Tensor:
        return linear_cross_entropy(
            h_BTD.flatten(0, 1),
            self.head_weight(),
            targets_BT.flatten(),
            vocab_size=self.config.vocab_size,
            label_smoothing=label_smoothing,
            backend=self.loss_backend,
            chunk=self.loss_chunk,
            inner=self.chunk_loss,
        )

    def logits(self, h_BTD: Tensor) -> Tensor:
        """(..., vocab_size) in at least fp32, of what `hidden` gave or a part of it."""
        return upcast(F.linear(h_BTD, self.head_weight().to(h_BTD.dtype)))[..., : self.config.vocab_size]

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        doc_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """What the head reads: the normalised final state times the logit multiplier, (B, T, n).

        last_only: of the last position, (B, 1, n). Layers at the end that keep no state of their
        own (YOCO's second half) then compute nothing else, and attention before them only keys and values.
        """
        return self._states(tokens_BT, doc_ids_BT=doc_ids_BT, cache=cache, last_only=last_only)[0]

    def _states(
        self,
        tokens_BT: Tensor,
        *,
        doc_ids_BT: Tensor | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, list[Routed]]:
        """(`hidden`, what the routers did, in the order of the layers that have one)."""
        length, seen = tokens_BT.shape[1], 0 if cache is None else cache.length
        if cache is not None:
            cache.see(length, doc_ids_BT)
        keys = _Keys(seen + length, doc_ids_BT if cache is None else cache.doc_ids)
        positions = torch.arange(seen, seen + length, device=tokens_BT.device)
        if doc_ids_BT is not None and self.config.doc_positions == "restart":
            positions = doc_positions(doc_ids_BT)
        elif keys.doc_ids is not None and self.config.doc_positions == "restart":
            positions = positions - cast(Cache, cache).first_B[:, None]
        contexts = self._contexts(keys, positions, doc_ids_BT)
        x_BTD = self.wte(tokens_BT, self.stream_dtype)
        stream = Stream(x_BTD, torch.zeros_like(x_BTD) if self.config.skip == "sum" else None)
        lent: dict[int, Lent | None] = {}
        routed: list[Routed] = []
        # One new token is the last position already.
        narrow = last_only and length > 1
        tail, ends = (self._tail(), self._contexts(keys, positions[..., -1:], None)) if narrow else (None, {})
        for i, spec in enumerate(self.config.layers):
            if i == tail:
                stream, lent, contexts = stream.last(), {j: _last(given) for j, given in lent.items()}, ends
            shared = None if spec.shares is None else lent[spec.shares]
            layer_cache = None if cache is None else cache.layers[i]
            block, context = self.blocks[self.block_of[i]], contexts[spec.window, spec.rope_base]
            if tail is not None and i == tail - 1 and getattr(block.mixer, "narrows", False):
                context = context._replace(last=ends[spec.window, spec.rope_base])
            stream, lent[i] = block(stream, context, shared, layer_cache)
            if stream.routed is not None:
                routed.append(stream.routed)
                stream = stream._replace(routed=None)
        stream = stream.last() if last_only else stream
        final_BTD = stream.x if stream.total is None else stream.total
        h_BTD = self.norm(final_BTD, self.compute_dtype)
        return (h_BTD if self.multipliers.logit == 1 else h_BTD * self.multipliers.logit), routed

    def _tail(self) -> int:
        """The first of the layers at the end that keep no state of their own; the depth without any."""
        kept = [i for i, b in enumerate(self.block_of) if not getattr(self.blocks[b].mixer, "stateless", False)]
        return kept[-1] + 1

    def _contexts(
        self, keys: _Keys, positions: Tensor, doc_ids_BT: Tensor | None
    ) -> dict[tuple[int | None, float | None], Context]:
        """One Context per window and rotary base; layers share what is in them, made for those that attend.

        positions: of the queries, the last of the keys, (T,) or (B, T). doc_ids_BT: documents that
        may start among them.
        """
        config, device, backend, queries = self.config, positions.device, self.attention_backend, positions.shape[-1]
        cu_seqlens = document_offsets(doc_ids_BT) if doc_ids_BT is not None and device.type == "cuda" else None
        ropes, masks = {}, {}
        for base in {spec.rope_base for spec in self.attending}:
            turns = config.position == "rope" and base != 0
            ropes[base] = rotary.tables(config, positions, base) if turns else None
        for window in {spec.window for spec in self.attending}:
            request = attention.describe(
                device,
                queries,
                keys.length,
                window,
                keys.doc_ids is not None,
                config.attn_sink,
                self.compute_dtype,
                cu_seqlens is not None,
            )
            masks[window] = attention.prepare_mask(request, keys.doc_ids, device, backend, cu_seqlens)
        return {
            (spec.window, spec.rope_base): Context(
                ropes.get(spec.rope_base),
                masks.get(spec.window),
                doc_ids_BT,
                cu_seqlens,
                backend,
                self.kernels,
                self.expert_backend,
            )
            for spec in config.layers
        }

    def head_weight(self) -> Tensor:
        """The output projection (padded vocabulary, n); the token table itself when tied."""
        return self.wte.weight if self.head is None else self.head.weight

    def new_cache(self, batch: int, max_len: int) -> Cache:
        """An empty cache for `batch` rows of at most max_len tokens, on the model's device."""
        device, dtype = self.wte.weight.device, self.compute_dtype
        mixers = (self.blocks[i].mixer for i in self.block_of)
        return Cache([m.new_cache(batch, max_len, device, dtype) for m in mixers], batch, device)  # type: ignore[operator]

    def flops_per_token(self, context_length: int) -> float:
        """Matmul FLOPs per token of forward and backward (3 x forward), recomputation left out.

        Attention counts the keys that a query sees, averaged over a sequence of context_length.
        """
        forward = sum(self.blocks[i].flops(context_length) for i in self.block_of)  # type: ignore[operator]
        return 3 * (forward + 2 * self.head_weight().numel())

    def palm_flops_per_token(self, context_length: int) -> float:
        """The same by PaLM's convention (arXiv:2204.02311, appendix B): 6 N + 12 L H Q T.

        N are the active parameters without the input table (a tied one is the output projection too, and counts), L
        the layers with softmax attention of H heads of size Q, each as if a query saw all T tokens.
        """
        counts, config = self.param_counts(), self.config
        n = counts["active"] - (0 if self.head is None else counts["embedding"])
        return 6.0 * n + 12.0 * len(self.attending) * config.n_head * config.head_dim * context_length

    def param_counts(self) -> dict[str, int]:
        """Parameters by kind: total, active per token, non_embedding (neither table nor head), each role.

        A tied table counts once, as embedding. Padded rows count. Of experts, those that a token uses are active.
        """
        roles = roles_of(self)
        per_role: Counter[str] = Counter()
        for name, parameter in self.named_parameters():
            per_role[roles[name]] += parameter.numel()
        total = sum(per_role.values())
        outside = total - per_role["embedding"] - per_role["head"]
        inactive = sum(m.inactive_parameters() for m in self.modules() if isinstance(m, MixtureOfExperts))
        counts = {"total": total, "active": total - inactive, "non_embedding": outside}
        return counts | {name: per_role[name] for name in ROLES}
