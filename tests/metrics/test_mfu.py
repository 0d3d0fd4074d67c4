"""FLOPs by both conventions, by hand, and the utilisation that follows."""

from __future__ import annotations

import json

import pytest
from test_throughput import Clock, run

from lit_gpt import architectures
from lit_gpt.metrics.throughput import CONVENTION, Throughput
from lit_gpt.preflight.meta_model import count, meta_model


def test_transformer_by_hand() -> None:
    """d16 at 4,096 tokens: width 2,048, 16 heads of 128 over 4 key-value heads, feed-forward 8,192, 32,000 tokens."""
    found = count(meta_model(architectures.build("transformer", 16)))
    layer = 2048 * (2048 + 512 + 512) + 2048 * 2048 + 3 * 2048 * 8192
    gains = 16 * 2 * 2048 + 2048
    head = 32000 * 2048
    # A query sees (1 + 4096) / 2 keys on average; scores and weighted sums, forward and twice that backward.
    ours = 6 * (16 * layer + head) + 16 * 3 * 2 * 2 * 2048 * 4097 / 2
    palm = 6 * (16 * layer + gains + head) + 12 * 16 * 16 * 128 * 4096
    assert (found.flops_per_token, found.palm_flops_per_token) == (ours, palm) == (7_037_190_144, 7_842_705_408)


def test_sambay_by_hand() -> None:
    """d8 at 4,096 tokens: three Mambas, two windows of 128, one full and one cross-attention, one GMU; width 992."""
    found = count(meta_model(architectures.build("sambay", 8)))
    n, inner, heads, kv = 992, 2 * 992, 8 * 128, 2 * 128
    mamba = n * inner * 2 + inner * (62 + 16 + 16) + 62 * inner + inner * n
    attention, cross = n * (heads + 2 * kv) + heads * n, 2 * n * heads
    gmu, ffn, head = 2 * n * inner, 3 * n * 3968, 32000 * n
    weights = 3 * mamba + 3 * attention + cross + gmu + 8 * ffn + head
    # Of a Mamba: a convolution of 4 taps, and a state of 16 per channel that is written and read.
    scans = 3 * (2 * inner * 4 + 4 * inner * 16)
    windowed = (128 * 129 / 2 + (4096 - 128) * 128) / 4096
    keys = 2 * windowed + 2 * 4097 / 2
    ours = 6 * weights + 3 * scans + 3 * 2 * 2 * heads * keys
    vectors = 3 * (inner * 4 + 3 * inner + inner * 16) + 17 * n
    palm = 6 * (weights + vectors) + 12 * 4 * heads * 4096
    assert found.flops_per_token == pytest.approx(ours, rel=1e-12)
    assert found.palm_flops_per_token == pytest.approx(palm, rel=1e-12)
    assert (round(ours), round(palm)) == (1_005_379_968, 1_152_902_592)


def test_a_tied_table_counts_once_and_is_multiplied() -> None:
    tied = count(meta_model(architectures.build("transformer", 8).replace(tie_embeddings=True)))
    untied = count(meta_model(architectures.build("transformer", 8)))
    assert tied.palm_flops_per_token == untied.palm_flops_per_token


def test_cut_documents_count_as_rows_of_their_own() -> None:
    """Each query sees the keys of 1,024 tokens at most; PaLM's convention has it see the row."""
    whole = architectures.build("transformer", 16)
    cut = count(meta_model(whole.replace(varlen=True, doc_len=1024)))
    ours = 6 * (count(meta_model(whole)).flops_per_token / 6 - 16 * 2 * 2048 * (4097 - 1025) / 2)
    assert (cut.flops_per_token, cut.palm_flops_per_token) == (ours, 7_842_705_408)


def test_both_are_logged() -> None:
    """A figure without its convention cannot be compared: PaLM's, which most publish, is a key of its own."""
    clock = Clock()
    meter = Throughput(2, 1e6, palm=1.25, clock=clock)
    run(meter, clock, [60.0, 2.0, 4.0])
    found = meter.metrics()
    assert found["throughput/device/mfu"] == pytest.approx(1.0)
    assert found["throughput/device/mfu_palm"] == pytest.approx(1.25)
    assert "mfu_palm: 6 N + 12 L H Q T" in json.dumps(CONVENTION)
    old = {"seconds": {"train": 3.0, "val": 0.0}, "total": {"batches": 2, "samples": 4, "tokens": 1000, "flops": 6e6}}
    meter.load_state_dict(old)  # of a checkpoint from before there were two
    run(meter, clock, [1.0, 1.0])
    assert meter.metrics()["throughput/device/mfu_palm"] == pytest.approx(
        1.25 * meter.metrics()["throughput/device/mfu"]
    )
