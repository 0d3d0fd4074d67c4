"""A folder of any class has the tokenizer that its model was trained with: some classes have one of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from hf_models import EVERY, MODELS, model_of, small
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.data.tokenizer import train_bpe
from lit_gpt.tools._hf import read_hf, write_hf

TEXT = "Za\u017c\u00f3\u0142\u0107, \u4f60\u597d!  Two  spaces\n\tand a tab. it's I'LL 12345 3.14"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> KeptTokenizer:
    """A byte-level BPE with <s> in front of a text and </s> at its end."""
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe(iter([TEXT * 3, "the cat sat on the mat. " * 50]), 300, path)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[start])
    tokenizer.save(str(path))
    ids = tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<s>")
    return KeptTokenizer("json", "mine", str(path.parent), *ids)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["bytes", "json"])
def test_the_tokenizer_travels(kind, name, bpe, tmp_path):
    """transformers mends or replaces the tokenizers of some classes as it loads them; it must leave ours alone."""
    kept = bpe if kind == "json" else KeptTokenizer("bytes", "bytes", "", 256)
    config = small(vocab_size=512, **MODELS[name])
    folder: Path = write_hf(model_of(config, EVERY).state_dict(), config, EVERY, tmp_path / "hf", kept)
    theirs, ours = AutoTokenizer.from_pretrained(folder, local_files_only=True), kept.load()
    assert theirs(TEXT).input_ids == ([] if kept.bos_id is None else [kept.bos_id]) + ours.encode(TEXT)
    assert theirs.decode(ours.encode(TEXT)) == TEXT
    found = AutoConfig.from_pretrained(folder, local_files_only=True)
    generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    assert found.model_type == name
    assert found.eos_token_id == generation.eos_token_id == theirs.eos_token_id == ours.eos_id
    assert found.bos_token_id == generation.bos_token_id == theirs.bos_token_id == kept.bos_id
    again = KeptTokenizer(**read_hf(folder)[1]["tokenizer"])
    assert (again.eos_id, again.bos_id, again.load().encode(TEXT)) == (ours.eos_id, kept.bos_id, ours.encode(TEXT))


def test_a_class_that_changes_tokenizers_is_written_only_where_it_is_named(bpe, tmp_path, capsys):
    """AutoTokenizer of transformers 5 splits texts as Qwen2 does, whatever the folder says."""
    config = small(vocab_size=512)
    weights = model_of(config, EVERY).state_dict()
    folder = write_hf(weights, config, EVERY, tmp_path / "hf", bpe, hf_class="qwen2")
    assert "load it with PreTrainedTokenizerFast" in capsys.readouterr().err
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    assert theirs(TEXT).input_ids == [bpe.bos_id, *bpe.load().encode(TEXT)]
    write_hf(weights, config, EVERY, tmp_path / "without", hf_class="qwen2")
    assert not capsys.readouterr().err


def test_a_large_tokenizer_of_a_mistral_is_not_called_wrong(bpe, tmp_path, caplog):
    """transformers takes one of more than 100,000 tokens for Mistral AI's own, which was, and offers to change it."""
    tokenizer = json.loads((Path(bpe.source) / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"<s>": bpe.bos_id, "</s>": bpe.eos_id}
    tokenizer["model"]["vocab"] |= {f"word{i}": bpe.eos_id + 1 + i for i in range(100_000)}
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "tokenizer.json").write_text(json.dumps(tokenizer))
    large = replace(bpe, source=str(tmp_path / "large"))
    config = small(vocab_size=100_400, **MODELS["mistral"])
    folder = write_hf(model_of(config, EVERY).state_dict(), config, EVERY, tmp_path / "hf", large)
    logging.enable_propagation()
    try:
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    finally:
        logging.disable_propagation()
    assert "incorrect" not in caplog.text
    assert theirs(TEXT).input_ids == [bpe.bos_id, *large.load().encode(TEXT)]


def test_without_a_tokenizer_no_class_has_ids_of_its_own(tmp_path):
    """Mistral's are 1 and 2 by default: a text would end at token 2."""
    for name, fields in MODELS.items():
        config = small(**fields)
        folder = write_hf(model_of(config, EVERY).state_dict(), config, EVERY, tmp_path / name)
        found = AutoConfig.from_pretrained(folder, local_files_only=True)
        assert found.eos_token_id is None and found.bos_token_id is None
