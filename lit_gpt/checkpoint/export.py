"""One file with the full weights and what they are: for evaluation, sharing, init_from."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lit_gpt.checkpoint.averages import half_life_of, weights_of
from lit_gpt.checkpoint.contents import require_whole
from lit_gpt.checkpoint.layout import check_version, read_meta
from lit_gpt.checkpoint.state import Tensors
from lit_gpt.checkpoint.untrusted import load_zip, plain_tensors, read_tensors, reason, stored_shapes
from lit_gpt.config.words import FLOATS
from lit_gpt.errors import NotWritten, UserError
from lit_gpt.optim.engine.averages import label
from lit_gpt.utils.files import kind_of, replacing

FORMATS = (".pth", ".safetensors")
KEY, SUM = "scalelab", "scalelab_sha256"  # where meta and fingerprint are kept inside a .safetensors header
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, known) for name, known in FLOATS.items()}


def write_exported(weights: Tensors, meta: dict[str, Any], output: Path) -> Path:
    """Write full weights and their meta to a .pth or .safetensors file, replaced as a whole.

    Raises UserError for another suffix and a path that cannot be a file, and NotWritten where there is no room.
    """
    check_suffix(output)
    written = fingerprint(weights, meta)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            if output.suffix == ".pth":
                torch.save({"model": weights, "meta": meta, "sha256": written}, temporary)
            else:
                save_file(weights, temporary, metadata={KEY: json.dumps(meta), SUM: written})
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        kind = kind_of(error) if isinstance(error, OSError) else NotWritten
        raise kind(f"{output} cannot be written ({error}). Give another path, or make room.") from error
    return output


def fingerprint(weights: Tensors, meta: dict[str, Any]) -> str:
    """SHA-256 of the names, dtypes, shapes and contents of the tensors and of the meta, in hexadecimal."""
    names = sorted(weights)
    with ThreadPoolExecutor() as pool:  # hashlib lets other threads run meanwhile
        sums = pool.map(_contents, (weights[name] for name in names))
    described = [(name, str(weights[name].dtype), list(weights[name].shape), s) for name, s in zip(names, sums)]
    return hashlib.sha256(json.dumps([described, json.loads(json.dumps(meta))], sort_keys=True).encode()).hexdigest()


def _contents(tensor: torch.Tensor) -> str:
    """The SHA-256 of a tensor's bytes; viewed as uint8, because NumPy has no bf16."""
    return hashlib.sha256(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


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


def load_full(path: Path, weights: str | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Full weights by name, on the host, and the meta of a step folder; without optimizer state.

    weights: an average, such as "ema_1B", which the meta then says under "weights"; default: the trained weights.
    Raises UserError for a checkpoint whose files are damaged, and for an average that it does not have.
    """
    meta = read_meta(path)
    require_whole(path)
    shapes = stored_shapes(path)
    half_life = None if weights is None else half_life_of(weights, path, shapes)
    chosen = weights_of(shapes, half_life)
    state = {name: torch.empty(shapes[name][0], dtype=shapes[name][1]) for name in chosen.values()}
    read_tensors(path, state, no_dist=True)
    loaded = {name: state[stored] for name, stored in chosen.items()}
    return loaded, meta if half_life is None else {**meta, "weights": label(half_life)}


def load_exported(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Weights by name, on the host, and meta of an exported file.

    Raises UserError for another suffix, for a file that export did not write, and for one that does not
    hold what was written. Early exports have no fingerprint, and are not checked.
    """
    check_suffix(path)
    weights, meta, written = _read_pth(path) if path.suffix == ".pth" else _read_safetensors(path)
    if not isinstance(weights, dict) or not isinstance(meta, dict):
        raise UserError(
            f"{path} was not written by an export: it has no model and meta. Export a checkpoint first; to convert one "
            "of ArchScale, type python -m lit_gpt.tools.convert FILE.pth model.safetensors --config sambay_d16."
        )
    if written is not None and written != fingerprint(weights, meta):
        raise UserError(f"{path} is damaged: its contents are not what was written. Copy or export it again.")
    return weights, check_version(meta, path)


def _read_pth(path: Path) -> tuple[Any, Any, Any]:
    """What should be weights, meta and fingerprint; None for each that is not there."""
    try:
        content = load_zip(path, path.stat().st_size, mmap=True)
        if not isinstance(content, dict) or content.keys() - {"sha256"} != {"model", "meta"}:
            return None, None, None
        return plain_tensors(content["model"]), content["meta"], content.get("sha256")
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(
            f"{path} cannot be read ({reason(error)}): it is damaged, or was not written by an export. Export it again."
        ) from error


def _read_safetensors(path: Path) -> tuple[Any, Any, Any]:
    """Weights, meta and fingerprint; None for each that is not there."""
    weights, header = read_safetensors(path)
    try:
        return weights, json.loads(header.get(KEY, "null")), header.get(SUM)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its meta is no JSON ({error}). Copy or export it again.") from error


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
