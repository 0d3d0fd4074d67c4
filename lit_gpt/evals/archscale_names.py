"""Where each of our tensors is in a checkpoint of ArchScale: one table.

Names and layouts are those of microsoft/ArchScale, release of March 2026: lit_gpt/model.py, attention.py, diff_attn.py,
mamba_simple.py, mamba2.py, gated_deltanet.py, gated_memory_unit.py and moe.py (SonicMoE) there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError


class Place(NamedTuple):
    """Our tensors lie one after another (dimension 0) as theirs do.

    interleaved: rows of theirs alternate between the two maps that are halves of ours, in each expert.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    interleaved: bool = False


def _maps(**names: str) -> list[Place]:
    """Linear maps and norms of another name: their weights, and their biases where a model has them."""
    kinds = ("weight", "bias")
    return [Place((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for ours, theirs in names.items() for kind in kinds]


def _same(*names: str) -> list[Place]:
    return [Place((name,), (name,)) for name in names]


ATTENTION = [
    *_maps(q="q_proj", k="k_proj", v="v_proj", gate="g_proj", out="proj"),
    *_maps(q_norm="q_norm", k_norm="k_norm", norm="attn_norm"),
    Place(("conv",), ("q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight")),
]
DIFFERENTIAL = [
    *ATTENTION,
    *(Place((name,), (f"da.{name}",)) for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")),
    Place(("pair_norm.weight",), ("da.subln.weight",)),
]
STATE_SPACE = [
    Place(("conv",), ("conv1d.weight",)),
    Place(("conv_bias",), ("conv1d.bias",)),
    *_maps(in_proj="in_proj", x_proj="x_proj", out="out_proj", norm="norm"),  # the first two: --mixer_options, joint
    *_same("A_log", "D"),
]
MAMBA = [
    *STATE_SPACE,
    Place(("x.weight", "z.weight"), ("in_proj.weight",)),
    Place(("dt_low.weight", "B.weight", "C.weight"), ("x_proj.weight",)),
    Place(("dt.weight",), ("dt_proj.weight",)),
    Place(("dt_bias",), ("dt_proj.bias",)),
]
MAMBA2 = [
    *STATE_SPACE,
    *_same("dt_bias"),
    Place(("z.weight", "x.weight", "B.weight", "C.weight", "dt.weight"), ("in_proj.weight",)),
]
GDN = [
    *_maps(**{"qkv.q": "q_proj", "qkv.k": "k_proj", "qkv.v": "v_proj"}),
    *_maps(a="a_proj", b="b_proj", gate="g_proj", norm="norm", out="o_proj"),
    Place(("qkv.conv",), ("q_conv1d.weight", "k_conv1d.weight", "v_conv1d.weight")),
    *_same("A_log", "dt_bias"),
]
MEMORY_UNIT = _maps(gate="gmu.in_proj", norm="gmu.norm", out="gmu.out_proj")
MIXERS = {
    "attention": ATTENTION,
    "cross_attention": ATTENTION,
    "differential_attention": DIFFERENTIAL,
    "differential_cross_attention": DIFFERENTIAL,
    "mamba": MAMBA,
    "mamba2": MAMBA2,
    "gdn": GDN,
    "gmu": MEMORY_UNIT,
}
BLOCK = [
    *_maps(norm1="norm_1", norm2="norm_2", **{"skip1.projection": "skip_proj"}),
    *_maps(**{"ffn.up": "mlp.w1", "ffn.down": "mlp.w3", "ffn.norm": "mlp.norm", "ffn.router": "mlp.router"}),
    *_maps(**{"ffn.shared.up": "mlp.shared_mod_in", "ffn.shared.down": "mlp.shared_mod_out"}),
    Place(("ffn.up",), ("mlp.mods_in.weight",), interleaved=True),
    Place(("ffn.down",), ("mlp.mods_out.weight",)),
    *(Place((f"skip{i}.branch_gain",), (f"norm_{i}.weight",)) for i in (1, 2)),
    *(Place((f"skip{i}.gain",), (f"norm_{i}.weight1",)) for i in (1, 2)),
]
TOP = _maps(wte="transformer.wte", head="lm_head", norm="transformer.ln_f")


def places(config: ModelConfig, ours: Collection[str]) -> list[Place]:
    """Every tensor of the model, each once. ours: their names.

    Raises UserError for a model that ArchScale does not have, or computes in another way.
    """
    _check(config)
    rows = [place for place in _all(config) if set(place.ours) <= set(ours)]
    found = {name for place in rows for name in place.ours}
    assert found == set(ours), f"no place for {sorted(set(ours) - found)}"
    return rows


def _all(config: ModelConfig) -> Iterator[Place]:
    """The places that a model of any options may have."""
    yield from TOP
    for block, layer in enumerate(sorted({config.first_layer(i) for i in range(config.depth)})):
        mine, theirs = f"blocks.{block}.", f"transformer.h.{block}."
        for inner, outer, rows in (("", "", BLOCK), ("mixer.", "attn.", MIXERS[config.layers[layer].mixer])):
            for a, b, interleaved in rows:
                within = tuple(mine + inner + name for name in a), tuple(theirs + outer + name for name in b)
                yield Place(*within, interleaved)


def unread(config: ModelConfig) -> set[str]:
    """Their tensors that nothing reads: skip projections, which pre-norm models have there all the same."""
    if config.post_norm:
        return set()
    layers = [i for i, spec in enumerate(config.layers) if spec.skip_projection]
    return {f"transformer.h.{i}.skip_proj.{kind}" for i in layers for kind in ("weight", "bias")}


def _check(config: ModelConfig) -> None:
    """Raises UserError for what is not there, or is computed differently there."""
    mixers = {spec.mixer for spec in config.layers}
    crossing = any(mixer.endswith("cross_attention") for mixer in mixers)
    on_queries = [name for name in ("qk_norm", "attn_norm", "attn_conv") if crossing and getattr(config, name)]
    experts = config.experts
    problems = {
        f"layers of {', '.join(sorted(mixers - set(MIXERS)))}": mixers - set(MIXERS),
        "learnable sinks, whose layout is TransformerEngine's": config.attn_sink,
        f"{', '.join(on_queries)} in cross-attention, where ArchScale leaves it out": on_queries,
        "one routed expert for each token, whose gate is always 1 there": experts and experts.active == 1,
    }
    if found := [what for what, wrong in problems.items() if wrong]:
        raise UserError(
            f"A model of {config.family} cannot be read from a checkpoint of ArchScale: it has {' and '.join(found)}. "
            "Give a checkpoint of another model."
        )
