"""Places that classes of transformers share: they name tensors of pre-norm models as Llama does.

logit goes into the last norm's gain, residual into the output projections of both branches, and the softmax scale
into the queries, or with QK-norm into its gain: the norm undoes a scale of the queries. Blocks that several layers
share are written out once per layer.
"""

from __future__ import annotations

from math import sqrt

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf_layout import Constant, Place


def ends(config: ModelConfig, multipliers: Multipliers) -> list[Place]:
    """Embedding, head and last norm."""
    head = [] if config.tie_embeddings else [Place("head.weight", ("lm_head.weight",))]
    last = Place("norm.weight", ("model.norm.weight",), multipliers.logit)
    return [Place("wte.weight", ("model.embed_tokens.weight",)), *head, last]


def block_of(config: ModelConfig, layer: int) -> str:
    """Our name of the block that a layer uses, which others may use too."""
    blocks = sorted({config.first_layer(i) for i in range(config.depth)})
    return f"blocks.{blocks.index(config.first_layer(layer))}"


def block_norms(mine: str, theirs: str) -> list[Place]:
    """The norms in front of both branches. mine, theirs: a layer's prefixes."""
    return [
        Place(f"{mine}.norm1.weight", (f"{theirs}.input_layernorm.weight",)),
        Place(f"{mine}.norm2.weight", (f"{theirs}.post_attention_layernorm.weight",)),
    ]


def kinds(bias: bool) -> tuple[str, ...]:
    """The tensors of a linear map."""
    return ("weight", "bias") if bias else ("weight",)


def attention(
    config: ModelConfig, multipliers: Multipliers, mine: str, theirs: str, out_bias: bool = True
) -> list[Place]:
    """Projections of attention, and the norms of QK-norm. mine, theirs: the prefixes of both modules.

    out_bias: their output projection has a bias where ours has one.
    """
    scale = 1.0 if multipliers.attention is None else multipliers.attention * sqrt(config.head_dim)
    on_queries, on_norm = (1.0, scale) if config.qk_norm else (scale, 1.0)
    rows = [Place(f"{mine}.k.weight", (f"{theirs}.k_proj.weight",))]
    for kind in kinds(config.attn_bias):
        rows += [
            Place(f"{mine}.q.{kind}", (f"{theirs}.q_proj.{kind}",), on_queries),
            Place(f"{mine}.v.{kind}", (f"{theirs}.v_proj.{kind}",)),
        ]
    for kind in kinds(config.attn_bias and out_bias):
        rows.append(Place(f"{mine}.out.{kind}", (f"{theirs}.o_proj.{kind}",), multipliers.residual))
    if config.qk_norm:
        rows.append(Place(f"{mine}.q_norm.weight", (f"{theirs}.q_norm.weight",), on_norm))
        rows.append(Place(f"{mine}.k_norm.weight", (f"{theirs}.k_norm.weight",)))
    return rows


def swiglu(mine: str, theirs: str, down: float, bias: bool = False) -> list[Place]:
    """A gated feed-forward network. down: what its output is multiplied by."""
    rows = []
    for kind in kinds(bias):
        rows += [
            Place(f"{mine}.up.{kind}", (f"{theirs}.gate_proj.{kind}", f"{theirs}.up_proj.{kind}")),
            Place(f"{mine}.down.{kind}", (f"{theirs}.down_proj.{kind}",), down),
        ]
    return rows


def key_biases(config: ModelConfig) -> list[Constant]:
    """attention_bias gives a bias to the keys too, and ours have none."""
    if not config.attn_bias:
        return []
    shape = (config.n_kv_head * config.head_dim,)
    names = (f"model.layers.{i}.self_attn.k_proj.bias" for i in range(config.depth))
    return [Constant(name, shape, "keys have no bias here") for name in names]


def qkv_biases(config: ModelConfig, name: str) -> list[Constant]:
    """For a class, of that name, with biases on queries, keys and values and none on the output projection.

    Where ours has biases its output projection must have zeros; where it has none they are zeros there.
    """
    heads = {"k": config.n_kv_head, "q": config.n_head, "v": config.n_kv_head}
    found = []
    for block in sorted({block_of(config, layer) for layer in range(config.depth)}) if config.attn_bias else ():
        why = f"{name} has no bias there"
        found.append(Constant(f"{block}.mixer.out.bias", (config.n_embd,), why, ours=True))
    for layer in range(config.depth):
        for kind in ("k",) if config.attn_bias else heads:
            why = "keys have no bias here" if kind == "k" else "this model has no biases"
            shape = (heads[kind] * config.head_dim,)
            found.append(Constant(f"model.layers.{layer}.self_attn.{kind}_proj.bias", shape, why))
    return found


def uneven(config: ModelConfig) -> list[str]:
    """For classes that want a width which the heads divide, even where head_dim is given."""
    return [] if config.n_embd % config.n_head == 0 else [f"n_embd {config.n_embd} over n_head {config.n_head}"]
