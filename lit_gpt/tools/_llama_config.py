"""Which models are Llama's architecture: ModelConfig to LlamaConfig and back.

What LlamaConfig expresses is stated here. Every other field of ModelConfig must be neutral (have its default), so
that an option added later is refused until someone says what becomes of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from math import inf
from typing import Any

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn import rotary
from lit_gpt.scaling.base import Multipliers

# LlamaConfig's name -> (ours, Llama's default). The sizes have no default that anyone means.
SIZES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "depth",
    "num_attention_heads": "n_head",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
}
OPTIONS: dict[str, tuple[str, Any]] = {
    "num_key_value_heads": ("n_kv_head", None),
    "head_dim": ("head_dim", None),
    "max_position_embeddings": ("block_size", 2048),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tie_embeddings", False),
    "attention_bias": ("attn_bias", False),
    "mlp_bias": ("mlp_bias", False),
}
ROTARY = {"rope_base", "yarn_scale", "yarn_context"}
EXPRESSED = {*SIZES.values(), *(ours for ours, _ in OPTIONS.values()), *ROTARY, "layers"}
# The name; rows of padding, which are cut off; shared blocks, which are written out; and how documents are packed,
# where Llama is given one in a row.
WITHOUT_EFFECT = {
    "family",
    "padding_multiple",
    "padded_vocab_size",
    "share_per_layer",
    "share_group",
    "varlen",
    "doc_positions",
}
# The kinds of the values that are read.
WHOLE = ("num_key_value_heads", "head_dim", "max_position_embeddings")
KINDS = {"rms_norm_eps": "a number", "rope_theta": "a number", "rope_scaling": "an object"} | {
    "rope_parameters": "an object",
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), "true or false"),
}
ROPE_KINDS = {"rope_theta": "a number", "factor": "a number", "original_max_position_embeddings": "a whole number"}
FOLDED = {"logit", "residual", "attention"}
WITHOUT_EXPERTS = {"router"}  # a multiplier that acts on experts only, which are refused
# LlamaConfig's other keys: values that say what every Llama does, and keys that leave the logits as they are.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"],),
    "hidden_act": ("silu",),
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
HARMLESS = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "initializer_range",
    "attention_dropout",
    "pretraining_tp",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "problem_type",
}


def check_is_llama(config: ModelConfig, multipliers: Multipliers) -> None:
    """Raises UserError, naming what LlamaConfig cannot express."""
    found = _unusual(config, EXPRESSED | WITHOUT_EFFECT)
    per_layer = [(i, name) for i, spec in enumerate(config.layers) for name in _unusual(spec, {"rope_base"})]
    for name in dict.fromkeys(name for _, name in per_layer):
        found.append(f"{name} (layer {', '.join(str(i) for i, other in per_layer if other == name)})")
    bases = {config.base_of(spec) for spec in config.layers}
    found += (
        [f"rope_base {' and '.join(f'{b:g}' for b in sorted(bases))} in different layers"] if len(bases) > 1 else []
    )
    found += [] if 0 not in bases else ["layers without rotary positions (rope_base 0)"]
    found += [] if config.n_embd % config.n_head == 0 else [f"n_embd {config.n_embd} over n_head {config.n_head}"]
    found += [f"the multiplier {name}" for name in _unusual(multipliers, FOLDED | WITHOUT_EXPERTS)]
    if found:
        more = f", and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(
            f"{config.family} cannot be written as LlamaForCausalLM, which does not have {', '.join(found[:4])}{more}; "
            "use --to file."
        )


def _unusual(value: Any, handled: set[str]) -> list[str]:
    """Fields of a dataclass, with their values, that are not handled and differ from their default."""
    out = []
    for f in dataclasses.fields(value):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        given = getattr(value, f.name)
        if f.name not in handled and given != default:
            out.append(f.name if dataclasses.is_dataclass(given) or isinstance(given, dict) else f"{f.name} {given}")
    return out


def llama_config(config: ModelConfig) -> dict[str, Any]:
    """config.json but for what depends on the weights' dtype and on the tokenizer."""
    named = {theirs: getattr(config, ours) for theirs, ours in SIZES.items()}
    named |= {theirs: getattr(config, ours) for theirs, (ours, _) in OPTIONS.items()}
    # As transformers 4 spells it; 5 reads that too.
    rope = {
        "rope_theta": config.base_of(config.layers[0]),
        "rope_scaling": _yarn(config) if config.yarn_scale != 1 else None,
    }
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"} | named | rope


