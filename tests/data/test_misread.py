"""Data and mixtures that were accepted and misread, or ended in a traceback: each is one sentence, or read rightly."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.data import open_corpus
from lit_gpt.data.corpus import check_vocab
from lit_gpt.data.discover import describe_sources
from lit_gpt.data.formats.packed import shard_name, write_shard
from lit_gpt.data.mixture import load_mixture
from lit_gpt.data.origin import agree
from lit_gpt.data.remote import local_path
from lit_gpt.data.stream import DataError, _handles
from lit_gpt.data.tokenizer import find_tokenizer
from lit_gpt.errors import UserError


def shard(folder: Path, split: str = "train", **files: object) -> Path:
    """A folder with one shard of the ids 0 to 99, and JSON files beside it, such as meta={"eos_id": 3}."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / shard_name(split, 0), np.arange(100, dtype="<u2"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("lengths", "offsets"),
    [
        ([110, -10], [0, 220]),  # as many tokens in all as the file has
        ([100], [8]),
        ([40, 60], [8, 80]),
    ],
)
def test_a_megatron_index_of_negative_lengths_or_shifted_sequences(tmp_path, lengths, offsets):
    """They were read as if the sequences stood back to back."""
    np.arange(100, dtype="<u2").tofile(tmp_path / "train.bin")
    documents = np.arange(len(lengths) + 1, dtype="<i8")
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, len(lengths), len(documents))
    index += np.array(lengths, "<i4").tobytes() + np.array(offsets, "<i8").tobytes() + documents.tobytes()
    (tmp_path / "train.idx").write_bytes(index)
    with pytest.raises(UserError, match="back to back"):
        open_corpus(str(tmp_path), "train", 8, 0)


def test_an_eos_beyond_the_vocabulary_is_found_before_the_run(tmp_path):
    """Documents were never kept apart, and the padding of the last window ended a run in the middle."""
    corpus = open_corpus(str(shard(tmp_path, meta={"eos_id": 999})), "train", 8, 0)
    with pytest.raises(UserError, match=r"has the EOS id 999, as its meta.json says; it must be below .* 300"):
        check_vocab(corpus, 300)
    check_vocab(corpus, 1000)
    check_vocab(open_corpus(str(tmp_path), "train", 8, 0, eos_token_id=3), 300)


@pytest.mark.parametrize("content", [{"model": {"vocab": 3}}, {"model": {"vocab": {}}, "added_tokens": [3]}, [], 3])
def test_a_tokenizer_of_another_shape_is_one_sentence(tmp_path, content):
    shard(tmp_path, meta={"tokenizer": {"kind": "json"}}, tokenizer=content)
    with pytest.raises(UserError, match=r"Cannot read the tokenizer .*tokenizer.json: .* Put back the one"):
        agree(describe_sources(str(tmp_path), "train"))


def test_a_tokenizer_without_a_meta_json_counts(tmp_path):
    """Two sources with different tokenizer.json and no meta.json were mixed in silence."""
    for name, vocab in (("a", {"x": 0, "y": 1}), ("b", {"x": 1, "y": 0})):
        shard(tmp_path / name, tokenizer={"model": {"vocab": vocab}})
    (tmp_path / "mix.json").write_text('{"a": 1, "b": 1}')
    with pytest.raises(UserError, match="made with different tokenizers"):
        open_corpus(str(tmp_path), "train", 8, 0, mixture=str(tmp_path / "mix.json"))


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a/"),
        ("a", "./a"),
        ("a", "a/train"),
        ("a/train", "a/train_0"),
        ("a", "link"),
        ("t", "t/"),
        ("t", "t/u"),
        ("t/u", "t"),
    ],
)
def test_a_mixture_that_reads_a_file_twice(tmp_path, names):
    """Such a source got both weights without a word."""
    shard(tmp_path / "a")
    (tmp_path / "t/u").mkdir(parents=True)
    for name in ("t/a.txt", "t/u/b.txt"):
        (tmp_path / name).write_text("some words " * 100)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "mix.json").write_text(json.dumps(dict.fromkeys(names, 1)))
    for call in (
        lambda: open_corpus(str(tmp_path), "train", 8, 0, mixture=str(tmp_path / "mix.json")),
        lambda: describe_sources(str(tmp_path), "train", str(tmp_path / "mix.json")),
    ):
        with pytest.raises(UserError, match=f"twice, as '{names[0]}' and as '{names[1]}'"):
            call()


def test_a_mixture_of_a_folder_and_one_inside_it(tmp_path):
    shard(shard(tmp_path / "a") / "b")
    (tmp_path / "mix.json").write_text('{"a": 1, "a/b": 1}')
    assert len(open_corpus(str(tmp_path), "train", 8, 0, mixture=str(tmp_path / "mix.json")).sources) == 2


@pytest.mark.parametrize("weight", ["1e308", "1e101", "1" + 400 * "0"])
def test_weights_without_end(tmp_path, weight):
    """Two of 1e308 were an OverflowError, and one of 400 digits a message of 400 digits."""
    (tmp_path / "mix.json").write_text(f'{{"a": {weight}, "b": {weight}}}')
    with pytest.raises(UserError, match=r"a weight is a number from 0 to 1e.100") as raised:
        load_mixture(tmp_path / "mix.json")
    assert len(str(raised.value)) < 100 + 2 * len(str(tmp_path)) + 100


def test_byte_order_marks_of_json_are_understood(tmp_path):
    (tmp_path / "mix.json").write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert load_mixture(tmp_path / "mix.json") == [{"from_tokens": 0, "weights": {"a": 1.0}}]
    shard(tmp_path)
    (tmp_path / "meta.json").write_text('\ufeff{"vocab_size": 300}', encoding="utf-8")
    assert open_corpus(str(tmp_path), "train", 8, 0).vocab_size == 300


def test_a_pipe_in_the_place_of_a_shard_does_not_hang(tmp_path):
    corpus = open_corpus(str(shard(tmp_path)), "train", 8, 0)
    (tmp_path / shard_name("train", 0)).unlink()
    os.mkfifo(tmp_path / shard_name("train", 0))
    _handles().cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(DataError, match="Cannot read the data file"):
        corpus.sample(0)


def test_roots_that_are_written_as_uri():
    """`file://` was the working directory, and of file://localhost/data the host was taken for a folder."""
    for root in ("/a b/c", "file:///a b/c", "local:///a b/c", "file://localhost/a b/c"):
        assert local_path(root) == Path("/a b/c")
    assert local_path("localhost/x") == Path("localhost/x")
    with pytest.raises(UserError, match="'file://' names no folder"):
        local_path("file://")


def test_a_tilde_in_the_path_of_a_tokenizer(tmp_path, monkeypatch):
    """`--tokenizer=~/x` is not expanded by a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shard(tmp_path / "x", tokenizer={})
    assert find_tokenizer("~/x") == tmp_path / "x/tokenizer.json"
