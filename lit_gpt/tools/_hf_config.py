"""ModelConfig to the config.json of a class of transformers and back, by the entry's Layout and hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import NOBODY, fields_of
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf_layout import Layout
from lit_gpt.tools._hf_rope import ROPE_FIELDS, ROPE_KEYS, rope_keys, rope_reasons, with_rope
from lit_gpt.tools._hf_values import check_kinds

# What no logits depend on; rows of padding, which are cut off; shared blocks, which are written out; and layers, which
# are looked at one by one.
WITHOUT_EFFECT = fields_of(ModelConfig, NOBODY) | {
    *("padding_multiple", "padded_vocab_size", "share_per_layer", "share_group", "layers"),
}
MOST_LAYERS = 10_000  # far above any model's; each is described by itself, so a damaged number would fill the memory


def reasons_against(entry: Any, config: ModelConfig, multipliers: Multipliers) -> list[str]:
    """What of a model the entry's class cannot express, as nouns; [] where it expresses all."""
    layout: Layout = entry.LAYOUT
    handled = {*layout.sizes.values(), *(ours for ours, _ in layout.options.values()), *layout.expressed}
    handled |= WITHOUT_EFFECT | (ROPE_FIELDS if layout.rotary else set())
    if config.position == "learned":  # a table of the model, whatever the layers do with positions
        handled.discard("position")
    found = _unusual(config, handled, layout.fixed)
    layer = {f.name: getattr(layout.layer, f.name) for f in dataclasses.fields(layout.layer)}
    seen = layout.layer_fields | ({"rope_base"} if layout.rotary else set())
    per_layer = [(i, name) for i, spec in enumerate(config.layers) for name in _unusual(spec, seen, layer)]
    for name in dict.fromkeys(name for _, name in per_layer):
        found.append(f"{name} (layer {', '.join(str(i) for i, other in per_layer if other == name)})")
    found += rope_reasons(config, layout.unrotated) if layout.rotary else []
    found += entry.refusals(config, multipliers) if hasattr(entry, "refusals") else []
    return found + [f"the multiplier {name}" for name in _unusual(multipliers, layout.folded | layout.idle, {})]


def _unusual(value: Any, handled: set[str] | frozenset[str], expected: Mapping[str, Any]) -> list[str]:
    """Fields of a dataclass, with their values, that are not handled and are not as expected, by default neutral."""
    out = []
    for f in dataclasses.fields(value):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        given = getattr(value, f.name)
        if f.name not in handled and given != expected.get(f.name, default):
            out.append(f.name if dataclasses.is_dataclass(given) or isinstance(given, dict) else f"{f.name} {given}")
    return out


def config_json(entry: Any, config: ModelConfig) -> dict[str, Any]:
    """config.json but for what depends on the weights' dtype and on the tokenizer."""
    layout: Layout = entry.LAYOUT
    named = {theirs: getattr(config, ours) for theirs, ours in layout.sizes.items()}
    named |= {theirs: getattr(config, ours) for theirs, (ours, _) in layout.options.items()}
    named |= rope_keys(config) if layout.rotary else {}
    kind = {key: layout.neutral[key][0] for key in ("hidden_act", "activation_function") if key in layout.neutral}
    described = {"architectures": [layout.name], "model_type": layout.model_type} | kind | named
    return described | (entry.describe(config) if hasattr(entry, "describe") else {})


def read_config(entry: Any, values: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a config.json. Raises UserError, naming what we cannot express."""
    layout: Layout = entry.LAYOUT
    neutral = {**layout.neutral, "model_type": (layout.model_type,), "architectures": ([layout.name],)}
    known = {*layout.sizes, *layout.options, *neutral, *layout.harmless, *layout.read}
    known |= ROPE_KEYS if layout.rotary else set()
    strange = [f"{k} {v}" for k, v in values.items() if k not in known and v is not None]
    strange += [f"{k} {values[k]}" for k, fine in neutral.items() if values.get(k) not in (None, *fine)]
    if strange:
        raise UserError(f"config.json asks for {', '.join(strange[:4])}, which cannot be expressed of a {layout.name}.")
    missing = [name for name in layout.sizes if values.get(name) is None]
    if missing:
        raise UserError(f"config.json does not say {', '.join(missing)}. Save the model again with save_pretrained.")
    check_kinds(values, {**dict.fromkeys(layout.sizes, "a whole number"), **layout.kinds})
    fields = _fields(layout, values)
    if (depth := fields["depth"]) > MOST_LAYERS:
        raise UserError(f"config.json: the number of layers is {depth}; more than {MOST_LAYERS:,} are not read.")
    return getattr(entry, "understand", lambda *given: understood(layout, *given))(fields, values)


def _fields(layout: Layout, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ModelConfig that are keys of config.json, with the class's defaults."""
    fields = {ours: values[theirs] for theirs, ours in layout.sizes.items()}
    for theirs, (ours, default) in layout.options.items():
        given = values.get(theirs)
        fields[ours] = default if given is None else given
    if "n_head" in fields:
        fields["n_kv_head"] = fields.get("n_kv_head") or fields["n_head"]
        fields["head_dim"] = fields.get("head_dim") or fields["n_embd"] // max(fields["n_head"], 1)
    return fields


def understood(layout: Layout, fields: Mapping[str, Any], values: Mapping[str, Any], **changes: Any) -> ModelConfig:
    """What an entry without `understand` reads: layers that are all alike. changes: fields that it found otherwise."""
    alike = {"family": layout.model_type, "layers": (layout.layer,) * fields["depth"]}
    config = ModelConfig(**{**alike, **layout.fixed, **fields, **changes})
    return with_rope(config, values, layout.theta) if layout.rotary else config
