"""A model as a Hugging Face folder with its own code: any model of ours, loaded without this package.

modeling_scalelab.py, configuration_scalelab.py and the files that they import are cut out of this package; see
lit_gpt.tools.remote. Weights have our names, behind "model."; multipliers stand in config.json and are not folded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoint import CHECKPOINT_VERSION, cast
from lit_gpt.config.model import ModelConfig
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.hf_tokenizer import read_tokenizer
from lit_gpt.evals.trained_model import check_weights
from lit_gpt.plugins import source_of
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf_folder import CONFIG, check_new, write_folder
from lit_gpt.tools._hf_layout import Weights
from lit_gpt.tools.remote.flat import flat_files
from lit_gpt.tools.remote.sources import PACKAGE, Name

MODEL_TYPE = "scalelab"  # as configuration_scalelab.py says
PREFIX = "model."  # of the weights' names: the attribute of ScaleLabForCausalLM that is the GPT
MAIN, CONFIGURATION, CLASS = "modeling_scalelab", "configuration_scalelab", "ScaleLabForCausalLM"
READ_BY_NAME = ("build", "memory", "Options", "READS_KEYS")  # of a mixer's file; see lit_gpt.nn.mixers
AUTO_MAP = {"AutoConfig": f"{CONFIGURATION}.ScaleLabConfig", "AutoModelForCausalLM": f"{MAIN}.{CLASS}"}


def write_remote(
    weights: Weights,
    config: ModelConfig,
    multipliers: Multipliers,
    output: Path,
    tokenizer: KeptTokenizer | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a new folder that AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) loads.

    dtype: of the weights; None is their own. Raises UserError when tensors are missing or left over, when the dtype is
    too small, for a plugin's mixer whose imports cannot be followed, and when the folder exists.
    """
    check_weights(weights, config, "The checkpoint")
    check_new(output)
    theirs = cast({PREFIX + name: tensor for name, tensor in weights.items()}, dtype)
    described = {"model_type": MODEL_TYPE, "architectures": [CLASS], "auto_map": AUTO_MAP}
    described |= {"model": config.to_dict(), "multipliers": asdict(multipliers)}
    return write_folder(output, theirs, described, config, tokenizer, code_of(config))


def code_of(config: ModelConfig) -> dict[str, str]:
    """File name -> text, of the model's code. Mixers of plugins are part of it."""
    mixers = sorted({spec.mixer for spec in config.layers})
    entries = [Name(f"{PACKAGE}.nn.mixers.{mixer}", name) for mixer in mixers for name in READ_BY_NAME]
    plugins = {f"{PACKAGE}.nn.mixers.{mixer}": source for mixer in mixers if (source := source_of(mixer)) is not None}
    files = flat_files(f"{PACKAGE}.tools.remote.{MAIN}", entries, plugins)
    # transformers remembers which code belongs to a config class by the folder's last name and the text of its file:
    # without this, of two folders model/ in one process the second would be run with the code of the first.
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    files[f"{CONFIGURATION}.py"] += f"\n\n# SHA-256 of the code in this folder: {digest}\n"
    return files


def is_remote(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is of such a folder."""
    return values.get("model_type") == MODEL_TYPE


def read_remote(folder: Path, values: dict[str, Any], tensors: Weights) -> tuple[Weights, dict[str, Any]]:
    """Weights and meta, as load_exported gives them, of such a folder; its code is not run.

    values: config.json. tensors: of its safetensors files. Raises UserError for values and tensors of no model.
    """
    try:
        config, multipliers = ModelConfig.from_dict(values["model"]), Multipliers(**values["multipliers"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG} does not describe a model of this version ({error}).") from error
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    check_weights(weights, config, folder)
    kept = read_tokenizer(folder, {**values, "vocab_size": config.vocab_size})
    described = {"model": config.to_dict(), "multipliers": asdict(multipliers)}
    tokenizer = asdict(kept) if kept else None
    return weights, {"version": CHECKPOINT_VERSION, "step": 0, "tokens": 0, **described, "tokenizer": tokenizer}
