"""prepare(): exact counts, the same bytes whatever happens, and text that decodes to its source."""

from __future__ import annotations

import gzip
import json
import os
import random
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mds_shard import MDS, MDS_TEXTS
from prepared_texts import contents, texts, write_folder

from lit_gpt.data import open_corpus
from lit_gpt.data.documents import Document, read_documents
from lit_gpt.data.kinds import Piece
from lit_gpt.data.prepare import prepare, publish, run, units, worker
from lit_gpt.data.splits import Splitter
from lit_gpt.data.tokenizer import load_tokenizer
from lit_gpt.errors import UserError


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps({"id": i, "text": d}) + "\n" for i, d in enumerate(documents)))


def stream(folder, split):
    return open_corpus(str(folder), split, 1, 0).sources[0].stream


def documents(folder, split):
    s, tokenizer = stream(folder, split), load_tokenizer(str(folder))
    tokens = s.read(0, s.num_tokens)
    assert tokens[-1] == tokenizer.eos_id
    ends = np.flatnonzero(tokens == tokenizer.eos_id)
    return [tokenizer.decode(tokens[a:b].tolist()) for a, b in zip([0, *(ends[:-1] + 1)], ends)]


@pytest.fixture
def small_units(monkeypatch):
    """Many small units, batches and pieces out of little text."""
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    monkeypatch.setattr(units, "PIECE_BYTES", 3000)
    monkeypatch.setattr(worker, "BATCH_CHARS", 700)
    monkeypatch.setattr(publish, "EVERY", 0)


SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts/prepare_text.py"))
OPTIONS = {"validation_fraction": 0.2, "num_workers": 1, "progress": False, "shard_tokens": 777}


