"""convert and average: what is written loads as the same model, or as the mean of several."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from llama_models import model_of, small
from tiny_model import same

from lit_gpt.checkpoint import load_exported, load_full, write_exported
from lit_gpt.config.model import Experts, LayerSpec
from lit_gpt.errors import UserError
from lit_gpt.evals.trained_model import load_model
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import average, convert
from lit_gpt.tools._hf import write_hf

PLAIN = {"version": 1, "multipliers": dataclasses.asdict(Multipliers())}  # of a model that was imported
STEPS = ("step-000002", "step-000004")


@pytest.fixture
def folders(run_folder):
    return [run_folder / "checkpoints" / name for name in STEPS]


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
    assert average.main([*map(str, folders), "--output", str(output)]) == 0
    parts = [load_full(p)[0] for p in folders]
    model, meta = load_model(output)
    for name, parameter in model.named_parameters():
        expected = np.mean([p[name].numpy().astype(np.float64) for p in parts], axis=0)
        assert np.array_equal(parameter.detach().numpy(), expected.astype(np.float32)), name
    assert [part["step"] for part in meta["averaged"]] == [2, 4]


def test_the_average_of_one_checkpoint_with_itself_is_itself(folders):
    weights, _ = average.average([folders[0]] * 3)
    assert same(weights, load_full(folders[0])[0])


def test_what_cannot_be_averaged_is_a_user_error(folders, tmp_path):
    with pytest.raises(UserError, match="two or more"):
        average.average(folders[:1])
    run = folders[1].parents[1]
    with pytest.raises(UserError, match=f"{folders[1]} and {run} are one checkpoint"):
        average.write_average([*folders, run], tmp_path / "twice.pth")
    with pytest.raises(UserError, match="suffix"):
        average.main([*map(str, folders), "--output", str(tmp_path / "mean")])


def altered(folder, path, change):
    """An exported copy of a checkpoint with its weights and meta changed in place."""
    weights, meta = load_full(folder)
    change(weights, meta)
    return write_exported(weights, meta, path)


def rope(weights, meta):
    meta["model"]["rope_base"] = 5.0


def window(weights, meta):
    meta["model"]["layers"][2]["window"] = 4


def multiplier(weights, meta):
    meta["plan"]["multipliers"]["logit"] = 9.0


def of_training(weights, meta):
    meta["model"] |= {"family": "other", "dropout": 0.1, "zero_output": True, "varlen": True, "block_size": 99}


def missing(weights, meta):
    del weights["norm.weight"]


def additional(weights, meta):
    weights["extra"] = torch.ones(2)


def shape(weights, meta):
    weights["norm.weight"] = torch.ones(3)


def half(weights, meta):
    weights["norm.weight"] = weights["norm.weight"].half()


def nan(weights, meta):
    weights["wte.weight"][3, 0] = float("nan")


def infinite(weights, meta):
    weights["wte.weight"][3, 0] = float("inf")


def later_field(weights, meta):
    meta["model"]["soft_cap"] = 30.0


ALTERED = {
    rope: r"differ in model.rope_base: 10000.0 -> 5.0\.",
    window: r"differ in model.layers.2.window: 8 -> 4\.",
    multiplier: r"differ in multipliers.logit: .* -> 9.0\.",
    missing: r"norm.weight is missing, not \(64,\)",
    additional: r"extra is \(2,\), not part of the model",
    shape: r"norm.weight is \(3,\), not \(64,\)",
    half: r"norm.weight is torch.float32 in .* and torch.float16",
    nan: "wte.weight of .* not finite",
    infinite: "wte.weight of .* not finite",
    later_field: "that this version does not know .*soft_cap",
}


@pytest.mark.parametrize("change", ALTERED)
def test_what_is_not_one_model_is_not_averaged(change, folders, tmp_path):
    """NaN, other dtypes and tensors of only one checkpoint were averaged or crashed with a KeyError."""
    path = altered(folders[1], tmp_path / "altered.pth", change)
    for paths in ([folders[0], path], [path, folders[0]]):
        with pytest.raises(UserError) as caught:
            average.average(paths)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=ALTERED[change]):
        average.average([folders[0], path])


def test_runs_that_trained_otherwise_are_one_model(folders, tmp_path):
    """A dropout or another name was an error, though weights mean the same: soups are of runs that differ in these."""
    path = altered(folders[1], tmp_path / "altered.pth", of_training)
    weights, meta = average.average([folders[0], path])
    assert same(weights, average.average(folders)[0]) and meta["model"]["dropout"] == 0.1


@pytest.mark.parametrize("fields", [{"ffn_multiple": 2.0}, {"experts": Experts(2, 2, bias_rate=0.1)}])
def test_tensors_of_one_checkpoint_alone_have_no_mean(fields, tmp_path):
    """What shapes tell is no part of the forward pass: this was a traceback, or half of a selection bias."""
    layers = (LayerSpec(experts="experts" in fields),) * 2
    plain = small(layers=layers, experts=Experts(2, 2) if "experts" in fields else None)
    paths = [
        write_exported(model_of(config).state_dict(), {"model": config.to_dict(), **PLAIN}, tmp_path / f"{i}.pth")
        for i, config in enumerate((plain, plain.replace(**fields)))
    ]
    for order in (paths, paths[::-1]):
        with pytest.raises(UserError, match=r"are not one model: they differ in tensors\.blocks\.0\.ffn\."):
            average.average(order)


def test_whole_numbers_have_no_mean(folders, monkeypatch):
    """Counters must agree: the mean of step counts 2 and 4, rounded to a whole number, is a state that never was."""
    loaded = {p: load_full(p) for p in folders}
    for i, (weights, _) in enumerate(loaded.values()):
        weights["count"] = torch.tensor([7, i])
    monkeypatch.setattr(average, "load_weights_and_meta", lambda path, weights: loaded[path])
    monkeypatch.setattr(average, "check_weights", lambda *_: None)  # no model has such a buffer today
    with pytest.raises(UserError, match="count holds whole numbers that differ"):
        average.average(folders)
    loaded[folders[1]][0]["count"] = torch.tensor([7, 0])
    assert torch.equal(average.average(folders)[0]["count"], torch.tensor([7, 0]))


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "header", "empty", "text"])
def test_a_damaged_file_is_one_sentence(kind, damage, folders, tmp_path):
    """A download that stopped half-way ended in a traceback of the zip or the safetensors library."""
    path = write_exported(*load_full(folders[0]), tmp_path / f"m{kind}")
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "header": whole[100:], "empty": b"", "text": b"a model\n"}[damage]
    )
    for convert_it in (load_exported, load_model):
        with pytest.raises(UserError, match=f"m{kind} cannot be read") as caught:
            convert_it(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        average.average([folders[0], path])


def test_a_damaged_checkpoint_is_one_sentence(folders, tmp_path):
    """torch's CheckpointException is no Exception, so it went past every handler."""
    copy = shutil.copytree(folders[0], tmp_path / folders[0].name)
    for name in ("__0_0.distcp", ".metadata"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:100])
        with pytest.raises(UserError, match=r"is damaged: .*(cut|not what was written)"):
            load_full(copy)
        (copy / name).write_bytes(whole)


