"""convert and average: what is written loads as the same model, or as the mean of several."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from lit_gpt.checkpoint import load_exported, load_full, write_exported
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.load import load_model
from lit_gpt.model import GPT
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import average, convert
from lit_gpt.tools._hf import write_llama

STEPS = ("step-000002", "step-000004")


@pytest.fixture
def folders(run_folder):
    return [run_folder / "checkpoints" / name for name in STEPS]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_forms_convert_into_each_other(run_folder, folders, tmp_path):
    first, second, third = tmp_path / "a.safetensors", tmp_path / "b.pth", tmp_path / "deep" / "c.safetensors"
    assert convert.main([str(run_folder), str(first)]) == 0
    assert convert.main([str(first), str(second)]) == 0
    assert convert.main([str(second), str(third)]) == 0
    weights, meta = load_full(folders[1])
    for path in (first, second, third):
        found, found_meta = load_exported(path)
        assert same(found, weights)
        assert found_meta == meta
    with pytest.raises(UserError, match="suffix"):
        convert.main([str(first), str(tmp_path / "model.bin")])


def test_the_average_is_numpys(folders, tmp_path):
    output = tmp_path / "mean.safetensors"
    assert average.main([*map(str, folders), str(folders[0]), "--output", str(output)]) == 0
    parts = [load_full(p)[0] for p in (*folders, folders[0])]
    model, meta = load_model(output)
    for name, parameter in model.named_parameters():
        expected = np.mean([p[name].numpy().astype(np.float64) for p in parts], axis=0)
        assert np.array_equal(parameter.detach().numpy(), expected.astype(np.float32)), name
    assert [part["step"] for part in meta["averaged"]] == [2, 4, 2]


def test_the_average_of_one_checkpoint_with_itself_is_itself(folders):
    weights, _ = average.average([folders[0]] * 3)
    assert same(weights, load_full(folders[0])[0])


def test_what_cannot_be_averaged_is_a_user_error(folders, tmp_path):
    with pytest.raises(UserError, match="two or more"):
        average.average(folders[:1])
    with pytest.raises(UserError, match="suffix"):
        average.main([*map(str, folders), "--output", str(tmp_path / "mean")])
    weights, meta = load_full(folders[1])
    other = {**meta, "model": {**meta["model"], "rope_base": 5.0}}
    path = write_exported(weights, other, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"model.rope_base: 10000.0 -> 5.0"):
        average.average([folders[0], path])


def small(**fields) -> ModelConfig:
    sizes = {"n_embd": 32, "n_head": 4, "head_dim": 8, "n_kv_head": 2, "intermediate_size": 48}
    return ModelConfig(
        **{"family": "dense", "depth": 2, **sizes, "layers": (LayerSpec(),) * 2, "vocab_size": 61} | fields
    )


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_transformers_computes_the_same_logits(tied, tmp_path):
    """With every multiplier away from 1, and a vocabulary that is padded."""
    config, multipliers = small(tie_embeddings=tied, rope_base=500.0), Multipliers(0.5, 0.7, 0.2)
    model, generator = GPT(config, multipliers), torch.Generator().manual_seed(0)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator)
        p.copy_(1 + 0.3 * noise if p.ndim == 1 else noise * p.shape[-1] ** -0.5)
    folder = write_llama(model.state_dict(), config, multipliers, tmp_path / "hf")
    theirs, report = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.randint(0, 61, (2, 33), generator=generator)
    torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)


def test_what_is_not_llama_is_a_user_error(run_folder, tmp_path):
    with pytest.raises(UserError, match=r"layer 0 is LayerSpec.*window=8"):
        convert.main([str(run_folder), str(tmp_path / "hf"), "--to", "hf"])
    assert not (tmp_path / "hf").exists()
    for fields in ({"qk_norm": True}, {"post_norm": True}, {"attn_bias": True}, {"norm": "layernorm"}):
        with pytest.raises(UserError, match=next(iter(fields))):
            write_llama({}, small(**fields), Multipliers(), tmp_path / "hf")


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="exists already"):
        write_llama({}, small(), Multipliers(), tmp_path)