def test_counts_are_exact_and_the_text_comes_back(tmp_path, small_units):
    docs = texts(60)
    meta = prepare(write_folder(tmp_path / "src", [*docs, ""]), str(tmp_path / "out"), **OPTIONS)
    splits = {s: documents(tmp_path / "out", s) for s in ("train", "validation")}
    assert sorted(splits["train"] + splits["validation"]) == sorted(docs)
    assert min(map(len, splits.values())) > 3
    for split, found in splits.items():
        size = sum(len(d.encode()) for d in found)
        tokens = size + len(found)
        expected = {"documents": len(found), "bytes": size, "tokens": tokens, "shards": -(-tokens // 777)}
        assert meta["splits"][split] == expected
        s = stream(tmp_path / "out", split)
        assert (s.num_tokens, s.eos_id, s.vocab_size) == (tokens, 256, 257)
    sizes = [(p.stat().st_size - 24) // 2 for p in sorted((tmp_path / "out").glob("train*"))]
    assert set(sizes[:-1]) == {777} and 0 < sizes[-1] <= 777
    assert not (tmp_path / "out/.parts").exists()


def test_documents_keep_the_order_of_their_files(tmp_path, small_units):
    docs = texts(40)
    prepare(write_folder(tmp_path / "src", docs), str(tmp_path / "out"), **{**OPTIONS, "validation_fraction": 0})
    assert documents(tmp_path / "out", "train") == docs


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["write_json", "replace", "unlink", "rmtree"])
def test_killed_anywhere_and_started_again_gives_the_same_bytes(tmp_path, small_units, monkeypatch, where):
    """Interrupt before the 1st, 2nd, 3rd... call of something that touches the disk, over and over."""
    source = write_folder(tmp_path / "src", texts(60))
    prepare(source, str(tmp_path / "whole"), **OPTIONS)
    owner = {"write_json": publish, "replace": os, "unlink": Path, "rmtree": run.shutil}[where]
    real, kills = getattr(owner, where), 0
    for allowed in range(1, 100):
        left = [allowed]

        def fragile(*args, left=left, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, where, fragile)
        try:
            prepare(source, str(tmp_path / "out"), **OPTIONS)
        except Killed:
            kills += 1
            continue
        break
    monkeypatch.setattr(owner, where, real)
    prepare(source, str(tmp_path / "out"), **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert kills >= (0 if where == "rmtree" else 2)


def test_the_folder_of_a_bytes_tokenizer_names_bytes(tmp_path):
    """A run keeps its tokenizer in a folder, which for "bytes" holds meta.json alone."""
    write_folder(tmp_path / "text", texts(3))
    prepare(str(tmp_path / "text"), str(tmp_path / "first"), tokenizer="bytes", progress=False)
    prepare(str(tmp_path / "text"), str(tmp_path / "second"), tokenizer=str(tmp_path / "first"), progress=False)
    assert {n: b for n, b in contents(tmp_path / "first").items() if n.endswith(".bin")} == {
        n: b for n, b in contents(tmp_path / "second").items() if n.endswith(".bin")
    }


def test_worker_count_does_not_change_a_byte(tmp_path, small_units):
    source = write_folder(tmp_path / "src", texts(60))
    bpe = {"tokenizer": "train", "vocab_size": 300}
    one = prepare(source, str(tmp_path / "one/set"), **OPTIONS, **bpe)
    two = prepare(source, str(tmp_path / "two/set"), **{**OPTIONS, "num_workers": 2}, **bpe)
    assert one == two
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_jsonl_zstd_gzip_and_parquet_hold_the_same(tmp_path, small_units):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    docs = texts(50, 3)
    for kind in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet"):
        (tmp_path / kind).mkdir()
        write_jsonl(tmp_path / kind / "x.jsonl", docs)
    plain = (tmp_path / "jsonl/x.jsonl").read_bytes()
    assert len(plain) > 2 * units.PIECE_BYTES  # so that it is cut into byte ranges
    (tmp_path / "jsonl.gz/x.jsonl").rename(tmp_path / "jsonl.gz/x.jsonl.gz")
    (tmp_path / "jsonl.gz/x.jsonl.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "jsonl.zst/x.jsonl").unlink()
    halves = [zstandard.compress(plain[:5000]), zstandard.compress(plain[5000:])]  # several frames
    (tmp_path / "jsonl.zst/x.jsonl.zst").write_bytes(b"".join(halves))
    (tmp_path / "parquet/x.jsonl").unlink()
    table = pa.table({"content": docs, "n": range(len(docs))})
    parquet.write_table(table, tmp_path / "parquet/x.parquet", row_group_size=7, compression="none")
    for kind in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet"):
        out = tmp_path / f"out_{kind}"
        prepare(str(tmp_path / kind), str(out), **{**OPTIONS, "validation_fraction": 0})
        assert documents(out, "train") == docs, kind


def test_byte_ranges_of_jsonl_cover_every_line_once(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(b'{"text": "%d"}\n' % i + b"\n" * (i % 3) for i in range(60)))
    size = path.stat().st_size
    whole = list(read_documents(Piece(path, "x", size)))
    assert [d.text for d in whole] == [str(i) for i in range(60)]
    for step in (1, 5, 14, 100, size - 1):
        parts = [Piece(path, "x", step, s, min(s + step, size)) for s in range(0, size, step)]
        assert [d for p in parts for d in read_documents(p)] == whole


def test_messages_surrogates_and_bad_utf8(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}) + '\n{"text": "x\\ud800y"}\n')
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    read = [d.text for n in ("a.jsonl", "b.txt") for d in read_documents(Piece(tmp_path / n, n, 0))]
    assert read == ["<|user|>\nhi<|end|>\n<|assistant|>\nyo<|end|>\n", "x\ufffdy", "caf\ufffd"]


def test_split_is_by_hash_of_the_path_and_stable(tmp_path):
    pieces = [Piece(tmp_path / f"{i}.txt", f"{i}.txt", 1) for i in range(2000)]

    def held_out(some):
        splitter = Splitter((p.key for p in some), 0.1)
        return {p.key for p in some if splitter(Document(p.key, "text")) == [("validation", "text")]}

    assert 150 < len(held_out(pieces)) < 250
    assert held_out(pieces[:500]) == {k for k in held_out(pieces) if int(k[:-4]) < 500}


@pytest.mark.parametrize("fraction", [0.005, 0.999])
@pytest.mark.parametrize("count", [2, 3, 13])
def test_each_split_gets_a_document_when_a_fraction_was_asked_for(tmp_path, fraction, count):
    """Thirteen records gave no validation, and the next command of the README failed."""
    docs = texts(count)
    write_jsonl(tmp_path / "a.jsonl", ["", *docs])
    prepare(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), **{**OPTIONS, "validation_fraction": fraction})
    splits = [documents(tmp_path / "out", s) for s in ("train", "validation")]
    assert min(map(len, splits)) == 1
    assert sorted(splits[0] + splits[1]) == sorted(docs)


def test_a_lone_record_is_all_training_and_the_summary_says_so(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["", "the only one"])
    meta = prepare(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), **OPTIONS)
    assert documents(tmp_path / "out", "train") == ["the only one"]
    assert "the source is one document, so none went to validation" in SCRIPT["summary"](meta)


