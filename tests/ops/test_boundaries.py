"""Document ids against a loop."""

from __future__ import annotations

import pytest
import torch

from lit_gpt.ops.boundaries import DocumentEnds, doc_ids, doc_positions, doc_starts


@pytest.mark.parametrize("doc_len", [0, 1, 3, 7, 39, 40])
def test_against_a_loop(doc_len):
    """Documents of 4 tokens on average, and rows 4 and 5 of one document each."""
    tokens_BT = torch.randint(0, 4, (5, 40), generator=torch.Generator().manual_seed(0))
    tokens_BT[3:] = torch.tensor([0, 3])[:, None]
    ids, starts, positions = [], [], []
    for row in tokens_BT.tolist():
        document = place = 0
        for token in row:
            ids.append(document)
            starts.append(place == 0)
            positions.append(place)
            place += 1
            if token == 2 or place == doc_len:
                document, place = document + 1, 0
    got_BT = doc_ids(tokens_BT, DocumentEnds(2, doc_len))
    assert got_BT.dtype == torch.int32 and got_BT.flatten().tolist() == ids
    assert doc_starts(got_BT).flatten().tolist() == starts
    assert doc_positions(got_BT).flatten().tolist() == positions


def test_no_eos_is_one_document():
    assert not doc_ids(torch.zeros(2, 7, dtype=torch.long), DocumentEnds(5)).any()
