"""Document boundaries inside packed sequences, worked out from the tokens: nothing about them is stored in the data.

Shapes: B batch, T tokens, N documents of a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class DocumentEnds(NamedTuple):
    """Where documents end: behind each token eos_id, and after doc_len tokens at the latest; 0 sets no limit."""

    eos_id: int
    doc_len: int = 0


def doc_ids(tokens_BT: torch.Tensor, ends: DocumentEnds) -> torch.Tensor:
    """The document every position belongs to, int32 (B, T), counted from 0 in each sequence.

    EOS is the last token of its document; the position after it starts the next one. The first document of a row is
    counted from the start of the row, wherever it began. Runs on the tensor's device without synchronising with the
    host.
    """
    is_eos_BT = (tokens_BT == ends.eos_id).to(torch.int32)
    ids_BT = is_eos_BT.cumsum(1, dtype=torch.int32) - is_eos_BT
    if not ends.doc_len:
        return ids_BT
    return (doc_positions(ids_BT) % ends.doc_len == 0).cumsum(1, dtype=torch.int32) - 1


def doc_starts(ids_BT: torch.Tensor) -> torch.Tensor:
    """bool (B, T): True at the first position of every document, position 0 included."""
    starts_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    starts_BT[:, 1:] = ids_BT[:, 1:] != ids_BT[:, :-1]
    return starts_BT


def doc_positions(ids_BT: torch.Tensor) -> torch.Tensor:
    """int64 (B, T): the position of every token inside its document, from 0."""
    place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    # The last start at or before a position, as a running maximum: no loop, and no wait for the device.
    first_BT = torch.where(doc_starts(ids_BT), place_T, 0).cummax(1).values
    return place_T - first_BT


def document_offsets(ids_BT: torch.Tensor) -> torch.Tensor:
    """int32 (N + 1,): where each of the N documents starts in the B * T tokens, and B * T. Waits for the device."""
    starts = doc_starts(ids_BT).flatten().nonzero().flatten()
    offsets = torch.cat([starts, starts.new_tensor([ids_BT.numel()])]).to(torch.int32)
    # Every batch has another number of documents: a block that reads them would be compiled twice, to learn that.
    torch._dynamo.maybe_mark_dynamic(offsets, 0)
    return offsets
