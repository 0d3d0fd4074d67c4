"""Tokenizers: bytes, trained BPE, and which token ends a document."""

from __future__ import annotations

import json

import pytest

from lit_gpt.data.tokenizer import load_tokenizer, train_bpe
from lit_gpt.errors import UserError

TEXTS = ["def f(x):\n    return x\n", "caf\u00e9 \U0001f600 <|endoftext|> \t\r\n", "a" * 300, " lead and trail "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe")
    train_bpe(iter(TEXTS * 5), 300, path / "tokenizer.json")
    return path


def test_bytes():
    t = load_tokenizer("bytes")
    assert (t.vocab_size, t.eos_id) == (257, 256)
    for text in TEXTS:
        assert t.encode(text) == list(text.encode())
        assert t.decode([*t.encode(text), 256]) == text


def test_bpe_is_lossless_and_eos_is_not_injected_by_text(folder):
    t = load_tokenizer(str(folder))
    assert t.eos_id == 0 and t.vocab_size <= 300
    assert t.encode_batch(TEXTS) == [t.encode(text) for text in TEXTS]
    for text in TEXTS:
        assert t.decode(t.encode(text)) == text
        assert 0 not in t.encode(text)
    assert 0 in load_tokenizer(str(folder), parse_special=True).encode(TEXTS[1])


def test_bpe_training_is_deterministic(folder, tmp_path):
    train_bpe(iter(TEXTS * 5), 300, tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_eos_asked_configured_or_known(folder, tmp_path):
    spec = json.loads((folder / "tokenizer.json").read_text())
    for i, name in ((300, "<|mine|>"), (301, "</s>")):
        token = {"id": i, "content": name, "special": True, "single_word": False, "lstrip": False}
        spec["added_tokens"].append({**token, "rstrip": False, "normalized": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    path = str(tmp_path / "tokenizer.json")
    mine = load_tokenizer(path, eos_token="<|mine|>")
    top = mine.vocab_size - 1
    assert (mine.eos_id, load_tokenizer(path).eos_id) == (top - 1, top)
    (tmp_path / "out").mkdir()
    mine.save(tmp_path / "out")
    assert load_tokenizer(str(tmp_path / "out")).eos_id == top - 1
    with pytest.raises(UserError, match="no token '<nope>'"):
        load_tokenizer(path, eos_token="<nope>")


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="No tokenizer at"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="Cannot read the tokenizer"):
        load_tokenizer(str(tmp_path))
