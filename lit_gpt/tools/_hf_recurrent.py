"""What classes of recurrent models share: names, fields without effect, and rows of several of our maps in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.config.readers import HEADS, YARN, fields_of
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import _hf_layout as hf
from lit_gpt.tools._hf_parts import block_of

# The model, the prefix of our mixer, that of theirs, the multiplier of its output -> its places.
Mixer = Callable[[ModelConfig, str, str, float], list[hf.Place]]

# Fields of ModelConfig that act in attention and feed-forward networks only.
WITHOUT_LAYERS = fields_of(ModelConfig, HEADS, YARN) | {"intermediate_size", "ffn_norm", "mlp_bias"}
# Keys of the classes that train, or that older versions wrote beside what they follow from.
HARMLESS_IN_MAMBA = frozenset({
    "residual_in_fp32",  # acts in half precision only
    "rescale_prenorm_residual",
    "time_step_scale",
    "time_step_min",
    "time_step_max",
    "time_step_floor",
    "time_step_init_scheme",
    "use_mambapy",
    "use_associative_scan",
    "chunk_size",
    "d_model",
    "n_layer",
    "fused_add_norm",
    "pad_vocab_size_multiple",
    "norm_before_gate",  # which transformers 4 wrote and no version reads
})  # fmt: skip

INNER = ("intermediate_size", "d_inner")  # keys for expand times the width, in files of transformers 4


def rows_of(ours: Sequence[str], theirs: str, rows: Sequence[int], blocks: int = 1) -> hf.Place:
    """Our maps of one input, with `rows` rows each, are one of theirs: in each of `blocks` blocks one after another."""

    def split(*maps: Tensor) -> list[Tensor]:
        return [torch.cat([m.unflatten(0, (blocks, -1)) for m in maps], dim=1).flatten(0, 1)]

    def join(parts: Sequence[Tensor]) -> list[Tensor]:
        pieces = parts[0].unflatten(0, (blocks, -1)).split([r // blocks for r in rows], dim=1)
        return [piece.flatten(0, 1) for piece in pieces]

    return hf.Place(tuple(ours), (theirs,), split=split, join=join)


def mamba_layout(mixer: str, name: str, tied: bool, counts: Iterable[str], neutral: Mapping[str, Any]) -> hf.Layout:
    """Of one of the two Mambas. tied: the default. counts: keys of whole numbers. neutral: keys that one has."""
    counts = (*counts, *INNER)
    return hf.Layout(
        mixer,
        name,
        sizes={"hidden_size": "n_embd", "num_hidden_layers": "depth", "vocab_size": "vocab_size"},
        options={
            "max_position_embeddings": ("block_size", 2048),  # of ours only; 2048 is that of the published models
            "layer_norm_epsilon": ("norm_eps", 1e-5),
            "tie_word_embeddings": ("tie_embeddings", tied),
        },
        expressed=WITHOUT_LAYERS | {"mixer_options"},
        layer=LayerSpec(mixer, ffn=None),
        rotary=False,
        neutral={**hf.NEUTRAL, "use_bias": (False,), "use_conv_bias": (True,), "rms_norm": (True,), **neutral},
        harmless=hf.HARMLESS | HARMLESS_IN_MAMBA,
        read=frozenset({*counts, "time_step_rank"}),
        kinds={**hf.KINDS, "layer_norm_epsilon": "a number", **dict.fromkeys(counts, "a whole number")},
        folded=frozenset({"logit", "residual"}),
        idle=frozenset({"router", "attention"}),
    )


def mamba_places(config: ModelConfig, multipliers: Multipliers, mixer: Mixer) -> list[hf.Place]:
    """All of one of the two Mambas. mixer: the places of a layer's mixer."""
    rows = [
        hf.Place("wte.weight", ("backbone.embeddings.weight",)),
        hf.Place("norm.weight", ("backbone.norm_f.weight",), multipliers.logit),
    ]
    rows += [] if config.tie_embeddings else [hf.Place("head.weight", ("lm_head.weight",))]
    for layer in range(config.depth):
        block, theirs = block_of(config, layer), f"backbone.layers.{layer}"
        rows.append(hf.Place(f"{block}.norm1.weight", (f"{theirs}.norm.weight",)))
        rows += mixer(config, f"{block}.mixer", f"{theirs}.mixer", multipliers.residual)
    return rows


def check_inner(values: Mapping[str, Any], expand: int, n_embd: int) -> None:
    """Raises UserError where a config.json gives the mixers another width than the one that expand does."""
    for key in INNER:
        if values.get(key) not in (None, expand * n_embd):
            raise UserError(
                f"config.json asks for {key} {values[key]}, which is not expand {expand} times hidden_size {n_embd}, "
                "so it cannot be expressed."
            )


def without_layers(n_embd: int) -> dict[str, Any]:
    """Sizes of attention and feed-forward networks for a model that has none."""
    return {"n_head": 1, "n_kv_head": 1, "head_dim": n_embd, "intermediate_size": 4 * n_embd, "position": "none"}
