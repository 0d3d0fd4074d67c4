"""A file is read by what it holds: forms, compressions, encodings, and what is no text at all."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile

import pytest

from lit_gpt.data.codec import Unusable
from lit_gpt.data.documents import read_documents
from lit_gpt.data.kinds import HEAD, Kind, Piece, look
from lit_gpt.data.left_out import LeftOut
from lit_gpt.errors import UserError

LINES = "".join(json.dumps({"id": i, "text": f"document {i} \u00e9"}) + "\n" for i in range(20))
TEXTS = [f"document {i} \u00e9" for i in range(20)]


def put(folder, name, data):
    (folder / name).write_bytes(data)
    return folder / name


def read(path, **options):
    return [d.text for d in read_documents(Piece(path, path.name, path.stat().st_size), **options)]


@pytest.mark.parametrize("name", ["part.json", "part.jsonl", "part.ndjson", "part.txt", "part-00000", "x.gz"])
def test_records_one_a_line_are_records_whatever_the_name(tmp_path, name):
    """Dolma's part.json was one document of raw JSON, and C4's .json.gz one of gzip bytes."""
    assert read(put(tmp_path, name, LINES.encode())) == TEXTS
    assert read(put(tmp_path, name, gzip.compress(LINES.encode()))) == TEXTS


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, None])
def test_compressed_files_are_told_by_their_first_bytes(tmp_path, compress):
    """The bytes of a .txt.gz became tokens, since only .jsonl.gz was known."""
    compress = compress or pytest.importorskip("zstandard").compress
    for name in ("a.txt", "a.txt.gz"):
        assert read(put(tmp_path, name, compress(b"plain words"))) == ["plain words"]
    for name in ("a.txt", "a.jsonl.zst", "a.json.gz"):
        assert read(put(tmp_path, name, compress(LINES.encode()))) == TEXTS


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_arrays_and_records_over_several_lines(tmp_path, indent):
    """A JSON array, an indented one, objects that follow each other, and one object are records too."""
    records = [json.loads(line) for line in LINES.splitlines()]
    assert read(put(tmp_path, "a.json", json.dumps(records, indent=indent).encode())) == TEXTS
    one_by_one = "\n".join(json.dumps(r, indent=indent) for r in records)
    assert read(put(tmp_path, "a.jsonl", one_by_one.encode())) == TEXTS
    assert read(put(tmp_path, "a.json", json.dumps(records[3], indent=indent).encode())) == TEXTS[3:4]


def test_a_first_record_longer_than_what_is_looked_at(tmp_path):
    long = [{"id": 0, "text": "x" * HEAD * 2}, {"text": "y"}]
    expected = [r["text"] for r in long]
    assert read(put(tmp_path, "a.json", "\n".join(map(json.dumps, long)).encode())) == expected
    assert read(put(tmp_path, "a.json", json.dumps(long).encode())) == expected


def test_text_that_only_looks_like_json_is_text(tmp_path):
    for text in ("[section]\nkey = 1\n", "{{Infobox}} and more", '{"id": 1}\n{"id": 2}\n', "[a](b) c"):
        assert look(put(tmp_path, "a.txt", text.encode())) == Kind("text")
        assert read(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_byte_order_marks_and_utf_16(tmp_path, encoding):
    """A file that Windows wrote was read as UTF-8: a stray mark, or every second character NUL."""
    text = "words and words, caf\u00e9\r\n"
    assert read(put(tmp_path, "a.txt", text.encode(encoding))) == [text]
    assert read(put(tmp_path, "a.jsonl", LINES.encode(encoding))) == TEXTS
    assert read(put(tmp_path, "a.jsonl.gz", gzip.compress(LINES.encode(encoding)))) == TEXTS
    array = json.dumps([{"text": "a"}, {"text": "b"}]).encode(encoding)
    assert read(put(tmp_path, "a.json", array)) == ["a", "b"]


def test_a_mark_in_the_middle_of_records_that_were_joined(tmp_path):
    joined = '\ufeff{"text": "a"}\n\ufeff{"text": "b"}\n'
    assert read(put(tmp_path, "a.jsonl", joined.encode())) == ["a", "b"]


def tar():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as f:
        f.addfile(tarfile.TarInfo("a.txt"))
    return gzip.compress(data.getvalue(), mtime=0)  # no time in it: it is in the test's name, the same in all workers


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"%PDF-1.7\nwords", "a PDF"),
        ("a.txt", b"\x89PNG\r\n", "a PNG image"),
        ("a.txt", b"words\0and words", "NUL bytes"),
        ("a.txt", "слова и слова".encode("koi8-r"), "not in UTF-8"),
        ("a.txt", bytes(range(1, 32)), "binary"),
        ("a.txt.gz", tar(), "tar archive"),
        ("a.txt.gz", gzip.compress(b"words" * 99, mtime=0)[:-9], "damaged"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.json", b"<html>404</html>", "not JSON records"),
        ("a.jsonl.gz", b"<html>404</html>", "not JSON records"),
        ("a.txt.gz", b"words", "named .gz"),
        ("a.txt", b"", "empty"),
        ("a.txt", b"\xef\xbb\xbf", "empty"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(tmp_path, name, data, reason):
    """Pictures, archives and pages of errors under a name that ends in .txt or .jsonl became tokens."""
    with pytest.raises(Unusable, match=reason):
        look(put(tmp_path, name, data))
    with pytest.raises(UserError, match=reason):
        read(tmp_path / name)


@pytest.mark.parametrize("compress", [gzip.compress, None])
def test_a_compressed_file_that_was_cut_gives_what_it_has_and_says_so(tmp_path, compress):
    """zstandard's reader ends without a word where a download was cut: half the records were lost in silence."""
    compress = compress or pytest.importorskip("zstandard").compress
    draw = random.Random(0)
    records = [json.dumps({"text": f"{draw.getrandbits(800):0200x}"}) for _ in range(3000)]
    data = compress("\n".join(records).encode())
    path, left = put(tmp_path, "a.jsonl.zst", data[: len(data) * 3 // 4]), LeftOut()
    found = read(path, left=left)
    assert found == [json.loads(r)["text"] for r in records[: len(found)]]
    assert 1000 < len(found) < 3000
    assert "not read to its end: damaged" in str(left.counts["files"])
    with pytest.raises(UserError, match=r"a.jsonl.zst: not read to its end"):
        read(path, left=LeftOut(strict=True))
