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
from lit_gpt.config.bounds import violations
from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.config.names import NameFields, read_train_name, run_name
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import RunConfig
from lit_gpt.data.discover import describe_sources
from lit_gpt.data.origin import agree
from lit_gpt.data.remote import NoData, is_remote, local_path
from lit_gpt.data.stream import StreamInfo
from lit_gpt.errors import UserError
from lit_gpt.metrics.counting import flops_per_token, palm_flops_per_token, param_counts
from lit_gpt.model import GPT
from lit_gpt.optim import OPTIMIZERS, check_arguments
from lit_gpt.plugins import load_plugins
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
EXPERT_OPTIONS = ("sparsity", "top_k", *EXPERT_FLAGS, "expert_parallel", "expert_backend")
ATTENTION_FLAGS = ("qk_norm", "attn_gate", "attn_norm", "attn_conv", "position", "rope_base", "yarn_scale")
NORM_NAMES = {"FusedRMSNorm": "rmsnorm", "RMSNorm": "rmsnorm", "LayerNorm": "layernorm"}


@dataclass(frozen=True)
class Setup:
    """A resolved run.

    folder: where it will live; nothing has been written yet. palm_flops_per_token: for the MFU by PaLM's convention.
    notes: sentences for the person who typed it, about what is allowed and may not be what was meant.
    """

    run: RunConfig
    name: NameFields
    model: ModelConfig
    plan: Plan
    folder: Path
    palm_flops_per_token: float = 0.0
    notes: tuple[str, ...] = ()


def prepare(typed: RunConfig, ranks: int) -> Setup:
    """Resolve names, build the ModelConfig and the Plan for `ranks` processes.

    Raises UserError for anything that cannot be trained.
    """
    load_plugins(typed.plugins)
    if typed.optimizer is not None and not violations(typed):  # resolve() says what is out of bounds
        typed = replace(typed, optimizer=OPTIMIZERS.resolve(typed.optimizer))
    run, name = resolve(typed)
    config = model_config(run, run.depth, run.ar)
    notes = _idle(run, config)
    run = replace(run, expert_parallel=run.expert_parallel and config.experts is not None)
    if run.eos_token_id is not None and run.eos_token_id >= config.vocab_size:
        raise UserError(
            f"--eos_token_id is {run.eos_token_id}; it must be below the vocabulary of {config.vocab_size:,} tokens."
        )
    base, counted = base_config(run), count(config)
    plan = build_plan(run, OPTIMIZERS.facts(run.optimizer or "adamw"), counted, count(base), ranks)
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
    folder = Path(str(run.out_dir)) / label
    return Setup(run, name, config, plan, folder, counted.palm_flops_per_token, notes)


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
        changes |= _data_vocabulary(run)
    if run.midtrain or run.validation:
        changes["yarn_scale"] = run.yarn_scale
    if run.mlp is not None:
        changes["layers"] = tuple(s if s.ffn is None else replace(s, ffn=run.mlp) for s in config.layers)
    return config.replace(**changes)


def _idle(run: RunConfig, config: ModelConfig) -> tuple[str, ...]:
    """A note about the typed options that nothing in this model reads, () where there are none.

    Launch commands are written for many families at once (ArchScale's dense ones have --sparsity and --aux_style), so
    this is no error. Tokens of a name are not noted, and neither is what switches off what such a model lacks.
    """
    named, default = read_train_name(run.train_name).fields, RunConfig()

    def typed(*flags: str) -> list[str]:
        given = [flag for flag in flags if getattr(run, flag) not in (None, False, "none", getattr(default, flag))]
        return [flag for flag in given if flag not in named]

    of_attention, attending = typed(*ATTENTION_FLAGS), ()
    if of_attention:
        with torch.device("meta"):
            attending = GPT(config).attending
    turned = config.position == "rope" and any(spec.rope_base is None for spec in attending)
    lacking = {
        "experts": typed(*EXPERT_OPTIONS) if config.experts is None else [],
        "windows": typed("swa_len") if all(spec.window is None for spec in config.layers) else [],
        "attention": [] if attending else of_attention,
        "rotary positions with the model's base": typed("rope_base") if attending and not turned else [],
        "--varlen": [] if config.varlen else typed("doc_positions"),
        "wsd schedule": [] if run.schedule == "wsd" else typed("decay", "decay_fraction"),
    }
    parts = [f"{', '.join(f'--{flag}' for flag in flags)} (no {what})" for what, flags in lacking.items() if flags]
    return (f"nothing in {run.train_model} reads {', '.join(parts)}",) if parts else ()


