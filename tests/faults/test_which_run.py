"""Which run a folder holds: told as the options that a person changes, and recorded with all that ran."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_run import OPTIONS, resolved_of
from tiny_run import folder_of, run

from lit_gpt.data.discover import open_corpus
from lit_gpt.errors import UserError
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.tools import inspect
from lit_gpt.train import provenance, run_folder
from lit_gpt.train.identity import identity
from lit_gpt.train.stopping import EXIT_INTERRUPTED


def old_meta(resolved: ResolvedRun, **numerics: str) -> dict[str, Any]:
    return {**identity(resolved), "numerics": numerics, "tokens": 0}


@pytest.mark.parametrize("label", ["device default", "fp32", "32"])
@pytest.mark.parametrize("typed", [None, "fp32", "32"])
def test_a_precision_is_what_is_computed_in(label, typed, data, tmp_path):
    """fp32 typed on a CPU, where it is the default, made another run of it; so did bf16 and bf16-mixed."""
    resolved = resolved_of(data, tmp_path, precision=typed)
    run_folder.check_folder(resolved, old_meta(resolved, precision=label, residual_precision="fp32"))


ADDED = ("value_table", "output", "gate", "scalar", "residual_scalar")


@pytest.mark.parametrize("options", [{}, {"max_tokens": 4000}])
def test_a_run_of_a_version_that_knew_fewer_roles_goes_on(options, data, tmp_path):
    """Its Plan and its counts lack the roles that came later, and its model the fields; an extension works too."""
    meta = json.loads(json.dumps(identity(resolved_of(data, tmp_path)))) | {"tokens": 0}
    for name in ADDED:
        assert meta["plan"]["counts"].pop(name) == 0 and meta["plan"]["roles"].pop(name)
    del meta["model"]["backout"], meta["model"]["layers"][0]["value_embedding"]
    run_folder.check_folder(resolved_of(data, tmp_path, **options), meta)
    with pytest.raises(UserError, match="backout"):
        run_folder.check_folder(resolved_of(data, tmp_path, backout=True), meta)


def test_warm_ups_that_end_with_the_run_make_a_longer_one_another(data, tmp_path):
    """Those of AdEMAMix do unless they are given: its alpha fell to a half where such a run was made twice as long."""
    ademamix = {"optimizer": "ademamix", "schedule": "constant"}
    given = ademamix | {"optimizer_args.alpha_warmup": 4, "optimizer_args.beta3_warmup": 4}
    for options, same in ((ademamix, False), (given, True)):
        short, long = (resolved_of(data, tmp_path, **options, max_tokens=n) for n in (2048, 4096))
        meta = identity(short) | {"tokens": 1024}
        run_folder.check_folder(short, meta)
        if same:
            run_folder.check_folder(long, meta)
        else:
            with pytest.raises(UserError, match="alpha_warmup and beta3_warmup follow the budget"):
                run_folder.check_folder(long, meta)


def test_the_default_of_a_gpu_is_bf16(data, tmp_path, monkeypatch):
    here = resolved_of(data, tmp_path)
    mixed, single = (resolved_of(data, tmp_path, precision=label) for label in ("bf16-mixed", "fp32"))
    assert identity(here) == identity(single)
    with pytest.raises(UserError, match="--precision: bf16 -> not given"):
        run_folder.write_archive(mixed)
        run_folder.check_folder(here, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert identity(here) == identity(mixed)
    run_folder.check_folder(here, old_meta(here, precision="bf16-mixed", residual_precision="fp32"))
    with pytest.raises(UserError, match=r"numerics\.precision: fp32 -> bf16"):  # no option explains it
        run_folder.check_folder(here, old_meta(here, precision="fp32", residual_precision="fp32"))


def test_how_processes_share_a_model_is_no_part_of_a_run_but_for_its_rounding(data, tmp_path):
    plain = identity(resolved_of(data, tmp_path))
    narrow = identity(resolved_of(data, tmp_path, reduce_precision="bf16", shard_group=1, keep_gathered=False))
    assert narrow == plain | {"numerics": plain["numerics"] | {"reduce_precision": "bf16"}}


def test_a_recipe_of_8_bits_is_part_of_a_run_and_none_is_as_before(data, tmp_path):
    plain, scaled = resolved_of(data, tmp_path), resolved_of(data, tmp_path, fp8=True)
    assert "fp8" not in identity(plain)["numerics"] and identity(scaled)["numerics"]["fp8"] == "tensorwise"
    run_folder.write_archive(scaled)
    run_folder.check_folder(scaled, None)
    with pytest.raises(UserError, match="--fp8: true -> false"):
        run_folder.check_folder(plain, None)


def differing(data: Path, out: Path, *, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is said of a folder made with some options to a run with others."""
    run_folder.write_archive(resolved_of(data, out, **then))
    with pytest.raises(UserError, match="What differs") as raised:
        run_folder.check_folder(resolved_of(data, out, **now), None)
    return [line.strip() for line in str(raised.value).splitlines()[1:-1]]


def test_the_options_that_changed_are_named(data, tmp_path):
    """A changed --base_hps.eta0 was told as plan.roles.conv.lr and six lines like it."""
    then, now = {"base_hps.eta0": 1e-3}, {"base_hps.eta0": 2e-3, "qk_norm": True}
    innocent = {"log_step": 7, "keep_last": 5, "compile": False}
    said = differing(data, tmp_path, then=then, now={**now, **innocent})
    assert sorted(said) == ["--base_hps.eta0: 0.001 -> 0.002", "--qk_norm: not given -> true"]


