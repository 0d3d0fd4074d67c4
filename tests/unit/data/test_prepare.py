"""prepare(): exact counts, the same bytes whatever happens, and text that decodes to its source."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lit_gpt.data import open_corpus
from lit_gpt.data.documents import Document, read_documents
from lit_gpt.data.kinds import Piece
from lit_gpt.data.prepare import prepare, publish, run, units, worker
from lit_gpt.data.splits import Splitter
from lit_gpt.data.tokenizer import load_tokenizer
from lit_gpt.errors import UserError

ROOT = Path(__file__).parents[3]


def texts(n, seed=0):
    rng = random.Random(seed)
    words = ["alpha", "beta\n", "gamma ", "\u03b4\u03ad\u03bb\u03c4\u03b1", "\U0001f600", "  ", "def f():", "1234"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 60))) for _ in range(n)]


def write_folder(folder, documents):
    folder.mkdir(parents=True)
    for i, text in enumerate(documents):
        (folder / f"{i:03d}.txt").write_bytes(text.encode())
    return str(folder)


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


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture
def small_units(monkeypatch):
    """Many small units, batches and pieces out of little text."""
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    monkeypatch.setattr(units, "PIECE_BYTES", 3000)
    monkeypatch.setattr(worker, "BATCH_CHARS", 700)


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
        assert s.bytes_per_token == size / tokens
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


def test_prolong_recipe(tmp_path, monkeypatch):
    (tmp_path / "src/books").mkdir(parents=True)
    for name in ("index.json", "shard.00000.mds"):
        (tmp_path / "src/books" / name).write_text("{}")
    job = dict(recipe="prolong", **{**OPTIONS, "validation_fraction": 0})
    monkeypatch.setitem(sys.modules, "streaming", None)
    with pytest.raises(UserError, match="mosaicml-streaming"):
        prepare(str(tmp_path / "src"), str(tmp_path / "out"), **job)

    class Mosaic:
        @staticmethod
        def StreamingDataset(local, shuffle, batch_size):
            ids = np.frombuffer(b"hello\x00world", np.uint8).astype(np.uint32)
            ids[5] = 256
            yield {"input_ids": ids, "indices": [(0, 6), (6, 11)]}
            yield {"input_ids": ids[:5]}

    monkeypatch.setitem(sys.modules, "streaming", Mosaic)
    with pytest.raises(UserError, match="--source_tokenizer"):
        prepare(str(tmp_path / "src"), str(tmp_path / "out"), **job)
    prepare(str(tmp_path / "src"), str(tmp_path / "out2"), source_tokenizer="bytes", **job)
    assert documents(tmp_path / "out2", "train") == ["hello", "world", "hello"]


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
        ({"source": "nowhere"}, "does not exist"),
        ({"bos": True}, "no BOS token"),
    ],
)
def test_bad_options(tmp_path, options, message):
    source = write_folder(tmp_path / "src", texts(3))
    with pytest.raises(UserError, match=message):
        prepare(**{"source": source, "output": str(tmp_path / "out"), **OPTIONS, **options})


def test_command_line(tmp_path):
    source = write_folder(tmp_path / "src", texts(10))
    (tmp_path / "src/notes.log").write_text("not this one")
    command = [sys.executable, str(ROOT / "scripts/prepare_text.py"), "--source", source, "--num_workers", "2"]
    command += ["--include", "*.txt", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "EOS id 256" in done.stdout
    splits = json.loads((tmp_path / "out/meta.json").read_text())["splits"]
    assert sum(n["documents"] for n in splits.values()) == 10
    bad = subprocess.run([*command, "--recipe", "x"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("error: Unknown recipe") and "Traceback" not in bad.stderr
