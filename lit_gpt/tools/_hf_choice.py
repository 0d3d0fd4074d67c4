"""Which class of transformers a model is written as, and which one a config.json asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf_config import reasons_against
from lit_gpt.tools._hf_layout import Layout
from lit_gpt.tools.hf import MODEL_TYPES


def choose_class(config: ModelConfig, multipliers: Multipliers, name: str | None = None) -> Any:
    """The entry that a model is written as: the first that nothing speaks against, or the one that was named.

    name: a model type or a class, such as qwen3 or Qwen3ForCausalLM. Raises UserError with the reasons.
    """
    if name is not None:
        entry = _named(name)
        if found := reasons_against(entry, config, multipliers):
            raise UserError(f"{config.family} cannot be written as {_refusal(entry, found)}")
        return entry
    reasons = []
    entries = {model_type: MODEL_TYPES.load(model_type) for model_type in MODEL_TYPES.names()}
    for model_type, entry in sorted(entries.items(), key=lambda item: bool(item[1].LAYOUT.last)):
        found = reasons_against(entry, config, multipliers)
        if not found:
            return entry
        reasons.append((len(found), model_type, entry, found))
    _, _, entry, found = min(reasons, key=lambda reason: reason[:2])
    raise UserError(f"{config.family} cannot be written for transformers: the closest is {_refusal(entry, found)}")


def _refusal(entry: Any, found: list[str]) -> str:
    layout: Layout = entry.LAYOUT
    more = f", and {len(found) - 4} more" if len(found) > 4 else ""
    return f"{layout.name}, which cannot express {', '.join(found[:4])}{more}; use --to file."


def _named(name: str) -> Any:
    """The entry of a model type or of a class. Raises UserError with suggestions when there is none."""
    model_type = MODEL_TYPES.resolve(name)
    if model_type in MODEL_TYPES:
        return MODEL_TYPES.load(model_type)
    entries = {entry.LAYOUT.name: entry for entry in map(MODEL_TYPES.load, MODEL_TYPES.names())}
    if name in entries:
        return entries[name]
    raise MODEL_TYPES.unknown(name, entries)


def class_of(values: Mapping[str, Any]) -> Any:
    """The entry that a config.json asks for. Raises UserError for a model_type that is not read."""
    model_type = str(values.get("model_type") or "llama")  # some Llamas do not say
    if model_type not in MODEL_TYPES:
        readable = ", ".join(MODEL_TYPES.names())
        raise UserError(f"config.json asks for model_type {model_type}, which is not read; these are: {readable}.")
    return MODEL_TYPES.load(model_type)
