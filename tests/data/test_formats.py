"""Every reader against files made by hand with struct and numpy."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from lit_gpt.data.discover import open_corpus
from lit_gpt.data.formats import detect, open_files, packed
from lit_gpt.data.formats import text as text_files
from lit_gpt.data.stream import StreamInfo
from lit_gpt.errors import UserError

TOKENS = np.random.default_rng(0).integers(0, 200, 1000)


def packed_bytes(tokens, code, dtype, version=1):
    head = b"LITPKDS" + struct.pack("<Q", version) + struct.pack("<B", code) + struct.pack("<Q", len(tokens))
    return head + np.asarray(tokens).astype(dtype).tobytes()


def llmc_bytes(tokens, magic=20240520, version=1, dtype="<u2"):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens)
    return header.tobytes() + tokens.astype(dtype).tobytes()


def megatron_files(path, tokens, lengths, code=8, dtype="<u2"):
    path.write_bytes(tokens.astype(dtype).tobytes())
    size = np.dtype(dtype).itemsize
    offsets = (np.cumsum(lengths) - lengths) * size
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    body = np.array(lengths, "<i4").tobytes() + offsets.astype("<i8").tobytes()
    path.with_suffix(".idx").write_bytes(head + body + np.arange(len(lengths) + 1).astype("<i8").tobytes())


def read_all(folder, prefix="train"):
    stream = open_corpus(str(folder), prefix, 8, 0).sources[0].stream
    return stream.read(0, stream.num_tokens)


def test_packed_every_integer_type_and_own_size_per_file(tmp_path):
    kinds = [(1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")]
    parts = [TOKENS[i * 100 : i * 100 + 50 + i] % 127 for i in range(len(kinds))]
    for i, ((code, dtype), part) in enumerate(zip(kinds, parts)):
        (tmp_path / f"train_{i:010d}.bin").write_bytes(packed_bytes(part, code, dtype))
    np.testing.assert_array_equal(read_all(tmp_path), np.concatenate(parts))


def test_packed_writer_is_byte_exact(tmp_path):
    path = tmp_path / packed.shard_name("train", 3)
    packed.write_shard(path, TOKENS.astype("<u2"))
    assert path.name == "train_0000000003.bin"
    assert path.read_bytes() == packed_bytes(TOKENS, 8, "<u2")
    assert [packed.dtype_for(v).str for v in (65499, 65500)] == ["<u2", "<i4"]


def test_raw(tmp_path):
    TOKENS.astype("<u2").tofile(tmp_path / "train.bin")
    TOKENS[:99].astype("<u2").tofile(tmp_path / "val.bin")
    np.testing.assert_array_equal(read_all(tmp_path), TOKENS)
    np.testing.assert_array_equal(read_all(tmp_path, "validation"), TOKENS[:99])


def test_llmc_both_kinds(tmp_path):
    (tmp_path / "fineweb_train_000001.bin").write_bytes(llmc_bytes(TOKENS[:500]))
    (tmp_path / "fineweb_train_000002.bin").write_bytes(llmc_bytes(TOKENS[500:]))
    (tmp_path / "fineweb_val_000000.bin").write_bytes(llmc_bytes(TOKENS[:40] + 70000, 20240801, 7, "<u4"))
    np.testing.assert_array_equal(read_all(tmp_path), TOKENS)
    np.testing.assert_array_equal(read_all(tmp_path, "validation"), TOKENS[:40] + 70000)


def test_megatron(tmp_path):
    megatron_files(tmp_path / "train_a.bin", TOKENS[:600], np.array([100, 0, 500]))
    megatron_files(tmp_path / "train_b.bin", TOKENS[600:], np.array([400]), 4, "<i4")
    np.testing.assert_array_equal(read_all(tmp_path), TOKENS)


def test_megatron_that_does_not_fit_its_index(tmp_path):
    megatron_files(tmp_path / "train.bin", TOKENS, np.array([400, 500]))
    with pytest.raises(UserError, match="describes 900 tokens"):
        read_all(tmp_path)
    (tmp_path / "train.idx").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="Corrupt Megatron index"):
        read_all(tmp_path)


def test_text_folder(tmp_path):
    texts = {f"f{i:02d}.txt": f"document {i} \u00e9" * (i + 1) for i in range(40)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    got = {s: read_all(tmp_path, s) for s in ("train", "validation")}
    documents = [
        bytes(d.tolist()).decode()
        for t in got.values()
        for d in np.split(t, np.where(t == 256)[0] + 1)
        for d in [d[:-1]]
        if len(d)
    ]
    assert sorted(documents) == sorted(texts.values())
    assert 0 < len(got["validation"]) < len(got["train"])
    corpus = open_corpus(str(tmp_path), "train", 8, 0)
    assert (corpus.eos_id, corpus.vocab_size) == (256, 257)


def test_lone_text_file_is_cut_at_its_end(tmp_path):
    text = "abcdefghij" * 100
    (tmp_path / "input.txt").write_text(text)
    train, validation = read_all(tmp_path), read_all(tmp_path, "validation")
    assert bytes(train[:-1].tolist()).decode() + bytes(validation[:-1].tolist()).decode() == text
    assert len(validation) == 51


def test_split_folders_and_prefixes_with_a_slash(tmp_path):
    for split, text in (("train", "some words"), ("val", "other ones")):
        (tmp_path / "text" / split).mkdir(parents=True)
        (tmp_path / "text" / split / "a.md").write_text(text)
        (tmp_path / "bins" / split).mkdir(parents=True)
        TOKENS[: len(text)].astype("<u2").tofile(tmp_path / "bins" / split / "part-1.bin")
    assert bytes(read_all(tmp_path / "text")[:-1].tolist()) == b"some words"
    assert bytes(read_all(tmp_path / "text", "validation")[:-1].tolist()) == b"other ones"
    np.testing.assert_array_equal(read_all(tmp_path / "bins", "validation"), TOKENS[:10])
    np.testing.assert_array_equal(read_all(tmp_path, "bins/train/part"), TOKENS[:10])


def test_read_spans_files_and_any_range(tmp_path):
    for i in range(5):
        (tmp_path / f"train_{i}.bin").write_bytes(packed_bytes(TOKENS[i * 20 : i * 20 + 20], 8, "<u2"))
    stream = open_files(list(tmp_path.iterdir()), StreamInfo())
    for start in range(0, 100, 7):
        for length in (0, 1, 20, 55):
            if start + length <= 100:
                np.testing.assert_array_equal(stream.read(start, length), TOKENS[start : start + length])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed_bytes(TOKENS, 8, "<u2")[:-2], "promises 1000 tokens"),
        (packed_bytes(TOKENS, 8, "<u2", version=2), "version 2"),
        (packed_bytes(TOKENS, 6, "<f4"), "dtype code 6"),
        (packed_bytes(TOKENS, 99, "<u2"), "dtype code 99"),
        (b"LITPKDS\x01", "less than the 24-byte header"),
        (llmc_bytes(TOKENS)[:-2], "Corrupt llm.c file"),
        (llmc_bytes(TOKENS, version=9), "version 9"),
        (b"abc", "not a file of uint16 ids, 2 bytes each"),
    ],
)
def test_corrupt_files(tmp_path, content, message):
    (tmp_path / "train_0.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_all(tmp_path)


def test_formats_do_not_mix(tmp_path):
    (tmp_path / "train_0.bin").write_bytes(packed_bytes(TOKENS, 8, "<u2"))
    (tmp_path / "train_1.bin").write_bytes(b"X" + packed_bytes(TOKENS, 8, "<u2")[1:])
    with pytest.raises(UserError, match=r"train_1.bin \(raw\)"):
        read_all(tmp_path)


def test_fingerprint_sees_sizes_and_names_but_not_the_folder(tmp_path):
    prints = []
    for folder, name, n in (("a", "train_0", 50), ("b", "train_0", 50), ("c", "train_1", 50), ("d", "train_0", 51)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.bin").write_bytes(packed_bytes(TOKENS[:n], 8, "<u2"))
        prints.append(open_corpus(str(tmp_path / folder), "train", 8, 0).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_detect_names_the_formats(tmp_path):
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(UserError, match="llmc, megatron, packed, raw, text"):
        detect(tmp_path / "x.csv")


def test_compressed_text_counts_as_what_is_inside(tmp_path, monkeypatch):
    """The limit was one of the files' lengths: a megabyte of gzip became gigabytes of tokens, for minutes."""
    monkeypatch.setattr(text_files, "LIMIT_BYTES", 10_000)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"many words " * 1000))
    with pytest.raises(UserError, match=r"holds 11,000 bytes of text or more; up to 10,000 are tokenised"):
        open_corpus(str(tmp_path), "train", 8, 0)
