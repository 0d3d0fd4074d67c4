"""What a model says of a text does not depend on the texts beside it, also where its experts have a capacity."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from small_models import LENGTH, VOCAB, model_of, small

from lit_gpt.checkpoint import CHECKPOINT_VERSION, write_exported
from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import generate
from lit_gpt.evals.requests import Request
from lit_gpt.evals.scoring import score
from lit_gpt.evals.trained_model import load_model
from lit_gpt.model import GPT
from lit_gpt.scaling.base import Multipliers

PROMPTS = [[3, 4, 5, 6, 7], [9, 8, 7], [1, 2, 3, 4, 5, 6]]


def limited(capacity: float | None = 0.6) -> ModelConfig:
    config = small("transformer_gqa4_moe")
    assert config.experts is not None
    return config.replace(experts=replace(config.experts, capacity=capacity))


def saved(model: GPT, folder: Path) -> Path:
    said = {"model": model.config.to_dict(), "multipliers": asdict(Multipliers()), "step": 7, "tokens": 70}
    weights = {name: tensor.float() for name, tensor in model.state_dict().items()}
    return write_exported(weights, said | {"version": CHECKPOINT_VERSION}, folder / "model.safetensors")


def test_a_saved_model_serves_all_tokens(tmp_path, capsys):
    path = saved(model_of(limited(), Multipliers()), tmp_path)
    found, _ = load_model(path, compute_dtype=torch.float32)
    assert "serve all tokens here" in capsys.readouterr().err
    plain = GPT(limited(None), Multipliers(), compute_dtype=torch.float32).eval()
    plain.load_state_dict(found.state_dict())
    x = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    asked = [Request(tuple(row[:9]), tuple(row[9:14])) for row in x.tolist()]
    scores = score(found, asked, max_length=LENGTH)
    for row, one in zip(x, scores):
        with torch.no_grad():
            log_p = plain(row[None, :13]).logits[0].double().log_softmax(-1)
        wanted = log_p.gather(1, row[1:14, None])[8:, 0]
        torch.testing.assert_close(torch.tensor(one.log_p, dtype=torch.float64), wanted, rtol=1e-4, atol=1e-4)


def test_a_model_that_trains_continues_each_prompt_alone():
    """Together the third prompt went on as 29 29 49, and alone as 49 49 54."""
    model = model_of(limited())
    together = generate(model, PROMPTS, 6)
    assert together == [generate(model, [prompt], 6)[0] for prompt in PROMPTS]
    with pytest.raises(UserError, match="With a capacity alone it can be judged once it is saved"):
        score(model, [Request((1, 2), (3,))], max_length=LENGTH)
