"""Small models with one option each, initialised so that every part matters, and their comparison with transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.model import GPT
from lit_gpt.scaling.base import Multipliers

VOCAB = 61
MULTIPLIERS = Multipliers(logit=0.5, residual=0.7, attention=0.2)


def small(**fields) -> ModelConfig:
    """Two layers of width 32."""
    sizes = {"n_embd": 32, "n_head": 4, "head_dim": 8, "n_kv_head": 2, "intermediate_size": 48, "block_size": 64}
    layers = (LayerSpec(),) * fields.get("depth", 2)
    return ModelConfig(**{"family": "dense", "depth": 2, **sizes, "layers": layers, "vocab_size": VOCAB} | fields)


@torch.no_grad()
def model_of(config: ModelConfig, multipliers: Multipliers = MULTIPLIERS) -> GPT:
    """In fp32, every parameter away from its neutral value."""
    model, generator = GPT(config, multipliers), torch.Generator().manual_seed(0)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.copy_(1 + 0.3 * noise if p.ndim == 1 else noise * p.shape[-1] ** -0.5)
    return model.eval()


def tokens(length: int = 33) -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(1))


def transformers_model(folder: Path) -> LlamaForCausalLM:
    """What transformers makes of a folder, once it has found every tensor and none too many."""
    model, report = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()
