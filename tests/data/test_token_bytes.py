"""Bytes per token against the bytes of the texts that were tokenised, document by document."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lit_gpt.data.origin import agree
from lit_gpt.data.stream import StreamInfo
from lit_gpt.data.token_bytes import token_bytes
from lit_gpt.ops.loss import IGNORE

DOCUMENTS = [
    "plain words, and some more words, and words again",
    "caf\u00e9, \u03b4\u03ad\u03bb\u03c4\u03b1 and \U0001f600 \U0001f600",
    "  spaces   in front,\n\n lines\tand tabs  ",
    "x",
    "\u4e2d\u6587\u4e0d\u5e26\u7a7a\u683c",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def byte_level(prefix: bool) -> Tokenizer:
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(
        DOCUMENTS[:1], trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return t


def llama() -> Tokenizer:
    """Llama 2's scheme: a space in front, spaces as letters, bytes for characters that have no token."""
    hexes = [f"<0x{i:02X}>" for i in range(256)]
    t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[*SPECIAL, *hexes], limit_alphabet=20)
    t.train_from_iterator(DOCUMENTS[:1], trainer)
    state = json.loads(t.to_str())
    state["added_tokens"] = [a for a in state["added_tokens"] if a["content"] not in hexes]
    t = Tokenizer.from_str(json.dumps(state))
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    t.decoder = decoders.Sequence(parts)
    return t


def characters() -> Tokenizer:
    names = [*SPECIAL, *sorted(set("".join(DOCUMENTS)))]
    t = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[], unk_token="<unk>"))
    t.decoder = decoders.Fuse()
    t.add_special_tokens(SPECIAL)
    return t


def unigram() -> Tokenizer:
    t = Tokenizer(models.Unigram())
    t.pre_tokenizer, t.decoder = pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace()
    t.train_from_iterator(DOCUMENTS, trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>"))
    return t


def word_piece() -> Tokenizer:
    t = Tokenizer(models.WordPiece(unk_token="<unk>"))
    t.pre_tokenizer, t.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    t.train_from_iterator(DOCUMENTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL))
    return t


def prepared(folder, tokenizer: Tokenizer) -> StreamInfo:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "meta.json").write_text('{"tokenizer": {"kind": "json", "name": "t"}, "bos_id": 1}')
    return StreamInfo(eos_id=2, made_with=str(folder))


@pytest.mark.parametrize(
    ("make", "documents"),
    [
        (lambda: byte_level(False), DOCUMENTS),
        (lambda: byte_level(True), [d for d in DOCUMENTS if d[0] != " "]),
        (llama, DOCUMENTS),
        (characters, DOCUMENTS),
        (unigram, [d for d in DOCUMENTS if d[0] != " "]),
    ],
)
@pytest.mark.parametrize("bos", [[], [1]])
def test_a_document_has_as_many_bytes_as_its_text(tmp_path, make, documents, bos):
    """val_bpb went by the average bytes per token of the whole corpus."""
    tokenizer = make()
    table = token_bytes(prepared(tmp_path, tokenizer))
    assert table is not None
    for document in documents:
        ids = np.array([2, *bos, *tokenizer.encode(document, add_special_tokens=False).ids, 2, IGNORE])
        counts = table.of(ids[:-1], ids[1:])
        assert counts.sum() == len(document.encode()), tokenizer.encode(document).tokens
        assert (counts[:-2] >= 0).all() and counts[-2:].tolist() == [0, 0]


def test_bytes():
    table = token_bytes(StreamInfo(eos_id=256, made_with="bytes"))
    assert table is not None
    ids = np.array([[256, *"\u00e9t\u00e9".encode(), 256, IGNORE]])
    assert table.of(ids[:, :-1], ids[:, 1:]).tolist() == [[1, 1, 1, 1, 1, 0, 0]]


def test_no_number_where_bytes_are_not_known(tmp_path):
    """Without a tokenizer, for one that changes the text, and for windows with an unknown or foreign token."""
    assert token_bytes(StreamInfo()) is None
    assert token_bytes(prepared(tmp_path, word_piece())) is None
    lower = byte_level(False)
    lower.normalizer = normalizers.NFKC()
    assert token_bytes(prepared(tmp_path, lower)) is None
    info = prepared(tmp_path, characters())
    table = token_bytes(info)
    assert table is not None
    known, unknown, foreign = np.array([9, 5, 7]), np.array([9, 0, 7]), np.array([9, 5000, 7])
    assert np.isfinite(table.of(known, known).sum())
    assert np.isnan(table.of(known, unknown).sum()) and np.isnan(table.of(known, foreign).sum())
    (tmp_path / "tokenizer.json").unlink()
    assert token_bytes(info) is None
    assert agree([("a", info), ("b", StreamInfo())]).made_with is None
