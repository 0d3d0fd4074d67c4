"""What a person gets wrong: exit code 2, one message that says what to do, and nothing written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import folder_of, pretrain, run

from lit_gpt.data.formats.packed import write_shard
from lit_gpt.train.stopping import EXIT_INTERRUPTED

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown family": ({"train_model": "transfomer"}, r"Unknown model family 'transfomer'. Did you mean 'transformer'"),
    "unknown optimizer": ({"optimizer": "nadamw"}, r"Unknown optimizer 'nadamw'. Did you mean .*'adamw'"),
    "unknown rule": ({"train_name": "x", "parameterization": "mu"}, r"Unknown .*'mu'.*Available: .*mupp"),
    "near miss of a token": ({"train_name": "run_qknrom"}, r"'qknrom' .* is close to 'qknorm'"),
    "token and flag": ({"tie_embeddings": False, "train_name": "tie"}, r"--tie_embeddings False disagrees .*'tie'"),
    "two tokens": ({"train_name": "mup_ori_mup"}, r"'mup' and 'ori_mup' .* disagree on parameterization"),
    "name and flag": ({"train_model": "transformer_d8"}, r"transformer_d8 and --depth 2 disagree"),
    "depth": ({"depth": 5, "ar": None, "train_model": "transformer_gqa4"}, r"n_kv_head is 4; .* divide n_head = 5"),
    "batch": ({"total_bsz": 100}, r"100 tokens rounds to zero: one step of this set-up is 512 tokens"),
    "budget": ({"max_tokens": 100}, r"--max_tokens 100 is less than one batch of 512"),
    "warm-up": ({"base_hps__warmup_tokens": 1e6}, r"Warm-up of 1,000,000 tokens does not fit in a budget of 4,096"),
    "not in this version": ({"layer_configurator": True}, r"layer configurator .* is not in this version"),
    "no checkpoint": ({"resume": True}, r"--resume true: no complete checkpoint in .* Use --resume auto"),
    "no weights": ({"init_from": "nowhere"}, r"no complete checkpoint at nowhere"),
    "validation": ({"train_name": "validation"}, r"validation needs --init_from"),
    "attention": ({"attention": "flsh"}, r"Unknown attention backend 'flsh'.*auto, .*flex"),
    "optimizer argument": ({"optimizer_args.foo": 1}, r"The optimizer adamw has no option 'foo' \(--optimizer_args\)"),
    "offloading": ({"offloading": True}, r"torchrun --nproc_per_node 1"),
    "missing tracker": ({"loggers": "[wandb]"}, r"pip install 'scalelab\[log\]'"),
    "no server": (
        {"train_data_dir": "ftp://localhost:1/x"},
        r"Cannot open 'ftp://localhost:1/x': ConnectionRefusedError",
    ),
    "no folder": ({"out_dir": "/proc/nowhere"}, r"The run folder /proc/nowhere/.* cannot be made .* another --out_dir"),
    "no data": ({"train_data_dir": "nowhere"}, r"data folder 'nowhere' does not exist"),
}


def fails(capsys: pytest.CaptureFixture[str], data: Path, out: Path, **options: Any) -> str:
    """The message of a run that ends with exit code 2 and leaves its output folder as it was."""
    before = sorted(out.rglob("*"))
    assert run(data, out, **options) == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 1 and "Traceback" not in shown
    assert sorted(out.rglob("*")) == before
    return shown.partition("error: ")[2]


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case, data, tmp_path, capsys):
    options, message = OPTIONS[case]
    assert re.search(message, fails(capsys, data, tmp_path / "out", **options))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--dpeth 8", r"unrecognized arguments: --dpeth 8. Did you mean '--depth'"),
        ("--tie true", r"unrecognized arguments: --tie true"),
        ("--depth eight", r"--depth cannot be 'eight'; give a whole number from 1 to 2,000\."),
        ("--schedule linaer", r"cannot be 'linaer'; give one of linear, cosine, cos_inf, wsd, wsd_s, constant, none\."),
        ("--config nowhere.yaml", r"error: --config: File does not exist: .*nowhere.yaml"),
    ],
)
def test_words_the_parser_refuses(line, message, capsys):
    assert pretrain.main(line.split()) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown) and "usage" not in shown


def shards(folder: Path, tokens: np.ndarray, name: str = "train_0000000000.bin") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    write_shard(folder / name, tokens.astype("<u2"))
    return folder


def test_data(tmp_path, capsys):
    out, given = tmp_path / "out", tmp_path / "data"
    given.mkdir()
    assert re.search(r"No data for split 'train': .* is empty", fails(capsys, given, out))
    shards(given, np.arange(50) % 7)
    assert re.search(r"50 tokens found, one sample needs 65", fails(capsys, given, out))
    shards(given, np.arange(300) % 7)
    assert re.search(r"300 tokens found, one step needs 513 \(8 sequences of 64\)", fails(capsys, given, out))
    assert re.search(r"one step needs 1,025", fails(capsys, given, out, bramp_ratio=2, micro_bsz=4))
    shards(given, np.arange(1000))
    message = fails(capsys, given, out, vocab_size=100)
    assert re.search(r"has token id 999, the model's vocabulary has only 100 entries", message)
    message = fails(capsys, given, out, vocab_size=1000, train_name="varlen")
    assert re.search(r"Give --eos_token_id", message)
    path = given / "train_0000000000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert re.search(r"Corrupt shard .*promises 1000 tokens", fails(capsys, given, out))
    path.write_bytes(b"LITPKDS" + bytes(17))
    assert re.search(r"Corrupt shard .*version 0", fails(capsys, given, out))


def test_validation_data(data, tmp_path, capsys):
    small = shards(tmp_path / "small", np.arange(60) % 7, "validation_0000000000.bin")
    message = fails(capsys, data, tmp_path / "out", val_data_dir=small)
    assert re.search(r"'validation' is too small: 60 tokens found", message)
    wide = shards(tmp_path / "wide", np.arange(600), "validation_0000000000.bin")
    assert "token id 599" in fails(capsys, data, tmp_path / "out", val_data_dir=wide)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"train": 1.0, "web": -0.5}, r"gives 'web' the weight -0.5"),
        ({"train": 1.0, "web": 0.5}, r"names 'web', but there is no folder web and no file web\*.bin"),
        ({"train": 0.0}, r"no source with a positive weight"),
        ([1], r"not a JSON object"),
    ],
)
def test_mixtures(mixture, message, data, tmp_path, capsys):
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps(mixture))
    assert re.search(message, fails(capsys, data, tmp_path / "out", data_mixture=path))


def test_a_folder_belongs_to_one_run(data, tmp_path, capsys):
    options = {"max_tokens": 2048, "stop_after": 1}
    assert run(data, tmp_path, **options) == EXIT_INTERRUPTED
    capsys.readouterr()
    step = folder_of(tmp_path) / "checkpoints" / "step-000001"
    assert re.search(r"already holds this run.*Add --resume auto", fails(capsys, data, tmp_path, **options))
    for changed in ({"base_hps__eta0": 1e-3}, {"base_hps__eta0": 1e-3, "resume": "auto"}):
        message = fails(capsys, data, tmp_path, **{**options, **changed})
        assert "What differs (there -> here):\n  --base_hps.eta0: 0.004 -> 0.001\nUse" in message
    elsewhere = {"out_dir": tmp_path / "b", "resume": step, "seed": 1, **options}
    (tmp_path / "b").mkdir()
    assert "  --seed: 3407 -> 1\n" in fails(capsys, data, tmp_path / "b", **elsewhere)
    message = fails(capsys, data, tmp_path, **options, resume="auto", data_mixture=mixture_of_one(tmp_path))
    assert "data" in message
    (step / "COMPLETE").unlink()
    assert re.search(r"--resume true: no complete checkpoint", fails(capsys, data, tmp_path, resume=True, **options))


def mixture_of_one(folder: Path) -> Path:
    path = folder / "mixture.json"
    path.write_text('{"validation": 1.0}')
    return path


def test_a_budget_of_many_epochs_is_said(tmp_path, capsys):
    """`--depth 2` on a megabyte of text was 80 epochs, days on a laptop, and nothing said so."""
    small = shards(tmp_path / "data", np.arange(600) % 7)
    assert run(small, tmp_path / "out", max_tokens=8 * 512, depth=2, vocab_size=7) == 0
    assert "times through" not in capsys.readouterr().err
    assert run(small, tmp_path / "more", max_tokens=24 * 512, depth=2, ar=4, vocab_size=7) == 0
    assert "the budget goes 20 times through the 600 tokens of the data" in capsys.readouterr().err


def test_a_small_source_of_a_mixture_that_is_read_many_times_is_said(tmp_path, capsys):
    """The budget was compared with all data together, and a small source with a large weight was not noticed."""
    shards(tmp_path / "data/small", np.arange(600) % 7)
    shards(tmp_path / "data/large", np.arange(60_000) % 7)
    (tmp_path / "mix.json").write_text('{"large": 1, "small": 9}')
    options = {"data_mixture": tmp_path / "mix.json", "depth": 2, "ar": 4, "vocab_size": 7}
    assert run(tmp_path / "data", tmp_path / "out", max_tokens=28 * 512, **options) == 0
    assert "goes 22 times through the 600 tokens of 'small'" in capsys.readouterr().err