def _experts(run: RunConfig) -> Experts | None:
    """The experts that the flags describe; None for a family without."""
    if not architectures.has_experts(run.train_model):
        return None
    given = {flag: getattr(run, flag) for flag in EXPERT_FLAGS if getattr(run, flag) is not None}
    fields = {EXPERT_FLAGS[flag]: value for flag, value in given.items()}
    choice, plain = run.expert_routing == "expert_choice", Experts(run.sparsity, run.top_k, bool(run.share_expert))
    if choice or run.bias_rate:  # which balance without a loss
        fields.setdefault("aux_gamma", 0.0)
    if not choice and plain.active == 1 < plain.routed:
        fields.setdefault("gate", "all")  # over one expert, softmax is 1
    return Experts(run.sparsity, run.top_k, **fields)


def _data_vocabulary(run: RunConfig) -> dict[str, int]:
    """Data says how large its vocabulary is, where it has a meta.json or is text; a dry run may have no data."""
    try:
        size = agree(_data(run)).vocab_size
    except NoData:
        if run.dry_run:
            return {}
        raise
    return {} if size is None else {"vocab_size": size}


def _data(run: RunConfig) -> list[tuple[str, StreamInfo]]:
    """What is known of the sources; nothing of a folder that is not there, which a run finds out later."""
    if not is_remote(run.train_data_dir) and not local_path(run.train_data_dir).exists():
        return []
    return describe_sources(run.train_data_dir, "train", run.data_mixture)


def _without_data(run: RunConfig) -> list[str]:
    """The note of a dry run that found a place for data, but none there."""
    try:
        if run.vocab_size is None:
            _data(run)
    except NoData as missing:
        return [f"note: the vocabulary is the family's, since there is no data. {missing}"]
    return []


def count(config: ModelConfig) -> Counted:
    """Exact parameter counts and FLOPs per token, from a model on the meta device.

    Raises UserError for a model with a tensor that no computer can number.
    """
    try:
        with torch.device("meta"):
            model = GPT(config, Multipliers())
    except (RuntimeError, TypeError) as error:  # what torch makes of a size beyond 64 bits
        if "overflow" not in str(error).lower():
            raise
        sizes = f"width {config.n_embd:,}, hidden width {config.intermediate_size:,}, vocabulary {config.vocab_size:,}"
        raise UserError(
            f"{config.family} at depth {config.depth} is too large to be described: {sizes}. Lower --depth, --ar, "
            "--sparsity or the sizes in --mixer_options."
        ) from error
    length = config.block_size
    return Counted(config, param_counts(model), flops_per_token(model, length), palm_flops_per_token(model, length))


def world_size() -> int:
    """Processes of this run, as its launcher says; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def dry_run(setup: Setup) -> str:
    """What --dry_run prints, and a run at its start: the Plan, the folder, the labels that switch nothing, notes, and
    whether it fits this GPU.
    """
    labels = ", ".join(setup.name.labels) or "none"
    lines = [
        describe(setup.plan, OPTIMIZERS.facts(setup.plan.optimizer)),
        "",
        f"run folder   {setup.folder}",
        f"labels only  {labels}",
    ]
    lines += [f"note         {note}" for note in setup.notes]
    warning = too_much(setup.run, setup.plan.memory)
    return "\n".join([*lines, *_without_data(setup.run), *([warning] if warning else [])])
