"""Tokenizers: UTF-8 bytes, or any Hugging Face tokenizer.json, also one of characters. A spec string names one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import tokenizers

from lit_gpt.data.meta import write_json
from lit_gpt.errors import UserError
from lit_gpt.utils.files import read_object, write_text

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
EOS, UNKNOWN = "<|endoftext|>", "<|unk|>"  # of the tokenizers that are made here
EOS_NAMES = ("</s>", EOS, "<|end_of_text|>", "<eos>", "<|eos|>", "<|im_end|>", "[EOS]")
# The library trains in the square of a word's length, and a line of three million letters took hours. Runs are cut only
# where that matters, so that the tokenizer of ordinary text (lines of base64 among it) stays what it was.
LONG_RUN = re.compile(r"\S{20000}|\s{20000}")
BAD = "\ufffd"
BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "<|bos|>", "[BOS]")


class Tokenizer(Protocol):
    """Text to token ids and back. encode adds no EOS and no BOS; unk_id stands for what has no token."""

    name: str
    vocab_size: int
    eos_id: int | None
    bos_id: int | None
    unk_id: int | None

    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Sequence[str]) -> Sequence[Sequence[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def dropped(self, text: str) -> int:
        """How many characters of the text have no token."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder, from which load_tokenizer reads them."""


class ByteTokenizer:
    """Ids 0..255 are the bytes of UTF-8 text; 256 ends a document."""

    name = "bytes"
    vocab_size = 257
    eos_id: int | None = 256
    bos_id: int | None = None
    unk_id: int | None = None

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of the text."""
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[bytes]:
        """One sequence of ids per text, as bytes."""
        return [text.encode() for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text; EOS reads as nothing, bytes that are not UTF-8 as U+FFFD."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def dropped(self, text: str) -> int:
        """None: every character has its bytes."""
        return 0

    def save(self, folder: Path) -> None:
        """Writes nothing, since meta.json names this tokenizer."""


class JsonTokenizer:
    """A tokenizer.json. vocab_size is the largest id + 1, added tokens included.

    parse_special: read "<|endoftext|>" inside a text as the special token rather than as its
    characters. Off by default, so that only real ends of documents become EOS.
    name: for messages and meta.json; by default the folder's.
    """

    def __init__(self, path: Path, eos_token: str | None = None, parse_special: bool = False, name: str = ""):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises bare Exception for everything
            why = str(e).rstrip(".")
            raise UserError(f"Cannot read the tokenizer {path}: {why}. Give one of the tokenizers library.") from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = not parse_special
        self.name = name or path.parent.name
        self._vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._vocab.values()) + 1
        config = _tokenizer_config(path.parent)
        self.eos_id = self._special(eos_token, config.get("eos_token"), EOS_NAMES)
        self.bos_id = self._special(None, config.get("bos_token"), BOS_NAMES)
        self._mark_special()
        unknown = getattr(self._tokenizer.model, "unk_token", None)  # the library does not tell it of a Unigram
        self.unk_id = self._vocab.get(unknown) if unknown else None
        # Other models have an unknown token, or raise; a BPE that keeps this character keeps every one, byte by byte.
        bpe = isinstance(self._tokenizer.model, tokenizers.models.BPE)
        self._drops = bpe and self.unk_id is None and not self._keeps("\U0010fffd")
        self._kept: dict[str, bool] = {}

    def _special(self, asked: str | None, configured: object, names: Sequence[str]) -> int | None:
        if asked is not None and asked not in self._vocab:
            raise UserError(f"The tokenizer {self.name!r} has no token {asked!r}; name one that it has.")
        configured = configured.get("content") if isinstance(configured, dict) else configured
        tried = (asked, configured, *names)
        return next((self._vocab[n] for n in tried if isinstance(n, str) and n in self._vocab), None)

    def _mark_special(self) -> None:
        """EOS and BOS are special whatever the file says of them, so that their names inside a text are characters."""
        for i, token in self._tokenizer.get_added_tokens_decoder().items():
            if i in (self.eos_id, self.bos_id) and not token.special:
                token.special = True
                self._tokenizer.add_special_tokens([token])

    def dropped(self, text: str) -> int:
        """How many characters of a text have no token, not even an unknown one; the library passes over them.

        Spaces do not count, which a tokenizer may leave out on purpose.
        """
        characters = set(text) if self._drops else set[str]()
        for c in characters - self._kept.keys():
            self._kept[c] = c.isspace() or self._keeps(c)
        return sum(text.count(c) for c in characters if not self._kept[c])

    def _keeps(self, character: str) -> bool:
        """Whether a character has tokens, and of its bytes none is missing."""
        return bool(ids := self.encode(character)) and (character == BAD or BAD not in self.decode(ids))

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, no special tokens added. Raises UserError for text that has none."""
        with self._told():
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids per text; runs on all cores unless TOKENIZERS_PARALLELISM=false."""
        with self._told():
            return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The library raises bare Exception, as for a vocabulary of words without a token for an unknown one."""
        try:
            yield
        except UnicodeError:  # text that is none, of which the caller knows where it is from
            raise
        except Exception as e:
            raise UserError(f"The tokenizer {self.name!r} cannot read a text ({e}). Give another one.") from e

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; special tokens appear as they are written, such as <|endoftext|>."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, and tokenizer_config.json with the EOS and BOS in use, into the folder."""
        write_text(folder / TOKENIZER_FILES[0], self._tokenizer.to_str(pretty=True))
        named = {"eos_token": self.eos_id, "bos_token": self.bos_id}
        config = {k: self._tokenizer.id_to_token(i) for k, i in named.items() if i is not None}
        write_json(folder / TOKENIZER_FILES[1], config)


