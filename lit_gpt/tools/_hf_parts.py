"""Places that classes of transformers share: they name tensors of pre-norm models as Llama does.

logit goes into the last norm's gain, residual into the output projections of both branches, and the softmax scale
into the queries, or with QK-norm into its gain: the norm undoes a scale of the queries. Blocks that several layers
share are written out once per layer.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from lit_gpt.config.model import ModelConfig
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools._hf_layout import Constant, Layout, Place, Weights

# Layer, the prefix of our network, the prefix of their layer -> its places.
FeedForward = Callable[[int, str, str], list[Place]]


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


def attention(config: ModelConfig, multipliers: Multipliers, mine: str, theirs: str) -> list[Place]:
    """Projections of attention, and the norms of QK-norm. mine, theirs: the prefixes of both modules."""
    scale = 1.0 if multipliers.attention is None else multipliers.attention * sqrt(config.head_dim)
    on_queries, on_norm = (1.0, scale) if config.qk_norm else (scale, 1.0)
    rows = [Place(f"{mine}.k.{kind}", (f"{theirs}.k_proj.{kind}",)) for kind in kinds(config.qkv_bias)]
    for kind in kinds(config.attn_bias or config.qkv_bias):
        rows += [
            Place(f"{mine}.q.{kind}", (f"{theirs}.q_proj.{kind}",), on_queries),
            Place(f"{mine}.v.{kind}", (f"{theirs}.v_proj.{kind}",)),
        ]
    for kind in kinds(config.attn_bias):
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


def pre_norm(config: ModelConfig, multipliers: Multipliers, ffn: FeedForward | None = None) -> list[Place]:
    """All of a model of pre-norm attention layers.

    ffn: the places of a layer's feed-forward network; None is SwiGLU everywhere.
    """
    rows = ends(config, multipliers)
    for layer in range(config.depth):
        mine, theirs = block_of(config, layer), f"model.layers.{layer}"
        rows += block_norms(mine, theirs)
        rows += attention(config, multipliers, f"{mine}.mixer", f"{theirs}.self_attn")
        if ffn is not None:
            rows += ffn(layer, f"{mine}.ffn", theirs)
        else:
            rows += swiglu(f"{mine}.ffn", f"{theirs}.mlp", multipliers.residual, config.mlp_bias)
    return rows


def key_biases(config: ModelConfig) -> list[Constant]:
    """attention_bias gives a bias to the keys too, and ours may have none."""
    if not config.attn_bias or config.qkv_bias:
        return []
    shape = (config.n_kv_head * config.head_dim,)
    names = (f"model.layers.{i}.self_attn.k_proj.bias" for i in range(config.depth))
    return [Constant(name, shape, "keys have no bias here") for name in names]


def with_key_biases(layout: Layout, config: ModelConfig, tensors: Weights) -> ModelConfig:
    """The model with biases of keys, for a class with attention_bias, where these are not all zero in the file.

    A model of ours with attn_bias alone has zeros there, and is that model when it is read again.
    """
    given = any(t.any() for name, t in tensors.items() if name.endswith("k_proj.bias"))
    return config.replace(qkv_bias=True) if "qkv_bias" in layout.expressed and given else config


def only_qkv(config: ModelConfig) -> list[str]:
    """Reasons against a class whose attention_bias is for all four projections."""
    return ["qkv_bias without attn_bias"] if config.qkv_bias and not config.attn_bias else []


def qkv_biases(config: ModelConfig) -> list[Constant]:
    """For a class that has biases on queries, keys and values in every model: zeros where ours has none."""
    if config.qkv_bias:
        return []
    heads = {"q": config.n_head, "k": config.n_kv_head, "v": config.n_kv_head}
    names = {f"model.layers.{i}.self_attn.{kind}_proj.bias": heads[kind] for i in range(config.depth) for kind in heads}
    return [Constant(name, (n * config.head_dim,), "this model has no biases") for name, n in names.items()]


def uneven(config: ModelConfig) -> list[str]:
    """For classes that want a width which the heads divide, even where head_dim is given."""
    return [] if config.n_embd % config.n_head == 0 else [f"n_embd {config.n_embd} over n_head {config.n_head}"]
