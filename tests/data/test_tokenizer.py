"""Tokenizers: bytes, trained BPE, and which token ends a document."""

from __future__ import annotations

import json

import pytest
import tokenizers

from lit_gpt.data import open_corpus
from lit_gpt.data.prepare import prepare
from lit_gpt.data.prepare.summary import summary
from lit_gpt.data.tokenizer import load_tokenizer, make_char, train_bpe
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


@pytest.mark.parametrize("run", ["ACGT" * 100_000, " " * 400_000])
def test_a_bpe_is_trained_on_a_line_of_many_letters(tmp_path, run):
    """The library's time grows with the square of a word's length: a line of a million letters took hours."""
    train_bpe(iter([run, *TEXTS]), 300, tmp_path / "tokenizer.json")
    t = load_tokenizer(str(tmp_path))
    assert t.decode(t.encode(run)) == run and len(t.encode(run)) < len(run) / 4


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
    with pytest.raises(UserError, match=r"Cannot read the tokenizer .* Give one of the tokenizers library\."):
        load_tokenizer(str(tmp_path))


def test_characters(tmp_path):
    """The smallest experiments of the field are on characters, and there was no such tokenizer."""
    make_char(iter(TEXTS), tmp_path / "tokenizer.json")
    t = load_tokenizer(str(tmp_path))
    table = {c: i for i, c in enumerate(sorted(set("".join(TEXTS))))}
    assert (t.eos_id, t.unk_id, t.vocab_size) == (len(table), len(table) + 1, len(table) + 2)
    for text in TEXTS:
        assert t.encode(text) == [table[c] for c in text]
        assert t.decode(t.encode(text)) == text
    assert t.encode("a\u4e00\u4e01a") == [table["a"], t.unk_id, t.unk_id, table["a"]]


def test_prepared_with_characters_and_used_again(tmp_path):
    """The table lies beside the data; later text with other characters gets the unknown token, and a count."""
    (tmp_path / "a.txt").write_text("abba\ncab")
    options = {"progress": False, "num_workers": 1, "validation_fraction": 0}
    meta = prepare(str(tmp_path / "a.txt"), str(tmp_path / "out"), "char", **options)
    assert (meta["vocab_size"], meta["eos_id"], meta["left_out"]) == (6, 4, {})
    corpus = open_corpus(str(tmp_path / "out"), "train", 1, 0)
    assert corpus.sources[0].stream.read(0, 9).tolist() == [1, 2, 2, 1, 0, 3, 1, 2, 4]
    assert load_tokenizer(str(tmp_path / "out")).decode([1, 2, 2, 1, 0, 3]) == "abba\nc"

    (tmp_path / "b.txt").write_text("a cab!")
    meta = prepare(str(tmp_path / "b.txt"), str(tmp_path / "more"), str(tmp_path / "out"), **options)
    read = open_corpus(str(tmp_path / "more"), "train", 1, 0).sources[0].stream.read(0, 7)
    assert read.tolist() == [1, 5, 3, 1, 2, 5, 4]
    assert meta["left_out"] == {"characters": {"not in the tokenizer": {"count": 2, "examples": ["b.txt"]}}}
    with pytest.raises(UserError, match=r"b.txt: not in the tokenizer.*--strict"):
        prepare(str(tmp_path / "b.txt"), str(tmp_path / "no"), str(tmp_path / "out"), strict=True, **options)


def test_a_name_in_the_local_hugging_face_cache(folder, tmp_path, monkeypatch):
    """The name of a tokenizer that lay in the cache was "No tokenizer at"."""
    import huggingface_hub.file_download as hub

    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--model"
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc/tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    cached = load_tokenizer("some/model")
    assert cached.name == "some/model" and cached.encode("def f") == load_tokenizer(str(folder)).encode("def f")
    (tmp_path / "a.txt").write_text("def f " * 20)
    meta = prepare(str(tmp_path / "a.txt"), str(tmp_path / "out"), "some/model", progress=False, num_workers=1)
    assert meta["vocab_size"] == cached.vocab_size
    with pytest.raises(UserError, match=r"hf download other/model tokenizer.json"):
        load_tokenizer("other/model")


@pytest.mark.parametrize("content", ["[]", '"bytes"', "null", '{"tokenizer": "bytes"}', '{"tokenizer": null}', "{"])
def test_side_files_of_odd_types_are_one_sentence(folder, tmp_path, content):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(UserError, match=r"No tokenizer at|meta.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(content)
    if not content.startswith('{"'):
        with pytest.raises(UserError, match=r"tokenizer_config.json"):
            load_tokenizer(str(tmp_path))


def test_a_vocabulary_without_a_token_for_other_words(tmp_path):
    """The library's error is a bare Exception, which was a traceback."""
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<unk>")).save(
        str(tmp_path / "tokenizer.json")
    )
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("a") == [0]
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(UserError, match=r"cannot read a text \(.*Missing \[UNK\] token.*\). Give another one"):
            encode("b")


def test_the_name_of_an_end_that_is_not_marked_special(tmp_path):
    """A file may call its EOS an ordinary added token, and the letters of its name in a text ended a document."""
    letters = {c: i for i, c in enumerate("</>abs")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[], unk_token=None))
    tokenizer.add_tokens(["</s>", "<a>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).encode("a</s>b<a>") == [3, 0, 1, 5, 2, 4, 7]
    assert load_tokenizer(str(tmp_path), parse_special=True).encode("a</s>b") == [3, 6, 4]
    load_tokenizer(str(tmp_path)).save(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert (again.eos_id, again.vocab_size) == (6, 8)


def test_characters_that_a_bpe_has_no_token_for_are_counted(tmp_path):
    """The library passes over them without a word where there is no unknown token."""
    source, options = tmp_path / "a.txt", {"progress": False, "num_workers": 1, "validation_fraction": 0}
    source.write_text("abba caf\u00e9 \u00e9b")
    plain = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate("abcf")}, merges=[]))
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate("abcf\u0120\u00c3")}, merges=[])
    )
    letters.pre_tokenizer, letters.decoder = level, tokenizers.decoders.ByteLevel()
    for name, made in (("plain", plain), ("letters", letters)):
        made.add_special_tokens(["</s>"])
        (tmp_path / name).mkdir()
        made.save(str(tmp_path / name / "tokenizer.json"))
        meta = prepare(str(source), str(tmp_path / f"{name}_out"), str(tmp_path / name), **options)
        reason = "not in the tokenizer, which has no unknown token"
        assert meta["left_out"] == {"dropped": {reason: {"count": 2, "examples": ["a.txt"]}}}
        assert f"2 characters left out: {reason} (a.txt)" in summary(meta)
    train_bpe(iter(TEXTS), 300, tmp_path / "tokenizer.json")
    assert load_tokenizer(str(tmp_path)).dropped("\u00e9\ufffd\U0010fffd") == 0
