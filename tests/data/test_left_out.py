"""Nothing is left out in silence: every file, record and byte that is not in the data is counted and placed."""

from __future__ import annotations

import gzip
import json
import os
import socket

import pytest

from lit_gpt.data import kinds, open_corpus
from lit_gpt.data.documents import Search, find_files
from lit_gpt.data.prepare import prepare, run, units
from lit_gpt.data.prepare.summary import summary
from lit_gpt.errors import UserError

OPTIONS = {"num_workers": 1, "progress": False, "validation_fraction": 0}
GOOD = "".join(json.dumps({"id": i, "text": f"document {i}"}) + "\n" for i in range(20))


def documents(folder, split):
    """The texts of a split of bytes, each of which ends with 256."""
    stream = open_corpus(str(folder), split, 1, 0).sources[0].stream
    tokens = stream.read(0, stream.num_tokens).tolist()
    assert tokens[-1] == 256
    ends = [i for i, token in enumerate(tokens) if token == 256]
    return [bytes(tokens[a:b]).decode() for a, b in zip([0, *(e + 1 for e in ends)], ends)]


def made(tmp_path, content, name="a.jsonl", **options):
    """(documents, what was left out) of a source of one file."""
    source = tmp_path / "src"
    source.mkdir(exist_ok=True)
    (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    meta = prepare(str(source), str(tmp_path / "out"), **{**OPTIONS, **options})
    assert json.loads((tmp_path / "out/meta.json").read_text()) == meta
    return documents(tmp_path / "out", "train"), meta["left_out"]


def one(reason, place, count=1):
    return {reason: {"count": count, "examples": [place]}}


RECORDS = [  # name, line, reason
    ('{"id": 7, "text": null}\n', "its field text is null"),
    ('{"id": 7}\n', "no field text, file_contents, content, file_content, messages"),
    ('{"text": 3}\n', "its field text is int, not text"),
    ('{"text": ""}\n', "empty text"),
    ("[1, 2]\n", "not an object"),
    ("null\n", "not an object"),
    ("{bad\n", "not JSON"),
    ("[" * 100_000 + "\n", "not JSON"),
    ('{"messages": [{"content": "x"}]}\n', "a message without a role"),
    ('{"messages": [{"role": "user", "content": 3}]}\n', "a message whose content is int, not text"),
]


@pytest.mark.parametrize(("line", "reason"), RECORDS)
def test_a_record_that_cannot_be_used_is_skipped_and_counted(tmp_path, line, reason):
    """One record without text stopped everything, with advice to name a field that was right."""
    found, left = made(tmp_path, GOOD + "\n" + line + GOOD)
    assert found == [f"document {i}" for i in range(20)] * 2
    assert left == {"records": one(reason, "a.jsonl, line 22")}


@pytest.mark.parametrize(("line", "reason"), [r for r in RECORDS if r[1] != "empty text"])
def test_strict_stops_at_the_file_and_line(tmp_path, line, reason, monkeypatch):
    """An error in a record named no line, and in a later piece of a large file it has to be counted from the start."""
    monkeypatch.setattr(units, "PIECE_BYTES", 300)
    with pytest.raises(UserError, match=rf"src/a.jsonl, line 22: {reason}.*--strict"):
        made(tmp_path, GOOD + "\n" + line + GOOD, strict=True)


def test_strict_stops_before_anything_is_written_when_it_can(tmp_path):
    with pytest.raises(UserError, match="line 1: its field text is null"):
        made(tmp_path, '{"text": null}\n' + GOOD, strict=True)
    assert not (tmp_path / "out").exists()


def test_after_strict_stopped_the_same_output_goes_on_without_it(tmp_path):
    with pytest.raises(UserError, match="line 21"):
        made(tmp_path, GOOD + "{bad\n" + GOOD, strict=True)
    assert len(made(tmp_path, GOOD + "{bad\n" + GOOD)[0]) == 40


def test_the_last_line_of_a_file_that_was_cut(tmp_path):
    found, left = made(tmp_path, GOOD + '{"text": "cut in the mid')
    assert len(found) == 20
    assert left == {"records": one("not JSON, the last line may be cut", "a.jsonl, line 21")}


def test_an_array_that_was_cut(tmp_path):
    array = json.dumps([{"text": "a"}, {"text": "b"}, {"text": "c"}])
    found, left = made(tmp_path, array[:-5], "a.json")
    assert found == ["a", "b"]
    assert left == {"records": one("not JSON from here on, the file may be cut", "a.json, record 3")}


def test_undecodable_bytes_are_counted_and_the_record_is_kept(tmp_path):
    """One Latin-1 byte stopped everything, without a line number."""
    content = GOOD.encode() + b'{"text": "caf\xe9 in latin-1"}\n' + GOOD.encode()
    found, left = made(tmp_path, content)
    assert found[20] == "caf\ufffd in latin-1" and len(found) == 41
    assert left == {"bytes": one("not UTF-8", "a.jsonl, line 21")}
    with pytest.raises(UserError, match=r"src/a.jsonl, line 21: not UTF-8"):
        prepare(str(tmp_path / "src"), str(tmp_path / "strict"), strict=True, **OPTIONS)


@pytest.mark.parametrize(
    "name, content, lost",
    [
        ("a.jsonl", 'null\n\nnull\n{"text": "a"}\nnull\n{"text": "b"}\n', ["line 1", "line 3", "line 5"]),
        ("a.json", '[null, {"text": "a"}, null, {"text": "b"}]', ["record 1", "record 3"]),
    ],
)
def test_a_null_before_the_first_record_hides_none(tmp_path, name, content, lost):
    """The whole file was left out, since its first value was no record; further on a null cost itself alone."""
    found, left = made(tmp_path, content, name)
    assert found == ["a", "b"]
    assert left == {"records": {"not an object": {"count": len(lost), "examples": [f"{name}, {at}" for at in lost]}}}


def test_null_at_the_start_of_prose_is_no_record(tmp_path):
    text = 'null hypothesis\n{"text": "a"}\n'
    assert made(tmp_path, text, "a.txt") == ([text], {})


def test_names_that_are_not_utf8(tmp_path):
    """A name out of an old archive ended in a traceback about surrogates, and its summary could not be printed."""
    source = tmp_path / "src"
    for folder in (b"one", b"caf\xe9"):
        os.makedirs(os.path.join(os.fsencode(source), folder))
    for name in (b"one/na\xefve.txt", b"caf\xe9/a.txt"):
        with open(os.path.join(os.fsencode(source), name), "wb") as file:
            file.write(b"<" + name[:3] + b">")
    with open(os.path.join(os.fsencode(source), b"\xff.jsonl"), "wb") as file:
        file.write(b'{"text": "c"}\n{"text": 1}\n')
    meta = prepare(str(source), str(tmp_path / "out"), **OPTIONS)
    assert sorted(documents(tmp_path / "out", "train")) == ["<caf>", "<one>", "c"]
    assert "\\xff.jsonl, line 2" in summary(meta) and summary(meta).encode()
    assert open_corpus(str(source), "train", 4, 0).num_tokens


def test_undecodable_bytes_of_a_text_are_counted(tmp_path):
    found, left = made(tmp_path, b"caf\xe9 and \xff\xfe\xfd and a genuine \xef\xbf\xbd", "a.txt")
    assert found == ["caf\ufffd and \ufffd\ufffd\ufffd and a genuine \ufffd"]
    assert left == {"bytes": one("not UTF-8", "a.txt", 4)}


def test_counts_and_lines_do_not_depend_on_the_pieces(tmp_path, monkeypatch):
    content = (GOOD + '{"text": null}\n{bad\n') * 10
    whole = made(tmp_path, content)
    monkeypatch.setattr(units, "PIECE_BYTES", 200)
    monkeypatch.setattr(units, "UNIT_BYTES", 100)
    pieces = prepare(str(tmp_path / "src"), str(tmp_path / "two"), **OPTIONS)
    assert whole == (documents(tmp_path / "two", "train"), pieces["left_out"])
    places = ["a.jsonl, line 21", "a.jsonl, line 43", "a.jsonl, line 65"]
    assert pieces["left_out"]["records"]["its field text is null"] == {"count": 10, "examples": places}


def test_parquet_rows_without_text_and_binary_columns(tmp_path):
    """A null in a column stopped everything, and a column of bytes was no text."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source = tmp_path / "src"
    source.mkdir()
    column = pa.array([b"one", None, "caf\u00e9".encode(), b"caf\xe9"], pa.binary())
    parquet.write_table(pa.table({"text": column, "n": [1, 2, 3, 4]}), source / "a.parquet", row_group_size=3)
    meta = prepare(str(source), str(tmp_path / "out"), **OPTIONS)
    assert documents(tmp_path / "out", "train") == ["one", "caf\u00e9", "caf\ufffd"]
    assert meta["left_out"] == {
        "records": one("its field text is null", "a.parquet, row 2"),
        "bytes": one("not UTF-8, or lone surrogates", "a.parquet, row 4"),
    }


def test_text_key_of_inner_fields_in_every_form(tmp_path):
    records = [{"raw": {"content": f"body {i}"}, "text": "title"} for i in range(3)]
    expected = [f"body {i}" for i in range(3)]
    forms = {"a.jsonl": "\n".join(map(json.dumps, records)), "b.json": json.dumps(records, indent=1)}
    for name, content in forms.items():
        (tmp_path / name).mkdir()
        assert made(tmp_path / name, content, name, text_key="raw.content") == (expected, {})
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    prepare(str(tmp_path / "a.parquet"), str(tmp_path / "out"), text_key="raw.content", **OPTIONS)
    assert documents(tmp_path / "out", "train") == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "part-0", "a.parquet"])
def test_a_field_that_no_record_has_is_an_error_that_names_those_found(tmp_path, name):
    records = [{"id": i, "body": "x"} for i in range(3)]
    if name.endswith("parquet"):
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.Table.from_pylist(records), tmp_path / name)
    else:
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(UserError, match=r"no field text, .*whose fields are id, body .*--text_key"):
        prepare(str(tmp_path / name), str(tmp_path / "out"), **OPTIONS)
    with pytest.raises(UserError, match=r"no field nope .*whose fields are id, body"):
        prepare(str(tmp_path / name), str(tmp_path / "out"), text_key="nope", **OPTIONS)
    assert not (tmp_path / "out").exists()
    prepare(str(tmp_path / name), str(tmp_path / "out"), text_key="body", **OPTIONS)


def test_messages_without_content_and_in_parts(tmp_path):
    """A message without content was trained on as the word "None", one in parts as Python's list of them."""
    parts = [{"type": "text", "text": "look: "}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "a"}]
    turns = [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}, {"role": "tool"}],
        [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "image_url"}]}],
        [{"role": "assistant", "content": None}],
    ]
    found, left = made(tmp_path, "".join(json.dumps({"messages": t}) + "\n" for t in turns))
    assert found == ["<|user|>\nhi<|end|>\n", "<|user|>\nlook: a<|end|>\n"]
    assert left == {"records": one("empty text", "a.jsonl, line 3")}


