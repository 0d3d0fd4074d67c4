"""One file with the full weights and what they are: for evaluation, sharing, init_from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lit_gpt.checkpoint.layout import check_version, read_meta
from lit_gpt.checkpoint.state import MODEL, Tensors
from lit_gpt.errors import UserError
from lit_gpt.utils.files import replacing

FORMATS = (".pth", ".safetensors")
KEY = "scalelab"  # where the meta is kept inside a .safetensors header
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(path: Path, output: Path, dtype: torch.dtype | None = None) -> Path:
    """Write the full weights of a checkpoint and its meta (plan, model_config, ...) to one file.

    path: a step folder. output: name ending in .pth or .safetensors; replaced as a whole. dtype: see cast.
    Needs no process group and no GPU, and memory for one copy of the weights.
    Raises UserError for another suffix or an incomplete checkpoint.
    """
    check_suffix(output)
    weights, meta = load_full(path)
    return write_exported(cast(weights, dtype), meta, output)


def write_exported(weights: Tensors, meta: dict[str, Any], output: Path) -> Path:
    """Write full weights and their meta to a .pth or .safetensors file, replaced as a whole.

    Raises UserError for another suffix, and where nothing can be written.
    """
    check_suffix(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            if output.suffix == ".pth":
                torch.save({"model": weights, "meta": meta}, temporary)
            else:
                save_file(weights, temporary, metadata={KEY: json.dumps(meta)})
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        raise UserError(f"{output} cannot be written ({error}). Give another path, or make room.") from error
    return output


def cast(weights: Tensors, dtype: torch.dtype | None) -> Tensors:
    """The floating-point tensors in another dtype; all others, and all under None, as they are.

    Raises UserError where a number is too large for the dtype.
    """
    if dtype is None:
        return weights
    out = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}
    for name, tensor in out.items():
        if tensor.is_floating_point() and bool((tensor.isinf() & ~weights[name].isinf()).any()):
            raise UserError(
                f"{name} has values up to {weights[name].abs().max().item():.3g}, but {dtype} holds "
                f"{torch.finfo(dtype).max:.3g} at most: give --dtype bf16 or fp32."
            )
    return out


def load_full(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Full weights by name, on the host, and the meta of a step folder; without optimizer state.

    Raises UserError for a checkpoint whose files are damaged.
    """
    meta = read_meta(path)
    try:
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        state = {
            name: torch.empty(s.size, dtype=s.properties.dtype)
            for name, s in stored.items()
            if name.startswith(MODEL) and isinstance(s, TensorStorageMetadata)
        }
        dcp.load(state, checkpoint_id=path, no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is a BaseException
        raise UserError(
            f"The files of the checkpoint {path} are damaged or missing; use another step of it."
        ) from error
    return {name.removeprefix(MODEL): t for name, t in state.items()}, meta


def load_exported(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Weights by name, on the host, and meta of an exported file.

    Raises UserError for another suffix, for a file that export did not write, and for a damaged one.
    """
    check_suffix(path)
    if path.suffix == ".pth":
        weights, meta = _read_pth(path)
    else:
        weights, header = read_safetensors(path)
        meta = _meta_of(header)
    if not _are_weights(weights) or not isinstance(meta, dict):
        raise UserError(f"{path} was not written by an export: it has no model and meta. Export a checkpoint first.")
    return weights, check_version(meta, path)


def _meta_of(header: dict[str, str]) -> Any:
    """What a .safetensors header says of the weights; None where it says nothing that can be read."""
    try:
        return json.loads(header.get(KEY, "null"))
    except ValueError:
        return None


def _are_weights(found: Any) -> bool:
    """Whether it is dense tensors by name, as an export writes them."""
    return isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(t, torch.Tensor) and t.layout == torch.strided and not t.is_meta
        for name, t in found.items()
    )


def _read_pth(path: Path) -> tuple[Any, Any]:
    """What should be weights and meta; None for each that is not there."""
    try:
        # weights_only: tensors and plain values, no code from the file is run
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{path} cannot be read: it is damaged, or holds more than tensors and plain values. Export it again."
        ) from error
    if not isinstance(content, dict) or content.keys() != {"model", "meta"}:
        return None, None
    return content["model"], content["meta"]


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors by name, on the host, and the header's strings. Raises UserError when the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}). Copy or export it again.") from error


def check_suffix(path: Path) -> None:
    """Raises UserError unless the name ends in one of FORMATS."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path} has the suffix {path.suffix or '(none)'!r}. Use one of: {', '.join(FORMATS)}.")
