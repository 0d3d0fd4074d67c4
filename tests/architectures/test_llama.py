"""LLaMA shapes of the optimizer benchmarks against the parameter counts of both papers."""

from __future__ import annotations

import pytest

from lit_gpt import architectures
from lit_gpt.architectures.builders.table import LLAMAS
from lit_gpt.preflight.meta_model import count, meta_model

# Millions; the tied ones have 50304 rows in their table, as the others have 32000.
PUBLISHED = {"60m": 58.1, "130m": 134.1, "350m": 368.0, "1b": 1339.1, "124m": 123.6, "210m": 208.5, "720m": 719.6}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size: str) -> None:
    family = f"llama_{size}"
    config = architectures.build(family, LLAMAS[family].options["layers"])
    assert count(meta_model(config)).parameters["total"] / 1e6 == pytest.approx(PUBLISHED[size], abs=0.05)
    assert config.n_head == config.n_kv_head and config.head_dim * config.n_head == config.n_embd


def test_other_depths_keep_the_shape() -> None:
    config = architectures.build("llama_350m", 12)
    assert (config.n_embd, config.n_head, config.intermediate_size) == (512, 8, 1376)
    assert architectures.build("llama_60m", 4, aspect_ratio=32).n_embd == 128
