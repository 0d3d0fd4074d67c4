"""A model of transformers is measured and trained on by pretrain.py."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hf_models import theirs
from tiny_run import rows, run
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from lit_gpt.tools import convert

IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
SMALL = {**IDS, "vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 5}
FAMILY = {"depth": 2, "ar": 16, "mlp": "none", "ctx_len": 32, "vocab_size": 257, "train_name": "x"}  # no multipliers
MODELS = {
    "mamba": (MambaForCausalLM, MambaConfig(**SMALL), {"d_state": 5}, True),
    "mamba2": (
        Mamba2ForCausalLM,
        Mamba2Config(**SMALL, num_heads=8, head_dim=8, n_groups=2),
        {"d_state": 5, "head_dim": 8, "groups": 2},
        False,
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_weights_of_theirs_are_validated_and_trained_on(family, tmp_path, capsys):
    """The family needs the options that are not its own; its validation loss is that of transformers."""
    kind, config, mixer, tied = MODELS[family]
    model = theirs(kind, config, tmp_path / "hf")
    convert.main([str(tmp_path / "hf"), str(tmp_path / "model.safetensors")])
    text = "".join(random.Random(0).choices("abcdefgh ", k=20_000))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text(text)
    options = {**FAMILY, "train_model": family, "tie_embeddings": tied, "init_from": tmp_path / "model.safetensors"}
    options |= {"mixer_options": json.dumps({family: mixer})}
    capsys.readouterr()
    validation = {"val_data_dir": tmp_path / "data", "eval_sequences": 4, "num_extrp": 1, "train_name": "x_validation"}
    assert run(tmp_path / "data", tmp_path / "v", **options | validation) == 0
    out, err = capsys.readouterr()
    assert "trained in another model" not in err
    shown = dict(line.split() for line in out.splitlines())
    expected = _loss(model, [*text.encode(), 256][19_000:])  # the last 5 percent are held out
    assert float(shown["metric/val_loss@1x"]) == pytest.approx(expected, abs=1e-4)
    assert run(tmp_path / "data", tmp_path / "run", **options, max_tokens=4 * 512) == 0
    losses = rows(tmp_path / "run")
    assert losses[1] == pytest.approx(expected, abs=0.2) and losses[4] < losses[1] - 0.1


@torch.no_grad()
def _loss(model, tokens: list[int]) -> float:
    """Of the first four windows of 32 tokens."""
    windows = torch.tensor(tokens).unfold(0, 33, 32)[:4]
    logits = model(windows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