def test_what_no_option_explains_is_told_too(data, tmp_path):
    """Such as a vocabulary that follows the data, when that is replaced in its place."""
    first = resolved_of(data, tmp_path)
    run_folder.write_archive(replace(first, model=first.model.replace(vocab_size=300)))
    with pytest.raises(UserError) as raised:
        run_folder.check_folder(resolved_of(data, tmp_path, seed=5), None)
    lines = f"  --seed: 3407 -> 5\n  model.vocab_size: 300 -> {first.model.vocab_size}\n"
    assert lines in str(raised.value)


def test_options_that_lead_to_another_folder(data, tmp_path, capsys):
    """--resume auto with another --depth began from zero in a new folder, without a word."""
    options = {**OPTIONS, "resume": "auto", "stop_after": 1}
    assert run(data, tmp_path, **options) == EXIT_INTERRUPTED
    first = folder_of(tmp_path)
    assert "note: --resume auto" not in capsys.readouterr().err
    assert run(data, tmp_path, **{**options, "depth": 2, "ar": 32}) == EXIT_INTERRUPTED
    (note,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("note: --resume auto"))
    assert "starts a new run, " in note and f"To continue {first} instead, type its options" in note
    assert note.endswith("(there -> here): --depth: 1 -> 2, --ar: 16 -> 32")
    assert run(data, tmp_path, **{**options, "train_name": "mup_other"}) == EXIT_INTERRUPTED
    assert "note: --resume auto" not in capsys.readouterr().err, "a label says that it is another run"


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository with a commit, which provenance.py believes to be in."""
    root = tmp_path / "source"
    (root / "lit_gpt" / "train").mkdir(parents=True)
    (root / "lit_gpt" / "a.py").write_text("x = 1\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(root / "lit_gpt" / "train" / "provenance.py"))
    return root


def test_the_patch_is_the_whole_difference(checkout, tmp_path):
    """Only names of changed files were kept, so that nobody could tell what had run."""
    assert provenance._source()[1] == b""
    (checkout / "lit_gpt" / "a.py").write_text("x = 2\n")
    (checkout / "lit_gpt" / "new file.py").write_text("y = 3\n")
    source, patch = provenance._source()
    assert source is not None and source["untracked"] == ["lit_gpt/new file.py"] and not source["patch_cut"]
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(checkout), str(clone))
    (tmp_path / "p.diff").write_bytes(patch)
    git(clone, "apply", str(tmp_path / "p.diff"))
    assert {p.name: p.read_text() for p in (clone / "lit_gpt").glob("*.py")} == {
        "a.py": "x = 2\n",
        "new file.py": "y = 3\n",
    }


def test_a_large_patch_is_cut_and_that_is_said(checkout, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(provenance, "PATCH_LIMIT", 1000)
    (checkout / "lit_gpt" / "new.py").write_text("y = 3\n" * 1000)
    resolved = resolved_of(data, tmp_path / "out")
    run_folder.write_archive(resolved)
    record = json.loads((resolved.folder / "environment.json").read_text())["git"]
    assert record["patch_cut"] and f"{record['patch']} is cut" in capsys.readouterr().err
    kept = (resolved.folder / record["patch"]).read_text()
    assert len(kept) < 1100 and "# Cut here: the patch has 7," in kept


def test_what_differs_between_two_runs(checkout, data, tmp_path, capsys):
    """inspect run A B: options, Plan, model, data, packages, source, and what only one patch has."""
    folders = []
    for seed, line in ((1, "x = 2\n"), (2, "x = 3\n")):
        (checkout / "lit_gpt" / "a.py").write_text(line)
        resolved = resolved_of(data, tmp_path / str(seed), seed=seed)
        corpus = open_corpus(str(data), "train", 64, seed)
        run_folder.write_archive(resolved, {"train": corpus, "validation": None})
        folders.append(resolved.folder)
    record = json.loads((folders[0] / "environment.json").read_text())
    assert record["packages"] == {d.name: d.version for d in distributions()}
    assert record["data"]["train"]["content"] == corpus.content
    (folders[1] / "environment.json").write_text(
        json.dumps(json.loads((folders[1] / "environment.json").read_text()) | {"packages": {"torch": "9"}})
    )
    plan = json.loads((folders[0] / "plan.json").read_text())
    for role in plan["roles"].values():
        role["method"] = role.pop("update_rule")  # as early runs have it
    (folders[0] / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match="is the same folder as"):
        inspect.main(["run", str(folders[0]), str(folders[0] / "../" / folders[0].name)])
    assert inspect.main(["run", *map(str, folders)]) == 0
    out = capsys.readouterr().out
    sections = {part.split("\n")[0]: part.split("\n")[1:] for part in out.split("\n\n")}
    assert "  seed: 1 -> 2" in sections["options"]
    assert sections["plan"] == ["  data_seed: 1 -> 2", "  seed: 1 -> 2"]
    assert any(line.startswith("  train.order: ") for line in sections["data"]) and len(sections["data"]) == 1
    assert f"  torch: {torch.__version__} -> 9" in sections["packages"]
    assert "  -+x = 2" in sections["patch"] and "  ++x = 3" in sections["patch"]
    assert out.splitlines()[-1] == "the same: model, numerics, machine"
    with pytest.raises(UserError, match="no run folder"):
        inspect.main(["run", str(folders[0]), str(tmp_path)])
