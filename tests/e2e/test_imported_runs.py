"""Weights of Hugging Face classes go on training here: from their own loss, with the family that the docs show."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from tiny_run import ROOT, rows, run
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lit_gpt.data.discover import open_corpus
from lit_gpt.tools import convert

IDS = {"vocab_size": 257, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
YARN = PLAIN | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
ROPE = {"sliding_attention": PLAIN, "full_attention": YARN}  # as the published one has it
MADE = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**IDS, **SIZES, tie_word_embeddings=True)),
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**IDS, **SIZES)),
    "olmo3": lambda: Olmo3ForCausalLM(Olmo3Config(**IDS, **SIZES, head_dim=64, sliding_window=7, rope_parameters=ROPE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**IDS, n_embd=48, n_layer=4, n_head=4, n_positions=64)),
}
OPTIONS = {"depth": 4, "ar": None, "max_tokens": 3 * 512, "train_model": "imported", "train_name": "x", "num_extrp": 2}


@torch.no_grad()
def made(kind: str, folder: Any) -> Any:
    """A model of transformers with random weights everywhere."""
    torch.manual_seed(0)
    model = MADE[kind]().eval()
    for p in model.parameters():
        p.copy_(1 + 0.3 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) / p.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", MADE)
def test_training_goes_on_from_their_weights(kind, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = made(kind, "hf")
    assert convert.main(["hf", "model.safetensors"]) == 0
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    plugin = re.search(r"```python\n(# imported\.py\n.*?)```", page, re.DOTALL)
    assert plugin
    (tmp_path / "imported.py").write_text(plugin[1])
    line = OPTIONS | {"plugins": "imported.py", "init_from": "model.safetensors", "parameterization": "sp"}
    line |= {"val_data_dir": data, "eval_sequences": 8}
    capsys.readouterr()
    assert run(data, tmp_path / "v", **line, validation=True) == 0
    out, err = capsys.readouterr()
    assert "trained in another model" not in err
    found = dict(words.split() for words in out.splitlines() if words.startswith("metric/"))
    longest = 1 if kind == "gpt2" else 2  # there are no positions beyond the table
    corpus = open_corpus(str(data), "validation", 64 * longest, 0, shuffle=False, repeat=False, eos_token_id=None)
    batch = corpus.batch(0, 8)
    tokens, targets = (torch.as_tensor(x[:, :64]).long() for x in (batch.tokens, batch.targets))
    with torch.no_grad():
        loss = F.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten())
    assert float(found["metric/val_loss@1x"]) == pytest.approx(loss.item(), abs=1e-4)
    assert ("metric/val_loss@2x" in found) == (longest == 2)
    assert run(data, tmp_path / "out", **line) == 0
    losses = rows(tmp_path / "out")
    assert len(losses) == 3 and all(map(math.isfinite, losses.values()))
