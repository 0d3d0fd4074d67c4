"""Quantised exports: transformers loads them, their weights are the nearest numbers, their cost stands beside them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.config.command import exit_code
from lit_gpt.data.discover import open_corpus
from lit_gpt.errors import UserError
from lit_gpt.evals.trained_model import load_model
from lit_gpt.tools import _quantize, convert
from lit_gpt.tools._cli import QUANTIZED
from lit_gpt.tools._quantize import GROUP, REPORT

needs_torchao = pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="pip install -e '.[quantize]'")


@pytest.fixture(scope="module")
def made(run_folder: Path, tmp_path_factory) -> dict[str, Path]:
    """The run in every kind."""
    root = tmp_path_factory.mktemp("quantized")
    for kind in QUANTIZED:
        words = [str(run_folder), str(root / kind), "--to", "hf", "--quantize", kind]
        assert exit_code(convert.main, [*words, "--val_data_dir", str(run_folder.parent / "data")]) == 0
    assert sorted(path.name for path in root.iterdir()) == sorted(QUANTIZED), "nothing else is left"
    return {kind: root / kind for kind in QUANTIZED}


def loaded(folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@needs_torchao
@pytest.mark.parametrize("kind", QUANTIZED)
def test_weights_are_the_nearest_numbers(made, run_folder, tmp_path, kind):
    """Rows (int4: groups of 32 in a row) have one scale each; a weight is at most half a step off."""
    assert exit_code(convert.main, [str(run_folder), str(tmp_path / "plain"), "--to", "hf"]) == 0
    plain, found = loaded(tmp_path / "plain").state_dict(), loaded(made[kind])
    maps: dict[str, Any] = {name: m for name, m in found.named_modules() if name.endswith("_proj")}
    assert len(maps) == 7 * 4
    for name, module in maps.items():
        exact, near = plain[f"{name}.weight"], module.weight.dequantize()
        assert type(module.weight.data) is not torch.Tensor
        groups, rounded = (t.unflatten(1, (-1, GROUP if kind == "int4" else t.shape[1])) for t in (exact, near))
        largest = groups.abs().amax(-1, keepdim=True)
        # The numbers of a symmetric code: 127 and 7 steps on each side; fp8 (e4m3) reaches to 448, has 3 bits after the
        # leading one, and equal steps below 2^-6.
        power = 2.0 ** (groups / largest * 448).abs().log2().floor().clamp(min=-6)
        steps = {"int8": largest / 127, "int4": largest / 7, "fp8": largest / 448 * power / 8}[kind]
        assert ((groups - rounded).abs() <= steps * 0.51 + 1e-7).all(), name
    others = [name for name, p in found.named_parameters() if not name.endswith("_proj.weight")]
    assert all(torch.equal(found.get_parameter(name), plain[name]) for name in others if "lm_head" not in name)


@needs_torchao
def test_the_cost_is_measured(made, run_folder):
    """Before, as our own model computes it; after, as the folder does; the difference of pairs."""
    data = str(run_folder.parent / "data")
    corpus = open_corpus(data, "validation", 32, 0, shuffle=False, repeat=False)
    model, _ = load_model(run_folder)
    for kind, folder in made.items():
        report, again = json.loads((folder / REPORT).read_text()), loaded(folder)
        assert (
            report["quantize"] == kind
            and report["sequences"] == min(corpus.num_samples, 200)
            and report["data"] == data
        )
        losses: dict[str, list[float]] = {"before": [], "after": []}
        for row in range(report["sequences"]):
            batch = corpus.batch(row, 1)
            tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
            with torch.no_grad():
                for name, logits in (("before", model(tokens).logits), ("after", again(tokens).logits)):
                    losses[name].append(F.cross_entropy(logits[0], targets[0]).item())
        means = {name: sum(values) / len(values) for name, values in losses.items()}
        for name, mean in means.items():
            assert report["loss"][name]["value"] == pytest.approx(mean, abs=1e-4)
        difference = report["loss"]["difference"]
        assert difference["value"] == pytest.approx(means["after"] - means["before"], abs=2e-4)
        assert 0 <= difference["stderr"] < report["loss"]["before"]["stderr"], "of pairs, not of both"
        assert report["weights"]["quantized"] < report["weights"]["all"]
        assert report["bytes"]["after"] < report["bytes"]["before"]
        assert (folder / "tokenizer.json").is_file() and (folder / "generation_config.json").is_file()


@needs_torchao
def test_rows_that_groups_do_not_divide(run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_quantize, "GROUP", 48)
    words = [str(run_folder), str(tmp_path / "out"), "--to", "hf", "--quantize", "int4"]
    assert exit_code(convert.main, [*words, "--val_data_dir", str(run_folder.parent / "data")]) == 2
    assert "takes weights in groups of 48, and model.layers.0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_class_without_linear_maps():
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_head=2, n_layer=1, vocab_size=64))
    with pytest.raises(UserError, match=r"no torch\.nn\.Linear in GPT2LMHeadModel"):
        _quantize._check_maps(model, "int8")


def test_what_is_missing(run_folder, tmp_path, capsys, monkeypatch):
    """A library, and validation data: nothing is written."""
    words = [str(run_folder), str(tmp_path / "out"), "--to", "hf", "--quantize", "int8"]
    monkeypatch.setattr(_quantize, "LIBRARIES", ("transformers", "no_such_library"))
    assert exit_code(convert.main, words) == 2
    assert '--quantize needs no_such_library. Type: pip install -e ".[quantize]"' in capsys.readouterr().err
    monkeypatch.setattr(_quantize, "LIBRARIES", ("torch",))
    assert exit_code(convert.main, words) == 2
    assert "does not say where there is some. Give --val_data_dir FOLDER." in capsys.readouterr().err
    assert exit_code(convert.main, [str(run_folder), str(tmp_path / "a.pth"), "--quantize", "int8"]) == 2
    assert "--quantize acts with --to hf only" in capsys.readouterr().err
    assert exit_code(convert.main, [str(run_folder), str(tmp_path / "a.pth"), "--val_data_dir", "data"]) == 2
    assert "Add --quantize, or drop it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
