"""The parts of a run, each made from its ResolvedRun: corpora, model, optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lit_gpt import optim
from lit_gpt.config.validation_sets import validation_sets
from lit_gpt.data.corpus import Corpus, check_vocab
from lit_gpt.data.discover import open_corpus
from lit_gpt.data.origin import agree
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.ops.loss import chunk_loss, even_chunk
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.parallel import Runtime, parallelize_model
from lit_gpt.parallel.compile_cache import start_compilers
from lit_gpt.parallel.fabric import DTYPES
from lit_gpt.preflight.backend_checks import check_attention, check_experts, check_fp8
from lit_gpt.preflight.data_facts import TrainingData, describe_training_data, training_corpus
from lit_gpt.preflight.memory import EXPERT_CASTS
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.scaling.base import Plan


def open_training(resolved: ResolvedRun) -> Corpus:
    """The shuffled training corpus, checked against the model's vocabulary."""
    run, plan = resolved.run, resolved.plan
    corpus = training_corpus(run.train_data_dir, run.data_mixture, run.eos_token_id, plan, plan.fork)
    check_vocab(corpus, resolved.model.vocab_size)
    return corpus


def open_validation(resolved: ResolvedRun) -> dict[str, Corpus]:
    """The validation corpora by the names of --val_data_dir, "" for the only one; {} where there is none.

    Each is in order, and cut for the longest multiple of the context that it can fill. With learned positions that is
    the context itself: there are none beyond.

    Raises UserError for validation data of another tokenizer than the training data, where there is some.
    """
    run, training = resolved.run, resolved.data
    sets = validation_sets(run.val_data_dir)
    if sets and run.vocab_size is not None and not run.validation:  # nobody needed to know so far
        training = describe_training_data(run.train_data_dir, run.data_mixture, run.eos_token_id, may_be_missing=True)
    return {name: _open_set(folder, training, resolved) for name, folder in sets.items()}


def _open_set(folder: str, training: TrainingData, resolved: ResolvedRun) -> Corpus:
    run, plan, context = resolved.run, resolved.plan, resolved.plan.context
    shortest = open_corpus(
        folder, "validation", context, plan.data_seed, shuffle=False, repeat=False, eos_token_id=run.eos_token_id
    )
    agree([*training.sources, (folder, shortest.common)])
    check_vocab(shortest, resolved.model.vocab_size)
    longest = 1 if resolved.model.position == "learned" else run.num_extrp or 1
    multiple = min(longest, (shortest.num_tokens - 1) // context)
    return Corpus(
        [(s.name, s.stream, 1.0) for s in shortest.sources],
        multiple * context,
        plan.data_seed,
        shuffle=False,
        repeat=False,
    )


def build_model(resolved: ResolvedRun, runtime: Runtime) -> nn.Module:
    """The initialised model on its device(s), compiled where the run asks for it."""
    run, plan = resolved.run, resolved.plan
    check_attention(resolved.model, run.attention, runtime.device, runtime.compute_dtype)
    check_experts(resolved.model, run.expert_backend, runtime.device, runtime.compute_dtype)
    if run.fp8:
        check_fp8(run.fp8_recipe, runtime.device, run.micro_bsz * plan.context)
    on_gpu = runtime.device.type == "cuda"
    compiled = on_gpu if run.compile is None else run.compile
    few = on_gpu and run.act_ckpt != "off"
    tokens, rows = run.micro_bsz * plan.context, resolved.model.padded_vocab_size
    if compiled:
        start_compilers()
    model = parallelize_model(
        runtime,
        lambda: GPT(
            resolved.model,
            plan.multipliers,
            compute_dtype=runtime.compute_dtype,
            residual_dtype=torch.float32 if run.residual_precision == "fp32" else runtime.compute_dtype,
            table_dtype=torch.bfloat16 if run.table_precision == "bf16" else None,
            attention_backend=run.attention,
            kernels=run.kernels,
            expert_backend=run.expert_backend,
            loss_backend="plain" if run.use_flce is False else "chunked",
            rounded_logits=run.logits_precision == "bf16",
            loss_chunk=even_chunk(tokens, rows, few=True) if few else None,
        ),
        lambda model: init_parameters(model, plan.roles, plan.seed),
        compute_dtype=runtime.compute_dtype,
        compile=compiled,
        act_ckpt=cast(Any, run.act_ckpt),
        act_offload=run.act_offload,
        offloading=run.offloading,
        expert_parallel=run.expert_parallel,
        fp8=run.fp8_recipe if run.fp8 else None,
        room_for_casts=plan.memory.get(EXPERT_CASTS, 0),
        reduce_dtype=DTYPES[run.reduce_precision],
        keep_gathered=run.keep_gathered,
        fp8_gather=run.fp8_gather,
    )
    if compiled:  # what lies outside the blocks: each of these passes many times over the stream or the logits
        whole = cast(GPT, model)
        whole.chunk_loss = torch.compile(chunk_loss)
        whole.start, whole.final = torch.compile(whole.start), torch.compile(whole.final)
    return model


@contextmanager
def whole_model(model: GPT, runtime: Runtime) -> Iterator[GPT]:
    """The model in evaluation mode as this process can use it alone, whatever the other ones do meanwhile.

    Where it is sharded, that is a copy with all weights on the device, for as long as the context lasts. Every rank
    enters together, since the weights are gathered then.
    """
    if runtime.mesh is None:
        try:
            yield model.eval()
        finally:
            model.train()
        return
    with runtime.device:
        whole = model.another()
    with torch.no_grad():
        shards = model.state_dict()
        for name, tensor in whole.state_dict().items():
            tensor.copy_(full(shards[name].to(runtime.device)))
    yield whole.eval()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, of which a DTensor has a part on each rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def build_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """The Plan's optimizer over the model's roles. Raises UserError for arguments that it does not take."""
    return optim.build(parameter_groups(model, plan), plan)