def test_files_left_out_are_counted_by_reason(tmp_path):
    """A file without a suffix was left out without a word, and pictures called .txt became tokens."""
    source = tmp_path / "src"
    source.mkdir()
    contents = {"readme.txt": b"words", "Apache-2.0": b"a licence", "b.csv": b"1,2", "picture.txt": b"\x89PNG\0"}
    contents |= {"package.json": b'{"name": "x"}', ".hidden.txt": b"x", "void.txt": b"", "part-0": GOOD.encode()}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    meta = prepare(str(source), str(tmp_path / "out"), **OPTIONS)
    fields = "text, file_contents, content, file_content, messages"
    assert len(documents(tmp_path / "out", "train")) == 21
    assert meta["left_out"]["files"] == {
        "suffix .0, which only --include takes": {"count": 1, "examples": ["Apache-2.0"]},
        "suffix .csv, which only --include takes": {"count": 1, "examples": ["b.csv"]},
        "a PNG image": {"count": 1, "examples": ["picture.txt"]},
        f"no field {fields} in its records, whose fields are name (name the right one with --text_key)": {
            "count": 1,
            "examples": ["package.json"],
        },
        "hidden, its name starts with a dot": {"count": 1, "examples": [".hidden.txt"]},
        "empty": {"count": 1, "examples": ["void.txt"]},
    }
    every = prepare(str(source), str(tmp_path / "every"), include="*", **OPTIONS)
    assert every["splits"]["train"]["documents"] == 23
    with pytest.raises(UserError, match=r"src/p\w+.\w+: (a PNG image|no field)"):
        prepare(str(source), str(tmp_path / "strict"), strict=True, **OPTIONS)


