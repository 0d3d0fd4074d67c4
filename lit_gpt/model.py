"""GPT: the decoder-only language model that a ModelConfig describes.

Shapes: B batch, T tokens, D = n model width, V vocabulary.
Weights are not initialised here; see lit_gpt.init.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn import rotary
from lit_gpt.nn.block import Block, Stream
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Embedding, Linear
from lit_gpt.nn.norm import build_norm
from lit_gpt.ops import attention
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.loss import ChunkLoss, chunk_loss, linear_cross_entropy
from lit_gpt.roles import ROLES, roles_of
from lit_gpt.scaling.base import Multipliers


class Cache:
    """State of cached decoding: one entry per layer, and how many tokens were seen."""

    def __init__(self, layers: list[Any]):
        self.layers, self.length = layers, 0


class GPT(nn.Module):
    """Embedding, blocks, norm, head.

    multipliers: the Plan's constants inside the forward pass. compute_dtype: of every branch
    and of the head. residual_dtype: of the residual stream under pre-norm; under post-norm
    the stream is in compute_dtype. attention_backend, loss_backend: see lit_gpt.ops.
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
        loss_backend: str = "chunked",
        loss_chunk: int | None = None,
    ):
        super().__init__()
        self.config, self.multipliers, self.compute_dtype = config, multipliers, compute_dtype
        self.stream_dtype = compute_dtype if config.post_norm else residual_dtype
        self.attention_backend, self.loss_backend, self.loss_chunk = attention_backend, loss_backend, loss_chunk
        self.chunk_loss: ChunkLoss = chunk_loss
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, i, multipliers, compute_dtype) for i in range(config.depth))
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
    ) -> Tensor:
        """Logits (B, T, vocab_size) in at least fp32, or with targets the summed loss, a scalar.

        targets_BT: next tokens; ops.loss.IGNORE where there is none. doc_ids_BT: integers that
        change at document boundaries; attention stays inside a document. cache: tokens_BT
        continue what it has seen, and are added to it; not together with doc_ids_BT.
        """
        h_BTD = self.hidden(tokens_BT, doc_ids_BT=doc_ids_BT, cache=cache)
        if targets_BT is None:
            return self.logits(h_BTD)
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

    def hidden(self, tokens_BT: Tensor, *, doc_ids_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """What the head reads: the normalised final state times the logit multiplier, (B, T, n)."""
        assert cache is None or doc_ids_BT is None, "cached decoding is for one document per row"
        start = 0 if cache is None else cache.length
        contexts = self._contexts(tokens_BT, start, doc_ids_BT)
        x_BTD = self.wte(tokens_BT, self.stream_dtype)
        stream = Stream(x_BTD, torch.zeros_like(x_BTD) if self.config.skip == "sum" else None)
        lent = {}
        for i, (block, spec) in enumerate(zip(self.blocks, self.config.layers)):
            shared = None if spec.shares is None else lent[spec.shares]
            layer_cache = None if cache is None else cache.layers[i]
            stream, lent[i] = block(stream, contexts[spec.window], shared, layer_cache)
        if cache is not None:
            cache.length += tokens_BT.shape[1]
        final_BTD = stream.x if stream.total is None else stream.total
        h_BTD = self.norm(final_BTD, self.compute_dtype)
        return h_BTD if self.multipliers.logit == 1 else h_BTD * self.multipliers.logit

    def _contexts(self, tokens_BT: Tensor, start: int, doc_ids_BT: Tensor | None) -> dict[int | None, Context]:
        """One Context per window; the tables and masks in them are shared by its layers."""
        config, device, backend = self.config, tokens_BT.device, self.attention_backend
        length, end = tokens_BT.shape[1], start + tokens_BT.shape[1]
        rope = None
        if config.position == "rope":
            rope = rotary.tables(config, torch.arange(start, end, device=device))
        contexts = {}
        for window in {spec.window for spec in config.layers}:
            request = attention.describe(device, length, end, window, doc_ids_BT is not None, config.attn_sink)
            mask = attention.prepare_mask(request, doc_ids_BT, device, backend)
            contexts[window] = Context(rope, mask, doc_ids_BT, backend)
        return contexts

    def head_weight(self) -> Tensor:
        """The output projection (padded vocabulary, n); the token table itself when tied."""
        return self.wte.weight if self.head is None else self.head.weight

    def new_cache(self, batch: int, max_len: int) -> Cache:
        """An empty cache for `batch` rows of at most max_len tokens, on the model's device."""
        device, dtype = self.wte.weight.device, self.compute_dtype
        mixers = (block.mixer for block in self.blocks)
        return Cache([m.new_cache(batch, max_len, device, dtype) for m in mixers])  # type: ignore[operator]

    def flops_per_token(self, context_length: int) -> float:
        """Matmul FLOPs per token of forward and backward (3 x forward), recomputation left out.

        Attention counts the keys that a query sees, averaged over a sequence of context_length.
        """
        forward = sum(block.flops(context_length) for block in self.blocks)  # type: ignore[operator]
        return 3 * (forward + 2 * self.head_weight().numel())

    def param_counts(self) -> dict[str, int]:
        """Parameters by kind: total, active per token, non_embedding (neither table nor head), each role.

        A tied table counts once, as embedding. Padded rows count.
        """
        roles = roles_of(self)
        per_role: Counter[str] = Counter()
        for name, parameter in self.named_parameters():
            per_role[roles[name]] += parameter.numel()
        total = sum(per_role.values())
        outside = total - per_role["embedding"] - per_role["head"]
        counts = {"total": total, "active": total, "non_embedding": outside}
        return counts | {name: per_role[name] for name in ROLES}
