"""scripts/fetch.py with the real client of the Hub and a server in this process."""

from __future__ import annotations

import errno
import gzip
import json
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import COMMIT, hub_server
from mds_shard import MDS, MDS_TEXTS
from script_module import script_module

from lit_gpt.config.command import exit_code
from lit_gpt.data import open_corpus
from lit_gpt.data.prepare import corpora, fetch
from lit_gpt.data.prepare.hub import HubFile
from lit_gpt.data.tokenizer import TOKENIZER_FILES, load_tokenizer, train_bpe
from lit_gpt.errors import NotInstalled, NotWritten, UserError

SCRIPT = script_module("scripts/fetch.py")
EDU = "HuggingFaceFW/fineweb-edu"
PATHS = [f"sample/10BT/{i:03d}_00000.parquet" for i in range(3)]
STEPS = [(fetch.os, "replace"), (fetch, "write_json"), (fetch.shutil, "rmtree"), (fetch, "prepare")]
OPTIONS = {"tokenizer": "bytes", "num_workers": 1, "shard_tokens": 1000}


def texts(n, seed):
    rng = random.Random(seed)
    return [f"{seed}.{i} " + " ".join(rng.choices(["alpha", "beta\n", "\u03b4", "def f():"], k=30)) for i in range(n)]


def parquet(documents):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": list(range(len(documents))), "text": documents}), sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


def json_gz(documents):
    return gzip.compress("".join(json.dumps({"text": d, "url": "x"}) + "\n" for d in documents).encode())


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server, with FineWeb-Edu in three small files; every corpus is at the server's only commit."""
    for name, row in corpora.CORPORA.items():
        monkeypatch.setitem(corpora.CORPORA, name, replace(row, revision=COMMIT))
    with hub_server() as server:
        server.repos[EDU] = {path: parquet(texts(40, seed)) for seed, path in enumerate(PATHS)}
        server.repos[EDU]["README.md"] = b"not data"
        constants = huggingface_hub.constants
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        for module in (constants, huggingface_hub.file_download):  # as HF_ENDPOINT sets them; 0.x copies them
            monkeypatch.setattr(module, "ENDPOINT", server.address, raising=False)
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + template, raising=False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is lost when a connection is cut
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


def documents(folder, split):
    """All texts of a split, as the training reads it."""
    stream, tokenizer = open_corpus(str(folder), split, 1, 0).sources[0].stream, load_tokenizer(str(folder))
    tokens = stream.read(0, stream.num_tokens)
    ends = np.flatnonzero(tokens == tokenizer.eos_id)
    return [tokenizer.decode(tokens[a:b].tolist()) for a, b in zip([0, *(ends[:-1] + 1)], ends)]


def every_document(folder):
    return sorted(documents(folder, "train") + documents(folder, "validation"))


def run(folder, name="fineweb_edu", **options):
    return fetch.plan_fetch(name, output=str(folder), **{**OPTIONS, **options}).run()


