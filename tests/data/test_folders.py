"""Data folders with something wrong in them: one sentence each, never a traceback, never a hang."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.data import open_corpus
from lit_gpt.data.discover import describe_sources
from lit_gpt.data.documents import Search
from lit_gpt.data.formats.packed import shard_name, write_shard
from lit_gpt.data.mixture import load_mixture
from lit_gpt.data.origin import agree
from lit_gpt.data.prepare import prepare
from lit_gpt.data.prepare.sources import find
from lit_gpt.data.remote import NoData
from lit_gpt.errors import UserError
from lit_gpt.utils.files import regular


def shards(folder: Path, split: str = "train", count: int = 2, **meta) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write_shard(folder / shard_name(split, i), np.arange(1000, dtype="<u2"))
    if meta:
        (folder / "meta.json").write_text(json.dumps({"version": 1, **meta}))
    return folder


def fails(folder: Path, message: str, **options) -> None:
    with pytest.raises(UserError, match=message) as raised:
        open_corpus(str(folder), "train", 8, 0, **options)
    assert "\n" not in str(raised.value)


# counts


def test_fewer_shards_or_tokens_than_meta_says(tmp_path):
    """A folder of which 4,000 of 99,999 tokens had been copied trained in silence."""
    folder = shards(tmp_path, count=4, splits={"train": {"tokens": 99999, "shards": 5}})
    fails(
        folder, r"holds 4 shards and 4,000 tokens of the split 'train', its meta.json says 5 shards and 99,999 tokens"
    )
    shards(tmp_path, count=4, splits={"train": {"tokens": 5000, "shards": 4}})
    fails(folder, "says 4 shards and 5,000 tokens")
    shards(tmp_path, count=4, splits={"train": {"tokens": 3000, "shards": 3}})
    fails(folder, "Files are missing or do not belong there: copy the folder again")
    shards(tmp_path, count=4, splits={"train": {"tokens": 4000, "shards": 4}})
    assert open_corpus(str(folder), "train", 8, 0).num_tokens == 4000
    assert open_corpus(str(folder), "train_0000000001", 8, 0).num_tokens == 1000, "a part on purpose"


# meta.json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "is not a JSON object"),
        ('"packed"', "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("{", "Cannot read .*meta.json"),
        ("\xff\xfe", "Cannot read .*meta.json"),
        ("[" * 100000, "Cannot read .*meta.json"),
        ('{"version": 2}', "has version 2, this program reads version 1"),
        ('{"version": null}', "has version None"),
        ('{"vocab_size": 397.0}', "vocab_size is 397.0, it must be a whole number"),
        ('{"vocab_size": "397"}', 'vocab_size is "397", it must be a whole number'),
        ('{"vocab_size": null}', "vocab_size is null"),
        ('{"vocab_size": true}', "vocab_size is true"),
        ('{"vocab_size": -5}', "vocab_size is -5"),
        ('{"eos_id": "</s>"}', 'eos_id is "</s>", it must be a token id or null'),
        ('{"eos_id": [1, 2]}', r"eos_id is \[1, 2\]"),
        ('{"dtype": "float32"}', 'dtype is "float32", it must be the name of an integer type'),
        ('{"dtype": "u99"}', "dtype is"),
        ('{"dtype": 16}', "dtype is 16"),
        ('{"tokenizer": "gpt2"}', 'tokenizer is "gpt2", it must be an object'),
        ('{"splits": ["train"]}', "splits is"),
        ('{"splits": {"train": 5}}', "splits is"),
        ('{"splits": {"train": {"tokens": "many"}}}', "splits is"),
        ('{"format": null}', "format is null"),
        ('{"format": "pakced"}', "Expected only files of the format 'pakced'"),
    ],
)
def test_odd_meta(tmp_path, text, message):
    shards(tmp_path)
    (tmp_path / "meta.json").write_text(text, encoding="latin-1")
    fails(tmp_path, message)


def test_a_meta_that_is_no_file(tmp_path):
    (shards(tmp_path / "a") / "meta.json").mkdir()
    fails(tmp_path / "a", "meta.json is a folder and not a file")
    (shards(tmp_path / "b") / "meta.json").symlink_to("nowhere")
    fails(tmp_path / "b", "meta.json is a link to nothing that is there")
    os.mkfifo(shards(tmp_path / "c") / "meta.json")
    fails(tmp_path / "c", "meta.json is a pipe, socket or device")


# shards


def test_shards_that_are_no_files(tmp_path):
    """A folder named like a shard and a broken link were tracebacks, a pipe was waited for without an end."""
    (shards(tmp_path / "a") / "train_x.bin").mkdir()
    fails(tmp_path / "a", "train_x.bin is a folder and not a file")
    (shards(tmp_path / "b") / "train_x.bin").symlink_to("nowhere.bin")
    fails(tmp_path / "b", "train_x.bin is a link to nothing that is there")
    os.mkfifo(shards(tmp_path / "c") / "train_x.bin")
    fails(tmp_path / "c", "train_x.bin is a pipe, socket or device")
    os.mkfifo(shards(tmp_path / "d", count=1) / "train_0000000000.idx")
    fails(tmp_path / "d", "train_0000000000.idx is a pipe")
    (tmp_path / "e").mkdir()
    os.mkfifo(tmp_path / "e/a.txt")
    (tmp_path / "e/b.txt").symlink_to("nowhere.txt")
    fails(tmp_path / "e", r"No .*")
    good = shards(tmp_path / "f")
    (tmp_path / "link").symlink_to(good)
    assert open_corpus(str(tmp_path / "link"), "train", 8, 0).num_tokens == 2000


def test_a_root_that_is_a_file_or_has_an_impossible_name(tmp_path):
    path = shards(tmp_path) / "train_0000000000.bin"
    fails(path, "is a file, not a folder")
    fails(Path("x" * 5000), "does not exist")


def test_a_local_uri_is_read_in_place(tmp_path, monkeypatch):
    """file:// roots were copied into the cache, all that was under them."""
    monkeypatch.setenv("SCALELAB_CACHE", str(tmp_path / "cache"))
    folder = shards(tmp_path / "a")
    assert open_corpus(f"file://{folder}", "train", 8, 0).num_tokens == 2000
    with pytest.raises(NoData, match="does not exist"):
        open_corpus(f"file://{tmp_path}/none", "train", 8, 0)
    assert not (tmp_path / "cache").exists()


