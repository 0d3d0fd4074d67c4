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

REMOTE = "remote"  # --hf_class: a model with its own code; see lit_gpt.tools._hf_remote
# Model types that people ask for, and why ours cannot express them.
NOT_EXPRESSED = {
    "olmo_hybrid": "its norms are behind the branches in attention layers, x + norm(f(x)), and in front in the others",
}


def choose_class(config: ModelConfig, multipliers: Multipliers, name: str | None = None) -> Any:
    """The entry that a model is written as: the first that nothing speaks against, or the one that was named.

    name: a model type or a class, such as qwen3 or Qwen3ForCausalLM. Raises UserError with the reasons.
    """
    if name is None:
        entry, found = _closest(config, multipliers)
    else:
        entry = _named(name)
        found = reasons_against(entry, config, multipliers)
    if found:
        asked = "as" if name is not None else "for transformers: the closest is"
        raise UserError(f"{config.family} cannot be written {asked} {_refusal(entry, found)}; use --hf_class {REMOTE}.")
    return entry


def why_remote(config: ModelConfig, multipliers: Multipliers, name: str | None) -> str:
    """Why a model is written with its own code; "" where it is a class of transformers or one was named."""
    if name is not None:
        return f"--hf_class {REMOTE} asks for it" if name == REMOTE else ""
    entry, found = _closest(config, multipliers)
    return f"no class of transformers is this model; the closest is {_refusal(entry, found)}" if found else ""


def _closest(config: ModelConfig, multipliers: Multipliers) -> tuple[Any, list[str]]:
    """The entry with the fewest layers of other mixers, of those the one with the fewest reasons; and the reasons.

    One that is written last is never the closest while another has as few.
    """
    entries = [MODEL_TYPES.load(model_type) for model_type in MODEL_TYPES.names()]
    pairs = [(entry, reasons_against(entry, config, multipliers)) for entry in entries]

    def distance(pair: tuple[Any, list[str]]) -> tuple[int, int, bool]:
        entry, found = pair
        return sum(reason.startswith("mixer ") for reason in found), len(found), bool(entry.LAYOUT.last)

    return min(pairs, key=distance)


def _refusal(entry: Any, found: list[str]) -> str:
    layout: Layout = entry.LAYOUT
    more = f", and {len(found) - 4} more" if len(found) > 4 else ""
    return f"{layout.name}, which cannot express {', '.join(found[:4])}{more}"


def _named(name: str) -> Any:
    """The entry of a model type or of a class. Raises UserError with suggestions when there is none."""
    model_type = MODEL_TYPES.resolve(name)
    if model_type in MODEL_TYPES:
        return MODEL_TYPES.load(model_type)
    entries = {entry.LAYOUT.name: entry for entry in map(MODEL_TYPES.load, MODEL_TYPES.names())}
    if name in entries:
        return entries[name]
    if name in NOT_EXPRESSED:
        raise UserError(f"No model can be written as {name}: {NOT_EXPRESSED[name]}. Drop --hf_class {name}.")
    raise MODEL_TYPES.unknown(name, [*entries, REMOTE])


def class_of(values: Mapping[str, Any]) -> Any:
    """The entry that a config.json asks for. Raises UserError for a model_type that is not read."""
    model_type = str(values.get("model_type") or "llama")  # some Llamas do not say
    if model_type in NOT_EXPRESSED:
        raise UserError(f"A model of type {model_type} cannot be read: {NOT_EXPRESSED[model_type]}, unlike ours.")
    if model_type not in MODEL_TYPES:
        readable = ", ".join(MODEL_TYPES.names())
        raise UserError(f"config.json asks for model_type {model_type}, which is not read; these are: {readable}.")
    return MODEL_TYPES.load(model_type)
