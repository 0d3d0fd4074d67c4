"""Who reads a field of a model's description while the model computes logits with weights that it has.

    dropout: float = field(default=0.0, metadata=NOBODY)

The mark stands beside the field. A field without one is read by everybody, so that a new field counts as a part of the
forward pass until its author says otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

KEY = "read_by"
Mark = dict[str, str]
# Names, what weights start with, what acts in training only, and how documents are packed.
NOBODY: Mark = {KEY: "nobody"}
# What acts through the names and shapes of tensors alone: where it is another, weights do not fit.
SHAPES: Mark = {KEY: "shapes"}
HEADS: Mark = {KEY: "heads"}  # mixers that have the model's heads and positions; see READS_HEADS in nn/mixers
YARN: Mark = {KEY: "yarn"}  # rotary tables where yarn_scale is not 1
EXPERTS: Mark = {KEY: "experts"}  # layers with experts


def fields_of(kind: Any, *marks: Mark) -> frozenset[str]:
    """The names of the fields of a dataclass that have one of these marks."""
    wanted = [mark[KEY] for mark in marks]
    return frozenset(f.name for f in dataclasses.fields(kind) if f.metadata.get(KEY) in wanted)


def read_fields(part: Any, *readers: Mark) -> dict[str, Any]:
    """The fields of a dataclass that everybody reads, or one of `readers`: name -> value."""
    known = [None, *(reader[KEY] for reader in readers)]
    return {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.metadata.get(KEY) in known}
