"""Damaged files, weights and places: one sentence each, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import resealed
from llama_models import model_of, small
from script_module import tool

from lit_gpt.checkpoint import find_checkpoint, load_exported
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.data.tokenizer import train_bpe
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import Sampling, sample
from lit_gpt.evals.model_tokenizer import find_tokenizer
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import average, convert, generate, inspect
from lit_gpt.tools._hf import write_hf

DAMAGE = {"empty": b"", "half": b'{"version": 1,', "binary": bytes(range(256)), "a list": b"[]", "null": b"null"}


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["meta.json", "COMPLETE", "plan.json", "model.json", "summary.json", "config.yaml"])
def test_a_damaged_file_of_a_run_is_one_sentence(name: str, content: bytes, run: Path, tmp_path: Path, capsys) -> None:
    """They were tracebacks of json, yaml or int."""
    place = run / "checkpoints" / "step-000004" if name in ("meta.json", "COMPLETE") else run
    (place / name).write_bytes(content)
    commands: list[tuple[Any, ...]] = [(inspect.main, "run", run)]
    if name not in ("plan.json", "model.json", "summary.json"):
        commands = [(convert.main, place, tmp_path / "a.pth"), (generate.main, place, "--prompt", "a")]
    for command in commands:
        assert tool(*command) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert {p.name for p in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("value", [None, "x", -1, [], {}, True, 1e400, 10**30, "gone"], ids=str)
@pytest.mark.parametrize("name", ["step", "tokens", "plan", "numerics", "tokenizer.eos_id"])
def test_a_meta_of_another_shape_is_one_sentence(name: str, value: object, run: Path, tmp_path: Path) -> None:
    """With sums that fit. They were a KeyError in average, a TypeError in inspect, an OverflowError in generate."""
    step = run / "checkpoints" / "step-000004"
    meta = json.loads((step / "meta.json").read_text())
    inner, key = (meta["tokenizer"], "eos_id") if "." in name else (meta, name)
    inner.pop(key)
    if value != "gone":
        inner[key] = value
    (step / "meta.json").write_text(json.dumps(meta))
    resealed(step)
    said = []
    for main, words in (
        (inspect.main, ["checkpoint", step]),
        (inspect.main, ["run", run]),
        (average.main, [run / "checkpoints/step-000002", step, "--output", tmp_path / "b.pth"]),
        (generate.main, [step, "--prompt", "a", "--max_new_tokens", 1]),
    ):
        said.append(tool(main, *words))  # raises what is no UserError
    assert set(said) <= {0, 2}
    assert name not in ("step", "tokens") or set(said) == {2}


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "model.json", "environment.json"])
def test_a_file_that_is_nested_too_deep_is_one_sentence(name: str, run: Path, run_folder: Path) -> None:
    """They were RecursionErrors."""
    (run / name).write_text("[" * 100_000)
    assert tool(inspect.main, "run", run, run_folder) == 2
    assert tool(generate.main, run, "--prompt", "a", "--max_new_tokens", 1) in (0, 2)


def test_a_damaged_marker_blocks_no_other_way(run: Path) -> None:
    """It was a traceback of int. The newest whole checkpoint is used; the damaged one itself is refused."""
    step = run / "checkpoints" / "step-000004"
    (step / "COMPLETE").write_text("")
    for resume in ("auto", True):
        assert find_checkpoint(run, resume) == run / "checkpoints" / "step-000002"
    with pytest.raises(UserError, match="COMPLETE is cut or changed"):
        find_checkpoint(run, str(step))


@pytest.mark.parametrize("what", ["missing", "left over", "NaN", "whole numbers", "no tensor", "sparse"])
def test_weights_that_are_not_the_models(what: str, run: Path, tmp_path: Path) -> None:
    """convert wrote them all, and a model with NaN in its queries generated text, as attention hides them."""
    weights, meta = load_exported(convert.to_file(run, tmp_path / "a.pth"))
    name = "blocks.0.mixer.q.weight"
    changed = {
        "missing": {n: t for n, t in weights.items() if n != name},
        "left over": {**weights, "other": torch.ones(3)},
        "NaN": {**weights, name: weights[name] * float("nan")},
        "whole numbers": {**weights, name: weights[name].int()},
        "no tensor": {**weights, name: [1.0]},
        "sparse": {**weights, name: weights[name].to_sparse()},
    }
    damaged = tmp_path / "damaged.pth"
    torch.save({"model": changed[what], "meta": meta}, damaged)
    for main, words in (
        (convert.main, [damaged, tmp_path / "b.pth"]),
        (convert.main, [damaged, tmp_path / "hf", "--to", "hf"]),
        (generate.main, [damaged, "--prompt", "a"]),
        (average.main, [run, damaged, "--output", tmp_path / "b.pth"]),
    ):
        with pytest.raises(UserError):
            main([str(word) for word in words])
    assert {p.name for p in tmp_path.iterdir()} == {"run", "a.pth", "damaged.pth"}


def test_places_where_nothing_can_be_written(run: Path, tmp_path: Path, capsys) -> None:
    """A file for a folder, a folder for a file, a name of 300 letters: tracebacks of the operating system."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "link").symlink_to("nowhere/at/all")
    before = set(tmp_path.rglob("*"))
    names = ["file/a.pth", "file/b/a.pth", "folder.pth", "n" * 300 + ".pth"]
    for name in names:
        for words in ([convert.main, run], [average.main, run / "checkpoints/step-000002", run, "--output"]):
            assert tool(*words, tmp_path / name) == 2  # type: ignore[arg-type]
            assert capsys.readouterr().err.startswith("error: ")
    for name in ("file/a", "link", "n" * 300):
        place = tmp_path / name
        with pytest.raises((UserError, OSError)):
            write_hf(model_of(small()).state_dict(), small(), Multipliers(), place)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "code"), [(PermissionError(13, "Permission denied", "/a/b"), 2), (OSError(28, "No space left"), 3)]
)
def test_an_error_of_the_operating_system_is_one_sentence(error: OSError, code: int, capsys) -> None:
    """Such as a read-only folder, in every tool."""

    def main(_: list[str]) -> int:
        raise error

    assert tool(main) == code
    assert str(error.strerror) in capsys.readouterr().err


