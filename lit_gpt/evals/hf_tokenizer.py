"""A model's tokenizer in the files that transformers' AutoTokenizer reads, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from lit_gpt.config.model import ModelConfig
from lit_gpt.data.kept_tokenizer import FILES, KeptTokenizer
from lit_gpt.data.tokenizer import ByteTokenizer
from lit_gpt.errors import UserError
from lit_gpt.utils.files import read_object_if_any

JSON, CONFIG, SPECIAL = FILES[:3]
END_OF_BYTES = "<|endoftext|>"


def write_tokenizer(kept: KeptTokenizer, config: ModelConfig, folder: Path) -> dict[str, int | None]:
    """Write the tokenizer's files into a folder; the bos, eos and pad ids for config.json, None where there is none.

    A text encodes as the model's data did: BOS in front where documents had it, and nothing else. Raises UserError
    when the model has fewer tokens than the tokenizer.
    """
    tokenizer = _byte_level() if kept.kind == "bytes" else _load(kept)
    known = tokenizer.get_vocab(with_added_tokens=True)
    ids = {"bos_token_id": kept.bos_id, "eos_token_id": kept.load().eos_id}
    if max(known.values()) >= config.vocab_size:
        raise UserError(
            f"The tokenizer {kept.name!r} has ids up to {max(known.values())}, but the model knows {config.vocab_size} "
            "tokens. Give the --tokenizer that it was trained with."
        )
    if strange := [f"{key} {i}" for key, i in ids.items() if i is not None and tokenizer.id_to_token(i) is None]:
        raise UserError(
            f"The tokenizer {kept.name!r} has no token for {' and '.join(strange)}. Give another --tokenizer."
        )
    for path in [] if kept.kind == "bytes" else [Path(kept.source) / name for name in FILES]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if not (folder / JSON).exists() or not _frames(tokenizer, kept.bos_id):
        _frame(tokenizer, kept.bos_id)
        (folder / JSON).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # save() raises no OSError
    settings = {**read_object_if_any(folder / SPECIAL), **read_object_if_any(folder / CONFIG)}
    settings |= {key.removesuffix("_id"): tokenizer.id_to_token(i) for key, i in ids.items() if i is not None}
    # This class reads tokenizer.json as it is; those of single models (LlamaTokenizer) change it as they load.
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": kept.bos_id is not None}
    settings |= {"add_eos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": config.block_size}
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    return ids | {"pad_token_id": known.get(_text(settings, "pad_token"))}


def read_tokenizer(folder: Path, config: dict[str, Any]) -> KeptTokenizer | None:
    """What a folder's files say; None where there is no tokenizer.json. config: of config.json, for the EOS.

    Raises UserError for a tokenizer that cannot be read, and for an EOS that the vocabulary has not.
    """
    if not (folder / JSON).is_file():
        return None
    kept = KeptTokenizer("json", folder.name, str(folder.resolve()))
    first = [i for i in _load(kept).encode("").ids if i == config.get("bos_token_id")][:1]
    eos = config.get("eos_token_id")
    eos_id = (eos or [None])[0] if isinstance(eos, list) else eos
    if isinstance(eos_id, int) and eos_id >= config["vocab_size"]:
        raise UserError(
            f"{folder} has the eos_token_id {eos_id}, but {config['vocab_size']} tokens. Correct config.json."
        )
    return KeptTokenizer(kept.kind, kept.name, kept.source, eos_id, first[0] if first else None)


def _load(kept: KeptTokenizer) -> Tokenizer:
    kept.load()  # says in one sentence what is wrong
    path = Path(kept.source)
    tokenizer = Tokenizer.from_file(str(path / JSON if path.is_dir() else path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _frames(tokenizer: Tokenizer, bos_id: int | None) -> bool:
    """Whether it puts BOS, or nothing where that is None, around a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    return tokenizer.encode("a").ids == ([] if bos_id is None else [bos_id]) + bare


def _frame(tokenizer: Tokenizer, bos_id: int | None) -> None:
    """Make it put BOS, or nothing where that is None, around a text."""
    bos = [] if bos_id is None else [(tokenizer.id_to_token(bos_id), bos_id)]
    before = "".join(f"{token} " for token, _ in bos)
    template = TemplateProcessing(single=f"{before}$A", pair=f"{before}$A $B", special_tokens=bos)
    tokenizer.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]


def _byte_level() -> Tokenizer:
    """ByteTokenizer as a byte-level BPE without merges: id b is byte b, and 256 ends a document."""
    vocabulary = {character: byte for byte, character in enumerate(_gpt2_characters())}
    tokenizer = Tokenizer(tokenizers.models.BPE(vocabulary, []))
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = level  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = tokenizers.decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([END_OF_BYTES])
    assert tokenizer.token_to_id(END_OF_BYTES) == ByteTokenizer.eos_id
    return tokenizer


def _gpt2_characters() -> list[str]:
    """The character that stands for each byte in byte-level BPE.

    A printable Latin-1 character is itself, the others are U+0100 and up in order (GPT-2's encoder.py).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _text(settings: dict[str, Any], key: str) -> str:
    """A special token's text: a string, or an object with its content."""
    value = settings.get(key)
    return str(value.get("content") if isinstance(value, dict) else value)
