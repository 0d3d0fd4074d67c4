"""The model that the options describe: a family at a depth, with the run's flags applied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_gpt import architectures
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.mixers import MIXERS

# RunConfig field -> ModelConfig field, where a given flag simply replaces the family's value.
MODEL_FLAGS = {
    "norm_class": "norm",
    "norm_eps": "norm_eps",
    "dropout": "dropout",
    "post_norm": "post_norm",
    "decoupled_norm": "decoupled_norm",
    "skip_gain": "skip_gain",
    "skip": "skip",
    "reordered_norm": "reordered_norm",
    "parallel_block": "parallel_block",
    "qkv_bias": "qkv_bias",
    "qk_norm": "qk_norm",
    "joint_qk_norm": "joint_qk_norm",
    "attn_gate": "attn_gate",
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "position": "position",
    "rope_base": "rope_base",
    "tie_embeddings": "tie_embeddings",
    "varlen": "varlen",
    "doc_positions": "doc_positions",
    "doc_len": "doc_len",
    "attn_conv": "attn_conv",
    "share_per_layer": "share_per_layer",
    "share_group": "share_group",
    "mixer_options": "mixer_options",
    "vocab_size": "vocab_size",
    "qk_norm_scale": "qk_norm_scale",
    "norm_gain": "norm_gain",
    "embedding_norm": "embedding_norm",
    "residual_scalars": "residual_scalars",
    "token_smear": "token_smear",
    "backout": "backout",
    "zero_output": "zero_output",
    "logit_softcap": "logit_softcap",
    "ffn_multiple": "ffn_multiple",
}
# RunConfig field -> Experts field, likewise.
EXPERT_FLAGS = {
    "sparsity": "sparsity",
    "top_k": "top_k",
    "share_expert": "shared",
    "sqrt_gate": "sqrt_gate",
    "global_aux": "global_aux",
    "aux_style": "aux_style",
    "aux_gamma": "aux_gamma",
    "exact_aux": "exact_aux",
    "router_gate": "gate",
    "router_z_loss": "router_z_loss",
    "bias_rate": "bias_rate",
    "expert_routing": "routing",
    "expert_capacity": "capacity",
}
NORM_NAMES = {  # ArchScale's spellings -> ours; its fused RMSNorm computes the same
    "FusedRMSNorm": "rmsnorm",
    "RMSNorm": "rmsnorm",
    "LayerNorm": "layernorm",
}


def base_config(run: RunConfig, vocab_size: int | None = None) -> ModelConfig:
    """What the hyper-parameters were tuned on: the run's own family, flags and aspect ratio at the base depth.

    --base_hps.ar0 is another aspect ratio for it. vocab_size: see model_config.
    """
    return model_config(run, run.base_hps.d0, run.base_hps.ar0 or run.ar, vocab_size)


def model_config(run: RunConfig, depth: int, aspect_ratio: int | None, vocab_size: int | None = None) -> ModelConfig:
    """The family at a depth with the run's flags applied.

    vocab_size: what the data says, for a run without --vocab_size; None leaves the family's own.
    Raises UserError for a family or flags that cannot be.
    """
    config = architectures.build(
        run.train_model,
        depth,
        aspect_ratio=aspect_ratio,
        block_size=run.ctx_len,
        window=run.swa_len,
        experts=_experts(run),
    )
    changes: dict[str, Any] = {} if vocab_size is None else {"vocab_size": vocab_size}
    for flag, target in MODEL_FLAGS.items():
        value = getattr(run, flag)
        if value is not None:
            changes[target] = NORM_NAMES.get(value, value) if target == "norm" else value
    if changes.get("norm", "rmsnorm") not in ("rmsnorm", "layernorm"):
        raise UserError(f"--norm_class {run.norm_class} is unknown. Use rmsnorm or layernorm.")
    if run.bias is not None:
        changes |= {"attn_bias": run.bias, "mlp_bias": run.bias}
    if (run.midtrain or run.validation) and run.yarn_scale != 1:  # a family may have YaRN of its own
        changes["yarn_scale"] = run.yarn_scale
    if run.mlp is not None:
        kind = None if run.mlp == "none" else run.mlp
        changes["layers"] = tuple(s if s.ffn is None else replace(s, ffn=kind) for s in config.layers)
    if run.ffn_multiple_of is not None:
        gelu = any(s.ffn == "gelu" for s in changes.get("layers", config.layers))
        changes["intermediate_size"] = ffn_width(config.n_embd, run.ffn_multiple_of, gated=not gelu)
        changes["ffn_multiple"] = None  # a family may have one, which would overrule this
    if run.value_embeddings is not None:
        changes["layers"] = _with_tables(changes.get("layers", config.layers), run.value_embeddings)
    config = config.replace(**changes)
    _check_doc_len(config)
    return config


def _check_doc_len(config: ModelConfig) -> None:
    """Raise UserError for a --doc_len that can cut nothing."""
    if config.doc_len and not config.varlen:
        raise UserError(
            f"--doc_len {config.doc_len} cuts documents, which nothing keeps apart here: give --varlen true too, or "
            "--doc_len 0."
        )
    if config.doc_len >= config.block_size:
        raise UserError(
            f"--doc_len {config.doc_len} cuts nothing in rows of {config.block_size} tokens (--ctx_len): give fewer "
            "tokens than these, or --doc_len 0."
        )


def _with_tables(layers: tuple[LayerSpec, ...], wanted: bool) -> tuple[LayerSpec, ...]:
    """The layers with value embeddings in every other one that has values of its own, the last of them included."""
    able = [i for i, spec in enumerate(layers) if getattr(MIXERS.load(spec.mixer), "OWN_VALUES", False)]
    chosen = set(able[::-2]) if wanted else set[int]()
    return tuple(replace(spec, value_embedding=i in chosen) for i, spec in enumerate(layers))


def ffn_width(width: int, multiple: int, gated: bool) -> int:
    """LLaMA's hidden width (arXiv:2302.13971, section 2.2): 2/3 of 4 n, so that three matrices are as large as two of
    4 n, rounded up to a multiple.
    """
    hidden = 2 * 4 * width // 3 if gated else 4 * width
    return -(-hidden // multiple) * multiple


def _experts(run: RunConfig) -> Experts | None:
    """The family's experts with the run's flags applied; None for a family without."""
    experts = architectures.experts_of(run.train_model)
    if experts is None:
        return None
    given = {flag: getattr(run, flag) for flag in EXPERT_FLAGS if getattr(run, flag) is not None}
    experts = replace(experts, **{EXPERT_FLAGS[flag]: value for flag, value in given.items()})
    choice = experts.routing == "expert_choice"
    if run.aux_gamma is None and (choice or experts.bias_rate):  # which balance without a loss
        experts = replace(experts, aux_gamma=0.0)
    if run.router_gate is None and not choice and experts.active == 1 < experts.routed:
        experts = replace(experts, gate="all")  # over one expert, softmax is 1
    return experts
