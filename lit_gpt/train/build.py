"""The parts of a run, each made from its Setup: corpora, model, optimizer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from lit_gpt import optim
from lit_gpt.data.corpus import Corpus, check_vocab
from lit_gpt.data.discover import describe_sources, open_corpus
from lit_gpt.data.origin import agree
from lit_gpt.data.remote import NoData
from lit_gpt.errors import UserError
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.nn.moe import hidden_width
from lit_gpt.ops import grouped_gemm
from lit_gpt.ops.attention import describe, pick
from lit_gpt.ops.loss import chunk_loss
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.parallel import Runtime, setup_model
from lit_gpt.scaling.base import Plan
from lit_gpt.train.setup import Setup

LLAMA_VOCABULARY, LLAMA_EOS = 32000, 2
SOFTMAX_ATTENTION = ("attention", "cross_attention", "differential_attention", "differential_cross_attention")


def open_training(setup: Setup) -> Corpus:
    """The shuffled training corpus, checked against the model's vocabulary."""
    run = setup.run
    corpus = open_corpus(
        run.train_data_dir,
        "train",
        setup.plan.context,
        run.seed,
        mixture=run.data_mixture,
        eos_token_id=run.eos_token_id,
    )
    check_vocab(corpus, setup.model.vocab_size)
    return corpus


def open_validation(setup: Setup) -> Corpus | None:
    """The validation corpus in order, cut for the longest multiple of the context that it can fill."""
    run, context = setup.run, setup.plan.context
    if run.val_data_dir is None:
        return None
    shortest = open_corpus(
        run.val_data_dir, "validation", context, run.seed, shuffle=False, repeat=False, eos_token_id=run.eos_token_id
    )
    _check_tokenizer(setup, shortest)
    check_vocab(shortest, setup.model.vocab_size)
    multiple = min(run.num_extrp or 1, (shortest.num_tokens - 1) // context)
    return Corpus(
        [(s.name, s.stream, 1.0) for s in shortest.sources], multiple * context, run.seed, shuffle=False, repeat=False
    )


def _check_tokenizer(setup: Setup, validation: Corpus) -> None:
    """Raise UserError for validation data of another tokenizer than the training data, where there is some."""
    run = setup.run
    if run.validation and run.vocab_size is not None:  # nothing was taken from the training data
        return
    try:
        trained_on = describe_sources(run.train_data_dir, "train", run.data_mixture, run.eos_token_id)
    except NoData:
        return
    agree([*trained_on, (str(run.val_data_dir), validation.common)])


def document_end(setup: Setup, data: Corpus) -> int | None:
    """The token that ends a document, None when documents are not kept apart.

    Raises UserError when the run needs it and nothing says what it is.
    """
    if not setup.model.varlen:
        return None
    if data.eos_id is not None:
        return data.eos_id
    if setup.model.vocab_size == LLAMA_VOCABULARY:  # ArchScale's shards carry no side file
        return LLAMA_EOS
    raise UserError(
        "Document boundaries (varlen) need the end-of-document token, and the data does not say which it is. "
        "Give --eos_token_id."
    )


def build_model(setup: Setup, runtime: Runtime) -> nn.Module:
    """The initialised model on its device(s), compiled where the run asks for it."""
    run, plan = setup.run, setup.plan
    check_attention(setup, runtime.device, runtime.compute_dtype)
    check_experts(setup, runtime.device, runtime.compute_dtype)
    on_gpu = runtime.device.type == "cuda"
    compiled = on_gpu if run.compile is None else run.compile
    model = setup_model(
        runtime,
        lambda: GPT(
            setup.model,
            plan.multipliers,
            compute_dtype=runtime.compute_dtype,
            residual_dtype=torch.float32 if run.residual_precision == "fp32" else runtime.compute_dtype,
            attention_backend=run.attention,
            kernels=run.kernels,
            expert_backend=run.expert_backend,
            loss_backend="plain" if run.use_flce is False else "chunked",
        ),
        lambda model: init_parameters(model, plan.roles, plan.seed),
        compute_dtype=runtime.compute_dtype,
        compile=compiled,
        act_ckpt=cast(Any, run.act_ckpt),
        offloading=run.offloading,
        expert_parallel=run.expert_parallel,
    )
    if compiled:  # the two pieces outside the blocks that are worth it
        whole = cast(GPT, model)
        whole.chunk_loss = torch.compile(chunk_loss)
        whole.norm.forward = torch.compile(whole.norm.forward)
    return model


def check_attention(setup: Setup, device: torch.device, dtype: torch.dtype) -> None:
    """Raise UserError now when a layer cannot use --attention, and not at the first step."""
    model, length, varlen = setup.model, setup.model.block_size, setup.model.varlen
    for window in {layer.window for layer in model.layers if layer.mixer in SOFTMAX_ATTENTION}:
        pick(describe(device, length, length, window, varlen, model.attn_sink, dtype, varlen), setup.run.attention)


def check_experts(setup: Setup, device: torch.device, dtype: torch.dtype) -> None:
    """The same for --expert_backend."""
    model = setup.model
    for kind in {layer.ffn for layer in model.layers if layer.experts and layer.ffn}:
        sizes = (model.n_embd, hidden_width(model, kind))
        grouped_gemm.pick(grouped_gemm.Request(device.type, dtype, sizes), setup.run.expert_backend)


def build_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """The Plan's optimizer over the model's roles. Raises UserError for arguments that it does not take."""
    return optim.build(parameter_groups(model, plan), plan)
