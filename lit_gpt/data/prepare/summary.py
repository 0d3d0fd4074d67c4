"""A prepared folder in lines for a terminal."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from lit_gpt.data.left_out import sentences
from lit_gpt.errors import UserError
from lit_gpt.utils.files import kind_of


def summary(meta: dict) -> str:
    """The counts of a prepared folder as a table, and what was left out."""
    lines = [f"{'split':<12}{'tokens':>18}{'documents':>14}{'bytes':>18}{'bytes/token':>13}{'shards':>8}"]
    for split, n in meta["splits"].items():
        ratio = n["bytes"] / n["tokens"]
        lines.append(
            f"{split:<12}{n['tokens']:>18,}{n['documents']:>14,}{n['bytes']:>18,}{ratio:>13.3f}{n['shards']:>8}"
        )
    if "validation" not in meta["splits"]:
        only = sum(n["documents"] for n in meta["splits"].values()) == 1
        lines.append(
            "the source is one document, so none went to validation; add documents, or give a --val_data_dir of its own"
            if only
            else "no document went to validation; to have some, use a --validation_fraction above 0 and a new --output"
        )
    lines.append(f"vocabulary {meta['vocab_size']}, EOS id {meta['eos_id']}")
    return "\n".join(lines + sentences(meta.get("left_out", {})))


def next_step(folder: Path, meta: dict) -> str:
    """Where the shards are, and what trains on them."""
    name = shlex.quote(str(folder))
    data = f"--train_data_dir {name}" + f" --val_data_dir {name}" * ("validation" in meta["splits"])
    return "\n".join(
        [
            f"written to {folder}; train on it, on a GPU or on a laptop's CPU:",
            f"  python pretrain.py {data} --train_model transformer --depth 8 --train_name mup",
            f"  python pretrain.py {data} --config configs/laptop.yaml",
        ]
    )


def not_prepared(error: OSError, folder: Path) -> UserError:
    """What to say where a preparation ended in an error of the disk: full, read-only, or not a folder."""
    folder = folder.expanduser()
    if file := next((p for p in (folder, *folder.parents) if os.path.isfile(p)), None):
        return UserError(f"--output {folder} cannot be a folder, since {file} is a file. Give another --output.")
    return kind_of(error)(
        f"{error.filename or folder}: {error.strerror or error}. Make room or permit it, and type the same command "
        "again: what is finished is kept."
    )
