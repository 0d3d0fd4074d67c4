"""Which tokenizer made a run's data: a description that checkpoints hold, and a copy of its files in the run folder.

So a model finds its tokenizer from any working directory, and after the data has moved.

    <run>/tokenizer/meta.json   which kind, the token that ends a document, and the one that starts it
    <run>/tokenizer/...         FILES, as far as the data has them
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.data.meta import NAME, VERSION, read_meta, write_json
from lit_gpt.data.mixture import load_mixture, source_names
from lit_gpt.data.remote import fetch, is_remote, local_path
from lit_gpt.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.utils.files import replacing

FOLDER = "tokenizer"  # in a run folder
# What transformers keeps a tokenizer in; tokenizer.json alone is enough to use it.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class KeptTokenizer:
    """How text became the tokens that a model was trained on.

    kind: "bytes", or "json" for a tokenizer.json. source: absolute path of the folder that has it.
    eos_id: ends each document, None where it is the tokenizer's own. bos_id: stands before each document, None where
    nothing does.
    """

    kind: str
    name: str
    source: str
    eos_id: int | None = None
    bos_id: int | None = None

    def __post_init__(self) -> None:
        ids = (self.eos_id, self.bos_id)
        whole = all(i is None or (type(i) is int and 0 <= i < 1 << 63) for i in ids)
        if not whole or not all(isinstance(text, str) for text in (self.kind, self.name, self.source)):
            raise UserError(f"The tokenizer {self.name!r} is described by {self}: ids are whole numbers or null.")

    def load(self) -> Tokenizer:
        """The tokenizer itself. Raises UserError where its files are gone."""
        tokenizer = ByteTokenizer() if self.kind == "bytes" else load_tokenizer(self.source)
        tokenizer.eos_id = tokenizer.eos_id if self.eos_id is None else self.eos_id
        return tokenizer

    @property
    def present(self) -> bool:
        """Whether its files are where they were."""
        return self.kind == "bytes" or any(p.is_file() for p in (Path(self.source), Path(self.source) / FILES[0]))


def describe_tokenizer(data_dir: str, mixture: str | None = None, eos_id: int | None = None) -> KeptTokenizer | None:
    """What a data folder, or the first source of a mixture in it, says about its tokenizer; None where nothing does.

    eos_id: overrides what the data says, as --eos_token_id does.
    """
    root = fetch(data_dir) if is_remote(data_dir) else local_path(data_dir)
    if not root.is_dir():
        return None
    if not any(root.rglob("*.bin")):  # plain text is tokenised as bytes
        end = ByteTokenizer.eos_id if eos_id is None else eos_id
        return KeptTokenizer("bytes", ByteTokenizer.name, str(root.resolve()), end)
    names = source_names(load_mixture(mixture)) if mixture else ["train"]
    # A source of a mixture is a folder, or a prefix in one.
    folders = [root, *(folder for name in names for folder in (root / name, (root / name).parent))]
    return next((kept for kept in (read_kept(folder, eos_id) for folder in folders) if kept), None)


def read_kept(folder: Path, eos_id: int | None = None) -> KeptTokenizer | None:
    """What a folder's meta.json or tokenizer.json says; None without either. eos_id: overrides it."""
    source, meta = str(folder.resolve()), read_meta(folder)
    if meta is not None:
        kind, name = (str(meta.get("tokenizer", {}).get(key, "json")) for key in ("kind", "name"))
        return KeptTokenizer(kind, name, source, meta.get("eos_id") if eos_id is None else eos_id, meta.get("bos_id"))
    return KeptTokenizer("json", folder.name, source, eos_id) if (folder / "tokenizer.json").is_file() else None


def keep_tokenizer(kept: KeptTokenizer, run_folder: Path) -> KeptTokenizer:
    """Copy it into the run folder; the description of the copy."""
    folder = run_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (path := Path(kept.source) / name).is_file():
            with replacing(folder / name) as temporary:
                shutil.copyfile(path, temporary)
    described: dict[str, Any] = {"kind": kept.kind, "name": kept.name}
    ends = {"eos_id": kept.eos_id, "bos_id": kept.bos_id, "source": kept.source}
    write_json(folder / NAME, {"version": VERSION, "tokenizer": described, **ends})
    return KeptTokenizer(kept.kind, kept.name, str(folder.resolve()), kept.eos_id, kept.bos_id)


def given_tokenizer(spec: str) -> KeptTokenizer:
    """The tokenizer of an option: "bytes", a tokenizer.json, or a folder, which may say how data was made with it.

    Raises UserError when there is none.
    """
    tokenizer, path = load_tokenizer(spec), Path(spec)
    if path.is_dir() and (known := read_kept(path)):
        return known
    kind = "bytes" if isinstance(tokenizer, ByteTokenizer) else "json"
    return KeptTokenizer(kind, tokenizer.name, str(path.resolve()))


def tokenizer_from(meta: dict[str, Any]) -> KeptTokenizer | None:
    """What the meta of a checkpoint says; older ones say nothing, which is None.

    Raises UserError for a description of a later version.
    """
    try:
        return KeptTokenizer(**meta["tokenizer"]) if meta.get("tokenizer") else None
    except TypeError as error:
        raise UserError(
            f"The checkpoint's tokenizer is described in a way this version does not know ({error})."
        ) from error
