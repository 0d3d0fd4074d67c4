"""From a typed command line to what will be trained: ModelConfig, exact counts, Plan.

Everything here works without data and without allocating the model (meta device), so a
dry run costs seconds at any size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_gpt import architectures
from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.config.names import NameFields, read_train_name, run_name
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import RunConfig
from lit_gpt.data.meta import read_meta
from lit_gpt.data.tokenizer import ByteTokenizer
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.optim import OPTIMIZERS, check_arguments
from lit_gpt.scaling.base import Multipliers, Plan
from lit_gpt.scaling.plan import Counted, build_plan, describe
from lit_gpt.train.memory import memory_per_gpu, too_much

# RunConfig field -> ModelConfig field, where a given flag simply replaces the family's value.
MODEL_FLAGS = {
    "norm_class": "norm",
    "post_norm": "post_norm",
    "decoupled_norm": "decoupled_norm",
    "skip_gain": "skip_gain",
    "skip": "skip",
    "qk_norm": "qk_norm",
    "attn_gate": "attn_gate",
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "position": "position",
    "rope_base": "rope_base",
    "tie_embeddings": "tie_embeddings",
    "varlen": "varlen",
    "doc_positions": "doc_positions",
    "attn_conv": "attn_conv",
    "share_per_layer": "share_per_layer",
    "share_group": "share_group",
    "mixer_options": "mixer_options",
    "vocab_size": "vocab_size",
}
# RunConfig field -> Experts field, likewise.
EXPERT_FLAGS = {
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
NORM_NAMES = {"FusedRMSNorm": "rmsnorm", "RMSNorm": "rmsnorm", "LayerNorm": "layernorm"}


@dataclass(frozen=True)
class Setup:
    """A resolved run.

    folder: where it will live; nothing has been written yet. palm_flops_per_token: for the MFU by PaLM's convention.
    """

    run: RunConfig
    name: NameFields
    model: ModelConfig
    plan: Plan
    folder: Path
    palm_flops_per_token: float = 0.0


def prepare(typed: RunConfig, ranks: int) -> Setup:
    """Resolve names, build the ModelConfig and the Plan for `ranks` processes.

    Raises UserError for anything that cannot be trained.
    """
    typed = typed if typed.optimizer is None else replace(typed, optimizer=OPTIMIZERS.resolve(typed.optimizer))
    run, name = resolve(typed)
    config = model_config(run, run.depth, run.ar)
    base, counted = base_config(run), count(config)
    plan = build_plan(run, counted, count(base), ranks)
    check_arguments(plan)
    if run.dry_run or torch.cuda.is_available():  # a run on a CPU asks nothing of a GPU
        plan = replace(plan, memory=memory_per_gpu(run, config, plan, ranks))
    label = run_name(
        run.train_name,
        run.train_model,
        run.depth,
        config.block_size,
        moe=None if config.experts is None else (run.sparsity, run.top_k),
        ar=run.ar,
        swa=run.swa_len,
        ramp=plan.batch_ramp,
    )
    return Setup(run, name, config, plan, Path(str(run.out_dir)) / label, counted.palm_flops_per_token)


def base_config(run: RunConfig) -> ModelConfig:
    """What the hyper-parameters were tuned on: the run's own family, flags and aspect ratio at the base depth.

    --base_hps.ar0 is another aspect ratio for it.
    """
    return model_config(run, run.base_hps.d0, run.base_hps.ar0 or run.ar)


def model_config(run: RunConfig, depth: int, aspect_ratio: int | None) -> ModelConfig:
    """The family at a depth with the run's flags applied."""
    config = architectures.build(
        run.train_model,
        depth,
        aspect_ratio=aspect_ratio,
        block_size=run.ctx_len,
        window=run.swa_len,
        experts=_experts(run),
    )
    if run.swa_len is not None and all(spec.window is None for spec in config.layers):
        raise UserError(f"No layer of {run.train_model} has a window, so --swa_len cannot act. Drop it.")
    changes: dict[str, Any] = {}
    for flag, target in MODEL_FLAGS.items():
        value = getattr(run, flag)
        if value is not None:
            changes[target] = NORM_NAMES.get(value, value) if target == "norm" else value
    if changes.get("norm", "rmsnorm") not in ("rmsnorm", "layernorm"):
        raise UserError(f"--norm_class {run.norm_class} is unknown. Use rmsnorm or layernorm.")
    if run.bias is not None:
        changes |= {"attn_bias": run.bias, "mlp_bias": run.bias}
    if run.vocab_size is None:
        changes |= _data_vocabulary(run.train_data_dir)
    if run.midtrain or run.validation:
        changes["yarn_scale"] = run.yarn_scale
    if run.mlp is not None:
        changes["layers"] = tuple(s if s.ffn is None else replace(s, ffn=run.mlp) for s in config.layers)
    config = config.replace(**changes)
    _refuse_idle(run, config)
    return config


