"""From typed options to what will be trained: the one way, and each question on it is asked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lit_gpt.config.help import shown_value
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.names import NameFields, run_name
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.optim import OPTIMIZERS, check_arguments
from lit_gpt.parallel import shard_group
from lit_gpt.parallel.fp8 import fp8_note
from lit_gpt.plugins import load_plugins
from lit_gpt.preflight.data_facts import TrainingData, curriculum, describe_training_data, training_corpus, unreached
from lit_gpt.preflight.fork import known_fork, not_kept, place_in_data, read_origin, taken_over
from lit_gpt.preflight.memory import memory_per_gpu, too_much
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.model_options import base_config, model_config
from lit_gpt.preflight.plugin_mixers import check_mixers
from lit_gpt.preflight.unread import unread_options
from lit_gpt.roles import TABLES
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.describe import constants, describe
from lit_gpt.scaling.plan import build_plan, far_batch, loud_start, small_budget, unseen_warmup


@dataclass(frozen=True)
class ResolvedRun:
    """Everything that is decided before training: training executes it and decides nothing again.

    run: the options, with names and defaults applied. folder: where the run will live; nothing has been written yet.
    palm_flops_per_token: for the MFU by PaLM's convention. notes: sentences for the person who typed it, about what is
    allowed and may not be what was meant. data: what the training data says of itself.
    """

    run: RunConfig
    name: NameFields
    model: ModelConfig
    plan: Plan
    folder: Path
    palm_flops_per_token: float = 0.0
    notes: tuple[str, ...] = ()
    data: TrainingData = TrainingData()  # noqa: RUF009 (frozen)


def resolve_run(typed: RunConfig, ranks: int) -> ResolvedRun:
    """Names, model, data, Plan and memory of a run on `ranks` processes.

    Nothing is allocated and no token is read, so it takes a second at any size. Raises UserError for anything that
    cannot be trained.
    """
    load_plugins(typed.plugins)
    run, name = resolve(typed, OPTIMIZERS.resolve)
    shard_group(run.shard_group, ranks)  # refuses what does not divide them
    config, data = model_config(run, run.depth, run.ar), TrainingData()
    if run.vocab_size is None:
        data = describe_training_data(run.train_data_dir, run.data_mixture, run.eos_token_id, run.dry_run)
        config = config if data.vocab_size is None else config.replace(vocab_size=data.vocab_size)
    if run.eos_token_id is not None and run.eos_token_id >= config.vocab_size:
        raise UserError(
            f"--eos_token_id is {run.eos_token_id}; it must be below the vocabulary of {config.vocab_size:,} tokens."
        )
    model, base = (
        meta_model(config, run.precision, run.residual_precision, run.table_precision),
        base_config(run, data.vocab_size),
    )
    counted = count(model)
    check_mixers(config)
    tuned = counted if base == config else count(meta_model(base))
    label = run_name(
        run.train_name,
        run.train_model,
        run.depth,
        config.block_size,
        moe=None if config.experts is None else (config.experts.sparsity, config.experts.top_k),
        ar=run.ar,
        swa=run.swa_len,
        ramp=run.bramp_ratio or 1,
    )
    folder = Path(str(run.out_dir)) / label
    fork = known_fork(run.fork_from, folder)
    origin = read_origin(Path(run.fork_from), config.experts is not None) if run.fork_from and fork is None else None
    facts = OPTIMIZERS.facts(run.optimizer or "adamw")
    build = partial(
        build_plan, facts=facts, model=counted, base=tuned, ranks=ranks, fork=origin.fork if origin else fork
    )
    notes = unread_options(run, name, model, build, ranks)
    run = replace(run, expert_parallel=run.expert_parallel and config.experts is not None)
    plan = replace(build(run), curriculum=curriculum(run.data_mixture))
    notes += (fp8_note(model, run.fp8_recipe),) if run.fp8 else ()
    notes += unreached(plan) + small_budget(run.base_hps, plan) + far_batch(run.total_bsz, plan)
    notes += unseen_warmup(run.base_hps.warmup_tokens, plan) + loud_start(plan, config.n_embd)
    if origin:
        where = run.train_data_dir, run.data_mixture, run.eos_token_id, plan
        fork = place_in_data(taken_over(origin, plan), origin, lambda fork: training_corpus(*where, fork))
        plan, notes = replace(plan, fork=fork), notes + not_kept(origin, plan)
    check_arguments(plan)
    if run.logits_precision == "bf16" and run.use_flce is False:
        raise UserError(
            "--logits_precision bf16 is for the loss in slices, which --use_flce false turns off. Drop one of the two."
        )
    if run.table_precision == "bf16":
        _check_tables(plan, config.tie_embeddings, ranks > 1 or run.offloading)
    if run.dry_run or torch.cuda.is_available():  # a run on a CPU asks nothing of a GPU
        plan = replace(plan, memory=memory_per_gpu(run, model, plan, ranks))
    return ResolvedRun(run, name, config, plan, folder, counted.palm_flops_per_token, notes, data)


def _check_tables(plan: Plan, tied: bool, sharded: bool) -> None:
    """Raise UserError where tables in bf16 cannot be, or would lose what they learn."""
    adamw = [role for role in plan.roles.values() if role.update_rule == "adamw"]
    fused = all(plan.roles[table] in adamw for table in TABLES)
    fused = fused and not (plan.cautious_weight_decay and any(role.weight_decay for role in adamw))
    facts = OPTIMIZERS.facts(plan.optimizer)
    read = [constants(plan, facts, table, plan.roles[table]) for table in TABLES]
    slowest = max((value for each in read for key, value in each.items() if key != "eps"), default=0.0)
    whys = {
        "FSDP2 wants the parameters of a block in one dtype, so it is for one process without --offloading": sharded,
        "the token table is the head here, whose small steps bf16 would lose (--tie_embeddings)": tied,
        "an average of weights moves in steps that bf16 would lose (--ema)": bool(plan.ema),
        # A number of 8 bits is rounded by up to 2^-9 to 2^-8 of itself, and an average loses 1 - beta of itself.
        f"AdamW's averages with a beta of {slowest:g} would stand still in bf16, as from 0.9961 on": slowest
        > 1 - 2**-8,
        f"only torch's fused AdamW can step such tables, and --optimizer {plan.optimizer} uses another": not fused,
    }
    for why in (why for why, holds in whys.items() if holds):
        raise UserError(f"--table_precision bf16 is not possible: {why}. Drop it.")


def dry_run_text(resolved: ResolvedRun) -> str:
    """What --dry_run prints, and a run at its start: the Plan, the folder, the labels that switch nothing, notes, and
    whether it fits this GPU.
    """
    labels = ", ".join(resolved.name.labels) or "none"
    lines = [describe(resolved.plan, OPTIMIZERS.facts(resolved.plan.optimizer)), ""]
    lines += [f"run folder   {resolved.folder}", f"labels only  {labels}"]
    if resolved.name.default:
        sets = ", ".join(f"--{key} {shown_value(value)}" for key, value in resolved.name.fields.items()) or "nothing"
        lines.append(f"name         --train_name was not given: its default sets {sets}; give one to choose")
    lines += [f"note         {note}" for note in resolved.notes]
    if resolved.data.missing:
        lines.append(f"note: the vocabulary is the family's, since there is no data. {resolved.data.missing}")
    needed, run = sum(resolved.plan.memory.values()), resolved.run
    warning = too_much(needed, run.micro_bsz, str(run.act_ckpt), run.offloading)
    return "\n".join([*lines, *([warning] if warning else [])])
