"""What a person may type: counts with units, lists of words, bare switches, home folders, empty files; and the help."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gpt.config.bounds import Bounds, hints, parts, violations
from lit_gpt.config.cli import build_parser, parse
from lit_gpt.config.explain import ELSEWHERE
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.config.words import read_tokens, write_tokens
from lit_gpt.errors import UserError


def test_counts_of_tokens_have_units() -> None:
    """Papers and people say 10B; the command line took nothing but digits."""
    counts = {"10B": 1e10, "500M": 5e8, "1.5T": 1.5e12, "2k": 2e3, "0.0011B": 1.1e6, "25_165_824_000": 25165824000.0}
    assert {text: read_tokens(text) for text in [*counts, "1e10", 7]} == counts | {"1e10": 1e10, 7: 7.0}
    run = parse(
        ["--max_tokens", "10B", "--total_bsz=2m", "--base_hps.b0=500K", "--base_hps.t0", "9.5B"]
        + ["--base_hps.warmup_tokens0", "1B"]
    )
    hps = run.base_hps
    assert (run.max_tokens, run.total_bsz, hps.b0, hps.t0, hps.warmup_tokens) == (1e10, 2e6, 5e5, 9.5e9, 1e9)
    for text in ("B", "10BB", "ten", "nan", "0x10", True, None, [1]):
        with pytest.raises(ValueError):
            read_tokens(text)


@pytest.mark.parametrize("typed", ["wandb,csv", "[wandb,csv]", "[wandb, csv]", '["wandb", "csv"]', "wandb,csv,wandb"])
def test_a_list_of_loggers_needs_no_brackets(typed: str, tmp_path: Path) -> None:
    """`--loggers csv` ended in "Expected a <class 'list'>"."""
    assert parse(["--loggers", typed, "--tracker_tags", "a"]).loggers == ["wandb", "csv"]
    (tmp_path / "run.yaml").write_text(f"loggers: {typed}\ntracker_tags: a")
    run = parse(["--config", str(tmp_path / "run.yaml")])
    assert (run.loggers, run.tracker_tags) == (["wandb", "csv"], ["a"])
    assert parse(["--loggers", "csv"]).loggers == ["csv"] and parse(["--loggers", "[]"]).loggers == []


@pytest.mark.parametrize("typed", ["1B,100M", "[1e9, 100M]", '["100m", "1G"]', "100M,1B,1000M", "1e8,1e9"])
def test_a_list_of_counts_is_sorted(typed: str, tmp_path: Path) -> None:
    """Words that stand apart, and numbers of a YAML file, are a list too."""
    assert parse(["--ema", typed]).ema == parse(["--ema", *typed.strip("[]").split(",")]).ema == [1e8, 1e9]
    (tmp_path / "run.yaml").write_text(f"ema: {typed}")
    assert parse(["--config", str(tmp_path / "run.yaml")]).ema == [1e8, 1e9]
    (tmp_path / "run.yaml").write_text("ema: 5e8")
    assert parse(["--config", str(tmp_path / "run.yaml")]).ema == parse(["--ema", "500M"]).ema == [5e8]
    assert parse([]).ema == parse(["--ema", "[]"]).ema == []


def test_counts_are_written_as_they_are_typed() -> None:
    written = {1: "1", 512: "512", 2048: "2.048k", 10**8: "100M", 15 * 10**8: "1.5B", 123_456_789: "123.456789M"}
    assert {count: write_tokens(count) for count in written} == written
    for count in (*written, 10**16, 999_999_999_999_999):
        assert read_tokens(write_tokens(count)) == count


def test_switches_need_no_value() -> None:
    """`--dry_run` alone ended in "expected one argument", and was followed by a run where it came before another."""
    line = [
        "--dry_run",
        "--depth",
        "8",
        "--fsdp2",
        "--varlen",
        "--compile=false",
        "--gradient_checkpointing",
        "--resume",
    ]
    run = parse(line)
    assert run.dry_run and run.fsdp2 and run.varlen and run.act_ckpt is True and run.resume is True
    assert run.compile is False and run.depth == 8
    assert parse(["--dry_run", "false", "--base_hps.eta0", "-1e-8"]).base_hps.eta0 == -1e-8


def test_the_home_folder_is_found_in_flags_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands `~` at the start of a word only: not after `=`, and not in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(
        "train_data_dir: ~/data\nout_dir: ~/out\nmax_tokens: 10B\nval_data_dir: s3://a/~b"
    )
    run = resolve(parse(["--config=~/run.yaml", "--init_from=~/c"]))[0]
    assert (run.train_data_dir, run.out_dir, run.init_from) == (f"{tmp_path}/data", f"{tmp_path}/out", f"{tmp_path}/c")
    assert (run.max_tokens, run.val_data_dir) == (1e10, "s3://a/~b")
    monkeypatch.setenv("LIGHTNING_ARTIFACTS_DIR", "~/artifacts")
    assert resolve(RunConfig(resume="~/step"))[0].out_dir == f"{tmp_path}/artifacts"
    assert resolve(RunConfig(resume="~/step"))[0].resume == f"{tmp_path}/step"


@pytest.mark.parametrize("content", ["", "\n\n", "# nothing yet\n", "---\n", "{}\n"])
def test_a_file_without_options_changes_nothing(content: str, tmp_path: Path) -> None:
    """An empty file, as a person starts with, was an "Unexpected config"."""
    (tmp_path / "run.yaml").write_text(content)
    assert parse(["--config", str(tmp_path / "run.yaml"), "--depth", "8"]) == RunConfig(depth=8)


def test_bounds_hold_however_options_were_made() -> None:
    """Tools make a RunConfig in Python; whatever reaches `resolve` is checked, defaults included."""
    assert not violations(RunConfig())
    with pytest.raises(UserError, match=r"--base_hps.eps is -1; it must be from 1e-30 to 1\."):
        resolve(RunConfig(train_name="x", base_hps=BaseHyperparameters(eps=-1)))
    with pytest.raises(UserError, match=r"--optimizer_args is .*; its numbers must be finite\."):
        resolve(RunConfig(train_name="x", optimizer_args={"betas": [0.9, float("nan")]}))
    with pytest.raises(UserError, match=r"--depth is 9000000; it must be from 1 to 2,000\."):
        resolve(RunConfig(train_name="x", train_model="transformer_d9000000"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("dropout", 1e-12), ("label_smoothing", 1e-12), ("logit_softcap", 1e-9), ("norm_eps", 1e-60)]
    + [("qk_norm_scale", 1e-9), ("base_hps.eps", 1e-60), ("base_hps.w_init_scale", 1e-60)],
)
def test_values_that_cannot_act_or_break_training_are_refused(option: str, value: float) -> None:
    """A probability that is drawn in no run, a cap under which all logits are alike, an epsilon that is 0 in fp32."""
    with pytest.raises(UserError, match=rf"--{option} is {value:g}[.0]*; it must be "):
        resolve(parse([f"--{option}", str(value)]))


@pytest.mark.parametrize("option", ["dropout", "label_smoothing", "logit_softcap"])
def test_zero_switches_off(option: str) -> None:
    assert getattr(resolve(parse([f"--{option}", "0"]))[0], option) == 0


@pytest.mark.parametrize("kind", [RunConfig, BaseHyperparameters])
def test_every_number_and_every_text_has_a_bound_beside_it(kind: type) -> None:
    """So that a new option is not forgotten."""
    bare = {name for name, hint in hints(kind).items() if {int, float, str} & set(parts(hint))}
    assert not bare


def test_bounds_in_words() -> None:
    ends = {(1, 2**31 - 1): "from 1 to 2,147,483,647", (0, 1e16): "from 0 to 1e16", (1e-8, 0.5): "from 1e-08 to 0.5"}
    assert {pair: Bounds(*pair).words for pair in ends} == ends
    assert Bounds(0, 1, "both").words == "above 0 and below 1"
    assert Bounds(1, 5, or_zero=True).words == "0, or from 1 to 5"
    assert [Bounds(1, 5, or_zero=True).allows(value) for value in (0, 0.5, 1, 6)] == [True, False, True, False]
    assert not Bounds(0, 1).allows(float("nan")) and not Bounds(0, 1, "low").allows(0)


def test_names_of_other_programs_lead_to_options() -> None:
    options = {f"--{key}" for key, _ in build_parser().get_defaults().items()}
    for names, sentence in ELSEWHERE.items():
        told = [word.strip(".,;") for word in sentence.split() if word.startswith("--")]
        assert told and set(told) <= options, sentence
        assert not {f"--{name}" for name in names.split()} & options, names


def test_what_is_typed_before_a_file_that_gives_it_too_is_said(tmp_path, capsys):
    """A name typed before --config was the file's in silence, and so was the run folder."""
    file = tmp_path / "run.yaml"
    file.write_text("depth: 4\nbase_hps:\n  eta0: 0.001\n  b0: 1024\n")
    words = ["--depth=8", "--micro_bsz", "1", "--base_hps.eta0", "0.1", "--config", str(file), "--base_hps.b0", "2048"]
    assert parse(words) == parse(words)  # as where the command line is answered early, too
    run = parse(words)
    assert (run.depth, run.micro_bsz, run.base_hps.eta0, run.base_hps.b0) == (4, 1, 0.001, 2048)
    said = capsys.readouterr().err
    assert said.count("note:") == 1 and f"note: --config {file} overrules --depth, --base_hps.eta0, typed" in said
    parse(["--micro_bsz", "1", "--depth", "2", "--config", str(file), "--depth", "8"])  # as a ladder's rows do
    assert capsys.readouterr().err == ""
    parse(["--config", str(file), "--depth", "8", "--config", str(file)])
    assert f"note: --config {file} overrules --depth, typed" in capsys.readouterr().err