def test_a_short_lone_text_gives_validation_one_character(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    prepare(str(tmp_path / "a.txt"), str(tmp_path / "out"), **{**OPTIONS, "validation_fraction": 0.005})
    assert [documents(tmp_path / "out", s) for s in ("train", "validation")] == [["shor"], ["t"]]


def test_several_sources_of_one_name_and_a_source_inside_another(tmp_path):
    for folder, text in (("one/x", "a"), ("two/x", "b"), ("two/x/inner", "c")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "f.txt").write_text(text)
    sources = [str(tmp_path / "one/x"), str(tmp_path / "two/x")]
    prepare(sources, str(tmp_path / "out"), **OPTIONS)
    found = [d for s in ("train", "validation") for d in documents(tmp_path / "out", s)]
    assert sorted(found) == ["a", "b", "c"]
    for inside in ("two/x", "two/x/inner", "two/x/f.txt"):
        with pytest.raises(UserError, match="read already"):
            prepare([*sources, str(tmp_path / inside)], str(tmp_path / "no"), **OPTIONS)


def test_killed_amid_records_that_are_left_out(tmp_path, small_units, monkeypatch):
    """What is left out is counted once, however often the preparation was killed."""
    lines = [json.dumps({"text": t}) for t in texts(60)] + ["{bad", '{"text": null}']
    random.Random(1).shuffle(lines)
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "caf\xe9"}\n')
    prepare(str(tmp_path / "a.jsonl"), str(tmp_path / "whole"), **OPTIONS)
    real = publish.write_json
    for allowed in range(1, 100):
        left = [allowed]

        def fragile(*args, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args)

        monkeypatch.setattr(publish, "write_json", fragile)
        try:
            prepare(str(tmp_path / "a.jsonl"), str(tmp_path / "out"), **OPTIONS)
        except Killed:
            continue
        break
    assert allowed > 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert set(json.loads((tmp_path / "out/meta.json").read_text())["left_out"]) == {"records", "bytes"}


