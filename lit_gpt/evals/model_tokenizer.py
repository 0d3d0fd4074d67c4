"""Tokenizer and data of a trained model, from any form the model is kept in and any working directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.data.kept_tokenizer import (
    FOLDER,
    KeptTokenizer,
    describe_tokenizer,
    given_tokenizer,
    read_kept,
    tokenizer_from,
)
from lit_gpt.data.tokenizer import Tokenizer
from lit_gpt.errors import UserError

CONFIG = "config.yaml"  # see train/run_folder.py


def find_tokenizer(path: Path, meta: dict[str, Any], given: str | None = None) -> KeptTokenizer | None:
    """The tokenizer that was asked for, else the one that the model's data was made with; None where nobody knows.

    path: run folder, step folder or exported file, and meta what it was saved with. given: a spec, see load_tokenizer;
    whether documents start with BOS is still what the model's data says.
    Raises UserError when `given` is no tokenizer.
    """
    candidates = [kept for kept in (tokenizer_from(meta), *_of_run(path)) if kept]
    known = next((kept for kept in candidates if kept.present), candidates[0] if candidates else None)
    if given is None:
        return known
    asked = given_tokenizer(given)
    return replace(asked, bos_id=known.bos_id) if known else asked


def tokenizer_of(path: Path, given: str | None, meta: dict[str, Any]) -> tuple[Tokenizer, int | None]:
    """The tokenizer of kept_of, and the token before each document, if the data has one."""
    kept = kept_of(path, given, meta)
    return kept.load(), kept.bos_id


def kept_of(path: Path, given: str | None, meta: dict[str, Any], option: str = "--tokenizer") -> KeptTokenizer:
    """The tokenizer that was asked for, else the model's own, which is there.

    option: how a tokenizer is given, for messages. Raises UserError when there is none.
    """
    found = find_tokenizer(path, meta, given)
    if found is None:
        raise UserError(f"{path} does not say which tokenizer its data had. Give {option} bytes or a tokenizer.json.")
    if not found.present:
        raise UserError(f"The tokenizer of {path} is no longer at {found.source}. Give {option}.")
    return found


def prompt_ids(vocab_size: int, tokenizer: Tokenizer, prompt: str, bos_id: int | None) -> list[int]:
    """The tokens to continue: those of the prompt, after the token that starts each document of the data.

    vocab_size: of the model. Raises UserError for an empty prompt, where nothing starts a document, for text that is no
    Unicode, and for tokens that the model does not have.
    """
    try:
        ids = ([] if bos_id is None else [bos_id]) + tokenizer.encode(prompt)
    except UnicodeEncodeError as error:
        raise UserError(f"The prompt {prompt!r} is not UTF-8 text.") from error
    if not ids:
        raise UserError("The prompt is empty: there is nothing to continue. Give some text.")
    if max(ids) >= vocab_size:
        raise UserError(
            f"The tokenizer {tokenizer.name!r} made token {max(ids)}, but the model knows {vocab_size} "
            "tokens. Give the --tokenizer that it was trained with."
        )
    return ids


def with_tokenizer(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    """The meta for a file of its own: its tokenizer is where it is now, as the run may have moved since."""
    kept = find_tokenizer(path, meta)
    return meta | {"tokenizer": asdict(kept)} if kept else meta


def _of_run(path: Path) -> Iterator[KeptTokenizer | None]:
    """What the run folder around a path keeps, or the data it names: older runs keep none."""
    for folder in (path.absolute(), *path.absolute().parents[:2]):
        if (folder / FOLDER).is_dir():
            yield read_kept(folder / FOLDER)
        if (folder / CONFIG).is_file():
            run = _options(folder / CONFIG)
            for data in _places(folder, run["train_data_dir"], Path(str(run.get("out_dir", "out")))):
                yield describe_tokenizer(data, run.get("data_mixture"), run.get("eos_token_id"))


def validation_data_of(path: Path) -> str | None:
    """The validation data of the run around a path, None where it had none or it is no longer there."""
    for folder in (path.absolute(), *path.absolute().parents[:2]):
        if (folder / CONFIG).is_file():
            run = _options(folder / CONFIG)
            given = run.get("val_data_dir")
            return next(_places(folder, given, Path(str(run.get("out_dir", "out")))), None) if given else None
    return None


def _options(path: Path) -> dict[str, Any]:
    """The resolved options of a run. Raises UserError where the file does not say them."""
    try:
        run = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML ({error}). Restore it, or remove it.") from error
    if not isinstance(run, dict) or not isinstance(run.get("train_data_dir"), str):
        raise UserError(f"{path} does not say the run's options. Restore it, or remove it.")
    return run


def _places(folder: Path, data_dir: str, out_dir: Path) -> Iterator[str]:
    """Where a data folder may be that was named relative to the working directory of the run.

    The run folder is <working directory>/<out_dir>/<name>.
    """
    bases = [Path()] if out_dir.is_absolute() else [folder.parents[len(out_dir.parts)], Path()]
    yield from (str(base / data_dir) for base in bases if (base / data_dir).is_dir())
