"""inspect: what it says about a machine, a run and a checkpoint."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from script_module import tool

from lit_gpt.checkpoint import load_full, write_exported
from lit_gpt.errors import UserError
from lit_gpt.evals.trained_model import load_model
from lit_gpt.ops import attention
from lit_gpt.tools import _environment, inspect
from lit_gpt.tools._run_differences import differences


def test_env_names_libraries_and_operations(capsys):
    assert inspect.main(["env"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
    assert rows["pyarrow"] == [__import__("pyarrow").__version__]
    assert set(_environment.LIBRARIES) <= rows.keys()


def test_the_first_usable_attention_is_the_one_that_is_picked():
    rows = _environment.operations(torch.device("cpu"))
    usable = [backend for name, backend, use, _ in rows if name == "attention" and use == "usable"]
    windowed, plain = (
        attention.pick(attention.describe(torch.device("cpu"), 4096, 4096, window, False, False))
        for window in (8, None)
    )
    assert usable[:2] == [windowed, plain]  # the first one is for windows alone


def test_a_library_that_cannot_be_imported_is_reported(monkeypatch, tmp_path):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise OSError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:  # of a machine that has it
        monkeypatch.delitem(sys.modules, name)
    rows = dict(_environment.libraries())
    assert rows["flash_attn.cute"] == "broken: undefined symbol"
    assert rows["flash_attn"] == "version unknown"


def test_a_run_and_its_checkpoints(run_folder, tmp_path, capsys):
    exported = write_exported(*load_full(run_folder / "checkpoints" / "step-000002"), tmp_path / "m.safetensors")
    assert inspect.main(["run", str(run_folder)]) == 0
    of_run = capsys.readouterr().out
    assert inspect.main(["checkpoint", str(exported)]) == 0
    of_file = capsys.readouterr().out
    first = [line.split() for line in of_file.splitlines()[:2]]
    assert first == [["step", "2"], ["tokens", "128", "of", "256", "(50.0%)"]]
    assert "step" in of_run and "256 of 256 (100.0%)" in of_run and "train_loss" in of_run
    for out in (of_run, of_file):
        assert "transformerls d4" in out and "rule         mupp" in out
    model, _ = load_model(run_folder)
    assert of_run.splitlines()[-1].split() == ["all", str(len(list(model.parameters()))), f"{_size(model):,}"]


def _size(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_other_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        inspect.main(["run", str(tmp_path)])
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.json").touch()
    with pytest.raises(UserError, match=f"Did you mean '{run}'?"):  # the folder of a study's row
        inspect.main(["run", str(tmp_path)])


def test_two_models_differ_in_a_line_of_layers(tmp_path):
    """It was a thousand letters of JSON, in which nobody saw that one more layer was all."""
    for name, depth in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("{}")
        (tmp_path / name / "environment.json").write_text("{}")
        layers = [{"mixer": "attention", "ffn": "swiglu", "window": None, "experts": False}] * depth
        (tmp_path / name / "model.json").write_text(json.dumps({"layers": layers}))
    words = "(mixer attention, ffn swiglu)"
    assert f"\n  layers: 2 x {words} -> 3 x {words}\n" in differences(tmp_path / "a", tmp_path / "b")


def test_it_says_one_line_and_exits_with_2(tmp_path, capsys):
    assert tool(inspect.main, "checkpoint", tmp_path / "none") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