def _refuse_idle(run: RunConfig, config: ModelConfig) -> None:
    """Raises UserError for options of attention that act on no layer.

    Only if they were typed: launch commands of the reference come with name tokens that a family may not need.
    False and "none" are what such a model does anyway.
    """
    named = read_train_name(run.train_name).fields
    typed = [f for f in ("attn_conv", "position", "rope_base") if f not in named and getattr(run, f)]
    typed = [f for f in typed if getattr(run, f) != "none"]
    if not typed:
        return
    with torch.device("meta"):
        attending = GPT(config).attending
    if not attending:
        flags, them = ", ".join(f"--{flag}" for flag in typed), "it" if len(typed) == 1 else "them"
        raise UserError(f"No layer of {run.train_model} is attention, so {flags} cannot act. Drop {them}.")
    if "rope_base" in typed and config.position == "none":
        raise UserError(
            f"{run.train_model} has no rotary positions, so --rope_base cannot act. Drop it, or add --position rope."
        )
    if "rope_base" in typed and all(spec.rope_base is not None for spec in attending):
        raise UserError(
            f"Every attention layer of {run.train_model} has a rotary base of its own, so --rope_base cannot act. "
            "Drop it."
        )


def _experts(run: RunConfig) -> Experts | None:
    """The experts that the flags describe; None for a family without, where such flags cannot act."""
    given = {flag: getattr(run, flag) for flag in EXPERT_FLAGS if getattr(run, flag) is not None}
    if architectures.has_experts(run.train_model):
        fields = {EXPERT_FLAGS[flag]: value for flag, value in given.items()}
        choice, plain = run.expert_routing == "expert_choice", Experts(run.sparsity, run.top_k, bool(run.share_expert))
        if choice or run.bias_rate:  # which balance without a loss
            fields.setdefault("aux_gamma", 0.0)
        if not choice and plain.active == 1 < plain.routed:
            fields.setdefault("gate", "all")  # over one expert, softmax is 1
        return Experts(run.sparsity, run.top_k, **fields)
    flags = [f"--{flag}" for flag in given] + (["--sparsity"] if run.sparsity != 1 else [])
    flags += ["--expert_parallel"] if run.expert_parallel else []
    flags += ["--expert_backend"] if run.expert_backend != "auto" else []
    if flags:
        raise UserError(f"{run.train_model} has no experts, so {', '.join(flags)} cannot act. Drop them.")
    return None


def _data_vocabulary(data_dir: str) -> dict[str, int]:
    """Prepared data says how large its vocabulary is; a dry run may have no data."""
    folder = Path(data_dir)
    if "://" in data_dir or not folder.is_dir():
        return {}
    meta = read_meta(folder)
    if meta:
        return {"vocab_size": meta["vocab_size"]}
    # A folder of plain text is read as bytes.
    return {} if any(folder.rglob("*.bin")) else {"vocab_size": ByteTokenizer.vocab_size}


def count(config: ModelConfig) -> Counted:
    """Exact parameter counts and FLOPs per token, from a model on the meta device."""
    with torch.device("meta"):
        model = GPT(config, Multipliers())
    length = config.block_size
    return Counted(config, model.param_counts(), model.flops_per_token(length), model.palm_flops_per_token(length))


def world_size() -> int:
    """Processes of this run, as its launcher says; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def dry_run(setup: Setup) -> str:
    """What --dry_run prints: the Plan, the folder, the labels that switch nothing, and whether it fits this GPU."""
    labels = ", ".join(setup.name.labels) or "none"
    lines = [describe(setup.plan), "", f"run folder   {setup.folder}", f"labels only  {labels}"]
    warning = too_much(setup.run, setup.plan.memory)
    return "\n".join([*lines, *([warning] if warning else [])])
