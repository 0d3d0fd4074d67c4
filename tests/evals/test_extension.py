"""A longer context on request: the model that such options of training would have built, and the result says so."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from script_module import script_module
from small_models import optioned, small

from lit_gpt.checkpoint import CHECKPOINT_VERSION, write_exported
from lit_gpt.config.command import exit_code
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.extension import Extension
from lit_gpt.evals.results import read_results
from lit_gpt.evals.trained_model import load_model
from lit_gpt.model import GPT
from lit_gpt.scaling.base import Multipliers

CONTEXT = 256


def trained_config() -> ModelConfig:
    layers = (LayerSpec(window=20), LayerSpec())
    sizes = {"block_size": CONTEXT, "vocab_size": 300}
    return optioned("yarn").replace(yarn_scale=1.0, rope_base=640_000.0, layers=layers, **sizes)


@pytest.fixture
def exported(tmp_path) -> Path:
    torch.manual_seed(0)
    config = trained_config()
    weights = {name: torch.randn_like(t) * 0.1 for name, t in GPT(config).state_dict().items()}
    described = {"model": config.to_dict(), "multipliers": asdict(Multipliers()), "step": 7, "tokens": 70}
    described |= {"version": CHECKPOINT_VERSION}
    return write_exported(weights, described, tmp_path / "model.safetensors")


def test_it_is_the_model_of_such_options(exported):
    """YaRN from the trained context of 256 on, and not from 4,096, the default of training."""
    tokens = torch.arange(600)[None] % 50
    extended, _ = load_model(exported, extension=Extension(4, 40))
    plain, _ = load_model(exported)
    layers = (LayerSpec(window=40), LayerSpec())
    built = GPT(trained_config().replace(yarn_scale=4.0, yarn_context=CONTEXT, layers=layers)).eval()
    built.load_state_dict(plain.state_dict())
    with torch.no_grad():
        asked, wanted, as_trained = (model(tokens).logits for model in (extended, built, plain))
    assert torch.equal(asked, wanted)
    assert (asked - as_trained).norm() > 1e-3 * as_trained.norm()
    assert Extension(4).longest(extended.config) == 4 * CONTEXT
    assert Extension().longest(plain.config) == CONTEXT


@pytest.mark.parametrize(
    ("extension", "config", "said"),
    [
        (Extension(yarn_scale=4), optioned("nope"), "no rotary positions"),
        (Extension(yarn_scale=4), small("mamba"), "no rotary positions"),
        (Extension(yarn_scale=4), optioned("rope_base"), "YaRN does not fit"),  # 24 tokens of context
        (Extension(yarn_scale=1), trained_config(), "give more than the 1 of training"),
        (Extension(window=9), small("mamba"), "no layer with a window"),
    ],
)
def test_what_cannot_act(extension, config, said):
    with pytest.raises(UserError, match=said):
        extension.of(config)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 0.5, 1e300])
def test_numbers_that_mean_nothing(number):
    """A scale of 1e300 was done, and its figures were kept."""
    with pytest.raises(UserError, match=r"yarn_scale is .*; it must be from 1 to 10,000"):
        Extension(yarn_scale=number)
    with pytest.raises(UserError, match=r"window is .*; it must be"):
        Extension(window=0)


def test_a_result_says_so(exported, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 50, 2_000).astype("<u2")
    tokens.tofile(tmp_path / "long.bin")
    line = ["--checkpoint_path", exported, "--data_path", tmp_path / "long.bin", "--tokenizer_name", "bytes"]
    line += ["--seq_length", 512, "--sliding_window", 512]
    judge = script_module("eval_proofpile.py").judge
    for more in ([], ["--yarn_scale", 2], ["--window", 64]):
        assert exit_code(lambda argv: judge("proofpile", argv), list(map(str, [*line, *more]))) == 0
    settings = [result.settings for result in read_results(exported)]
    assert {(s.get("yarn_scale"), s.get("window")) for s in settings} == {(None, None), (2.0, None), (None, 64)}
