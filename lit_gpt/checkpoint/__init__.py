"""Save, find, load, reshard and export checkpoints."""

from lit_gpt.checkpoint.contents import damage
from lit_gpt.checkpoint.export import (
    DTYPES,
    cast,
    check_suffix,
    load_exported,
    load_full,
    read_safetensors,
    write_exported,
)
from lit_gpt.checkpoint.find import all_checkpoints, find_checkpoint, newest_published, none_left
from lit_gpt.checkpoint.layout import CHECKPOINT_VERSION, identity_of, list_checkpoints, read_meta
from lit_gpt.checkpoint.load import load_averages, load_checkpoint, load_optimizer, load_weights
from lit_gpt.checkpoint.save import Checkpointer

__all__ = [
    "CHECKPOINT_VERSION",
    "DTYPES",
    "Checkpointer",
    "all_checkpoints",
    "cast",
    "check_suffix",
    "damage",
    "find_checkpoint",
    "identity_of",
    "list_checkpoints",
    "load_averages",
    "load_checkpoint",
    "load_exported",
    "load_full",
    "load_optimizer",
    "load_weights",
    "newest_published",
    "none_left",
    "read_meta",
    "read_safetensors",
    "write_exported",
]