def _tokenizer_config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.exists() else {}


def find_tokenizer(spec: str) -> Path | None:
    """The tokenizer.json that a spec names: the file, one in the folder, or a repository's in the local
    Hugging Face cache (HF_HUB_CACHE, else HF_HOME/hub). Nothing is downloaded. None when there is none."""
    path = Path(spec).expanduser()
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    if path.is_file() and path.suffix == ".json":
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError):
        cached = try_to_load_from_cache(spec, "tokenizer.json")
        return Path(cached) if isinstance(cached, str) else None
    return None


def load_tokenizer(spec: str, eos_token: str | None = None, parse_special: bool = False) -> Tokenizer:
    """The tokenizer a spec names: "bytes", a tokenizer.json, a folder with one, or a name in the Hugging Face cache.

    A folder may also be a prepared data set whose meta.json says "bytes".
    eos_token: which token ends a document; by default the one tokenizer_config.json names, else
    the first of EOS_NAMES in the vocabulary. Raises UserError when there is no such tokenizer.
    """
    if spec == "bytes":
        return _bytes(eos_token)
    if path := find_tokenizer(spec):
        return JsonTokenizer(path, eos_token, parse_special, "" if Path(spec).exists() else spec)
    meta = Path(spec).expanduser() / "meta.json"
    if meta.is_file():
        tokenizer = read_object(meta).get("tokenizer")
        if isinstance(tokenizer, dict) and tokenizer.get("kind") == "bytes":
            return _bytes(eos_token)
    raise UserError(
        f'No tokenizer at {spec!r}. Give "bytes", the path of a tokenizer.json, a folder that holds one, a folder '
        "written by scripts/prepare_text.py, or a name that is in the local Hugging Face cache: to put one there, "
        f"type hf download {spec if '/' in spec else 'NAME'} tokenizer.json tokenizer_config.json"
    )


def _bytes(eos_token: str | None) -> ByteTokenizer:
    if eos_token is not None:
        raise UserError(f"The tokenizer 'bytes' has no token {eos_token!r}: id 256 ends a document. Drop --eos_token.")
    return ByteTokenizer()


def make_char(texts: Iterable[str], path: Path) -> None:
    """Write the tokenizer.json whose tokens are the characters of the texts, in the order of their code points.

    After them come "<|endoftext|>", the EOS, and "<|unk|>", which stands for any other character.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    names = [*sorted(characters), EOS, UNKNOWN]
    vocab = {name: i for i, name in enumerate(names)}
    # A BPE without merges leaves every character alone, four times as fast as splitting into words of one.
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN))
    model.decoder = tokenizers.decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    model.add_special_tokens([EOS, UNKNOWN])
    write_text(path, model.to_str(pretty=True))


def _cut(text: str) -> Iterator[str]:
    """The text in parts, so that no word or run of spaces is much longer than LONG_RUN."""
    ends = [0, *(run.end() for run in LONG_RUN.finditer(text)), len(text)]
    return (text[a:b] for a, b in pairwise(ends))


def train_bpe(texts: Iterator[str], vocab_size: int, path: Path, progress: bool = False) -> None:
    """Train a byte-level BPE on texts and write it to `path`, a tokenizer.json. progress: bars, on a terminal.

    Lossless: every text decodes to itself. Id 0 is "<|endoftext|>", the EOS.
    Source: the GPT-2 tokenizer's scheme, by the `tokenizers` library.
    """
    pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = pre  # pyright: ignore[reportAttributeAccessIssue]
    model.decoder = tokenizers.decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,  # pyright: ignore[reportCallIssue]
        special_tokens=[EOS],  # pyright: ignore[reportCallIssue]
        initial_alphabet=pre.alphabet(),  # pyright: ignore[reportCallIssue]
        show_progress=progress,  # pyright: ignore[reportCallIssue]
    )
    model.train_from_iterator((part for text in texts for part in _cut(text)), trainer)
    write_text(path, model.to_str(pretty=True))
