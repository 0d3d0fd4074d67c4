"""A Hugging Face Llama turned into ours, and what is refused on the way."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from hf_models import cannot_read
from llama_models import VOCAB, tokens, transformers_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lit_gpt.errors import UserError
from lit_gpt.evals.trained_model import load_model
from lit_gpt.tools import convert, inspect

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "rope_theta": 10000.0}
OPTIONS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "head_dim": {"head_dim": 16},
    "all_heads": {"num_key_value_heads": 4},
    "norm_eps": {"rms_norm_eps": 0.1},
    "rope_theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "yarn": {"head_dim": 64, "max_position_embeddings": 16384, "rope_parameters": {**YARN, "truncate": False}},
    "rounded yarn": {"head_dim": 64, "max_position_embeddings": 16384, "rope_parameters": YARN},
    "null is no rounding": {"head_dim": 64, "rope_parameters": {**YARN, "truncate": None}},
}


@torch.no_grad()
def theirs(folder, shard="5GB", **options) -> LlamaForCausalLM:
    """A model that transformers made and saved, every tensor away from neutral."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | options)).eval()
    for p in model.parameters():
        p.copy_(
            torch.ones_like(p) + 0.3 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) / p.shape[-1] ** 0.5
        )
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_a_llama_becomes_ours_and_theirs_again(name, tmp_path):
    """There was no way back; biases of attention and MLP were said to be no part of Llama."""
    model = theirs(tmp_path / "hf", **OPTIONS[name])
    file = tmp_path / "ours.safetensors"
    assert convert.main([str(tmp_path / "hf"), str(file)]) == 0
    ours, _ = load_model(file)
    torch.testing.assert_close(ours(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)
    assert convert.main([str(file), str(tmp_path / "again"), "--to", "hf"]) == 0
    again = transformers_model(tmp_path / "again").state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())


