"""The validation loss by position, against a loop over the logits in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny_model import LENGTH, VOCAB, build_model
from torch.nn.functional import cross_entropy

from lit_gpt.data.corpus import Corpus
from lit_gpt.data.stream import ArrayStream, StreamInfo
from lit_gpt.ops.loss import IGNORE, linear_cross_entropy, token_losses
from lit_gpt.parallel import Runtime, start_runtime
from lit_gpt.train import validate as module
from lit_gpt.train.validate import validate

BLOCK, KEY = 2 * LENGTH, "metric/val_loss_by_position@"
TOKENS = np.random.default_rng(1).integers(0, VOCAB, 5 * BLOCK + 8)  # five windows, and one of seven targets
BANDS = {4: (0, 4), 8: (4, 8), 16: (8, 16), 24: (16, 24)}


def on_ranks(model: torch.nn.Module, world_size: int, **options: Any) -> dict[str, float]:
    """What the last rank reports when its sums are over all ranks."""
    totals: dict[torch.Size, torch.Tensor] = {}

    def add(numbers: torch.Tensor) -> torch.Tensor:
        return totals.setdefault(numbers.shape, torch.zeros_like(numbers)).add_(numbers) if numbers.ndim else numbers

    found: dict[str, float] = {}
    for rank in range(world_size):
        corpus = Corpus([("v", ArrayStream(TOKENS, StreamInfo()), 1.0)], BLOCK, seed=0, shuffle=False, repeat=False)
        fake = SimpleNamespace(rank=rank, world_size=world_size, device=torch.device("cpu"), sum=add)
        fixed = {"context": LENGTH, "multiples": 2, "ends": None, "sequences": 200}
        found = validate(model, corpus, cast(Runtime, fake), **fixed, **options)
    return found


def by_hand(model: torch.nn.Module) -> list[list[float]]:
    """The losses of each position, in float64."""
    losses: list[list[float]] = [[] for _ in range(BLOCK)]
    for start in range(0, len(TOKENS) - 1, BLOCK):
        window = torch.from_numpy(TOKENS[start : start + BLOCK + 1])
        with torch.no_grad():
            logits = model(window[None, :-1]).logits.double()[0, :, :VOCAB]
        for t, target in enumerate(window[1:].tolist()):
            losses[t].append(-logits[t].log_softmax(-1)[target].item())
    return losses


@pytest.mark.parametrize("world_size, micro_batch", [(1, 1), (1, 4), (2, 2), (4, 3)])
def test_bands(monkeypatch, world_size, micro_batch):
    monkeypatch.setattr(module, "FIRST_BAND", 4)
    model = build_model(start_runtime())
    expected = by_hand(model)
    found = on_ranks(model, world_size, micro_batch=micro_batch, positions=True)
    bands = {int(key.removeprefix(KEY)): value for key, value in found.items() if key.startswith(KEY)}
    assert list(bands) == list(BANDS)
    total, count = 0.0, 0
    for end, (first, last) in BANDS.items():
        losses = [loss for position in expected[first:last] for loss in position]
        assert bands[end] == pytest.approx(np.mean(losses), rel=1e-5)
        total, count = total + bands[end] * len(losses), count + len(losses)
    assert total / count == pytest.approx(found["metric/val_loss@2x"], rel=1e-12)
    without = on_ranks(model, world_size, micro_batch=micro_batch)
    assert without == pytest.approx({key: value for key, value in found.items() if not key.startswith(KEY)}, rel=1e-5)


def test_one_band_for_short_windows():
    found = on_ranks(build_model(start_runtime()), 1, micro_batch=4, positions=True)
    assert [key for key in found if key.startswith(KEY)] == [f"{KEY}{BLOCK}"]


@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_losses_of_tokens(chunk):
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=draw, dtype=torch.float64) for n in (13, 20))
    targets = torch.randint(0, 17, (13,), generator=draw)
    targets[[0, 7]] = IGNORE
    found = token_losses(hidden, weight, targets, vocab_size=17, chunk=chunk)
    expected = cross_entropy((hidden @ weight.T)[:, :17], targets, reduction="none", ignore_index=IGNORE)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(), linear_cross_entropy(hidden, weight, targets, vocab_size=17))
