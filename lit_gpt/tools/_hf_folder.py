"""Writing a Hugging Face model folder, whole or not at all.

config.json, generation_config.json   model.safetensors   tokenizer.json, tokenizer_config.json, ...
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from lit_gpt.checkpoint.export import FORMATS
from lit_gpt.config.model import ModelConfig
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.errors import NotWritten, UserError
from lit_gpt.evals.hf_tokenizer import write_tokenizer
from lit_gpt.tools._hf_layout import Weights
from lit_gpt.utils.files import remove_leftovers, replacing, temporary_name

FILES = (*FORMATS, ".bin", ".pt", ".ckpt", ".gguf", ".json", ".zip")
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def check_new(output: Path) -> None:
    """Raises UserError where something is at the path, and for the name of a file, which one was asked for by that."""
    if output.suffix in FILES:
        raise UserError(
            f"{output} would be a folder, and {output.suffix} is the end of a file's name. Give the name of a folder, "
            "or --to file."
        )
    if output.exists():
        raise UserError(f"{output} exists already. Give the name of a new folder.")


def write_folder(
    output: Path,
    weights: Weights,
    described: Mapping[str, Any],
    config: ModelConfig,
    tokenizer: KeptTokenizer | None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write the folder of a model.

    weights: under their names there. described: config.json, but for dtype and tokens. texts: name -> text, of more
    files. Raises UserError for weights of several dtypes, and for a tokenizer that has more tokens than the model.
    """
    temporary = temporary_name(output)  # of this process: another one may write the same folder
    try:
        if output.parent.is_dir():
            remove_leftovers(output.parent, [glob.escape(output.name)])
        temporary.mkdir(parents=True)
        # null and not absent: some classes have ids of their own as defaults
        ids: dict[str, int | None] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        ids |= write_tokenizer(tokenizer, config, temporary) if tokenizer else {}
        name = _dtype_of(weights)
        # transformers 5 reads dtype, 4 reads torch_dtype
        _write_json(temporary / CONFIG, {**described, **ids, "dtype": name, "torch_dtype": name})
        _write_json(temporary / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
        for name, text in (texts or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        with replacing(temporary / WEIGHTS) as file:
            save_file(weights, file, metadata={"format": "pt"})
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:
        raise NotWritten(f"{output} could not be written ({error}). Make room or permit it.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def _dtype_of(weights: Weights) -> str:
    names = {str(t.dtype).removeprefix("torch.") for t in weights.values()}
    if len(names) > 1:
        kinds = " and ".join(sorted(names))
        raise UserError(f"The weights are of {kinds}, and a folder has one kind: give --dtype fp32, bf16 or fp16.")
    return names.pop()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