# mixtures


def test_a_mixture_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "m.json")
    with pytest.raises(UserError, match="is a pipe"):
        load_mixture(tmp_path / "m.json")


# tokenizers


TEXT = "the quick brown fox jumps over the lazy dog and runs away from it. " * 30


def prepared(folder: Path, tokenizer: str, text: str = TEXT, **options) -> Path:
    (folder / "text").mkdir(parents=True)
    for i in range(3):
        (folder / "text" / f"{i}.txt").write_text(f"{text} {i}")
    fixed = {"num_workers": 1, "progress": False, "validation_fraction": 0.3}
    prepare(str(folder / "text"), str(folder / "data"), tokenizer, **{**fixed, **options})
    return folder / "data"


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """Four prepared sets: two by one BPE, one by another of the same size, one of bytes."""
    root = tmp_path_factory.mktemp("sets")
    one = prepared(root / "one", "train", vocab_size=280)
    prepared(root / "again", str(one / "tokenizer.json"))
    prepared(root / "other", "train", TEXT.replace("e", "x"), vocab_size=280)
    prepared(root / "bytes", "bytes")
    for name in ("one", "again", "other", "bytes"):
        (root / f"{name}.json").write_text(json.dumps({"one/data": 0.5, f"{name}/data": 0.5 + (name == "one")}))
    return root


def test_a_mixture_has_the_vocabulary_of_its_sources(sets):
    """The root of a mixture has no meta.json, so the model got 32,000 rows for 280 tokens."""
    sources = describe_sources(str(sets), "train", str(sets / "again.json"))
    assert [name for name, _ in sources] == [str(sets / "one/data"), str(sets / "again/data")]
    assert agree(sources).vocab_size == 280
    corpus = open_corpus(str(sets), "train", 8, 0, mixture=str(sets / "again.json"))
    assert (corpus.vocab_size, corpus.eos_id) == (280, 0)


@pytest.mark.parametrize("other", ["other", "bytes"])
def test_sources_of_different_tokenizers_are_refused(sets, other):
    """Also where vocabularies are equally large, and where the EOS is the same."""
    message = rf"different tokenizers: one/data with .* of 280 tokens \(\w+\), {other}/data with '"
    fails(sets, message, mixture=str(sets / f"{other}.json"))
    with pytest.raises(UserError, match="different tokenizers"):
        agree(
            [*describe_sources(str(sets / "one/data"), "train"), *describe_sources(str(sets / other / "data"), "val")]
        )


def test_without_a_tokenizer_file_meta_decides(tmp_path):
    """Name and size are all that is left of the tokenizer then."""
    names = {"a": ("gpt2", 1000), "b": ("gpt2", 1000), "c": ("llama", 1000), "d": ("gpt2", 1200)}
    for folder, (name, size) in names.items():
        shards(tmp_path / folder, vocab_size=size, tokenizer={"kind": "json", "name": name})
    known = {name: describe_sources(str(tmp_path / name), "train") for name in names}
    assert agree([*known["a"], *known["b"]]).vocab_size == 1000
    for other in ("c", "d"):
        with pytest.raises(UserError, match=r"different tokenizers: .*'gpt2' of 1,000 tokens, "):
            agree([*known["a"], *known[other]])


def test_folders_without_data(tmp_path):
    """The vocabulary of an empty folder was taken to be that of bytes."""
    with pytest.raises(NoData, match="is empty"):
        describe_sources(str(tmp_path), "train")
    (tmp_path / "a.txt").write_text(TEXT)
    assert agree(describe_sources(str(tmp_path), "train")).vocab_size == 257


@pytest.mark.parametrize(
    "ask",
    [lambda path: open_corpus(str(path), "train", 8, 0), lambda path: find([str(path)], "folder", Search()), regular],
)
def test_a_mistyped_path_is_compared_with_what_lies_beside_it(ask, tmp_path):
    """It was said not to exist, and the reader had to look for the slip."""
    (tmp_path / "laptop").mkdir()
    with pytest.raises(UserError, match="Did you mean 'laptop'"):
        ask(tmp_path / "laptpo")
    with pytest.raises(UserError) as said:
        ask(tmp_path / "nothing_like_it")
    assert "mean" not in str(said.value)
