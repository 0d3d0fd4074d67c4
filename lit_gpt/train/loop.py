"""The training loop: control flow only. The maths is in step.py, the numbers are in the Plan."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from lit_gpt.checkpoint import Checkpointer, find_checkpoint, load_checkpoint, load_weights, read_meta
from lit_gpt.data.corpus import Corpus
from lit_gpt.data.kept_tokenizer import KeptTokenizer
from lit_gpt.data.loader import Loader
from lit_gpt.data.stream import DataError
from lit_gpt.errors import EXIT_NOT_WRITTEN, UserError
from lit_gpt.metrics.health import activation_statistics
from lit_gpt.metrics.remote import check_installed
from lit_gpt.optim.groups import set_hyperparameters
from lit_gpt.optim.protocol import curvature_due, evaluated_weights
from lit_gpt.parallel import Runtime, launch
from lit_gpt.scaling.plan import step_values
from lit_gpt.train import run_folder
from lit_gpt.train.build import build_model, build_optimizer, document_end, open_training, open_validation
from lit_gpt.train.curvature import estimate_curvature
from lit_gpt.train.lease import Lease
from lit_gpt.train.profile import StepProfiler
from lit_gpt.train.reading import on_main, together
from lit_gpt.train.reporter import Reporter
from lit_gpt.train.setup import Setup, dry_run
from lit_gpt.train.signals import EXIT_INTERRUPTED, StopRequest
from lit_gpt.train.step import to_device, train_step
from lit_gpt.train.validate import validate


@dataclass
class Progress:
    """Where a run stands. tokens: targets trained on, padding included."""

    step: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Result:
    """How a run ended. interrupted: it can go on with --resume auto. saved: its last checkpoint is there."""

    folder: Path
    progress: Progress
    interrupted: bool
    saved: bool
    validation: dict[str, float]


class Trainer:
    """Owns what a run is made of; `fit` runs it, `validate` measures it."""

    def __init__(self, setup: Setup, runtime: Runtime):
        self.setup, self.runtime, self.run, self.plan = setup, runtime, setup.run, setup.plan
        run = self.run
        check_installed(run.loggers)
        self.train_data, self.val_data = open_training(setup), open_validation(setup)
        self.eos_id = document_end(setup, self.train_data)
        resume_from = find_checkpoint(setup.folder, run.resume, runtime)
        meta = read_meta(resume_from) if resume_from else None
        present = run_folder.claim(setup, meta, resume_from)
        self.progress = Progress(meta["step"], meta["tokens"]) if meta else Progress()
        self.report_state = meta["report"] if meta else None
        self.tokenizer: KeptTokenizer | None = None  # known to the main process once the run folder is there
        self.loader = Loader(
            self.train_data,
            runtime.rank,
            runtime.world_size,
            run.micro_bsz,
            run.num_workers,
            meta["data"] if meta else None,
            vocab_size=setup.model.vocab_size,
        )
        self.data_state = self.loader.state()
        self.saved = self.progress.step  # of the newest checkpoint
        self.loader.check_size(self.plan.batch_tokens * self.plan.batch_ramp // self.plan.context)
        ended = "ended" if self.finished and run_folder.has_ended(setup.folder) else None
        self.done = runtime.gather(ended)[0] is not None
        self.lease: Lease | None = None  # of the main process, while there is something to do
        if not self.done:
            self.lease = on_main(runtime, lambda: run_folder.take(setup, meta, resume_from, present))
        try:
            self._build(resume_from)
        except BaseException:
            if self.lease:
                self.lease.undo()
            raise

    def _build(self, resume_from: Path | None) -> None:
        run = self.run
        self.model = build_model(self.setup, self.runtime)
        if run.init_from and not resume_from:  # before the optimizer, whose state may come from the weights
            load_weights(Path(run.init_from), self.model, self.runtime)
        self.optimizer = build_optimizer(self.model, self.plan)
        if resume_from:
            load_checkpoint(resume_from, self.model, self.optimizer, self.runtime)

    @property
    def finished(self) -> bool:
        """Whether the token budget is spent."""
        return self.progress.tokens >= self.plan.tokens

    def owned(self) -> None:
        """Before anything is written: raise NotOwner where the run folder is another process's by now, or gone."""
        if self.lease:
            self.lease.check()

    def fit(self) -> Result:
        """Train to the end of the token budget, or until asked to stop; the run folder is free afterwards."""
        try:
            return self._fit()
        finally:
            if self.lease:
                self.lease.close()

    def _fit(self) -> Result:
        data = {"train": self.train_data, "validation": self.val_data}
        self.tokenizer = on_main(self.runtime, lambda: run_folder.create(self.setup, data))
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
            self.owned,
        )
        stop, interrupted, saved = StopRequest(self.runtime), False, False
        profiler = StepProfiler(self.setup.folder, run.profile_steps if self.runtime.is_main else 0)
        try:
            interrupted = self._run(checkpoints, report, stop, profiler)
            saved = checkpoints.wait()
            if not saved:  # once more: what was in the way may be gone, and there is no later save
                self._save(checkpoints, report)
                saved = checkpoints.wait()
        except DataError as lost:
            raise UserError(f"{lost} {self._keep(checkpoints, report)}") from lost
        finally:
            profiler.close()
            stop.close()
            self.loader.close()
            checkpoints.close()
            report.close(interrupted, saved)
        return Result(self.setup.folder, self.progress, interrupted, saved, report.last_validation)

    def _run(self, checkpoints: Checkpointer, report: Reporter, stop: StopRequest, profiler: StepProfiler) -> bool:
        """Steps until the budget is spent or a stop is asked for; returns whether it was asked for."""
        run, progress, first = self.run, self.progress, self.progress.step
        while not self.finished:
            self.step(report)
            profiler.step()
            if run.health_step and progress.step % run.health_step == 0:
                with report.pause("health"):
                    report.record(self.health())
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

    def _keep(self, checkpoints: Checkpointer, report: Reporter) -> str:
        """Save what was learned before the data failed; what there is to say about it."""
        step = self.progress.step
        if step != self.saved:
            self._save(checkpoints, report)
        if not step:
            return ""
        done = "is saved; continue with --resume auto." if checkpoints.wait() else "could NOT be saved."
        return f"The checkpoint of step {step} {done}"

    def validate(self) -> dict[str, float]:
        """Loss at every multiple of the context on the validation data."""
        assert self.val_data is not None
        with evaluated_weights(self.model, self.optimizer):
            return measure(self.model, self.val_data, self.setup, self.runtime, self.eos_id)

    def health(self) -> dict[str, float]:
        """Activation statistics on the sequence that this rank is about to train on."""
        first = self.loader.cursor.samples_seen + self.runtime.rank
        batch = together(self.runtime, lambda: self.train_data.batch(first, 1))
        tokens = to_device(batch.tokens, self.runtime.device)
        # With targets, so that the head's logits are formed in chunks.
        return activation_statistics(self.model, tokens, lambda model, t: model(t, t))

    def step(self, report: Reporter) -> None:
        """One optimizer step: set its hyper-parameters, read its data, take it, account for it."""
        run, plan, progress = self.run, self.plan, self.progress
        multiple = self.runtime.world_size * run.micro_bsz * plan.context
        values = step_values(plan, progress.tokens, multiple)
        set_hyperparameters(self.optimizer, values)
        data = together(self.runtime, lambda: self.loader.next_step(values.batch_tokens // plan.context))
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
        if curvature_due(self.optimizer):
            self._estimate_curvature()
        progress.step += 1
        progress.tokens += values.batch_tokens
        self.data_state = self.loader.state()
        report.step(values, result, data.num_micro_batches, self.train_data.epochs(data.samples_seen))

    def _estimate_curvature(self) -> None:
        """From the sequences that this rank is about to train on."""
        ours, ranks = self.run.micro_bsz, self.runtime.world_size
        first = self.loader.cursor.samples_seen + self.runtime.rank * ours
        batch = together(self.runtime, lambda: self.train_data.batch(first, ours))
        tokens = to_device(batch.tokens, self.runtime.device)
        seed = (self.plan.seed * 1_000_003 + self.progress.step) * ranks + self.runtime.rank
        estimate_curvature(self.model, self.optimizer, tokens, self.runtime, seed=seed, eos_id=self.eos_id)

    def _save(self, checkpoints: Checkpointer, report: Reporter) -> None:
        meta: dict[str, Any] = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "data": self.data_state,
            "report": report.state(),
            "tokenizer": asdict(self.tokenizer) if self.tokenizer else None,
            **run_folder.identity(self.setup),
        }
        self.owned()
        self.saved = self.progress.step
        with evaluated_weights(self.model, self.optimizer):
            checkpoints.save(self.progress.step, self.model, self.optimizer, meta)
        if checkpoints.failures:
            report.record({"checkpoint/failed_saves": checkpoints.failures})


def measure(model: nn.Module, data: Corpus, setup: Setup, runtime: Runtime, eos_id: int | None) -> dict[str, float]:
    """Validation loss of a model at every multiple of the context that the data's windows hold."""
    context = setup.plan.context
    return validate(
        model,
        data,
        runtime,
        context=context,
        multiples=data.block // context,
        sequences=setup.run.eval_sequences,
        micro_batch=max(2 * setup.run.micro_bsz * context // data.block, 1),  # no gradients: room for twice as much
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
    if trainer.done:
        if runtime.is_main:
            print(f"{setup.folder} is finished already: {trainer.progress.tokens:,} tokens. Nothing to do.")
        return 0
    result = trainer.fit()
    if runtime.is_main:
        print(f"run folder: {result.folder}")
        if not result.saved:
            print(
                f"error: the run ended, but its last checkpoint (step {result.progress.step:,}) could not be written. "
                "Make room, then continue from the one before with --resume auto.",
                file=sys.stderr,
            )
        elif result.interrupted:
            print("stopped early with a checkpoint; the same command with --resume auto continues")
        sys.stdout.flush()
    runtime.barrier()  # torchrun ends all processes as soon as one leaves with a code other than 0
    if not result.saved:
        return EXIT_NOT_WRITTEN
    return EXIT_INTERRUPTED if result.interrupted else 0
