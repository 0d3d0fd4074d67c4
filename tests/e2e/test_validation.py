"""The validation loss is a mean over targets, whatever the ranks and micro-batches."""

from __future__ import annotations

import io
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from tiny_model import LENGTH, VOCAB, build_model
from tqdm import tqdm

from lit_gpt.data.corpus import Corpus
from lit_gpt.data.stream import ArrayStream, StreamInfo
from lit_gpt.parallel import Runtime, start_runtime
from lit_gpt.train import validate as module
from lit_gpt.train.validate import validate

MULTIPLES = 2
EOS = 5  # stands for no text; every other id is a byte
TOKENS = np.random.default_rng(0).integers(0, VOCAB, 10 * MULTIPLES * LENGTH + 6)  # ten windows and a short one


def corpus() -> Corpus:
    stream = ArrayStream(TOKENS, StreamInfo(made_with="bytes", eos_id=EOS))
    return Corpus([("v", stream, 1.0)], MULTIPLES * LENGTH, seed=0, shuffle=False, repeat=False)


def on_ranks(model, world_size: int, **options) -> dict[str, float]:
    """What the last rank reports when its sum is over all ranks."""
    total = torch.zeros(MULTIPLES, 3, dtype=torch.float64)

    def add(numbers: torch.Tensor) -> torch.Tensor:
        return total.add_(numbers) if numbers.ndim else numbers  # or whether a rank failed

    found = {}
    for rank in range(world_size):
        fake = SimpleNamespace(rank=rank, world_size=world_size, device=torch.device("cpu"), sum=add)
        fixed = {"context": LENGTH, "multiples": MULTIPLES, "ends": None}
        found = validate(model, corpus(), cast(Runtime, fake), **fixed, **options)
    return found


@pytest.mark.parametrize("sequences", [7, 11, 200])
def test_every_number_of_ranks(sequences):
    """Bits per byte were of the average bytes per token of the whole corpus, not of the windows evaluated."""
    model = build_model(start_runtime())
    for i in range(1, MULTIPLES + 1):
        losses, count, size = 0.0, 0, 0
        for start in range(0, min(sequences * MULTIPLES * LENGTH, len(TOKENS) - 1), MULTIPLES * LENGTH):
            window = torch.from_numpy(TOKENS[start : start + i * LENGTH + 1])[None]
            with torch.no_grad():
                logits = model(window[:, :-1]).logits.double()[0, :, :VOCAB]
            losses += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
            count += window.shape[1] - 1
            size += sum(1 for token in window[0, 1:].tolist() if token != EOS)
        for world_size, micro_batch in [(1, 1), (1, 4), (2, 2), (4, 3)]:
            found = on_ranks(model, world_size, sequences=sequences, micro_batch=micro_batch)
            assert found[f"metric/val_loss@{i}x"] == pytest.approx(losses / count, rel=1e-6)
            assert found[f"metric/val_bpb@{i}x"] == pytest.approx(losses / np.log(2) / size, rel=1e-6)
    assert model.training


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_a_validation_is(monkeypatch):
    """After the last step, minutes passed without a sign; --full_eval_at takes hours. A log file has no bar."""
    monkeypatch.setattr(module, "DELAY", 0.0)
    model, asked = build_model(start_runtime()), {"sequences": 8, "micro_batch": 2}
    for stream, bars in [(Terminal(), 1), (io.StringIO(), 0)]:
        monkeypatch.setattr(module, "tqdm", partial(tqdm, file=stream, mininterval=0))
        on_ranks(model, 2, **asked)  # the second has no bar
        written = stream.getvalue()
        assert written.count("| 0/2 [") == bars and ("2/2" in written) == bool(bars)
        assert bool(written) == bool(bars)
