"""Documents that are cut after --doc_len tokens: each piece gets the loss that it has alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_model import LENGTH, VOCAB, build_model
from torch.nn.functional import cross_entropy

from lit_gpt.config.run import RunConfig
from lit_gpt.data.corpus import Batch, Corpus
from lit_gpt.data.stream import ArrayStream, StreamInfo
from lit_gpt.ops.boundaries import DocumentEnds
from lit_gpt.parallel import start_runtime
from lit_gpt.preflight.data_facts import document_ends
from lit_gpt.preflight.model_options import model_config
from lit_gpt.train.step import train_step
from lit_gpt.train.validate import validate

EOS, MULTIPLES = 5, 2
BLOCK = MULTIPLES * LENGTH
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 6 * BLOCK + 1)
TOKENS[TOKENS == EOS] = 0
TOKENS[::17] = EOS  # longer than rows of training, and in other places in each of them


def corpus(block: int) -> Corpus:
    stream = ArrayStream(TOKENS, StreamInfo(eos_id=EOS))
    return Corpus([("v", stream, 1.0)], block, seed=0, shuffle=False, repeat=False)


def pieces(row: list[int], doc_len: int) -> Iterator[slice]:
    """Ends behind each EOS and, within what is between them, after each doc_len tokens."""
    ends = [-1, *(i for i, token in enumerate(row) if token == EOS), len(row) - 1]
    for before, last in pairwise(ends):
        for start in range(before + 1, last + 1, doc_len):
            yield slice(start, min(start + doc_len, last + 1))


def alone(model: torch.nn.Module, batch: Batch, length: int, doc_len: int) -> float:
    """The mean loss of the first tokens of every row, of which each piece is a row of its own."""
    tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
    losses = [
        cross_entropy(model(row[None, at]).logits.double()[0, :, :VOCAB], target[at], reduction="sum").item()
        for row, target in zip(tokens[:, :length], targets[:, :length])
        for at in pieces(row.tolist(), doc_len)
    ]
    return sum(losses) / (len(tokens) * length)


@pytest.mark.parametrize("doc_len", [1, 5])
def test_a_step_and_a_validation_against_pieces_alone(doc_len: int) -> None:
    runtime, ends = start_runtime(), DocumentEnds(EOS, doc_len)
    model = build_model(runtime)
    batch = corpus(LENGTH).batch(0, 8)
    with torch.no_grad():
        for p in model.parameters():
            p *= 4  # so that the loss depends on what a token sees
        wanted = alone(model, batch, LENGTH, doc_len)
        whole = alone(model, batch, LENGTH, LENGTH)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    micro_batches = [corpus(LENGTH).batch(i, 2) for i in (0, 2, 4, 6)]
    step = train_step(model, still, micro_batches, 4, 8 * LENGTH, runtime, grad_clip=0.0, ends=ends)
    assert step.loss.item() == pytest.approx(wanted, rel=1e-5) != pytest.approx(whole, rel=1e-3)
    sizes = {"context": LENGTH, "multiples": MULTIPLES, "sequences": 6, "micro_batch": 4}
    found = validate(model, corpus(BLOCK), runtime, ends=ends, **cast(Any, sizes))
    with torch.no_grad():
        for i in range(1, MULTIPLES + 1):
            wanted = alone(model, corpus(BLOCK).batch(0, 6), i * LENGTH, doc_len)
            assert found[f"metric/val_loss@{i}x"] == pytest.approx(wanted, rel=1e-5)


def test_the_option_reaches_the_run() -> None:
    data = cast(Corpus, SimpleNamespace(eos_id=EOS))
    found = [model_config(RunConfig(varlen=True, doc_len=length), 2, None) for length in (None, 0, 8)]
    assert [document_ends(model, data) for model in found] == [(EOS, 0), (EOS, 0), (EOS, 8)]
