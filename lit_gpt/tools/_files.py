"""Writing weights and their meta in the form that checkpoint.export writes and checkpoint.load_exported reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lit_gpt.checkpoint.export import FORMATS, KEY
from lit_gpt.errors import UserError


def check_suffix(path: Path) -> None:
    """Raises UserError for a name that is none of an exported file."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path} has the suffix {path.suffix or '(none)'!r}. Use one of: {', '.join(FORMATS)}.")


def write_exported(weights: dict[str, torch.Tensor], meta: dict[str, Any], output: Path) -> Path:
    """Write full weights and meta to a .pth or .safetensors file, replaced as a whole."""
    check_suffix(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".tmp-{output.name}")
    if output.suffix == ".pth":
        torch.save({"model": weights, "meta": meta}, temporary)
    else:
        save_file(weights, temporary, metadata={KEY: json.dumps(meta)})
    os.replace(temporary, output)
    return output
