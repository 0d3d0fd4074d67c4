"""More files than the process may open, and files that change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.data import Cursor, Loader, check_vocab, open_corpus
from lit_gpt.data import stream as stream_module
from lit_gpt.data.formats.packed import shard_name, write_shard
from lit_gpt.data.stream import DataError
from lit_gpt.errors import UserError

ROOT = Path(__file__).parents[2]
READ_ALL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from lit_gpt.data import Loader, open_corpus
corpus = open_corpus(sys.argv[1], "train", 8, 0)
loader = Loader(corpus, 0, 1, 50, num_workers=3)
seen = set()
for _ in range(corpus.num_samples // 500):
    for batch in loader.next_step(500).micro_batches:
        seen.update(batch.targets[:, -1].tolist())
loader.close()
print(corpus.num_tokens, len(seen))
"""


def test_5000_shards_and_256_handles(tmp_path):
    """Every mapped shard kept a handle, so a run ended in the middle at the common limit of 1,024."""
    for i in range(5000):
        write_shard(tmp_path / shard_name("train", i), np.arange(8 * i, 8 * i + 8).astype("<i4"))
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["40000", "5000"], done.stderr  # of 5,000 windows, the last short


def shards(folder: Path, *parts: np.ndarray) -> str:
    folder.mkdir(exist_ok=True)
    for i, part in enumerate(parts):
        write_shard(folder / shard_name("train", i), part.astype("<u2"))
    return str(folder)


def test_a_file_that_becomes_shorter_or_goes_is_named(tmp_path):
    """Reading a mapped file that was cut short killed the process with SIGBUS."""
    folder = shards(tmp_path / "a", np.arange(100), np.arange(100, 200))
    corpus = open_corpus(folder, "train", 9, 0, shuffle=False)
    os.truncate(tmp_path / "a/train_0000000001.bin", 24 + 2 * 50)
    np.testing.assert_array_equal(corpus.sample(15), np.arange(135, 145))
    with pytest.raises(DataError, match=r"train_0000000001.bin was cut short .*has 124 bytes, its tokens take 224"):
        corpus.sample(16)
    unread = open_corpus(shards(tmp_path / "b", np.arange(100)), "train", 9, 0)
    (tmp_path / "b/train_0000000000.bin").unlink()
    with pytest.raises(DataError, match=r"Cannot read the data file .*train_0000000000.bin: No such file"):
        unread.sample(0)


def test_a_file_that_was_replaced_is_read_by_the_next_stream(tmp_path):
    for first in (0, 1000):
        corpus = open_corpus(shards(tmp_path / "a", np.arange(first, first + 100)), "train", 9, 0, shuffle=False)
        assert corpus.sample(0)[0] == first


def test_an_error_leaves_the_cursor_where_it_was(tmp_path):
    folder = shards(tmp_path / "a", np.arange(1000))
    loader = Loader(open_corpus(folder, "train", 9, 0), 0, 1, 2, 0)
    loader.next_step(4)
    os.truncate(tmp_path / "a/train_0000000000.bin", 30)
    with pytest.raises(DataError):
        loader.next_step(4)
    assert loader.state()["samples_seen"] == 4


@pytest.mark.parametrize("whole", [True, False])
def test_other_data_of_equal_sizes_is_noticed_at_resume(tmp_path, monkeypatch, whole):
    """The fingerprint was of names and sizes only. State of releases before has no content: any fits."""
    if not whole:
        monkeypatch.setattr(stream_module, "WHOLE", 500)
        monkeypatch.setattr(stream_module, "PROBE", 16)
    ids = np.random.default_rng(0).integers(0, 99, 1000)
    old = open_corpus(shards(tmp_path / "a", ids, ids), "train", 9, 0)
    other = ids.copy()
    other[3] += 1  # the start of every file is among the samples
    new = open_corpus(shards(tmp_path / "b", ids, other), "train", 9, 0)
    assert old.fingerprint == new.fingerprint
    state = Cursor(old.fingerprint, old.content, 8).state()
    Loader(open_corpus(shards(tmp_path / "moved", ids, ids), "train", 9, 0), 0, 1, 1, 0, state)
    with pytest.raises(UserError, match="the same names and sizes, but other tokens"):
        Loader(new, 0, 1, 1, 0, state)
    del state["content"]
    assert Loader(new, 0, 1, 1, 0, state).state()["content"] == new.content


@pytest.mark.parametrize("whole", [True, False])
def test_ids_that_do_not_fit_are_found_before_the_run(tmp_path, monkeypatch, whole):
    """meta.json and samples were trusted; one shard of another tokenizer ended the run in the middle."""
    if not whole:
        monkeypatch.setattr(stream_module, "WHOLE", 500)
        monkeypatch.setattr(stream_module, "PROBE", 16)
    parts = [np.arange(1000) % 50 for _ in range(5)]
    parts[3] = parts[3] + 1000
    folder = shards(tmp_path / "a", *parts)
    (tmp_path / "a/meta.json").write_text('{"vocab_size": 50}')
    with pytest.raises(UserError, match=r"token id 10\d\d, .*only 257 entries .*train_0000000003.bin, token"):
        check_vocab(open_corpus(folder, "train", 9, 0), 257)
