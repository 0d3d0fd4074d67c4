"""Weights under the names of a class of transformers and back, by the entry's places: each tensor has one place.

The Plan's multipliers have no place in these classes; they are linear, so they go into weights as places' factors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lit_gpt.checkpoint import cast
from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf_layout import Constant, Place, Weights

VOCABULARY = {"wte.weight", "head.weight"}  # tensors with a row per token, padded


def to_theirs(
    entry: Any, weights: Weights, config: ModelConfig, multipliers: Multipliers, dtype: torch.dtype | None
) -> Weights:
    """The weights under their names, multipliers folded in, padded rows of the vocabulary cut off.

    dtype: of the result; None is each tensor's own. Raises UserError for tensors without a place, for one of ours that
    is not the constant that their class has in its stead, and for numbers that the dtype cannot hold.
    """
    rows: list[Place] = entry.places(config, multipliers)
    mine, theirs = _constants(entry, config)
    used = {name for row in rows for name in row.names()} | {c.name for c in mine}
    _all_used(weights, used, f"{entry.LAYOUT.name} has no place for")
    _check_constants(mine, weights)
    out: Weights = {}
    for row in rows:
        ours = [weights[name] for name in row.names()]
        whole = [t[: config.vocab_size] if name in VOCABULARY else t for name, t in zip(row.names(), ours)]
        whole = whole if row.factor == 1 else [t.double() * row.factor for t in whole]
        parts = row.split(*whole) if row.split else whole[0].chunk(len(row.theirs))
        assert len(parts) == len(row.theirs)
        found = cast(dict(zip(row.theirs, parts)), dtype or ours[0].dtype)
        # views, which cast may return: safetensors wants memory of their own
        out |= {name: t.clone(memory_format=torch.contiguous_format) for name, t in found.items()}
    out |= _made(theirs, next(iter(out.values())).dtype)
    return entry.packed(out) if hasattr(entry, "packed") else out


def to_ours(entry: Any, weights: Weights, config: ModelConfig) -> Weights:
    """The weights under our names, rows of zeros added to the vocabulary.

    Raises UserError for tensors without a place, and for one of theirs that is not the constant that ours has instead.
    """
    rows: list[Place] = entry.places(config, Multipliers())
    mine, theirs = _constants(entry, config)
    weights = _untied(entry.unpacked(weights) if hasattr(entry, "unpacked") else weights, config, rows)
    used = {name for row in rows for name in row.theirs} | {c.name for c in theirs}
    _all_used(weights, used, "our models have no place for")
    _check_constants(theirs, weights)
    out = {n: t for row in rows for n, t in _joined(row, [weights[name] for name in row.theirs]).items()}
    padding = config.padded_vocab_size - config.vocab_size
    for name in sorted(out.keys() & VOCABULARY):
        if out[name].ndim != 2 or len(out[name]) != config.vocab_size:
            raise UserError(
                f"The weights cannot be converted: {name} is {tuple(out[name].shape)} in the file, and config.json "
                f"says vocab_size {config.vocab_size} and hidden_size {config.n_embd}. Save the model again."
            )
        out[name] = torch.nn.functional.pad(out[name], (0, 0, 0, padding))
    return out | _made(mine, next(iter(out.values())).dtype)


def _untied(weights: Weights, config: ModelConfig, rows: list[Place]) -> Weights:
    """Without the head's table where it is the embedding's: some files hold it twice."""
    table = next((row.theirs[0] for row in rows if row.ours == "wte.weight"), None)
    if not config.tie_embeddings or "lm_head.weight" not in weights or table not in weights:
        return weights
    weights = dict(weights)
    if not torch.equal(weights.pop("lm_head.weight"), weights[table]):
        short = table.removesuffix(".weight").rsplit(".")[-1]
        raise UserError(f"config.json ties the embeddings, but lm_head.weight differs from {short}.weight.")
    return weights


def _joined(row: Place, parts: list[torch.Tensor]) -> Weights:
    try:
        made = row.join(parts) if row.join else torch.cat([torch.atleast_1d(t) for t in parts])
    except RuntimeError as error:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(row.theirs[:4], parts))
        raise UserError(f"The weights cannot be converted: the shapes of {shapes} do not fit.") from error
    tensors = [made] if isinstance(made, torch.Tensor) else made
    found = {n: t.contiguous() for n, t in zip(row.names(), tensors, strict=True)}
    return found if row.factor == 1 else {n: (t.double() / row.factor).to(t.dtype) for n, t in found.items()}


def _constants(entry: Any, config: ModelConfig) -> tuple[list[Constant], list[Constant]]:
    """(those of ours, those of theirs)."""
    found: Iterable[Constant] = entry.constants(config) if hasattr(entry, "constants") else ()
    found = list(found)
    return [c for c in found if c.ours], [c for c in found if not c.ours]


def _made(constants: list[Constant], dtype: torch.dtype) -> Weights:
    return {c.name: torch.full(c.shape, c.value, dtype=dtype) for c in constants}


def _check_constants(constants: list[Constant], weights: Weights) -> None:
    """Raises UserError for the first that is another in the weights."""
    for c in constants:
        if tuple(weights[c.name].shape) != c.shape:
            raise UserError(f"{c.name} is {tuple(weights[c.name].shape)}, not {c.shape}. Save the model again.")
        if (weights[c.name] != c.value).any():
            value = f"{c.value:g}" if c.value else "zero"
            raise UserError(f"{c.name} is not {value}, and {c.why}, so the model cannot be expressed.")


def _all_used(weights: Weights, used: set[str], what: str) -> None:
    """Every tensor is read, and every one that is read is there."""
    for problem, names in ((what, weights.keys() - used), ("the file lacks", used - weights.keys())):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise UserError(f"The weights cannot be converted: {problem} {', '.join(sorted(names)[:4])}{more}.")
