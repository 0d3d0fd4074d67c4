"""A Hugging Face model folder: written, and read into weights and a meta of ours. The classes are in lit_gpt/tools/hf.

config.json, generation_config.json   model.safetensors   tokenizer.json, tokenizer_config.json, ...
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoint import CHECKPOINT_VERSION, read_safetensors
from lit_gpt.config.model import ModelConfig
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.hf_tokenizer import read_tokenizer
from lit_gpt.evals.trained_model import check_weights
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf_choice import choose_class, class_of
from lit_gpt.tools._hf_config import config_json, read_config
from lit_gpt.tools._hf_folder import CONFIG, INDEX, WEIGHTS, check_new, write_folder
from lit_gpt.tools._hf_layout import Weights
from lit_gpt.tools._hf_parts import with_key_biases
from lit_gpt.tools._hf_remote import is_remote, read_remote
from lit_gpt.tools._hf_weights import to_ours, to_theirs
from lit_gpt.utils.files import read_object


def write_hf(
    weights: Weights,
    config: ModelConfig,
    multipliers: Multipliers,
    output: Path,
    tokenizer: KeptTokenizer | None = None,
    dtype: torch.dtype | None = None,
    hf_class: str | None = None,
) -> Path:
    """Write a new folder that transformers loads as AutoModelForCausalLM and, with a tokenizer, as AutoTokenizer.

    dtype: of the weights; None is their own. hf_class: see choose_class. Raises UserError when the model has what the
    class has not, when tensors are missing or left over, when the dtype is too small, and when the folder exists.
    """
    entry = choose_class(config, multipliers, hf_class)
    if entry.LAYOUT.last and tokenizer:
        print(f"note: {entry.LAYOUT.last}", file=sys.stderr)
    check_weights(weights, config, "The checkpoint")
    check_new(output)
    theirs = to_theirs(entry, weights, config, multipliers, dtype)
    return write_folder(output, theirs, config_json(entry, config), config, tokenizer)


def is_hf_folder(path: Path) -> bool:
    """Whether a path is a folder of the Hugging Face kind."""
    return (path / CONFIG).is_file()


def read_hf(folder: Path) -> tuple[Weights, dict[str, Any]]:
    """Weights and meta, as load_exported gives them, of a folder whose class is in lit_gpt/tools/hf, or is our own.

    Raises UserError for what we cannot express, for tensors that are missing or left over, and for weights that are
    not in safetensors: other files may hold code.
    """
    values = read_object(folder / CONFIG)
    if is_remote(values):
        return read_remote(folder, values, _tensors(folder))
    entry = class_of(values)
    config = read_config(entry, values)
    tensors = _tensors(folder)
    config = with_key_biases(entry.LAYOUT, config, tensors)
    weights = to_ours(entry, tensors, config)
    check_weights(weights, config, folder)
    kept = read_tokenizer(folder, values)
    described = {"model": config.to_dict(), "multipliers": asdict(Multipliers())}
    tokenizer = asdict(kept) if kept else None
    return weights, {"version": CHECKPOINT_VERSION, "step": 0, "tokens": 0, **described, "tokenizer": tokenizer}


def _tensors(folder: Path) -> Weights:
    """All tensors of the folder's safetensors files, each once."""
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)[0]
    if not (folder / INDEX).is_file():
        others = [p.name for p in sorted(folder.glob("*")) if p.suffix in (".bin", ".pt", ".pth")]
        why = f": {others[0]} may hold code, so it is not read" if others else ""
        raise UserError(f"{folder} has no {WEIGHTS}{why}. Save the model with safetensors (save_pretrained does).")
    placed = read_object(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise UserError(f"{folder / INDEX} has no weight_map of tensors and files. Save the model again.")
    weights: Weights = {}
    for name in sorted(set(placed.values())):
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise UserError(f"{folder / INDEX} names the file {name!r}, which is no .safetensors file of that folder.")
        found = read_safetensors(folder / name)[0]
        if found.keys() != (named := {tensor for tensor, shard in placed.items() if shard == name}):
            wrong = sorted(found.keys() ^ named)
            raise UserError(f"{folder / name} does not hold the tensors that {INDEX} names: {', '.join(wrong[:4])}.")
        weights |= found
    return weights