def test_links_are_followed_once_and_circles_are_not(tmp_path):
    """Linked folders were left out without a word; a file with two names was read twice."""
    source, other = tmp_path / "src", tmp_path / "other"
    (source / "sub").mkdir(parents=True)
    other.mkdir()
    (source / "sub/a.txt").write_text("a")
    (other / "b.txt").write_text("b")
    (source / "linked").symlink_to(other)
    (source / "again").symlink_to(other)
    (source / "sub/up").symlink_to(source)
    (source / "0.txt").symlink_to(source / "sub/a.txt")
    (source / "gone.txt").symlink_to(tmp_path / "nowhere")
    (source / "self.txt").symlink_to(source / "self.txt")
    search = Search()
    assert [p.key for p in find_files(source, search)] == ["again/b.txt", "sub/a.txt"]
    counts = {reason: entry["count"] for reason, entry in search.left.counts["files"].items()}
    assert counts.pop("another name of a folder that is read already") == 2
    assert counts.pop("another name of a file that is read already") == 1
    assert sum(counts.values()) == 2 and all(reason.startswith("cannot be opened: ") for reason in counts)


def test_pipes_and_sockets_are_counted_and_never_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.txt").write_text("a")
    os.mkfifo(tmp_path / "src/pipe.txt")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("src/socket.txt")
        search = Search()
        assert [p.key for p in find_files(tmp_path / "src", search)] == ["a.txt"]
    assert search.left.counts == {
        "files": {"not a regular file": {"count": 2, "examples": [["pipe.txt", None], ["socket.txt", None]]}}
    }
    with pytest.raises(UserError, match="neither a file nor a folder"):
        prepare("src/pipe.txt", str(tmp_path / "out"), **OPTIONS)