def _yarn(config: ModelConfig) -> dict[str, Any]:
    """rope_scaling with our YaRN. truncate: transformers rounds the ends of the ramp unless told not to."""
    return {
        "rope_type": "yarn",
        "factor": config.yarn_scale,
        "original_max_position_embeddings": config.yarn_context,
        "attention_factor": rotary.attention_factor(config),
        "beta_fast": rotary.FAST_ROTATIONS,
        "beta_slow": rotary.SLOW_ROTATIONS,
        "truncate": False,
    }


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a config.json. Raises UserError, naming what we cannot express."""
    known = {*SIZES, *OPTIONS, *NEUTRAL, *HARMLESS, "rope_theta", "rope_scaling", "rope_parameters"}
    strange = [f"{k} {v}" for k, v in values.items() if k not in known and v is not None]
    strange += [f"{k} {values[k]}" for k, fine in NEUTRAL.items() if values.get(k) not in (None, *fine)]
    if strange:
        raise UserError(
            f"config.json asks for {', '.join(strange[:4])}, which cannot be expressed: only LlamaForCausalLM is read."
        )
    missing = [name for name in SIZES if values.get(name) is None]
    if missing:
        raise UserError(f"config.json does not say {', '.join(missing)}. Save the model again with save_pretrained.")
    _check_kinds(values, {**dict.fromkeys((*SIZES, *WHOLE), "a whole number"), **KINDS})
    fields = {ours: values[theirs] for theirs, ours in SIZES.items()}
    for theirs, (ours, default) in OPTIONS.items():
        given = values.get(theirs)
        fields[ours] = default if given is None else given
    fields["n_kv_head"] = fields["n_kv_head"] or fields["n_head"]
    fields["head_dim"] = fields["head_dim"] or fields["n_embd"] // max(fields["n_head"], 1)
    config = ModelConfig(family="llama", layers=(LayerSpec(),) * fields["depth"], **fields)
    return _with_rope(config, values)


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    """Raises UserError for a value that is there and is not of its kind; numbers are above 0."""
    for key, kind in kinds.items():
        value = values.get(key)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < inf
        fits = {
            "a whole number": number and isinstance(value, int),
            "a number": number,
            "true or false": isinstance(value, bool),
            "an object": isinstance(value, dict),
        }
        if value is not None and not fits[kind]:
            above = " above 0" if "number" in kind else ""
            raise UserError(f"config.json: {key} is {value!r}; it must be {kind}{above}. Save the model again.")


def _with_rope(config: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """The rotary base and YaRN, as transformers 5 (rope_parameters) or 4 (rope_theta, rope_scaling) writes them."""
    given = {"rope_theta": values.get("rope_theta") or 10_000.0} | (values.get("rope_scaling") or {})
    given |= values.get("rope_parameters") or {}
    _check_kinds(given, ROPE_KINDS)
    kind = given.pop("rope_type", None) or given.pop("type", "default")
    given.pop("type", None)
    config = config.replace(rope_base=float(given.pop("rope_theta")))
    expected: dict[str, Any] = {}
    if kind == "yarn":
        config = config.replace(
            yarn_scale=float(given.get("factor", 1)),
            yarn_context=int(given.get("original_max_position_embeddings") or config.block_size),
        )
        rotary.inverse_frequencies(config)  # raises where the ramp does not fit
        expected = _yarn(config)
        given = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True} | given
    elif kind != "default":
        raise UserError(f"config.json asks for rope_type {kind}, which cannot be expressed: only default and yarn are.")
    expected["partial_rotary_factor"] = 1.0
    strange = [f"{k} {v}" for k, v in given.items() if v is not None and v != expected.get(k)]
    if strange:
        raise UserError(f"config.json asks for RoPE ({kind}) with {', '.join(strange)}, which cannot be expressed.")
    return config
