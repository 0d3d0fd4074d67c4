"""GPT: the decoder-only language model that a ModelConfig describes, as it is trained.

    x = embed(tokens);  x = block(x) for every layer;  logits = head(norm(x))

Text is generated with a cache instead: see lit_gpt.evals.decoding. Weights are not initialised here: see lit_gpt.init.

Shapes: B batch, T tokens, D = n model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.block import Block, Stream
from lit_gpt.nn.context import Backends, Context, Contexts, Keys, layer_contexts
from lit_gpt.nn.dropout import drop, layer_keys
from lit_gpt.nn.linear import Embedding, Head
from lit_gpt.nn.mixers import SharedState
from lit_gpt.nn.moe import Routed, stack
from lit_gpt.nn.norm import build_norm
from lit_gpt.nn.smear import TokenSmear
from lit_gpt.ops.backends import current_name
from lit_gpt.ops.boundaries import doc_positions
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.loss import ChunkLoss, eager_chunk_loss, linear_cross_entropy, soft_cap, token_losses
from lit_gpt.roles import TABLES, role
from lit_gpt.scaling.base import Multipliers

# Roles of weights that every module casts to compute_dtype and multiplies. Routers do it in fp32, and a tied table is
# also read in the stream's dtype.
CAST_WHERE_USED = ("matrix", "output", "expert", "head")
BACKOUT_START = 0.2  # share of the middle stream that is taken out, nanochat's backout_lambda


class Output(NamedTuple):
    """What a forward pass gives; fields that it was not asked for are None.

    logits: (B, T, vocab_size) in at least fp32. loss: the sum over all targets, a scalar in at least fp32, or that of
    each target, (B, T).
    routed: what the routers did, one row per layer with experts; None in a model without any.
    """

    logits: Tensor | None = None
    loss: Tensor | None = None
    routed: Routed | None = None


class GPT(nn.Module):
    """Embedding, blocks, norm, head.

    multipliers: the Plan's constants inside the forward pass. compute_dtype: of every branch
    and of the head. residual_dtype: of the residual stream under pre-norm; under post-norm
    the stream is in compute_dtype. attention_backend, expert_backend, loss_backend: see lit_gpt.ops.
    kernels: "plain" keeps library kernels out of every operation but attention.
    table_dtype: what the tables of roles.TABLES are stored in, None as all other weights.
    loss_chunk: tokens per chunk of the chunked loss. chunk_loss may be replaced by a compiled one.
    rounded_logits: see linear_cross_entropy.
    """

    def __init__(
        self,
        config: ModelConfig,
        multipliers: Multipliers = Multipliers(),  # noqa: B008 (frozen)
        *,
        compute_dtype: torch.dtype = torch.float32,
        residual_dtype: torch.dtype = torch.float32,
        table_dtype: torch.dtype | None = None,
        attention_backend: str = "auto",
        kernels: str = "auto",
        expert_backend: str = "auto",
        loss_backend: str = "chunked",
        loss_chunk: int | None = None,
        rounded_logits: bool = False,
    ):
        super().__init__()
        self.config, self.multipliers, self.compute_dtype = config, multipliers, compute_dtype
        # Pre-norm only ever adds to the stream, where bf16 would lose small branches; post-norm writes it anew.
        self.stream_dtype = compute_dtype if config.post_norm else residual_dtype
        # The experts' products have an option of their own, which plain kernels override.
        expert_backend = "plain" if current_name(kernels) == "plain" else expert_backend
        self.backends = Backends(attention_backend, expert_backend, kernels)
        self.loss_backend, self.loss_chunk, self.rounded_logits = loss_backend, loss_chunk, rounded_logits
        self.table_dtype = table_dtype
        self.chunk_loss: ChunkLoss = eager_chunk_loss
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd) if config.position == "learned" else None
        # Layers that share their weights are one block; block_of says which block a layer is.
        firsts = sorted({config.first_layer(i) for i in range(config.depth)})
        self.blocks = nn.ModuleList(Block(config, i, multipliers, compute_dtype) for i in firsts)
        self.block_of = [firsts.index(config.first_layer(i)) for i in range(config.depth)]
        mixers = [self.blocks[b].mixer for b in self.block_of]
        # Layers that read masks and rotary tables; no other layer pays for them.
        self.attending = [s for s, m in zip(config.layers, mixers) if getattr(m, "attends", False)]
        self.embedding_norm = build_norm(config) if config.embedding_norm else None
        self.smear = TokenSmear(config) if config.token_smear else None
        self.backout = role(nn.Parameter(torch.empty(1)), "scalar", BACKOUT_START) if config.backout else None
        self.norm = build_norm(config)
        self.head = None if config.tie_embeddings else Head(config.n_embd, config.padded_vocab_size)
        if table_dtype is not None:
            for p in self.parameters():
                if p.role in TABLES:  # type: ignore[attr-defined]
                    p.data = p.data.to(table_dtype)

    def another(self) -> GPT:
        """A model like this one with weights of its own, which have no values yet; on torch's default device."""
        return GPT(
            self.config,
            self.multipliers,
            compute_dtype=self.compute_dtype,
            residual_dtype=self.stream_dtype,
            table_dtype=self.table_dtype,
            attention_backend=self.backends.attention,
            kernels=self.backends.kernels,
            expert_backend=self.backends.experts,
            loss_backend=self.loss_backend,
            loss_chunk=self.loss_chunk,
            rounded_logits=self.rounded_logits,
        )

    def forward(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor | None = None,
        *,
        doc_ids_BT: Tensor | None = None,
        label_smoothing: float = 0.0,
        head: bool = True,
        each: bool = False,
        dropout_BW: Tensor | None = None,
    ) -> Output:
        """The logits of every position, or with targets the summed loss; see Output.

        targets_BT: next tokens; ops.loss.IGNORE where there is none. doc_ids_BT: integers that change at document
        boundaries; attention and recurrence stay inside a document. head: False leaves out what comes after the last
        block, where only the routers are of interest. each: the loss of every target, without gradients or smoothing.
        dropout_BW: a key for each row (nn.dropout.row_keys); without keys nothing is dropped.
        """
        h_BTD, routed = self.hidden(tokens_BT, doc_ids_BT, dropout_BW)
        if not head:
            return Output(routed=routed)
        if targets_BT is None:
            return Output(logits=self.logits(h_BTD), routed=routed)
        if each:
            return Output(loss=self.losses(h_BTD, targets_BT), routed=routed)
        return Output(loss=self.loss(h_BTD, targets_BT, label_smoothing), routed=routed)

    def hidden(
        self, tokens_BT: Tensor, doc_ids_BT: Tensor | None = None, dropout_BW: Tensor | None = None
    ) -> tuple[Tensor, Routed | None]:
        """(what the head reads, (B, T, n); what the routers did). The arguments are those of `forward`."""
        # Positions count from the start of the row, or of each document where the config says so.
        self.check_length(tokens_BT.shape[1])
        positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        if doc_ids_BT is not None and self.config.doc_positions == "restart":
            positions = doc_positions(doc_ids_BT)
        contexts = self.contexts(positions, doc_ids_BT, Keys(tokens_BT.shape[1], doc_ids_BT), tokens_BT)
        # layer L is the embedding
        keys_LBW = None if dropout_BW is None else layer_keys(dropout_BW, self.config.depth + 1)
        stream, routed = self.start(tokens_BT, positions, doc_ids_BT, None if keys_LBW is None else keys_LBW[-1]), []
        # What a layer shares with later ones: keys and values for cross-attention, a memory for gated memory units.
        states: dict[int | None, SharedState | None] = {}
        for i, spec in enumerate(self.config.layers):
            context = contexts[spec.window, spec.rope_base]
            context = context if keys_LBW is None else context._replace(dropout=keys_LBW[i])
            stream, states[i] = self.layer(i, stream, context, states.get(spec.shares))
            if stream.routed is not None:
                routed.append(stream.routed)
        return self.final(stream), stack(routed) if routed else None

    def layer(
        self, i: int, stream: Stream, context: Context, shared: SharedState | None, cache: Any = None
    ) -> tuple[Stream, SharedState | None]:
        """The stream after layer i, and what later layers read of it; see Block.forward."""
        stream = self.mark(i, stream)
        # A block gets what it reads and keeps for its backward pass, and no more.
        given = Stream(stream.x, stream.total, first=stream.first)
        out, state = self.blocks[self.block_of[i]](given, context, shared, cache)
        return Stream(out.x, out.total, out.routed, stream.first, stream.middle), state

    def mark(self, i: int, stream: Stream) -> Stream:
        """The stream that enters layer i, which remembers itself in the middle where the model has backout."""
        config = self.config
        at = config.depth // 2 if config.backout_layer is None else config.backout_layer
        middle = stream.x if self.backout is not None and i == at else stream.middle
        return Stream(stream.x, stream.total, None, stream.first, middle)

    def contexts(self, positions: Tensor, doc_ids_BT: Tensor | None, keys: Keys, tokens_BT: Tensor) -> Contexts:
        """The inputs that layers share; see layer_contexts."""
        dtype, backends = self.compute_dtype, self.backends
        return layer_contexts(self.config, self.attending, positions, doc_ids_BT, keys, dtype, backends, tokens_BT)

    def check_length(self, length: int) -> None:
        """Raises UserError for a sequence that is longer than a table of learned positions."""
        table = None if self.wpe is None else self.wpe.weight
        if table is not None and length > len(table) and not table.is_meta:  # whose values nobody reads
            raise UserError(
                f"The input has {length} tokens, and the model has learned positions for {len(table)}. Shorten it."
            )

    def embed(self, tokens_BT: Tensor, positions: Tensor) -> Tensor:
        """The embeddings of tokens at positions, (B, T, n), each by itself. positions: (T,) or (B, T)."""
        x_BTD = self.wte(tokens_BT, self.stream_dtype)
        x_BTD = x_BTD if self.wpe is None else x_BTD + self.wpe(positions, self.stream_dtype)
        return x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD, self.stream_dtype)

    def start(self, tokens_BT: Tensor, positions: Tensor, doc_ids_BT: Tensor | None, keys_BW: Tensor | None) -> Stream:
        """The stream that enters the first block: all that comes before it, for compilation in one piece."""
        x_BTD = self.embed(tokens_BT, positions)
        return self.enter(drop(x_BTD, keys_BW, 0, self.config.dropout), doc_ids_BT)

    def enter(self, x_BTD: Tensor, doc_ids_BT: Tensor | None, before_B1D: Tensor | None = None) -> Stream:
        """The stream that enters the first block, of what `embed` gave. before_B1D: see TokenSmear."""
        x_BTD = x_BTD if self.smear is None else self.smear(x_BTD, doc_ids_BT, before_B1D)
        total = torch.zeros_like(x_BTD) if self.config.skip == "sum" else None
        return Stream(x_BTD, total, first=x_BTD if self.config.residual_scalars else None)

    def final(self, stream: Stream) -> Tensor:
        """What the head reads: the normalised final state times the logit multiplier, (B, T, n)."""
        x_BTD = stream.x if stream.total is None else stream.total
        if self.backout is not None:
            assert stream.middle is not None
            x_BTD = (x_BTD - self.backout * stream.middle).to(x_BTD.dtype)
        h_BTD = self.norm(x_BTD, self.compute_dtype)
        # On the state and not on the logits, which are many more numbers to multiply.
        return h_BTD if self.multipliers.logit == 1 else h_BTD * self.multipliers.logit

    def logits(self, h_BTD: Tensor) -> Tensor:
        """(..., vocab_size) in at least fp32, of what `final` gave or a part of it."""
        logits = self.with_head(h_BTD, lambda h_BTD, weight: upcast(F.linear(h_BTD, weight.to(h_BTD.dtype))))
        # The head has rows for a vocabulary padded to a multiple of 64, which tensor cores want; they are no tokens.
        return soft_cap(logits[..., : self.config.vocab_size], self.config.logit_softcap)

    def loss(self, h_BTD: Tensor, targets_BT: Tensor, label_smoothing: float) -> Tensor:
        """The cross-entropy of the next tokens, summed over the targets that count."""
        cross_entropy = partial(
            linear_cross_entropy,
            targets_N=targets_BT.flatten(),
            vocab_size=self.config.vocab_size,
            label_smoothing=label_smoothing,
            backend=self.loss_backend,
            chunk=self.loss_chunk,
            cap=self.config.logit_softcap,
            inner=self.chunk_loss,
            rounded=self.rounded_logits,
        )
        return self.with_head(h_BTD.flatten(0, 1), cross_entropy)

    def losses(self, h_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """The cross-entropy of each next token, (B, T), 0 for those that do not count."""
        vocab, chunk, cap = self.config.vocab_size, self.loss_chunk, self.config.logit_softcap
        losses = partial(token_losses, targets_N=targets_BT.flatten(), vocab_size=vocab, chunk=chunk, cap=cap)
        return self.with_head(h_BTD.flatten(0, 1), losses).view_as(targets_BT)

    def with_head(self, h_BTD: Tensor, use: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """use(h_BTD, the output projection), whose weight other processes may hold; see Head."""
        return use(h_BTD, self.wte.weight) if self.head is None else self.head(h_BTD, use)

    def cast_products(self) -> GPT:
        """This model with the weights that are only multiplied in compute_dtype, for evaluation.

        It computes the same to the bit, in half the memory, and without a cast at every token.
        """
        for p in self.parameters():
            if p.role in CAST_WHERE_USED:  # type: ignore[attr-defined]
                p.data = p.data.to(self.compute_dtype)
        return self

    def head_weight(self) -> Tensor:
        """The output projection (padded vocabulary, n); the token table itself when tied."""
        return self.wte.weight if self.head is None else self.head.weight
