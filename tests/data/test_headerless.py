"""Files of token ids without a header: the type is known or asked for, and anything else is named."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile

import numpy as np
import pytest

from lit_gpt.data import check_vocab, open_corpus
from lit_gpt.errors import UserError

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 128000, 4000)


def write(folder, content, name="train.bin", **meta):
    (folder / name).write_bytes(content)
    if meta:
        (folder / "meta.json").write_text(json.dumps(meta))
    return str(folder)


def read(folder):
    stream = open_corpus(folder, "train", 8, 0).sources[0].stream
    return stream.read(0, stream.num_tokens)


@pytest.mark.parametrize(("dtype", "bits"), [("<u4", 32), ("<i4", 32), ("<i8", 64), ("<u8", 64)])
def test_wide_ids_are_not_read_as_uint16(tmp_path, dtype, bits):
    """4,000 ids of 32 bits became 8,000 ids, every second one 0 or 1."""
    folder = write(tmp_path, IDS.astype(dtype).tobytes())
    with pytest.raises(UserError, match=rf'looks like ids of {bits} bits.*meta.json.*{{"dtype": "uint{bits}"}}'):
        read(folder)
    write(tmp_path, IDS.astype(dtype).tobytes(), dtype=f"uint{bits}")
    np.testing.assert_array_equal(read(folder), IDS)


@pytest.mark.parametrize(
    "ids",
    [
        RNG.integers(0, 50257, 1000),
        RNG.integers(0, 65536, 1000),
        RNG.integers(0, 256, 1000),
        RNG.integers(0, 4, 1000),  # a genome
        RNG.integers(0, 2, 1000),
        np.zeros(1000, int),
        np.arange(1000) % 7,
        np.full(1000, 0x6C6C)[:15],  # "llll", but too short to be taken for text
    ],
)
def test_uint16_is_still_uint16(tmp_path, ids):
    np.testing.assert_array_equal(read(write(tmp_path, ids.astype("<u2").tobytes())), ids)


@pytest.mark.parametrize("top", [5, 300, 40000])
def test_small_vocabularies_in_wide_types(tmp_path, top):
    with pytest.raises(UserError, match="looks like ids of 32 bits"):
        read(write(tmp_path, RNG.integers(0, top, 1000).astype("<u4").tobytes()))


def test_a_vocabulary_over_65536_cannot_be_uint16(tmp_path):
    """Whatever the content looks like."""
    corpus = open_corpus(write(tmp_path, RNG.integers(0, 50000, 500).astype("<u2").tobytes()), "train", 8, 0)
    check_vocab(corpus, 65536)
    with pytest.raises(UserError, match=r'taken for uint16.*the vocabulary has 128,256.*{"dtype": "uint32"}'):
        check_vocab(corpus, 128256)
    write(tmp_path, RNG.integers(0, 50000, 500).astype("<u2").tobytes(), dtype="uint16")
    check_vocab(open_corpus(str(tmp_path), "train", 8, 0), 128256)


@pytest.mark.parametrize("low", [-1, -100])
def test_negative_ids_are_found_before_the_run(tmp_path, low):
    """-100 is what targets that do not count look like: it was trained around without a word."""
    ids = np.where(np.arange(4000) == 1234, low, IDS)
    folder = write(tmp_path, ids.astype("<i4").tobytes())
    with pytest.raises(UserError, match="looks like ids of 32 bits"):
        read(folder)
    write(tmp_path, ids.astype("<i4").tobytes(), dtype="int32")
    corpus = open_corpus(folder, "train", 8, 0, shuffle=False)
    with pytest.raises(UserError, match=rf"has token id {low} \(.*train.bin, token 1,234\); ids must be at least 0"):
        check_vocab(corpus, 128256)
    with pytest.raises(UserError, match=rf"holds the token id {low} after .*train.bin, token 1,232;"):
        corpus.batch(1232 // 8, 1)


def npy():
    buffer = io.BytesIO()
    np.save(buffer, IDS.astype("<u2"))
    return buffer.getvalue()


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as f:
        f.writestr("a", bytes(100))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(), r"a NumPy .npy file"),
        (gzip.compress(bytes(1000), mtime=0) + b"\0" * 99, "compressed by gzip"),
        (archive(), "a zip archive"),
        (b"PAR1" + bytes(100), "a parquet file"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "compressed by zstd"),
        (b'{"text": "a record that somebody renamed to .bin"}\n' * 3, "is JSON"),
        (b"<!DOCTYPE html><html><title>404 Not Found</title></html>", "is HTML"),
        ("w\u00f6rter, die niemand zerlegt hat, in UTF-8\n".encode() * 9, "is plain text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n", "pointer that Git LFS leaves"),
        (bytes(1001), "has 1,001 bytes and no known header, so it is not a file of uint16 ids"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    """A renamed .npy gave 64 ids of header; text and archives trained as noise."""
    with pytest.raises(UserError, match=message) as raised:
        read(write(tmp_path, content))
    assert re.match(r"\S+train\.bin ", str(raised.value)) and "\n" not in str(raised.value)


def test_a_size_that_is_no_whole_number_of_the_named_type(tmp_path):
    with pytest.raises(UserError, match=r"has 1,002 bytes .* uint32 ids, 4 bytes each"):
        read(write(tmp_path, bytes(1002), dtype="uint32"))
