"""One file with the full weights and what they are: for evaluation, sharing, init_from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lit_gpt.checkpoint.layout import TMP, check_version, read_meta
from lit_gpt.checkpoint.state import MODEL, Tensors
from lit_gpt.errors import UserError

FORMATS = (".pth", ".safetensors")
KEY = "scalelab"  # where the meta is kept inside a .safetensors header


def export(path: Path, output: Path) -> Path:
    """Write the full weights of a checkpoint and its meta (plan, model_config, ...) to one file.

    path: a step folder. output: name ending in .pth or .safetensors; replaced as a whole.
    Needs no process group and no GPU, and memory for one copy of the weights.
    Raises UserError for another suffix or an incomplete checkpoint.
    """
    check_suffix(output)
    return write_exported(*load_full(path), output)


def write_exported(weights: Tensors, meta: dict[str, Any], output: Path) -> Path:
    """Write full weights and their meta to a .pth or .safetensors file, replaced as a whole.

    Raises UserError for another suffix.
    """
    check_suffix(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    tmp = output.with_name(TMP + output.name)
    if output.suffix == ".pth":
        torch.save({"model": weights, "meta": meta}, tmp)
    else:
        save_file(weights, tmp, metadata={KEY: json.dumps(meta)})
    os.replace(tmp, output)
    return output


def load_full(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Full weights by name, on the host, and the meta of a step folder; without optimizer state."""
    meta = read_meta(path)
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(s.size, dtype=s.properties.dtype)
        for name, s in stored.items()
        if name.startswith(MODEL) and isinstance(s, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=path, no_dist=True)
    return {name.removeprefix(MODEL): t for name, t in state.items()}, meta


def load_exported(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Weights by name, on the host, and meta of an exported file.

    Raises UserError for another suffix, or a file that export did not write.
    """
    check_suffix(path)
    if path.suffix == ".pth":
        # weights_only: tensors and plain values, no code from the file is run
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict) or content.keys() != {"model", "meta"}:
            raise _foreign(path)
        return content["model"], check_version(content["meta"], path)
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
        if KEY not in header:
            raise _foreign(path)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iteration)
    return weights, check_version(json.loads(header[KEY]), path)


def check_suffix(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise UserError(f"{path} has the suffix {path.suffix or '(none)'!r}. Use one of: {', '.join(FORMATS)}.")


def _foreign(path: Path) -> UserError:
    return UserError(f"{path} was not written by an export: it has no model and meta. Export a checkpoint first.")