def test_from_the_hub_to_a_folder_that_training_takes(hub, tmp_path, capsys, monkeypatch):
    """Every document of two files is there once, in order; then nothing is asked again, and a third file is added."""
    monkeypatch.setattr(fetch, "BATCH_BYTES", 1)
    train_bpe(iter(texts(40, 9)), 300, tmp_path / "tokenizer.json")
    hub.repos["tiny/bpe"] = {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    out = tmp_path / "out"
    words = ["--tokenizer", "tiny/bpe", "--num_workers", "1", "--output", str(out), "--shard_tokens", "1000"]
    assert exit_code(SCRIPT.main, ["fineweb_edu", "--shards", "2", *words]) == 0
    shown = capsys.readouterr().out
    assert "licence: ODC-By\n2 files of sample/10BT, 0.0 MB to download" in shown
    assert f"pretrain.py --train_data_dir {out} --val_data_dir {out} " in shown
    expected, held_out = texts(40, 0) + texts(40, 1), documents(out, "validation")
    assert 2 <= len(held_out) < 10 and held_out == [d for d in expected if d in held_out]
    assert documents(out, "train") == [d for d in expected if d not in held_out]
    assert {p.name for p in out.iterdir() if p.suffix != ".bin"} == {"meta.json", *TOKENIZER_FILES}
    meta = json.loads((out / "meta.json").read_text())
    assert list(meta["fetched"]["files"]) == PATHS[:2] and meta["tokenizer"] == {"kind": "json", "name": "out"}
    assert meta["splits"]["train"]["documents"] == 80 - len(held_out)
    tokens = {h.get("authorization") for _, path, h in hub.requests if "/resolve/" in path}
    assert tokens == {"Bearer hf_secret"}
    assert not any("authorization" in h for _, path, h in hub.requests if path.startswith("/content/"))

    before = len(hub.requests)
    assert exit_code(SCRIPT.main, ["fineweb_edu", "--shards", "2", *words]) == 0
    assert len(hub.requests) == before and "has all of these files already" in capsys.readouterr().out
    assert exit_code(SCRIPT.main, ["fineweb_edu", "--shards", "3", *words]) == 0
    assert sorted(documents(out, "train") + documents(out, "validation")) == sorted(expected + texts(40, 2))
    assert hub.ranges(PATHS[0]) == [None]


def test_a_cut_download_goes_on_where_it_was(hub, tmp_path):
    """Cut inside a process, then by the end of one: what has come is not asked for again, and the text is right."""
    third = len(hub.repos[EDU][PATHS[0]]) // 3000 * 1000
    hub.cut[PATHS[0]], hub.refuse[PATHS[0]] = [third], 1
    with pytest.raises(UserError, match=r"000_00000.parquet.*503.*what has come is kept"):
        run(tmp_path / "out")
    hub.cut[PATHS[0]] = [third]
    del hub.refuse[PATHS[0]]
    run(tmp_path / "out")
    first, *others = hub.ranges(PATHS[0])
    assert first is None and list(dict.fromkeys(others)) == [f"bytes={third}-", f"bytes={2 * third}-"]
    assert every_document(tmp_path / "out") == sorted(texts(40, 0))


def test_damaged_files_are_fetched_once_more_and_then_refused(hub, tmp_path, capsys):
    path = tmp_path / "out/.part/raw" / PATHS[0]
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.partial").write_bytes(b"wrong")  # right size, or start: the checksum tells
    run(tmp_path / "out")
    assert hub.ranges(PATHS[0]) == ["bytes=5-", None]
    assert every_document(tmp_path / "out") == sorted(texts(40, 0))
    hub.damaged[PATHS[1]] = 2
    words = ["fineweb_edu", "--shards", "2", "--output", str(tmp_path / "out"), "--tokenizer", "bytes"]
    assert exit_code(SCRIPT.main, [*words, "--shard_tokens", "1000"]) == 2
    assert "sample/10BT/001_00000.parquet came twice with another checksum" in capsys.readouterr().err
    assert every_document(tmp_path / "out") == sorted(texts(40, 0))
    run(tmp_path / "out", shards=2)
    assert every_document(tmp_path / "out") == sorted(texts(40, 0) + texts(40, 1))


@pytest.mark.parametrize("keep_raw", [False, True])
def test_killed_anywhere_the_same_call_ends_with_the_same_folder(hub, tmp_path, monkeypatch, keep_raw):
    class Killed(BaseException):
        pass

    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}

    monkeypatch.setattr(fetch, "BATCH_BYTES", 1)
    files = {f"en/c4-train.0000{i}-of-01024.json.gz": json_gz(texts(5, i)) for i in range(2)}
    hub.repos["allenai/c4"] = files | {"en/c4-validation.00000-of-00008.json.gz": json_gz(texts(5, 2))}
    run(tmp_path / "whole/out", "c4", shards=2, tokenizer="char", keep_raw=keep_raw)
    real = {name: getattr(module, name) for module, name in STEPS}
    left = allowed = 0
    for allowed in range(100):
        left = allowed
        for module, name in STEPS:

            def step(*args, name=name, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return real[name](*args, **kwargs)

            monkeypatch.setattr(module, name, step)
        try:
            run(tmp_path / "out", "c4", shards=2, tokenizer="char", keep_raw=keep_raw)
        except Killed:
            continue
        break
    assert allowed >= 10
    assert content(tmp_path / "out") == content(tmp_path / "whole/out")


def test_own_validation_files_and_a_tokenizer_that_is_made_from_the_first_files(hub, tmp_path, monkeypatch):
    """C4: gzipped JSON lines, whose validation files are used unless a share of the documents is asked for."""
    monkeypatch.setattr(fetch, "BATCH_BYTES", 1)
    files = {f"en/c4-train.0000{i}-of-01024.json.gz": json_gz(texts(20, i)) for i in range(2)}
    files |= {f"en/c4-validation.0000{i}-of-00008.json.gz": json_gz(texts(5, 10 + i)) for i in range(2)}
    hub.repos["allenai/c4"] = files
    out = tmp_path / "out"
    run(out, "c4", shards=2, tokenizer="train", vocab_size=300, keep_raw=True)
    assert documents(out, "validation") == texts(5, 10)
    assert documents(out, "train") == texts(20, 0) + texts(20, 1)
    kept = {p.relative_to(out / "raw").as_posix(): p.read_bytes() for p in (out / "raw").rglob("*.gz")}
    assert kept == {path: data for path, data in files.items() if "validation.00001" not in path}
    run(tmp_path / "share", "c4", validation_fraction=0.2)
    assert 1 <= len(documents(tmp_path / "share", "validation")) < 15
    assert every_document(tmp_path / "share") == sorted(texts(20, 0))


def test_prolong_is_decoded_and_made_anew(hub, tmp_path):
    hub.repos["princeton-nlp/prolong-data-64K"] = {
        "book-65536/0/index.json": b"{}",
        "book-65536/0/shard.00000.mds": MDS,
    }
    with pytest.raises(UserError, match="--source_tokenizer"):
        run(tmp_path / "out", "prolong")
    run(tmp_path / "out", "prolong", source_tokenizer="bytes", validation_fraction=0)
    assert documents(tmp_path / "out", "train") == MDS_TEXTS


def test_what_the_hub_does_not_give_is_one_sentence(hub, tmp_path, capsys):
    def refused(*words):
        assert exit_code(SCRIPT.main, [*words, "--output", str(tmp_path / "out"), "--tokenizer", "bytes"]) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1 and not (tmp_path / "out").exists()
        return shown

    assert "Did you mean 'fineweb_edu'" in refused("fineweb_ed")
    assert "There is nothing at" in refused("fineweb")
    assert "no revision 'nope'" in refused("fineweb_edu", "--revision", "nope")
    assert "has no folder 'sample/1BT' in revision" in refused("fineweb_edu", "--subset", "sample/1BT")
    assert "Type --shards 3 or less" in refused("fineweb_edu", "--shards", "4")
    assert "--shards 0" in refused("fineweb_edu", "--shards", "0")
    assert "has no files *.parquet there" in refused("fineweb_edu", "--subset", "other")
    hub.gated.add(EDU)
    assert exit_code(SCRIPT.main, ["fineweb_edu", "--output", str(tmp_path / "out"), "--tokenizer", "bytes"]) == 2
    assert "is gated: accept its terms at" in capsys.readouterr().err


def test_without_a_network(hub, tmp_path, capsys):
    hub.shutdown()
    hub.socket.close()
    for words in (["--tokenizer", "gpt2"], ["--tokenizer", "bytes"]):
        assert exit_code(SCRIPT.main, ["fineweb_edu", "--output", str(tmp_path / "out"), *words]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: Cannot get ") and "set HF_ENDPOINT" in shown and shown.count("\n") == 1


def test_files_that_git_itself_holds_are_checked_too(tmp_path):
    """The number is what `echo hello | git hash-object --stdin` prints."""
    (tmp_path / "a").write_text("hello\n")
    assert HubFile("a", 6, "0" * 40).checksum_of(tmp_path / "a") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_without_the_library_it_says_what_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(NotInstalled, match=r"pip install 'scalelab\[data\]'"):
        run(tmp_path / "out")


def test_too_little_disk_is_said_before_and_while_it_fills(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(UserError, match=r"needs about 0.0 MB, and 0.0 MB are free"):
            run(tmp_path / "out")
    assert not (tmp_path / "out").exists() and hub.ranges(PATHS[0]) == []

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    with pytest.raises(NotWritten, match="No space left on device"):
        run(tmp_path / "out")


def test_other_data_is_left_alone(hub, tmp_path):
    run(tmp_path / "out")
    with pytest.raises(UserError, match="was fetched with tokenizer bytes; asked for is tokenizer char"):
        run(tmp_path / "out", tokenizer="char")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train_0000000000.bin").write_bytes(b"")
    with pytest.raises(UserError, match="holds other data already"):
        run(tmp_path / "mine")
