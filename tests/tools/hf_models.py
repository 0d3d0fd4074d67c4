"""What every class of transformers is held to: read, written and generated from, it computes what ours computes.

Weights are random everywhere, biases, norms and gains too, so that nothing is right because it is neutral.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_models import VOCAB, model_of, small, tokens
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import generate
from lit_gpt.evals.trained_model import load_model
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import convert
from lit_gpt.tools._hf import read_hf, write_hf

EVERY = Multipliers(logit=0.5, residual=0.7, attention=0.2, router=1.5)
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_MIXED = {"layers": (LayerSpec(experts=True),) * 2, "experts": Experts(3, 2)}
_OLMO = {"qk_norm": True, "joint_qk_norm": True, "reordered_norm": True}
_GPT2: dict[str, Any] = {
    "position": "learned",
    "norm": "layernorm",
    "tie_embeddings": True,
    "layers": (LayerSpec(ffn="gelu"),) * 2,
    **dict.fromkeys(("attn_bias", "qkv_bias", "mlp_bias"), True),
    "n_kv_head": 4,
}
# Model type -> options of a model of ours that is written as that class.
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "llama": {},
    "mistral": {"layers": (LayerSpec(window=5),) * 2},
    "mixtral": _MIXED,
    "olmo2": _OLMO,
    "olmo3": _OLMO | {"layers": (LayerSpec(), LayerSpec(window=5))},
    "qwen2_moe": _MIXED | {"experts": Experts(2, 2, gate="all")},
    "qwen3": {"qk_norm": True},
    "qwen3_moe": _MIXED | {"qk_norm": True},
    "smollm3": {"layers": (LayerSpec(), LayerSpec(window=5))},
}
_GDN = {"heads": 3, "key_dim": 8, "expand_v": 1.5, "head_norm": True, "negative_eigenvalues": False}
MODELS |= {
    "diffllama": {"layers": (LayerSpec("differential_attention"),) * 2},
    "gpt_oss": {"layers": (LayerSpec(ffn="oss_swiglu", window=5), LayerSpec(ffn="oss_swiglu")), "attn_sink": True},
    "mamba": {"layers": (LayerSpec("mamba", ffn=None),) * 2},
    "mamba2": {"layers": (LayerSpec("mamba2", ffn=None),) * 2, "mixer_options": {"mamba2": {"head_dim": 8}}},
    "qwen3_next": {"layers": (LayerSpec("gdn"), LayerSpec()), "qk_norm": True, "mixer_options": {"gdn": _GDN}},
}
PROMPTS = [[3], [5, 1, 60, 7, 7], list(range(20, 45))]

__all__ = [
    "EVERY",
    "MODELS",
    "SIZES",
    "VOCAB",
    "cannot_read",
    "change",
    "loaded",
    "model_of",
    "reads",
    "refuses",
    "small",
    "theirs",
    "tokens",
    "writes",
]


@torch.no_grad()
def theirs(kind: Any, config: Any, folder: Path, zero: tuple[str, ...] = ()) -> Any:
    """A model that transformers made and saved. zero: parts of names of tensors that are zero there."""
    torch.manual_seed(0)
    model = kind(config).eval()
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        p.copy_(1 + 0.3 * noise if p.ndim == 1 else noise / p.shape[-1] ** 0.5)
        p.mul_(0 if any(part in name for part in zero) else 1)
    model.save_pretrained(folder)
    return model


def loaded(folder: Path) -> Any:
    """What transformers makes of a folder, once it has found every tensor and none too many."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


@torch.no_grad()
def same_logits(ours: Any, model: Any, length: int) -> None:
    torch.testing.assert_close(ours(tokens(length)).logits, model(tokens(length)).logits, rtol=1e-4, atol=1e-4)


def same_weights(first: Path, second: Path) -> None:
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(t, b[name]) for name, t in a.items())


def reads(model: Any, folder: Path, hf_class: str, length: int = 33) -> ModelConfig:
    """Their model in a folder gives its logits here, and is written again to the bit; what it is for us."""
    convert.main([str(folder), str(folder.parent / "ours.safetensors")])
    ours, _ = load_model(folder.parent / "ours.safetensors")
    same_logits(ours, model, length)
    again = folder.parent / "again"
    convert.main([str(folder.parent / "ours.safetensors"), str(again), "--to", "hf", "--hf_class", hf_class])
    same_weights(folder, again)
    same_logits(ours, loaded(again), length)
    return ours.config


@torch.no_grad()
def writes(
    config: ModelConfig, folder: Path, hf_class: str | None, multipliers: Multipliers = EVERY, length: int = 33
) -> Any:
    """Our model gives its logits and its greedy text in transformers, and is the same model when it is read again."""
    model = model_of(config, multipliers)
    write_hf(model.state_dict(), config, multipliers, folder, hf_class=hf_class)
    written = loaded(folder)
    same_logits(model, written, length)
    for prompt, text in zip(PROMPTS, generate(model, PROMPTS, 20), strict=True):
        found = written.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
        assert found[0, len(prompt) :].tolist() == text
    weights, meta = read_hf(folder)
    again = ModelConfig.from_dict(meta["model"])
    write_hf(weights, again, Multipliers(), folder.parent / "written again", hf_class=hf_class)
    same_weights(folder, folder.parent / "written again")
    return written


def refuses(config: ModelConfig, folder: Path, hf_class: str, words: str) -> None:
    """The class that was named is refused in one sentence, and nothing is written."""
    with pytest.raises(UserError, match=words) as caught:
        write_hf(model_of(config, EVERY).state_dict(), config, EVERY, folder, hf_class=hf_class)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def change(folder: Path, changes: dict[str, Any]) -> None:
    """Other values in the config.json of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cannot_read(folder: Path, changes: dict[str, Any], words: str) -> None:
    """Their model with other values in its config.json is refused in one sentence, and nothing is written.

    The config.json is as it was, afterwards.
    """
    path = folder / "config.json"
    before = path.read_text()
    change(folder, changes)
    with pytest.raises(UserError, match=words) as caught:
        convert.main([str(folder), str(folder.parent / "ours.pth")])
    assert "\n" not in str(caught.value) and not (folder.parent / "ours.pth").exists()
    path.write_text(before)
