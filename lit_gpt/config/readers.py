"""Who reads a field of a model's description while the model computes logits with weights that it has.

    dropout: float = field(default=0.0, metadata=NOBODY)

The mark stands beside the field. A field without one is read by everybody, so that a new field counts as a part of the
forward pass until its author says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

KEY = "read_by"
NOBODY = {KEY: "nobody"}  # names, what weights start with, what acts in training only, how documents are packed
SHAPES = {KEY: "shapes"}  # acts through the names and shapes of tensors alone, so that other weights do not fit
HEADS = {KEY: "heads"}  # mixers that have the model's heads
ATTENTION = {KEY: "attention"}  # mixers that attend with those heads, and see positions
YARN = {KEY: "yarn"}  # rotary tables where yarn_scale is not 1
EXPERTS = {KEY: "experts"}  # layers with experts


def fields_of(kind: Any, *marks: dict[str, str]) -> frozenset[str]:
    """The names of the fields of a dataclass that have one of these marks."""
    wanted = [mark[KEY] for mark in marks]
    return frozenset(f.name for f in dataclasses.fields(kind) if f.metadata.get(KEY) in wanted)


def read_fields(part: Any, readers: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass that everybody reads, or one of `readers`: name -> value."""
    names = [f.name for f in dataclasses.fields(part) if f.metadata.get(KEY) in (None, *readers)]
    return {name: getattr(part, name) for name in names}
