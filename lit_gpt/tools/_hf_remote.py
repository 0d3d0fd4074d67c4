"""A Hugging Face folder with the model's own code: any model of ours, loaded without this package.

config.json, generation_config.json   model.safetensors   tokenizer.json, tokenizer_config.json, ...
modeling_scalelab.py, configuration_scalelab.py, and the files that they import; see lit_gpt.tools.remote.

Weights have our names, behind "model."; multipliers stand in config.json and are not folded into weights.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lit_gpt.checkpoint import CHECKPOINT_VERSION, cast
from lit_gpt.config.model import ModelConfig
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.hf_tokenizer import read_tokenizer, write_tokenizer
from lit_gpt.evals.trained_model import check_weights
from lit_gpt.plugins import source_of
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools.remote.flat import flat_files
from lit_gpt.tools.remote.sources import PACKAGE, Name

Weights = dict[str, torch.Tensor]
MODEL_TYPE = "scalelab"  # of config.json; see configuration_scalelab.py
PREFIX = "model."  # of the weights' names: the attribute of ScaleLabForCausalLM that holds the GPT
MAIN = "modeling_scalelab"
CLASSES = {"AutoConfig": "configuration_scalelab.ScaleLabConfig", "AutoModelForCausalLM": f"{MAIN}.ScaleLabForCausalLM"}


def write_remote(
    weights: Weights,
    config: ModelConfig,
    multipliers: Multipliers,
    output: Path,
    tokenizer: KeptTokenizer | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a new folder that transformers loads as AutoModelForCausalLM with trust_remote_code=True.

    dtype: of the weights; None is their own. Raises UserError when tensors are missing or left over, when the dtype is
    too small, for a plugin's mixer whose imports cannot be followed, and when the folder exists.
    """
    check_weights(weights, config, "The checkpoint")
    if output.exists():
        raise UserError(f"{output} exists already. Give the name of a new folder.")
    code, theirs = code_of(config), cast({PREFIX + name: t.contiguous() for name, t in weights.items()}, dtype)
    temporary = output.with_name(f".tmp-{output.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        ids = write_tokenizer(tokenizer, config, temporary) if tokenizer else {}
        for name, text in code.items():
            (temporary / name).write_text(text, encoding="utf-8")
        _write_json(temporary / "config.json", describe(config, multipliers, theirs) | ids)
        _write_json(temporary / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
        save_file(theirs, temporary / "model.safetensors", metadata={"format": "pt"})
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def code_of(config: ModelConfig) -> dict[str, str]:
    """File name -> text, of the model's code. Mixers of plugins are part of it."""
    mixers = sorted({spec.mixer for spec in config.layers})
    entries = [Name(f"{PACKAGE}.nn.mixers.{mixer}", name) for mixer in mixers for name in ("build", "memory")]
    plugins = {f"{PACKAGE}.nn.mixers.{mixer}": source for mixer in mixers if (source := source_of(mixer)) is not None}
    return flat_files(f"{PACKAGE}.tools.remote.{MAIN}", entries, plugins)


def describe(config: ModelConfig, multipliers: Multipliers, weights: Weights) -> dict[str, Any]:
    """config.json, but for the tokenizer's ids. Raises UserError for weights of several dtypes."""
    names = {str(t.dtype).removeprefix("torch.") for t in weights.values() if t.is_floating_point()}
    if len(names) > 1:
        raise UserError(f"The weights are of {' and '.join(sorted(names))}; choose one with --dtype.")
    return {
        "model_type": MODEL_TYPE,
        "architectures": [CLASSES["AutoModelForCausalLM"].split(".")[1]],
        "auto_map": CLASSES,
        "model": config.to_dict(),
        "multipliers": asdict(multipliers),
        "dtype": (name := names.pop()),  # transformers 5
        "torch_dtype": name,  # and 4
    }


def read_remote(folder: Path, values: dict[str, Any], tensors: Weights) -> tuple[Weights, dict[str, Any]]:
    """Weights and meta, as load_exported gives them, of such a folder; its code is not run.

    values: config.json. tensors: all of its safetensors files. Raises UserError for values and tensors of no model.
    """
    try:
        config, multipliers = ModelConfig.from_dict(values["model"]), Multipliers(**values["multipliers"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/config.json does not describe a model of this version ({error}).") from error
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    check_weights(weights, config, folder)
    kept = read_tokenizer(folder, {"vocab_size": config.vocab_size, **values})
    described = {"model": config.to_dict(), "multipliers": asdict(multipliers)}
    tokenizer = asdict(kept) if kept else None
    return weights, {"version": CHECKPOINT_VERSION, "step": 0, "tokens": 0, **described, "tokenizer": tokenizer}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