def test_the_same_file_named_otherwise_prepares_the_same(tmp_path):
    """C4's own names are read: the text of 20 documents, compressed or not."""
    docs = texts(20)
    write_jsonl(tmp_path / "a.jsonl", docs)
    (tmp_path / "c4").mkdir()
    packed = gzip.compress((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "c4/c4-train.00000-of-00002.json.gz").write_bytes(packed)
    prepare(str(tmp_path / "c4"), str(tmp_path / "out"), **{**OPTIONS, "validation_fraction": 0})
    assert documents(tmp_path / "out", "train") == docs


def test_slimpajama_recipe(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    docs = {("train", 1): texts(5, 1), ("train", 2): texts(5, 2), ("validation", 1): texts(3, 3)}
    for (split, chunk), these in docs.items():
        folder = tmp_path / "src" / split / f"chunk{chunk}"
        folder.mkdir(parents=True)
        lines = "".join(json.dumps({"text": t, "meta": {}}) + "\n" for t in these)
        (folder / "example_0.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    prepare(str(tmp_path / "src"), str(tmp_path / "out"), recipe="slimpajama", **OPTIONS)
    assert documents(tmp_path / "out", "train") == docs["train", 1] + docs["train", 2]
    assert documents(tmp_path / "out", "validation") == docs["validation", 1]
    with pytest.raises(UserError, match="is not SlimPajama"):
        prepare(str(tmp_path), str(tmp_path / "no"), recipe="slimpajama", **OPTIONS)


def test_prolong_recipe(tmp_path):
    """The writer is MosaicML's. Compressed shards are read too, and cut ones are left out and counted."""
    (tmp_path / "src/books").mkdir(parents=True)
    job = dict(recipe="prolong", **{**OPTIONS, "validation_fraction": 0})
    with pytest.raises(UserError, match=r"No MDS shard"):
        prepare(str(tmp_path / "src"), str(tmp_path / "out"), **job)
    (tmp_path / "src/books/index.json").write_text("{}")
    (tmp_path / "src/books/shard.00000.mds").write_bytes(MDS)
    with pytest.raises(UserError, match="--source_tokenizer"):
        prepare(str(tmp_path / "src"), str(tmp_path / "out"), **job)
    (tmp_path / "src/books/shard.00001.mds.gz").write_bytes(gzip.compress(MDS))
    (tmp_path / "src/books/shard.00002.mds").write_bytes(MDS[:-1])
    meta = prepare(str(tmp_path / "src"), str(tmp_path / "out2"), source_tokenizer="bytes", **job)
    assert documents(tmp_path / "out2", "train") == MDS_TEXTS * 2
    (reason,) = meta["left_out"]["files"]
    assert "a damaged one (1,654 bytes of 1,655)" in reason


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{bad\n", r"first lines are not JSON records \(a.jsonl\)"),
        ("a.jsonl", b'{"body": "x"}\n', r"no field text, .* whose fields are body .*--text_key\) \(a.jsonl\)"),
        ("a.txt.gz", b"not gzip", r"named .gz, but its content is not \(a.txt.gz\)"),
        ("a.jsonl.zst", b"not zstd", r"not JSON records \(a.jsonl.zst\)"),
        ("a.parquet", b"not parquet", r"named .parquet, but its content is not \(a.parquet\)"),
        ("a.parquet", b"PAR1 cut short", r"damaged .*\(a.parquet\)"),
        ("a.csv", b"x", r"suffix .csv, which only --include takes \(a.csv\)"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(str(tmp_path / "src"), str(tmp_path / "out"), **OPTIONS)


def test_an_error_in_a_worker_process_reaches_the_caller(tmp_path, small_units):
    source = write_folder(tmp_path / "src", texts(20))
    (tmp_path / "src/x.jsonl").write_text('{"text": "good"}\n' * 2 + "{bad\n")
    with pytest.raises(UserError, match=r"x.jsonl, line 3: not JSON"):
        prepare(source, str(tmp_path / "out"), strict=True, **{**OPTIONS, "num_workers": 2})


def test_a_journal_that_cannot_be_read_is_one_sentence(tmp_path):
    source = write_folder(tmp_path / "src", texts(3))
    (tmp_path / "out/.parts").mkdir(parents=True)
    for content in ("[]", "{"):
        (tmp_path / "out/.parts/journal.json").write_text(content)
        with pytest.raises(UserError, match=r"journal.json"):
            prepare(source, str(tmp_path / "out"), **OPTIONS)


class Task:
    def __init__(self, run, unit):
        self.run, self.unit = run, unit

    def result(self):
        self.run(self.unit)


class Backwards:
    """A pool whose last unit is the first to be done, in this process, and that is killed after `allowed` units."""

    allowed = 1 << 30

    def __init__(self, workers, context, start, arguments):
        worker._state = arguments[0], worker.load_job_tokenizer(arguments[0])

    def submit(self, run, unit):
        return Task(run, unit)

    @classmethod
    def as_completed(cls, futures):
        for done, future in enumerate(sorted(futures, key=lambda future: -future.unit.index)):
            if done == cls.allowed:
                raise Killed
            yield future

    def shutdown(self, cancel_futures):
        pass


@pytest.mark.parametrize("workers", [1, 2])
def test_parts_that_wait_for_their_turn_are_taken_by_the_next_run(tmp_path, small_units, monkeypatch, workers):
    source = write_folder(tmp_path / "src", texts(40))
    prepare(source, str(tmp_path / "whole"), **OPTIONS)
    monkeypatch.setattr(run, "ProcessPoolExecutor", Backwards)
    monkeypatch.setattr(run, "as_completed", Backwards.as_completed)
    for allowed in (0, 1, 3):
        out = tmp_path / f"out{allowed}"
        with monkeypatch.context() as killed, pytest.raises(Killed):
            killed.setattr(Backwards, "allowed", allowed)
            prepare(source, str(out), **{**OPTIONS, "num_workers": 2})
        parts = {p.name for p in (out / ".parts").glob("0*.json")}
        assert len(parts) == allowed and "000000.json" not in parts
        prepare(source, str(out), **{**OPTIONS, "num_workers": workers})
        assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize(("rest", "every"), [(1, 0), (400, 0), (400, 0.001), (400, 3600)])
def test_killed_while_writing_what_was_not_in_the_journal_is_cut_off(tmp_path, small_units, monkeypatch, rest, every):
    """A shard grows by every write, and only what is in the journal counts. rest: tokens of a torn write."""
    monkeypatch.setattr(publish, "EVERY", every)
    source = write_folder(tmp_path / "src", texts(60))
    prepare(source, str(tmp_path / "whole"), **OPTIONS)
    real, kills = publish.Shards.write, 0
    for allowed in range(100):
        left = [allowed]

        def fragile(self, tokens, left=left):
            left[0] -= 1
            if left[0] < 0:
                real(self, tokens[:rest])
                self.flush()
                raise Killed
            return real(self, tokens)

        monkeypatch.setattr(publish.Shards, "write", fragile)
        try:
            prepare(source, str(tmp_path / "out"), **OPTIONS)
        except Killed:
            kills += 1
            continue
        break
    assert kills > 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_part_or_a_shard_that_lost_its_end_is_one_sentence(tmp_path):
    def shards(written):
        return publish.Shards("train", tmp_path, tmp_path, np.dtype("<u2"), 5, written, ThreadPoolExecutor(1))

    part = tmp_path / "000000.train"
    part.write_bytes(b"abcdef")
    filled = shards(0)
    publish.copy(part, 3, filled)
    with pytest.raises(UserError, match=r"000000.train is shorter than it was. Remove"):
        publish.copy(part, 4, filled)
    filled.flush()
    assert (tmp_path / "train_0000000000.bin").read_bytes()[24:] == b"abcdefabcd"
    assert (tmp_path / "train_0000000001.bin").read_bytes()[24:] == b"ef"
    with pytest.raises(UserError, match=r"train_0000000001.bin is shorter than it was. Remove"):
        cut = shards(5 + 2)
        cut.write(np.zeros(1, "<u2"))
        cut.flush()


@pytest.mark.parametrize("size", [1, 160_000])  # files of up to a MiB are hashed whole, larger ones at 16 places
def test_files_edited_since_are_not_taken_for_those_of_a_finished_run(tmp_path, size):
    """The same command after an edit that kept the size printed success, and left the old tokens."""
    source = write_folder(tmp_path / "src", [f"abcd {i} " * size for i in range(2)])
    meta = prepare(source, str(tmp_path / "out"), **OPTIONS)
    (tmp_path / "src/000.txt").touch()
    assert prepare(source, str(tmp_path / "out"), **OPTIONS) == meta
    (tmp_path / "src/000.txt").write_text("ABCD 0 " * size)
    with pytest.raises(UserError, match="prepared from other files or with other settings"):
        prepare(source, str(tmp_path / "out"), **OPTIONS)


def test_output_of_something_else_is_left_alone(tmp_path):
    source = write_folder(tmp_path / "src", texts(10))
    meta = prepare(source, str(tmp_path / "out"), **OPTIONS)
    assert prepare(source, str(tmp_path / "out"), **OPTIONS) == meta
    with pytest.raises(UserError, match="other settings"):
        prepare(source, str(tmp_path / "out"), **{**OPTIONS, "parse_special": True})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/train.bin").write_bytes(b"")
    with pytest.raises(UserError, match="already holds"):
        prepare(source, str(tmp_path / "full"), **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"shard_tokens": 0}, "shard_tokens"),
        ({"vocab_size": 100}, "vocab_size"),
        ({"recipe": "slimpyjama"}, "Did you mean 'slimpajama'"),
        ({"tokenizer": "nowhere"}, "No tokenizer at"),
        ({"tokenizer": "trian"}, "Did you mean 'train'"),
        ({"source": "nowhere"}, "does not exist"),
        ({"source": ""}, "--source was given without a value"),
        ({"output": " "}, "--output was given without a value"),
        ({"tokenizer": ""}, "--tokenizer was given without a value"),
        ({"text_key": ""}, "--text_key was given without a value"),
        ({"num_workers": -3}, "num_workers -3 must be at least 0"),
        ({"train_bytes": 0}, "train_bytes 0 must be at least 1"),
        ({"eos_token": "<x>"}, "'bytes' has no token '<x>'"),
        ({"bos": True}, "no BOS token"),
        ({"bos": True, "tokenizer": "char"}, "no BOS token"),
    ],
)
def test_bad_options(tmp_path, options, message):
    source = write_folder(tmp_path / "src", texts(3))
    with pytest.raises(UserError, match=message):
        prepare(**{"source": source, "output": str(tmp_path / "out"), **OPTIONS, **options})
    assert not (tmp_path / "out").exists()
