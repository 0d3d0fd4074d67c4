"""Overlap with the training data against a set of tuples."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import tiny_run
from script_module import tool

from lit_gpt.data.formats import packed
from lit_gpt.data.stream import ArrayStream
from lit_gpt.evals import overlap as module
from lit_gpt.evals.overlap import overlap
from lit_gpt.tools import evaluate
from lit_gpt.tools import overlap as command


def tuples(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def naive(examples: list[list[int]], streams: list[list[int]], n: int) -> list[float | None]:
    known = {gram for stream in streams for gram in tuples(stream, n)}
    grams = [tuples(example, n) for example in examples]
    return [sum(gram in known for gram in one) / len(one) if one else None for one in grams]


@pytest.mark.parametrize("vocabulary", [2, 5, 50_000])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_is_that_of_a_set_of_tuples(vocabulary, n, chunk):
    draw = random.Random(f"{vocabulary}/{n}")
    streams = [[draw.randrange(vocabulary) for _ in range(length)] for length in (400, 0, n, 90)]
    examples = [[draw.randrange(vocabulary) for _ in range(length)] for length in (0, n - 1, n, 30, 60)]
    examples += [streams[0][100:140], streams[0][380:] + streams[3][:20], streams[3][-n:] + [0, 0, 0]]
    arrays = [ArrayStream(np.array(stream, np.int64)) for stream in streams]
    found = overlap(examples, arrays, n, chunk=chunk)
    assert found.shares == pytest.approx(naive(examples, streams, n)) and found.tokens == 490 + n
    assert found.compared == [share for share in found.shares if share is not None]


def test_hashes_are_verified(monkeypatch):
    """With a hash that is the same for all that begins alike, the tokens behind still count."""
    plain = module._Grams._hash
    monkeypatch.setattr(module._Grams, "_hash", lambda self, tokens, places: plain(self, tokens, places) >> 60 << 60)
    draw = random.Random(0)
    examples = [[draw.randrange(9) for _ in range(3)] for _ in range(3)]
    stream = [draw.randrange(9) for _ in range(2000)]
    monkeypatch.setattr(module, "FILTER_BITS", 4)
    assert overlap(examples, [ArrayStream(np.array(stream))], 3).shares == naive(examples, [stream], 3)


def test_nothing_to_compare():
    found = overlap([[1, 2]], [ArrayStream(np.arange(50))], 13)
    assert found.shares == [None] and found.contaminated is None and found.mean is None
    assert overlap([], [ArrayStream(np.arange(50))], 13).shares == []


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("overlap"))


def test_texts_by_the_tool(data, tmp_path, capsys):
    seen = tiny_run.make_text(0) + tiny_run.make_text(1)  # at least one of two is in the training split
    texts = [{"id": "seen", "text": seen}, {"text": "Nobody ever wrote this line before."}, {"text": "short"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    output = tmp_path / "found.json"
    words = ["--train_data_dir", data, "--texts", tmp_path / "texts.jsonl", "--output", output]
    assert tool(command.main, *words) == 0
    found = json.loads(output.read_text())
    assert [row["id"] for row in found["by_example"]] == ["seen", "2", "3"]
    shares = [row["share"] for row in found["by_example"]]
    assert shares[0] > 0.5 and shares[1] == 0 and shares[2] is None
    assert found["n"] == 13 and found["contaminated"] == 0.5 and found["examples"] == 3 and found["compared"] == 2
    assert "50.0%" in capsys.readouterr().out


def test_validation_data_by_the_tool(data, tmp_path):
    """Against itself all is contaminated; against the training split, what a set of tuples says."""
    words = ["--val_data_dir", data, "--output", tmp_path / "found.json", "--n", 8]
    assert tool(command.main, "--train_data_dir", data, *words) == 0
    found = json.loads((tmp_path / "found.json").read_text())

    def tokens(prefix: str) -> list[list[int]]:
        paths = sorted(data.glob(f"{prefix}*.bin"))
        stream = packed.open_stream(paths, module_info())
        return [stream.read(0, stream.num_tokens).tolist()]

    documents, one = [], []
    for token in tokens("val")[0]:
        one.append(token)
        if token == 256:
            documents, one = [*documents, one[:-1]], []
    expected = naive([d for d in [*documents, one] if d], tokens("train"), 8)
    assert [row["share"] for row in found["by_example"]] == pytest.approx(expected)


def module_info():
    from lit_gpt.data.stream import StreamInfo

    return StreamInfo()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Give --texts FILE.jsonl or --val_data_dir DIR"),
        (["--texts", "t.jsonl", "--val_data_dir", "."], "not both"),
        (["--texts", "none.jsonl"], "none.jsonl cannot be read"),
        (["--texts", "bad.jsonl"], "line 2: this is no JSON"),
        (["--texts", "field.jsonl"], "line 1: text is missing"),
        (["--texts", "empty.jsonl"], "has no texts"),
        (["--texts", "t.jsonl", "--n", "0"], "--n"),
    ],
)
def test_one_sentence_says_what_is_wrong(data, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"text": "a"}')
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{')
    (tmp_path / "field.jsonl").write_text('{"question": "a"}')
    (tmp_path / "empty.jsonl").write_text("\n")
    assert tool(command.main, "--train_data_dir", data, *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1, error


def test_the_figure_stands_beside_the_score(trained, tmp_path, capsys):
    """Proof-Pile on the training data itself, and on tokens that are not there; Phonebook has names that are new."""
    shards = sorted((trained.parents[1] / "data").rglob("train*.bin"))
    stream = packed.open_stream(shards, module_info())
    tokens = stream.read(0, 400)
    figures = {}
    for name, ids in {"seen": tokens, "new": np.random.default_rng(0).integers(257, size=400)}.items():
        np.save(tmp_path / f"{name}.npy", ids)
        words = ["--data_path", tmp_path / f"{name}.npy", "--seq_length", 63, "--sliding_window", 64]
        figures[name] = judged(trained, tmp_path / name, "proofpile", stream_folder(shards), *words)
    assert figures["seen"]["contaminated"] == figures["seen"]["overlap"] == 1
    assert figures["new"]["contaminated"] == figures["new"]["overlap"] == 0
    assert "contaminated" in capsys.readouterr().out
    words = ["--min_eval_len", 3, "--max_eval_len", 3, "--eval_num_batches", 1, "--max_length", 900]
    book = judged(trained, tmp_path / "book", "phonebook", stream_folder(shards), *words)
    assert 0 <= book["overlap"] <= book["contaminated"] <= 1 and "acc@3" in book


def stream_folder(shards):
    return shards[0].parent


def judged(trained, output, task, data, *words):
    line = ["--checkpoint_path", trained, "--output_dir", output, "--decontaminate", data, *words]
    assert tool(lambda argv: evaluate.judge(task, argv), *line) == 0
    (path,) = output.glob("*.json")
    found = json.loads(path.read_text())
    assert found["settings"]["decontaminate"] == str(data)
    return {name: metric["value"] for name, metric in found["metrics"].items()}


def test_data_of_another_tokenizer_is_refused(trained, data, tmp_path, capsys):
    line = ["--checkpoint_path", trained, "--output_dir", tmp_path, "--decontaminate", data]
    assert tool(lambda argv: evaluate.judge("phonebook", argv), *line) == 2
    assert "has tokens of 'bytes'" in capsys.readouterr().err