def test_weights_of_another_model_are_one_sentence(folders, tmp_path):
    """load_state_dict's list of every name was a traceback."""
    path = altered(folders[0], tmp_path / "m.pth", missing)
    with pytest.raises(UserError, match=r"does not hold the weights of its model: norm.weight is missing"):
        load_model(path)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    config = small()
    with pytest.raises(UserError, match="exists already"):
        write_hf(model_of(config).state_dict(), config, Multipliers(), tmp_path)


def test_the_class_is_said(run_folder, tmp_path, capsys):
    convert.main([str(run_folder), str(tmp_path / "hf"), "--to", "hf"])
    assert capsys.readouterr().out == f"wrote {tmp_path / 'hf'}, a SmolLM3ForCausalLM\n"


def test_what_is_not_llama_leaves_no_folder(run_folder, tmp_path):
    with pytest.raises(UserError, match=r"window 8 \(layer 0, 1, 2\)"):
        convert.main([str(run_folder), str(tmp_path / "hf"), "--to", "hf", "--hf_class", "llama"])
    with pytest.raises(UserError, match="--hf_class is empty"):
        convert.main([str(run_folder), str(tmp_path / "hf"), "--to", "hf", "--hf_class", ""])
    for name, options in (("m.safetensors", []), ("m.pth", ["--hf_class", "remote"]), ("m.pt", ["--quantize", "int8"])):
        with pytest.raises(UserError, match=rf"{name} would be a folder, and .* Give the name of a folder"):
            convert.main([str(run_folder), str(tmp_path / name), "--to", "hf", *options])
    with pytest.raises(UserError, match="--hf_class acts with --to hf"):
        convert.main([str(run_folder), str(tmp_path / "a.pth"), "--hf_class", "llama"])
    with pytest.raises(UserError, match=r"Unknown Hugging Face model type 'lama'\. Did you mean"):
        convert.main([str(run_folder), str(tmp_path / "hf"), "--to", "hf", "--hf_class", "lama"])
    with pytest.raises(UserError, match="--tokenizer acts with --to hf"):
        convert.main([str(run_folder), str(tmp_path / "a.pth"), "--tokenizer", "bytes"])
    assert not list(tmp_path.iterdir())