@torch.no_grad()
def test_shards_are_read_together(tmp_path):
    """An index and several safetensors files, as larger models are published."""
    model = theirs(tmp_path / "hf", shard="10KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    ours, _ = load_model(tmp_path / "ours.pth")
    torch.testing.assert_close(ours(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scaling", [None, {"type": "yarn", "factor": 4.0, "truncate": False}])
@torch.no_grad()
def test_the_config_of_transformers_4_means_the_same(scaling, tmp_path):
    """rope_theta and rope_scaling were one key each before transformers 5 put them into rope_parameters."""
    theirs(tmp_path / "hf", head_dim=64, max_position_embeddings=4096)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 20000.0, "rope_scaling": scaling, "torch_dtype": "float32"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    ours, expected = load_model(tmp_path / "ours.pth")[0], transformers_model(tmp_path / "hf")
    assert (ours.config.rope_base, ours.config.yarn_scale) == (20000.0, 4.0 if scaling else 1.0)
    torch.testing.assert_close(ours(tokens()).logits, expected(tokens()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rope", [{"rope_theta": 500.0}, {"type": "yarn", "factor": 4.0}, YARN], ids=str)
@torch.no_grad()
def test_two_ropes_of_one_config_are_the_same_or_refused(rope, tmp_path):
    """transformers 5 reads rope_scaling where both are there, and ours read rope_parameters: the logits were others."""
    model = theirs(tmp_path / "hf", head_dim=64, rope_parameters={**YARN, "factor": 2.0})
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rope_scaling": rope}))
    with pytest.raises(UserError, match=r"rope_scaling .* and rope_parameters .* which differ"):
        convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    same = {"type" if key == "rope_type" else key: value for key, value in config["rope_parameters"].items()}
    path.write_text(json.dumps(config | {"rope_scaling": same}))
    convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    ours, _ = load_model(tmp_path / "ours.pth")
    torch.testing.assert_close(ours(tokens()).logits, model(tokens()).logits, rtol=1e-4, atol=1e-4)


REFUSED = {
    "model_type": ({"model_type": "gemma"}, "model_type gemma, which is not read; these are: .*llama"),
    "architectures": ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    "hidden_act": ({"hidden_act": "gelu"}, "hidden_act gelu"),
    "unknown": ({"sliding_window": 128}, "sliding_window 128"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "linear": ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type linear"),
    "llama3": ({"rope_parameters": None, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type llama3"),
    "dynamic": ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 8.0}}, "rope_type dynamic"),
    "partial": ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    "no size": ({"hidden_size": None}, "does not say hidden_size"),
    "other shapes": ({"intermediate_size": 64}, r"ffn.down.weight is \(32, 48\), not \(32, 64\)"),
    "untied": ({"attention_bias": True}, "lacks model.layers.0.self_attn.k_proj.bias"),
    "no mlp bias": ({"mlp_bias": True}, "lacks model.layers.0.mlp.down_proj.bias"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_cannot_express_is_one_sentence(name, tmp_path):
    """Every key of config.json is either translated, known to change nothing, or refused by its name."""
    theirs(tmp_path / "hf")
    cannot_read(tmp_path / "hf", *REFUSED[name])


def test_every_tensor_of_theirs_is_used_once(tmp_path):
    """A tensor that our model has no place for would be lost in silence."""
    theirs(tmp_path / "hf", attention_bias=True)
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    cases = {
        "no place for model.layers.7.extra": weights | {"model.layers.7.extra": torch.ones(2)},
        "lacks model.norm.weight": {k: v for k, v in weights.items() if k != "model.norm.weight"},
    }
    for words, changed in cases.items():
        save_file(changed, path)
        with pytest.raises(UserError, match=words):
            convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])


class Marker:
    """Unpickling it would make a file."""

    def __reduce__(self):
        return open, ("executed", "w")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_table_of_another_vocabulary_is_told_as_it_is_in_the_file(name, tmp_path):
    """It was told with rows of padding that are in no file; a flat one was a traceback of torch."""
    theirs(tmp_path / "hf")
    path, config = tmp_path / "hf" / "model.safetensors", tmp_path / "hf" / "config.json"
    weights, described = load_file(path), json.loads(config.read_text())
    config.write_text(json.dumps(described | {"vocab_size": VOCAB + 1}))
    with pytest.raises(UserError, match=rf"is \({VOCAB}, 32\) in the file, .* says vocab_size {VOCAB + 1}"):
        convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    config.write_text(json.dumps(described))
    save_file(weights | {name: weights[name].flatten()}, path)
    with pytest.raises(UserError, match=rf"is \({32 * VOCAB},\) in the file"):
        convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    assert not (tmp_path / "ours.pth").exists()


def test_pickles_are_not_opened(tmp_path, monkeypatch):
    """Nothing in a checkpoint may execute: pytorch_model.bin is refused by name, a foreign .pth does not run."""
    monkeypatch.chdir(tmp_path)
    theirs(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    for name in ("hf/pytorch_model.bin", "evil.pth"):
        (tmp_path / name).write_bytes(pickle.dumps({"model": Marker(), "meta": {}}))
    with pytest.raises(UserError, match=r"pytorch_model.bin may hold code"):
        convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    with pytest.raises(UserError, match=r"evil.pth cannot be read"):
        convert.main([str(tmp_path / "evil.pth"), str(tmp_path / "ours.pth")])
    assert not (tmp_path / "executed").exists()


def test_a_damaged_index_is_one_sentence(tmp_path):
    """Shards are files of the folder itself and hold what the index says, no more and no less."""
    theirs(tmp_path / "hf", shard="10KB")
    path = tmp_path / "hf" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    placed = index["weight_map"]
    first = next(name for name, shard in placed.items() if list(placed.values()).count(shard) > 1)
    shorter = {k: v for k, v in placed.items() if k != first}
    for words, changed in {
        "no .safetensors file of that folder": placed | {first: "../model.safetensors"},
        "does not hold the tensors": shorter,
        "cannot be read": placed | {first: "absent.safetensors"},
    }.items():
        path.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(UserError, match=words):
            convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])


def test_imported_weights_have_no_plan(tmp_path, capsys):
    """inspect says so; it read the Plan of every file."""
    theirs(tmp_path / "hf")
    convert.main([str(tmp_path / "hf"), str(tmp_path / "ours.pth")])
    assert inspect.main(["checkpoint", str(tmp_path / "ours.pth")]) == 0
    assert "imported" in capsys.readouterr().out