def test_addresses_and_empty_names_are_no_paths(run: Path, tmp_path: Path, monkeypatch) -> None:
    """s3://bucket/a.pth wrote a folder "s3:" in the working directory, and ~ one of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in ("s3://bucket/a.pth", "", " "):
        assert tool(convert.main, run, path) == 2
        assert tool(convert.main, path, "a.pth") == 2
    assert tool(convert.main, run, "~/a.pth") == 0
    assert (tmp_path / "home" / "a.pth").exists() and {p.name for p in tmp_path.iterdir()} == {"run", "home"}


def test_a_file_made_from_a_moved_run_finds_its_tokenizer(run: Path, tmp_path: Path) -> None:
    """The file said where the run had been, though its tokenizer was found beside it."""
    train_bpe(iter(["the cat"]), 257, run / "tokenizer" / "tokenizer.json")
    meta = run / "tokenizer" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"tokenizer": {"kind": "json", "name": "mine"}}))
    for step in (run / "checkpoints").iterdir():
        saved = json.loads((step / "meta.json").read_text())
        saved["tokenizer"] |= {"kind": "json", "source": str(tmp_path / "where it was")}
        (step / "meta.json").write_text(json.dumps(saved))
        (step / "SHA256SUMS").unlink()
        (step / "COMPLETE").write_text(step.name[-1])  # as it was before there were sums
    convert.main([str(run), str(tmp_path / "a.pth")])
    average.main([str(run / "checkpoints/step-000002"), str(run), "--output", str(tmp_path / "b.pth")])
    for name in ("a.pth", "b.pth"):
        found = find_tokenizer(tmp_path / name, load_exported(tmp_path / name)[1])
        assert found is not None and found.present and Path(found.source) == (run / "tokenizer").resolve()


@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_size", True),
        ("num_key_value_heads", "1"),
        ("head_dim", 0),
        ("max_position_embeddings", "x"),
        ("rms_norm_eps", -1),
        ("rope_theta", 0),
        ("rope_theta", "x"),
        ("rope_scaling", [1]),
        ("rope_scaling", {"rope_type": "yarn", "factor": "x"}),
        ("rope_parameters", 3),
        ("tie_word_embeddings", "no"),
        ("eos_token_id", 99999),
        ("eos_token_id", "x"),
    ],
)
def test_values_of_a_config_json(key: str, value: object, tmp_path: Path) -> None:
    """rope_theta 0 was read as 10000, a head_dim of 0 as none; others were tracebacks."""
    config = small(vocab_size=257)
    bytes_ = KeptTokenizer("bytes", "bytes", "", 256)
    folder = write_hf(model_of(config).state_dict(), config, Multipliers(), tmp_path / "hf", bytes_)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {key: value}))
    with pytest.raises(UserError):
        convert.to_file(folder, tmp_path / "a.pth")


def test_an_index_that_is_no_index(tmp_path: Path) -> None:
    config = small()
    folder = write_hf(model_of(config).state_dict(), config, Multipliers(), tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    for placed in ([1], "x", None, {"model.norm.weight": 3}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
        with pytest.raises(UserError, match="no weight_map"):
            convert.to_file(folder, tmp_path / "a.pth")


def test_ids_of_a_tokenizer(tmp_path: Path) -> None:
    """An EOS that is no token went into config.json, where it never ends a text; a BOS that is none was a traceback."""
    config = small(vocab_size=257)
    kept = KeptTokenizer("bytes", "bytes", "", 256)
    for strange in (replace(kept, eos_id=300), replace(kept, bos_id=300)):
        with pytest.raises(UserError, match="has no token for"):
            write_hf(model_of(config).state_dict(), config, Multipliers(), tmp_path / "hf", strange)
    for wrong in ("x", -1, True, 1.5):
        with pytest.raises(UserError, match="whole numbers or null"):
            replace(kept, bos_id=wrong)
    assert not (tmp_path / "hf").exists()


def test_extremes_of_generation(run: Path) -> None:
    """A top_p of 1e-300 left no token, and names of devices and seeds beyond 64 bits were tracebacks."""
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert sample(logits, torch.tensor([0.99]), Sampling(1.0, top_p=1e-300)).tolist() == [1]
    for option, value in (("--device", "nothing"), ("--device", ""), ("--device", "meta"), ("--seed", str(2**63))):
        with pytest.raises(UserError, match=f"{option} "):
            generate.main([str(run), "--prompt", "a", "--max_new_tokens", "1", option, value])
