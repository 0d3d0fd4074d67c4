"""What a forward pass works out once and hands to every layer: rotary tables, masks, documents, backends.

Shapes: B batch, T tokens of the call, S positions that they may see (S >= T), R rotary dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.nn import rotary
from lit_gpt.ops import attention
from lit_gpt.ops.boundaries import document_offsets
from lit_gpt.ops.masks import in_reach


class Backends(NamedTuple):
    """Rows of the tables in lit_gpt.ops: of attention, of the experts' grouped products, of every other kernel."""

    attention: str = "auto"
    experts: str = "auto"
    kernels: str = "auto"


class Context(NamedTuple):
    """Read-only inputs of a block beside the residual stream.

    rope: cos and sin of this layer's base, (T, R/2) or (B, T, R/2) each; None without rotary positions.
    mask: which keys a query sees under this layer's window, in the form that the attention backend reads. Both are
    None where no layer of that base or window attends.
    doc_ids: (B, T), the documents of this call's tokens; None when each row goes on with one.
    cu_seqlens: (N + 1,) int32, where the N documents start in the B * T tokens, and B * T; on
    CUDA with documents, else None. backend, experts, kernels: see Backends.
    tokens: (B, T), of this call, for value embeddings; None in a model without them.
    dropout: (B, 2), this layer's keys, see nn.dropout; None drops nothing.
    """

    rope: tuple[Tensor, Tensor] | None = None
    mask: attention.Mask | None = None
    doc_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    backend: str = "auto"
    experts: str = "auto"
    kernels: str = "auto"
    tokens: Tensor | None = None
    dropout: Tensor | None = None


class Keys(NamedTuple):
    """What attention may see: S positions, of which the queries are the last; their documents, (B, S), if any.

    Masks are over the keys that are in reach of a window, which are all that its layers keep.
    """

    length: int
    doc_ids: Tensor | None


Contexts = dict[tuple[int | None, float | None], Context]


def layer_contexts(
    config: ModelConfig,
    attending: Collection[LayerSpec],
    positions: Tensor,
    doc_ids_BT: Tensor | None,
    keys: Keys,
    dtype: torch.dtype,
    backends: Backends,
    tokens_BT: Tensor | None = None,
) -> Contexts:
    """One Context for each pair of window and rotary base among the model's layers.

    Layers share masks and tables, which cost as much as a layer where each makes its own; those that no layer of
    `attending` reads are not made. positions: of the queries, for rotary tables, (T,) or (B, T).
    doc_ids_BT: documents that may start among the queries. dtype: what attention computes in. tokens_BT: of the
    queries.
    """
    device, queries = positions.device, positions.shape[-1]
    # Only kernels read the offsets, and finding them waits for the device.
    cu_seqlens = document_offsets(doc_ids_BT) if doc_ids_BT is not None and device.type == "cuda" else None
    ropes, masks = {}, {}
    for base, yarn in {(spec.rope_base, config.stretched(spec)) for spec in attending}:
        # A base of 0 means a layer without rotation in a model that has it elsewhere.
        turns = config.position == "rope" and base != 0
        ropes[base, yarn] = rotary.tables(config, positions, base, yarn) if turns else None
    packed, offsets = keys.doc_ids is not None, cu_seqlens is not None
    for window in {spec.window for spec in attending}:
        seen = in_reach(queries, keys.length, window)
        asked = device, queries, seen, window, packed, config.attn_sink, dtype, offsets, config.head_dim
        request = attention.describe(*asked)
        doc_ids = None if keys.doc_ids is None else keys.doc_ids[:, keys.length - seen :]
        masks[window] = attention.prepare_mask(request, doc_ids, device, backends.attention, cu_seqlens)
    tables = {
        (spec.window, spec.rope_base): ropes.get((spec.rope_base, config.stretched(spec))) for spec in config.layers
    }
    tokens_BT = tokens_BT if any(spec.value_embedding for spec in config.layers) else None
    return {
        (window, base): Context(rope, masks.get(window), doc_ids_BT, cu_seqlens, *backends, tokens_BT)
        for (window, base), rope in tables.items()
    }
