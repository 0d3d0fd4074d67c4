"""About how much memory one GPU needs, before anything is allocated.

Weights, their averages, sharded gradients and optimizer state are exact: they are added up, tensor by tensor, over a
model on the meta device. Activations are an estimate, see activations.py. Left out: what an optimizer needs within its
step, the CUDA context, and what the allocator loses between tensors.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import cast

import torch
from torch import nn

from lit_gpt.config.run import RunConfig
from lit_gpt.model import GPT
from lit_gpt.nn import linear
from lit_gpt.ops.fp8 import RECIPES, operand_itemsize
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.optim.engine.state_size import shard_bytes, state_bytes
from lit_gpt.parallel import shard_group
from lit_gpt.parallel.fp8 import in_8_bits
from lit_gpt.parallel.kept_casts import experts_within
from lit_gpt.parallel.offload import chosen_layers
from lit_gpt.parallel.recompute import Recompute
from lit_gpt.preflight.activations import NeedsValues, kept_by_layers, of_expert_weights, of_layers, of_loss, of_tables
from lit_gpt.roles import REPLICATED
from lit_gpt.scaling.base import Plan

GIB = 2**30
EXPERT_CASTS = "casts of experts"  # kept between steps where there is room for them, see parallel/kept_casts.py
FILLED = 0.95  # share of a GPU's memory that the estimate may reach with them: it is right to 5% (docs/performance.md)


def memory_per_gpu(run: RunConfig, model: GPT, plan: Plan, ranks: int) -> dict[str, int]:
    """Bytes on one of `ranks` GPUs: weights, copies of weights, gradients, averages, optimizer, activations.

    Where one process takes a step of one micro-batch, gradients take the place of activations, and only those beyond
    that count. The bytes are a GPU's also where this process has none: bf16 unless --precision says otherwise, compiled
    blocks, library kernels. The keys "optimizer" and "activations" are missing where these cannot be told.
    """
    # Whether a step is of several micro-batches.
    accumulates = plan.batch_tokens * plan.batch_ramp > ranks * run.micro_bsz * plan.context
    sizes = _of_parameters(model, run, plan, ranks, accumulates)
    parallel = run.expert_parallel and ranks > 1
    try:
        layers = kept_by_layers(model, parallel, run.fp8_recipe if run.fp8 else None)
    except NeedsValues:  # a mixer from a plugin may read its tensors, and must not be refused for that
        return sizes
    tokens = run.micro_bsz * model.config.block_size
    chunked, few = run.use_flce is not False, run.act_ckpt != "off"
    loss = of_loss(model.config, tokens, chunked, model.compute_dtype, few, run.logits_precision == "bf16")
    kept, backward = of_layers(
        layers, tokens, cast(Recompute, run.act_ckpt), chosen_layers(run.act_offload, len(layers))
    )
    kept += of_tables(model.config, tokens, model.compute_dtype)
    backward += of_expert_weights(model, 1 / shard_group(run.shard_group, ranks) if parallel else 1.0)
    activations = int(kept + max(loss, backward))  # the logits are gone when the last layer's backward pass begins
    if ranks == 1 and not accumulates:  # gradients come when activations go
        sizes["gradients"] = max(sizes["gradients"] - activations, 0)
    sizes["activations"] = activations
    if accumulates and "optimizer" in sizes and torch.cuda.is_available() and not _sharded(run, ranks):
        room = int(FILLED * torch.cuda.get_device_properties(0).total_memory) - sum(sizes.values())
        sizes[EXPERT_CASTS] = experts_within(model, model.compute_dtype, room)[1]
    return sizes


def _sharded(run: RunConfig, ranks: int) -> bool:
    return ranks > 1 or run.offloading or bool(os.environ.get("WORLD_SIZE"))


def _of_parameters(model: GPT, run: RunConfig, plan: Plan, ranks: int, accumulates: bool) -> dict[str, int]:
    """All but the activations. accumulates: whether a step is of several micro-batches."""
    parts = shard_group(run.shard_group, ranks)
    groups = parameter_groups(model, plan)
    shards = {p: 1 if g["role"] in REPLICATED else parts for g in groups for p in g["params"]}
    on_gpu = [p for g in groups for p in g["params"] if g["role"] in REPLICATED or not run.offloading]
    weights = sum(shard_bytes(p, shards[p]) for p in on_gpu)
    if _sharded(run, ranks):
        whole = accumulates and run.reduce_precision == "fp32"
        copies, whole_gradients = _gathered(model, run.expert_parallel, run.keep_gathered, whole)
    else:
        recipe = run.fp8_recipe if run.fp8 else None
        copies, whole_gradients = _casts(model, cast(Recompute, run.act_ckpt), recipe), 0
    sizes = {"weights": weights, "copies": copies, "gradients": weights + whole_gradients}
    sizes["averages"] = len(plan.ema) * weights  # each where its weights are, and sharded like them
    state = state_bytes(groups, OPTIMIZERS.facts(plan.optimizer), plan.optimizer_args, shards)
    return sizes if state is None else sizes | {"optimizer": sum(state[p] for p in on_gpu)}


def _size(module: nn.Module, *left_out: str, but: Collection[torch.Tensor] = ()) -> int:
    """Elements of a module's parameters but those of some roles, and `but` these."""
    chosen = (p for p in module.parameters() if p.role not in left_out)  # type: ignore[attr-defined]
    return sum(p.numel() for p in chosen if p not in but)


