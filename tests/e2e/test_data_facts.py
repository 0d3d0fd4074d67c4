"""What a run takes from its data before it starts: the vocabulary, and that all of it has one tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import folder_of, make_text, rows, run, words

from lit_gpt.checkpoint import find_checkpoint
from lit_gpt.config.cli import parse
from lit_gpt.data.prepare import prepare
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train.build import open_training
from lit_gpt.train.stopping import EXIT_INTERRUPTED

SHORT: dict[str, Any] = {"max_tokens": 2 * 512, "base_hps__warmup_tokens": 512, "depth": 2}


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    """A folder with two prepared sets of one tokenizer, and a mixture of them; no meta.json of its own."""
    root = tmp_path_factory.mktemp("bpe")
    for i in range(10):
        (root / "text").mkdir(exist_ok=True)
        (root / "text" / f"{i}.txt").write_text(make_text(i))
    fixed: dict[str, Any] = {"validation_fraction": 0.2, "num_workers": 1, "progress": False}
    prepare(str(root / "text"), str(root / "web"), "train", vocab_size=280, **fixed)
    prepare(str(root / "text"), str(root / "code"), str(root / "web/tokenizer.json"), **fixed)
    (root / "mixture.json").write_text('{"web": 2, "code": 1}')
    return root


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.partition("error: ")[2]


def model_of(out: Path) -> dict[str, Any]:
    return json.loads((folder_of(out) / "model.json").read_text())


def test_the_model_of_a_mixture(bpe, tmp_path):
    """A mixture's root has no meta.json, and the model got the family's 32,000 rows."""
    options = {**SHORT, "data_mixture": bpe / "mixture.json", "val_data_dir": bpe / "code", "eval_sequences": 4}
    assert run(bpe, tmp_path, **options) == 0
    assert model_of(tmp_path)["vocab_size"] == 280
    assert rows(tmp_path, "metric/val_bpb@1x")


def test_validation_data_of_another_tokenizer(bpe, data, tmp_path, capsys):
    """It was accepted, and its loss reported as bits per byte."""
    out = tmp_path / "out"
    assert run(bpe / "web", out, val_data_dir=data, **SHORT) == 2
    assert "different tokenizers" in said(capsys)
    assert run(bpe / "web", out, val_data_dir=data, vocab_size=300, **SHORT) == 2
    message = said(capsys)
    assert "different tokenizers" in message and str(data) in message and str(bpe / "web") in message
    assert not out.exists()


def test_a_tokenizer_that_was_lost_is_said_when_the_run_starts(bpe, tmp_path, capsys):
    """Bits per byte were left out in silence, and `generate` said of the run's own copy that it is no longer there."""
    shutil.copytree(bpe / "web", tmp_path / "web")
    assert run(tmp_path / "web", tmp_path / "with", **SHORT) == 0
    assert "its tokenizer" not in capsys.readouterr().err
    (tmp_path / "web/tokenizer.json").unlink()
    assert run(tmp_path / "web", tmp_path / "out", **SHORT) == 0
    note = f"note: the data says that its tokenizer is tokenizer.json in {tmp_path / 'web'}, which is not there, so"
    assert capsys.readouterr().err.count(note) == 1


def test_an_empty_folder(tmp_path, capsys):
    """Its vocabulary was that of bytes, in silence; one that is not there may come, or its name is mistyped."""
    (tmp_path / "data").mkdir()
    assert run(tmp_path / "data", tmp_path / "out", **SHORT) == 2
    assert "No data for split 'train'" in said(capsys)
    assert run(tmp_path / "data", tmp_path / "out", dry_run=True, **SHORT) == 0
    printed = capsys.readouterr().out
    assert "note: the vocabulary is the family's, since there is no data. No data for split 'train'" in printed
    assert run(tmp_path / "none", tmp_path / "out", dry_run=True, **SHORT) == 0
    assert f"since there is no data. The folder {tmp_path / 'none'} is not there." in capsys.readouterr().out


def test_headerless_ids_of_32_bits(tmp_path, capsys):
    """The vocabulary of the command line says what the files cannot hold."""
    ids = np.random.default_rng(0).integers(0, 128000, 4000)
    ids.astype("<u4").tofile(tmp_path / "train.bin")
    assert run(tmp_path, tmp_path / "out", vocab_size=128256, **SHORT) == 2
    assert 'such as {"dtype": "uint32"}' in said(capsys)
    (tmp_path / "meta.json").write_text('{"dtype": "uint32", "vocab_size": 128256}')
    resolved = resolve_run(parse(words(tmp_path, tmp_path / "out", **SHORT)), 1)
    assert (resolved.model.vocab_size, open_training(resolved).num_tokens) == (128256, 4000)


def test_checkpoints_of_a_release_without_content(data, tmp_path, capsys):
    """They resume; one that knows the content of its data does not go on with other data of the same size."""
    given = tmp_path / "data"
    given.mkdir()
    for path in data.iterdir():
        (given / path.name).write_bytes(path.read_bytes())
    options = {**SHORT, "max_tokens": 3 * 512}
    assert run(given, tmp_path / "out", stop_after=1, **options) == EXIT_INTERRUPTED
    shard = given / "train_0000000000.bin"
    content = bytearray(shard.read_bytes())
    content[1000:1002] = b"a\0" if content[1000:1002] != b"a\0" else b"b\0"
    shard.write_bytes(content)
    capsys.readouterr()
    assert run(given, tmp_path / "out", resume="auto", **options) == 2
    assert "the same names and sizes, but other tokens" in said(capsys)
    step = find_checkpoint(folder_of(tmp_path / "out"), True)
    assert step is not None
    meta = json.loads((step / "meta.json").read_text())
    del meta["data"]["content"]
    (step / "meta.json").write_text(json.dumps(meta))
    (step / "SHA256SUMS").unlink()
    (step / "COMPLETE").write_text("1")  # as it was before there were sums
    assert run(given, tmp_path / "out", resume="auto", **options) == 0
