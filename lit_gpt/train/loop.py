"""The training loop: control flow only. The maths is in step.py, the numbers are in the Plan."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, load_checkpoint, load_weights, read_meta
from lit_gpt.data.corpus import Corpus, check_vocab
from lit_gpt.data.discover import open_corpus
from lit_gpt.data.loader import Loader
from lit_gpt.errors import UserError
from lit_gpt.init import init_parameters
from lit_gpt.metrics.remote import check_installed
from lit_gpt.model import GPT
from lit_gpt.ops.attention import describe, pick
from lit_gpt.ops.loss import chunk_loss
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.optim.groups import parameter_groups, set_hyperparameters
from lit_gpt.parallel import Runtime, launch, setup_model
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.plan import step_values
from lit_gpt.train import run_folder
from lit_gpt.train.reporter import Reporter
from lit_gpt.train.setup import Setup, dry_run
from lit_gpt.train.signals import EXIT_INTERRUPTED, StopRequest
from lit_gpt.train.step import train_step
from lit_gpt.train.validate import validate

LLAMA_VOCABULARY, LLAMA_EOS = 32000, 2


@dataclass
class Progress:
    """Where a run stands. tokens: targets trained on, padding included."""

    step: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Result:
    """How a run ended. interrupted: it can go on with --resume auto."""

    folder: Path
    progress: Progress
    interrupted: bool
    validation: dict[str, float]


class Trainer:
    """Owns what a run is made of; `fit` runs it, `validate` measures it."""

    def __init__(self, setup: Setup, runtime: Runtime):
        self.setup, self.runtime, self.run, self.plan = setup, runtime, setup.run, setup.plan
        run = self.run
        check_installed(run.loggers)
        self.train_data, self.val_data = open_training(setup), open_validation(setup)
        self.eos_id = document_end(setup, self.train_data)
        resume_from = find_checkpoint(setup.folder, run.resume)
        meta = read_meta(resume_from) if resume_from else None
        run_folder.claim(setup, meta)
        self.progress = Progress(meta["step"], meta["tokens"]) if meta else Progress()
        self.report_state = meta["report"] if meta else None
        self.loader = Loader(
            self.train_data,
            runtime.rank,
            runtime.world_size,
            run.micro_bsz,
            run.num_workers,
            meta["data"] if meta else None,
            vocab_size=setup.model.vocab_size,
        )
        self.loader.check_size(self.plan.batch_tokens * self.plan.batch_ramp // self.plan.context)
        self.model = build_model(setup, runtime)
        self.optimizer = build_optimizer(self.model, self.plan)
        if resume_from:
            load_checkpoint(resume_from, self.model, self.optimizer, runtime)
        elif run.init_from:
            load_weights(Path(run.init_from), self.model, runtime)

    @property
    def finished(self) -> bool:
        """Whether the token budget is spent."""
        return self.progress.tokens >= self.plan.tokens

    def fit(self) -> Result:
        """Train to the end of the token budget, or until asked to stop."""
        if self.runtime.is_main:
            run_folder.create(self.setup)
        self.runtime.barrier()
        run = self.run
        checkpoints = Checkpointer(
            self.setup.folder / "checkpoints",
            self.runtime,
            keep_last=run.keep_last,
            keep_every=run.keep_every,
            async_save=run.async_save,
        )
        report = Reporter(
            self.setup,
            self.runtime,
            self.optimizer,
            self.progress,
            self.report_state,
            self.val_data.bytes_per_token if self.val_data else None,
        )
        stop, interrupted = StopRequest(self.runtime), False
        try:
            interrupted = self._run(checkpoints, report, stop)
            checkpoints.wait()
        finally:
            stop.close()
            self.loader.close()
            checkpoints.close()
            report.close(interrupted)
        return Result(self.setup.folder, self.progress, interrupted, report.last_validation)

    def _run(self, checkpoints: Checkpointer, report: Reporter, stop: StopRequest) -> bool:
        """Steps until the budget is spent or a stop is asked for; returns whether it was asked for."""
        run, progress, first = self.run, self.progress, self.progress.step
        while not self.finished:
            self.step(report)
            hurry = not self.finished and stop.agreed()
            interrupted = hurry or (not self.finished and progress.step - first == run.stop_after)
            due = self.finished or progress.step % run.eval_step == 0
            if self.val_data and due and not hurry:
                with report.pause("val"):
                    report.validation(self.validate())
            if self.finished or interrupted or progress.step % cast(int, run.save_step) == 0:
                with report.pause("checkpoint"):
                    self._save(checkpoints, report)
            if interrupted:
                return True
        return False

    def validate(self) -> dict[str, float]:
        """Loss at every multiple of the context on the validation data."""
        assert self.val_data is not None
        return measure(self.model, self.val_data, self.setup, self.runtime, self.eos_id)

    def step(self, report: Reporter) -> None:
        """One optimizer step: set its hyper-parameters, read its data, take it, account for it."""
        run, plan, progress = self.run, self.plan, self.progress
        multiple = self.runtime.world_size * run.micro_bsz * plan.context
        values = step_values(plan, progress.tokens, multiple)
        set_hyperparameters(self.optimizer, values)
        data = self.loader.next_step(values.batch_tokens // plan.context)
        result = train_step(
            self.model,
            self.optimizer,
            data.micro_batches,
            data.num_micro_batches,
            data.num_valid_global,
            self.runtime,
            grad_clip=plan.grad_clip,
            label_smoothing=plan.label_smoothing,
            eos_id=self.eos_id,
        )
        progress.step += 1
        progress.tokens += values.batch_tokens
        report.step(values, result, data.num_micro_batches, self.train_data.epochs(data.samples_seen))

    def _save(self, checkpoints: Checkpointer, report: Reporter) -> None:
        meta: dict[str, Any] = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "data": self.loader.state(),
            "report": report.state(),
            **run_folder.identity(self.setup),
        }
        checkpoints.save(self.progress.step, self.model, self.optimizer, meta)


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
    check_vocab(shortest, setup.model.vocab_size)
    multiple = min(run.num_extrp or 1, (shortest.num_tokens - 1) // context)
    return Corpus(
        [(s.name, s.stream, 1.0) for s in shortest.sources], multiple * context, run.seed, shuffle=False, repeat=False
    )


def document_end(setup: Setup, data: Corpus) -> int | None:
    """The token that ends a document, None when documents are not kept apart.

    Raises UserError when the run needs it and nothing says what it is.
    """
    if not setup.model.varlen:
        return None
    if data.eos_id is not None:
        return data.eos_id
    if setup.model.vocab_size == LLAMA_VOCABULARY:  # shards of the reference carry no side file
        return LLAMA_EOS
    raise UserError(
        "Document boundaries (varlen) need the end-of-document token, and the data does not say which it is. "
        "Give --eos_token_id."
    )


def build_model(setup: Setup, runtime: Runtime) -> nn.Module:
    """The initialised model on its device(s), compiled where the run asks for it."""
    run, plan = setup.run, setup.plan
    check_attention(setup, runtime.device)
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
            loss_backend="plain" if run.use_flce is False else "chunked",
        ),
        lambda model: init_parameters(model, plan.roles, plan.seed),
        compute_dtype=runtime.compute_dtype,
        compile=compiled,
        act_ckpt=cast(Any, run.act_ckpt),
        offloading=run.offloading,
    )
    if compiled:  # the two pieces outside the blocks that are worth it
        whole = cast(GPT, model)
        whole.chunk_loss = torch.compile(chunk_loss)
        whole.norm.forward = torch.compile(whole.norm.forward)
    return model


def check_attention(setup: Setup, device: torch.device) -> None:
    """Raise UserError now when a layer cannot use --attention, and not at the first step."""
    model = setup.model
    for window in {layer.window for layer in model.layers if layer.mixer == "attention"}:
        request = describe(device, model.block_size, model.block_size, window, model.varlen, model.attn_sink)
        pick(request, setup.run.attention)


def build_optimizer(model: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """The Plan's optimizer over the model's roles. Raises UserError for arguments that it does not take."""
    groups = parameter_groups(model, plan)
    try:
        return OPTIMIZERS.load(plan.optimizer).build(groups, plan)
    except TypeError as error:
        if not plan.optimizer_args:
            raise
        raise UserError(f"--optimizer_args {plan.optimizer_args} do not fit {plan.optimizer}: {error}.") from error


def measure(model: nn.Module, data: Corpus, setup: Setup, runtime: Runtime, eos_id: int | None) -> dict[str, float]:
    """Validation loss of a model at every multiple of the context that the data's windows hold."""
    return validate(
        model,
        data,
        runtime,
        context=setup.plan.context,
        multiples=data.block // setup.plan.context,
        sequences=setup.run.eval_sequences,
        micro_batch=max(setup.run.micro_bsz // 2, 1),
        eos_id=eos_id,
    )


def validate_only(setup: Setup, runtime: Runtime) -> dict[str, float]:
    """Measure the weights of --init_from on the validation data; writes nothing."""
    data = open_validation(setup)
    assert data is not None and setup.run.init_from is not None, "checked when the options were resolved"
    model = build_model(setup, runtime)
    load_weights(Path(setup.run.init_from), model, runtime)
    return measure(model, data, setup, runtime, document_end(setup, data))


def execute(setup: Setup) -> int:
    """Train or validate as the run asks, and say where things are; returns the exit code."""
    run = setup.run
    runtime = launch(precision=run.precision, offloading=run.offloading, deterministic=run.deterministic)
    if run.validation:
        values = validate_only(setup, runtime)
        if runtime.is_main:
            print("\n".join(f"{key} {value:.6f}" for key, value in values.items()))
        return 0
    if runtime.is_main:
        print(dry_run(setup), file=sys.stderr)
    trainer = Trainer(setup, runtime)
    if trainer.finished:
        if runtime.is_main:
            print(f"{setup.folder} is finished already: {trainer.progress.tokens:,} tokens. Nothing to do.")
        return 0
    result = trainer.fit()
    if runtime.is_main:
        print(f"run folder: {result.folder}")
        if result.interrupted:
            print("stopped early with a checkpoint; the same command with --resume auto continues")
    return EXIT_INTERRUPTED if result.interrupted else 0