def _casts(model: GPT, recompute: Recompute, recipe: str | None) -> int:
    """Bytes of the weights in the compute dtype that backward keeps; experts are cast again, and of tables only rows.

    Without recomputation they are those of all blocks, else those of one at a time; under "cheap" also those of all
    maps that are joined for one product: a compiler keeps what it had to lay side by side. recipe: that of weights in 8
    bits, which are kept in two layouts, whatever is recomputed.
    """
    small = _in_8_bits(model, recipe)
    kept = sum(2 * p.numel() * operand_itemsize(recipe) for p in small) if recipe else 0
    if model.compute_dtype == torch.float32:
        return kept
    sizes = [_size(block, *REPLICATED, "expert", "value_table", but=small) for block in model.blocks]
    if recompute == "off":
        return kept + sum(sizes) * model.compute_dtype.itemsize
    joined = [_joined(block, small) if recompute == "cheap" else 0 for block in model.blocks]
    alone = max(size - of_these for size, of_these in zip(sizes, joined))
    return kept + (alone + sum(joined)) * model.compute_dtype.itemsize


def _joined(block: nn.Module, but: Collection[torch.Tensor]) -> int:
    """Elements of a block's weights that act together (linear.groups), but these."""
    together = (m.weight for group in linear.groups(block).values() if len(group) > 1 for m in group)
    return sum(w.numel() for w in together if w not in but)


def _in_8_bits(model: GPT, recipe: str | None) -> set[torch.Tensor]:
    """The weights of which a recipe keeps casts; a library casts in every pass."""
    if recipe is None or RECIPES[recipe].library:
        return set()
    return {m.weight for group in in_8_bits(model, recipe)[0].values() for m in group}


def _gathered(model: GPT, expert_parallel: bool, keep: bool, accumulates: bool) -> tuple[int, int]:
    """Bytes of gathered weights and of whole gradients under FSDP2, see parallel/parallelize.py.

    Token table and head stay gathered in fp32 (4 bytes); of the blocks, all or the one that runs and the next one are
    gathered in the compute dtype. Where a step accumulates several micro-batches, all gradients are kept whole between
    them, in fp32; otherwise those of one block, or of table or head, at a time.
    """
    left_out = (*REPLICATED, "expert") if expert_parallel else REPLICATED
    blocks = [_size(block, *left_out) for block in model.blocks]
    tables = _size(model, *left_out) - sum(blocks)
    head = 0 if model.head is None else _size(model.head)
    whole = tables + sum(blocks) if accumulates else max(tables - head, head, *blocks)
    return 4 * tables + (sum(blocks) if keep else 2 * max(blocks)) * model.compute_dtype.itemsize, 4 * whole


def too_much(needed: int, micro_bsz: int, recompute: str, offloading: bool) -> str:
    """A warning where this machine's GPU has less than `needed` bytes of memory, or "".

    The others are options of the run, for what could be changed.
    """
    if not torch.cuda.is_available():
        return ""
    gpu = torch.cuda.get_device_properties(0)
    if needed <= gpu.total_memory:
        return ""
    ways = [f"--micro_bsz {micro_bsz // 2}"] if micro_bsz > 1 else []
    ways += ["--act_ckpt cheap"] if recompute == "off" else []
    ways += ["--act_ckpt selective"] if recompute in ("off", "cheap") else []
    ways += ["--act_ckpt true"] if recompute != "full" else []
    ways += ["more GPUs with torchrun"] + ([] if offloading else ["--fsdp_save_mem true with torchrun"])
    return f"warning      more than the {gpu.total_memory / GIB:.3g} GiB of {gpu.name}. Try {', '.join(ways)}."