def test_files_without_permission_are_counted_or_refused(tmp_path, monkeypatch):
    """Root may read everything, so the refusal is played."""

    def look(path, text_key=None):
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return kinds.look(path, text_key)

    monkeypatch.setattr("lit_gpt.data.documents.look", look)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    search = Search()
    assert [p.key for p in find_files(tmp_path, search)] == ["a.txt"]
    assert "cannot be opened: Permission denied" in search.left.counts["files"]
    with pytest.raises(UserError, match=r"b.txt: Permission denied"):
        prepare(str(tmp_path / "b.txt"), str(tmp_path / "out"), **OPTIONS)


@pytest.mark.parametrize("content", [{}, {"a.txt": ""}, {"a.jsonl": '{"text": null}\n{"text": ""}\n'}, {"x.bin": "\0"}])
def test_a_source_without_text_is_an_error_and_leaves_nothing(tmp_path, content):
    """An empty file ended with exit code 0, and meta.json had no splits."""
    (tmp_path / "src").mkdir()
    for name, text in content.items():
        (tmp_path / "src" / name).write_text(text)
    for fraction in (0, 0.1):
        with pytest.raises(UserError, match=r"No (text found|document in the source has text)"):
            prepare(str(tmp_path / "src"), str(tmp_path / "out"), **{**OPTIONS, "validation_fraction": fraction})
    assert not (tmp_path / "out").exists()


def test_a_text_that_turns_out_to_be_binary_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"word " * 20_000 + b"\0" * 200_000)
    with pytest.raises(UserError, match="binary after its start"):
        prepare(str(tmp_path / "a.txt"), str(tmp_path / "out"), tokenizer="train", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_trained_on_directly_is_read_alike_and_warns(tmp_path):
    """A folder with C4's file names held no data for training, and one null ended the run."""
    lines = GOOD.encode() + b'{"text": null}\n'
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG")
    (tmp_path / "c4-train.00000-of-00002.json.gz").write_bytes(gzip.compress(lines))
    with pytest.warns(UserWarning) as warned:
        found = documents(tmp_path, "train") + documents(tmp_path, "validation")
    said = " ".join(str(w.message) for w in warned)
    assert "1 file left out: a PNG image (picture.txt)" in said
    assert "1 record left out: its field text is null (c4-train.00000-of-00002.json.gz, line 21)" in said
    assert sorted(found) == sorted(f"document {i}" for i in range(20))


def test_what_the_library_datasets_saves_is_named(tmp_path):
    """Its folders of Arrow streams were "suffix .arrow, which only --include takes", and with --include "binary"."""
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"text": ["a", "b"]})
    (tmp_path / "src").mkdir()
    for make, name in ((pa.ipc.new_stream, "data-00000-of-00001.arrow"), (pa.ipc.new_file, "file.arrow")):
        with make(str(tmp_path / "src" / name), table.schema) as writer:
            writer.write_table(table)
    for include in (None, "*"):
        with pytest.raises(
            UserError, match=r"an Arrow stream \(write it as parquet first, such as datasets.load_from_disk"
        ):
            prepare(str(tmp_path / "src"), str(tmp_path / "out"), include=include, **OPTIONS)


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    """It was taken as it came, a part of each version, and meta.json named the first."""
    (tmp_path / "src").mkdir()
    for name in "abc":
        (tmp_path / f"src/{name}.txt").write_text(f"text {name}")
    read = run.encode_unit

    def written_to(*given):
        with open(tmp_path / "src/b.txt", "a") as file:
            file.write(" and more")
        return read(*given)

    monkeypatch.setattr(run, "encode_unit", written_to)
    with pytest.raises(UserError, match=r"src/b.txt changed while the source was read, so nothing was kept"):
        prepare(str(tmp_path / "src"), str(tmp_path / "out"), shard_tokens=4, **OPTIONS)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(run, "encode_unit", read)
    prepare(str(tmp_path / "src"), str(tmp_path / "out"), **OPTIONS)
    assert documents(tmp_path / "out", "train") == ["text a", "text b and more", "text c"]
