"""The training loop: control flow only. The maths is in step.py, the numbers are in the Plan."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from lit_gpt.checkpoint import (
    Checkpointer,
    find_checkpoint,
    load_averages,
    load_checkpoint,
    load_optimizer,
    load_weights,
    read_meta,
)
from lit_gpt.checkpoint.retention import KEPT, VALIDATION
from lit_gpt.data.kept_tokenizer import KeptTokenizer, describe_tokenizer
from lit_gpt.data.loader import Loader
from lit_gpt.data.stream import DataError
from lit_gpt.errors import EXIT_NOT_FINITE, EXIT_NOT_WRITTEN, UserError
from lit_gpt.evals.crew import Crew
from lit_gpt.metrics.health import activation_statistics
from lit_gpt.metrics.summary import jsonable
from lit_gpt.metrics.trackers import check_installed
from lit_gpt.model import GPT
from lit_gpt.ops.transfer import to_device
from lit_gpt.optim.engine.averages import WeightAverages, label
from lit_gpt.optim.engine.groups import set_hyperparameters
from lit_gpt.optim.engine.protocol import curvature_due, evaluated_weights
from lit_gpt.parallel import Runtime, start_runtime
from lit_gpt.parallel.compile_cache import CompileCache
from lit_gpt.parallel.peers import Peers, failed_connections
from lit_gpt.preflight.data_facts import document_ends
from lit_gpt.preflight.fork import start_of
from lit_gpt.preflight.resolved_run import ResolvedRun, dry_run_text
from lit_gpt.scaling.plan import count_steps, step_values
from lit_gpt.scaling.schedule import period_end
from lit_gpt.train import due, run_folder
from lit_gpt.train.build import build_model, build_optimizer, open_training, open_validation, whole_model
from lit_gpt.train.curvature import estimate_curvature
from lit_gpt.train.guard import StepGuard
from lit_gpt.train.lease import Lease
from lit_gpt.train.profile import StepProfiler
from lit_gpt.train.reading import on_main, together
from lit_gpt.train.release import finished_already
from lit_gpt.train.reporter import Reporter
from lit_gpt.train.samples import Samples
from lit_gpt.train.save_retries import Saver
from lit_gpt.train.step import train_step
from lit_gpt.train.stopping import EXIT_INTERRUPTED, stop_agreed
from lit_gpt.train.task_scores import TaskScores
from lit_gpt.train.validate import labelled, measure
from lit_gpt.utils import phases
from lit_gpt.utils.files import understood
from lit_gpt.utils.signals import ENDING, FIRST_STEP, TRAINING, Signals

MANY_PASSES = 20  # through the data, that a budget is hardly meant to make


@dataclass
class Progress:
    """Where a run stands. budget, tokens: targets to train on, and those trained on, padding included."""

    budget: int
    step: int = 0
    tokens: int = 0

    @property
    def finished(self) -> bool:
        """Whether the token budget is spent."""
        return self.tokens >= self.budget


@dataclass(frozen=True)
class Result:
    """How a run ended. code: for the process. said: a sentence about it, "" where all is well."""

    folder: Path
    progress: Progress
    code: int
    said: str
    validation: dict[str, float]


class Trainer:
    """Owns what a run is made of; `fit` runs it, `validate` measures it."""

    def __init__(self, resolved: ResolvedRun, runtime: Runtime, started: Callable[[], None] = lambda: None):
        self.resolved, self.runtime, self.run, self.plan = resolved, runtime, resolved.run, resolved.plan
        self.started = started  # after the first step
        run = self.run
        check_installed(run.loggers)
        at_once = runtime.world_size * run.micro_bsz * self.plan.context
        due.check_reached(run.full_eval_at, count_steps(self.plan, at_once))
        self.train_data, self.val_data = open_training(resolved), open_validation(resolved)
        self.ends = document_ends(resolved.model, self.train_data)
        resume_from = find_checkpoint(resolved.folder, run.resume, runtime)
        meta = read_meta(resume_from) if resume_from else None
        self.fork = None if meta else self.plan.fork
        start = start_of(self.fork, runtime.gather(self.fork.identity)) if self.fork else meta
        self.progress = Progress(self.plan.tokens, *((start["step"], start["tokens"]) if start else ()))
        self.published = self.progress.step if meta else 0
        with understood(resume_from):
            present = run_folder.check_folder(resolved, meta, resume_from)
        with understood(self.fork.path if self.fork else resume_from):
            self.report_state, data_state = (dict(start["report"]), dict(start["data"])) if start else (None, None)
            data_state = None if self.fork and not self.fork.samples else data_state  # another order of samples
            guarded = self.report_state.get("guard") if self.report_state else None
            self.guard = StepGuard(runtime, run.max_skips, run.skip_spikes or 0.0, guarded)
            # By the validation of this very step.
            self.measured: dict[str, float] = dict((meta or {}).get(VALIDATION) or {})
            self.owed = due.owed(meta, self.progress.finished) if meta else []  # what a signal cut off
            self.decayed = str((meta or {}).get(KEPT) or "")  # which decay ended with this very step
        self.at: Callable[[str], None] = lambda doing: None  # tells the other ranks, once there is a run folder
        self.tokenizer: KeptTokenizer | None = None  # known to the main process once the run folder is there
        self.loader = Loader(
            self.train_data,
            runtime.rank,
            runtime.world_size,
            run.micro_bsz,
            run.num_workers,
            data_state,
            vocab_size=resolved.model.vocab_size,
        )
        self.data_state = self.loader.state()
        self.loader.check_size(self.plan.batch_tokens * self.plan.batch_ramp // self.plan.context)
        # A budget whose last steps were not taken is spent all the same: there is nothing to go on with.
        finished = self.progress.finished
        self.spoilt = bool(guarded and finished and guarded["skips"] >= min(run.max_skips, self.progress.step))
        ended = (
            "ended"
            if finished and (self.spoilt or run_folder.has_ended(resolved.folder, self.progress.tokens))
            else None
        )
        self.done = runtime.gather(ended)[0] is not None
        self.lease: Lease | None = None  # of the main process, while there is something to do
        if not self.done:
            self.lease = on_main(runtime, lambda: run_folder.lock_folder(resolved, meta, resume_from, present))
        # Asked before anything is written: raises NotOwner where the run folder is another process's by now, or gone.
        self.owned: Callable[[], None] = self.lease.check if self.lease else lambda: None
        try:
            self._build(resume_from)
        except BaseException:
            if self.lease:
                self.lease.undo()
            raise

    def _build(self, resume_from: Path | None) -> None:
        run = self.run
        phases.ended("data and run folder")
        self.model = build_model(self.resolved, self.runtime)
        weights = None if resume_from else self.fork.path if self.fork else run.init_from
        if weights:  # before the optimizer, whose state may come from the weights
            load_weights(Path(weights), self.model, self.runtime)
        self.optimizer = build_optimizer(self.model, self.plan)
        self.averages = WeightAverages(self.model, self.plan.ema)
        self.samples: Samples | None = None
        self.tasks: TaskScores | None = None
        if run.sample_prompts or run.eval_tasks:
            tokenizer = describe_tokenizer(run.train_data_dir, run.data_mixture, run.eos_token_id)
            if run.sample_prompts:
                self.samples = Samples(run.sample_prompts, run.sample_tokens, self.resolved.model, tokenizer)
            if run.eval_tasks:
                given = run.eval_tasks, run.eval_tasks_path, run.eval_tasks_limit, run.eval_task_options or {}
                crew = Crew(self.runtime.rank, self.runtime.world_size, self.runtime.gather)
                self.tasks = TaskScores(*given, tokenizer, self.resolved.model, crew)
        if resume_from:
            load_checkpoint(resume_from, self.model, self.optimizer, self.runtime, self.averages.tensors())
        elif self.fork:
            load_optimizer(Path(self.fork.path), self.model, self.optimizer, self.runtime, self.fork.fresh)
            load_averages(Path(self.fork.path), self.averages.tensors(), self.runtime)
        phases.ended("model and optimizer")

    def fit(self, signals: Signals | None = None) -> Result:
        """Train to the end of the token budget, or until asked to stop; ends the process where a peer is lost.

        signals: what listens already; by default this listens itself. The run folder is free afterwards.
        Raises UserError where data were lost while training.
        """
        run, code, said, saved = self.run, 1, "", False
        with ExitStack() as closing:
            if self.lease:
                closing.callback(self.lease.close)
            signals = signals or closing.enter_context(Signals())
            names = {name: f"validation/{name}" if name else "validation" for name in self.val_data}
            data = {"train": self.train_data} | {names[name]: data for name, data in self.val_data.items()}
            self.tokenizer = on_main(self.runtime, lambda: run_folder.write_archive(self.resolved, data))
            checkpoints = Checkpointer(
                self.resolved.folder / "checkpoints",
                self.runtime,
                keep_last=run.keep_last,
                keep_every=run.keep_every,
                keep_best=run.keep_best,
                async_save=run.async_save,
                owned=self._publishable,
            )
            if self.samples and self.runtime.is_main:
                self.samples.open(self.resolved.folder, self.progress.step, self.owned)
            report = Reporter(self.resolved, self.runtime, self.optimizer, self.progress, self.report_state, self.owned)
            peers = Peers(self.resolved.folder, self.runtime)
            self.at, saver = peers.at, Saver(checkpoints, report, self.published)
            profiler = StepProfiler(self.resolved.folder, run.profile_steps if self.runtime.is_main else 0)
            # The stack closes from its end: first what watches and reads, then the last checkpoint is waited for, then
            # the summary says whether it is there, and the lease goes last, since all of that writes to the folder.
            closing.callback(lambda: saver.close(code, saved))
            for close in (checkpoints.close, self.loader.close, profiler.close, peers.stop):
                closing.callback(close)
            phases.ended("archive and logs")
            closing.callback(setattr, signals, "phase", ENDING)
            signals.abandons = lambda: f"Steps after the newest checkpoint are lost, and {saver.newest()}."
            signals.phase = FIRST_STEP
            try:
                code, said = self._end(self._run(saver, report, signals, profiler), saver)
                saved = code != EXIT_NOT_WRITTEN
                peers.close()
            except DataError as lost:
                kept, saved = self._kept(saver), saver.published == self.progress.step
                raise UserError(f"{lost} {kept}") from lost
            except Exception as error:
                peers.lost(error)
                raise
        return Result(self.resolved.folder, self.progress, code, said, report.last_validation)

    def _run(self, saver: Saver, report: Reporter, signals: Signals, profiler: StepProfiler) -> int:
        """Steps until the budget is spent or something ends them; returns the exit code that this deserves."""
        run, progress, first = self.run, self.progress, self.progress.step
        judges = bool(self.val_data), bool(self.tasks)
        self.owed = due.possible(self.owed, *judges)
        if self.owed:
            if not self._evaluated(report, signals):
                return EXIT_INTERRUPTED
            saver.save(progress.step, lambda: self._save(saver))  # once more, with what was measured
        while not progress.finished:
            self.step(report)
            if progress.step == first + 1:  # it compiled
                phases.ended("first step")
                report.note(phases.told())
                self.started()
            signals.phase = TRAINING
            profiler.step()
            if self.guard.ended(progress.step, progress.finished):
                return EXIT_NOT_FINITE
            if run.health_step and progress.step % run.health_step == 0:
                with report.pause("health"):
                    report.record(self.health())
            hurry = not progress.finished and stop_agreed(self.runtime, signals)
            interrupted = hurry or (not progress.finished and progress.step - first == run.stop_after)
            asked = due.due(run, progress.step, progress.finished, bool(self.decayed))
            self.owed = due.possible(asked, *judges)
            if not hurry:
                interrupted |= not self._evaluated(report, signals)
            if interrupted:
                return EXIT_NOT_FINITE if self.guard.stuck() else EXIT_INTERRUPTED
            best = bool(self.measured) and saver.improves(self.measured)
            if not progress.finished and (best or self.decayed or progress.step % cast(int, run.save_step) == 0):
                saver.save(progress.step, lambda: self._save(saver))
        return 0

    def _end(self, code: int, saver: Saver) -> tuple[int, str]:
        """The last checkpoint, and what there is to say: no code but EXIT_NOT_WRITTEN goes without it."""
        step = self.progress.step
        if not self._finish(saver):
            said = f"error: the checkpoint of step {step} could not be written in two tries; {saver.newest()}."
            goes = "continues from there" if saver.published else "starts anew"
            return EXIT_NOT_WRITTEN, f"{said} Make room; the same command with --resume auto {goes}."
        if code == EXIT_NOT_FINITE:
            after = "--resume auto goes on with the data after them. If that ends alike,"
            after = "the budget of tokens is spent. To train on," if self.progress.finished else after
            return code, (
                f"error: {self.guard.why(step)} The checkpoint of step {step} is saved, and {after} lower "
                "--base_hps.eta0 or raise --base_hps.warmup_tokens, and start again, or from an earlier checkpoint "
                "with --init_from."
            )
        return code, "stopped early with a checkpoint; the same command with --resume auto continues" if code else ""

    def _kept(self, saver: Saver) -> str:
        """Save what was learned before the data failed; what there is to say about it."""
        if not self._finish(saver):
            return f"What was learned could not be saved; {saver.newest()}."
        step = self.progress.step
        return f"The checkpoint of step {step} is saved; continue with --resume auto." if step else ""

    def _finish(self, saver: Saver) -> bool:
        return saver.finish(self.progress.step, lambda: self._save(saver))

    def _publishable(self) -> None:
        run_folder.sync_log(self.resolved.folder)
        self.owned()

    def _evaluated(self, report: Reporter, signals: Signals) -> bool:
        """Measure what is owed; whether all of it was. What a signal cuts off stays owed."""
        on_data = [name for name in self.owed if name != due.TASKS]
        if on_data and not self._validated(report, signals, on_data):
            return False
        self.owed = [name for name in self.owed if name == due.TASKS]
        if self.owed and self.tasks and not self._scored(self.tasks, report, signals):
            return False
        self.owed = []
        return True

    def _validated(self, report: Reporter, signals: Signals, asked: list[str]) -> bool:
        """Measure and log; False where a signal came meanwhile, since a job may be killed soon after it.

        asked: --eval_sequences, all of the data, or both.
        """
        self.at(f"step {self.progress.step}, validation")
        with report.pause("val"):
            stopped = partial(stop_agreed, self.runtime, signals)
            values = self._measure(stopped) if due.SEQUENCES in asked else {}
            if due.SEQUENCES in asked and not values:
                return False
            whole = self._measure(stopped, whole=True) if due.ALL_DATA in asked else {}
            if due.ALL_DATA in asked and not whole:
                return False
            self.measured = values
            report.validation(values, whole)
            if self.samples:
                self._sample(self.samples, report)
        return True

    def _sample(self, samples: Samples, report: Reporter) -> None:
        with evaluated_weights(self.model, self.optimizer), self._whole() as model:
            said = samples.take(model, self.progress.step, self.progress.tokens, write=self.runtime.is_main)
        report.texts([(prompt, text) for prompt, text in samples.newest if text is not None])
        if said:
            report.note(said)

    def _whole(self) -> AbstractContextManager[GPT]:
        return whole_model(cast(GPT, self.model), self.runtime)

    def _scored(self, tasks: TaskScores, report: Reporter, signals: Signals) -> bool:
        """Ask --eval_tasks of the weights and of their averages, and log; False where a signal came meanwhile."""
        self.at(f"step {self.progress.step}, evaluations")
        with report.pause("val"):
            with evaluated_weights(self.model, self.optimizer), self._whole() as model:
                report.scores(*tasks.measure(model, "eval"))
            for half_life in self.plan.ema:
                if stop_agreed(self.runtime, signals):
                    return False
                with self.averages.in_model(half_life), self._whole() as model:
                    report.scores(*tasks.measure(model, f"eval_{label(half_life)}"))
        return True

    def _measure(self, stopped: Callable[[], bool], whole: bool = False) -> dict[str, float]:
        """Loss at every multiple of the context on the validation data, of the weights and of their averages.

        whole: of all of the data. {} where it was stopped.
        """
        where = self.model, self.val_data, self.resolved, self.runtime, self.ends
        of_sets = partial(measure, *where, whole, stopped)
        with evaluated_weights(self.model, self.optimizer):
            values = of_sets()
        for half_life in self.plan.ema if values else ():
            with self.averages.in_model(half_life):
                averaged = of_sets()
            if not averaged:
                return {}
            values |= labelled(averaged, label(half_life))
        return values

    def health(self) -> dict[str, float]:
        """Activation statistics on the sequence that this rank is about to train on."""
        self.at(f"step {self.progress.step}, activation statistics")
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
        self.at(f"step {progress.step + 1}, reading its data")
        data = together(self.runtime, lambda: self.loader.next_step(values.batch_tokens // plan.context))
        self.at(f"step {progress.step + 1}, forward, backward and update")
        result = train_step(
            self.model,
            self.optimizer,
            data.micro_batches,
            data.num_micro_batches,
            data.num_valid_global,
            self.runtime,
            grad_clip=plan.grad_clip,
            grad_clip_type=plan.grad_clip_type,
            label_smoothing=plan.label_smoothing,
            ends=self.ends,
            guard=self.guard,
            step=progress.step + 1,
            seed=plan.seed,
        )
        self.averages.update(values.batch_tokens)
        if curvature_due(self.optimizer):
            self._estimate_curvature()
        progress.step += 1
        self.measured, end = {}, period_end(plan.schedule, progress.tokens)
        progress.tokens += values.batch_tokens
        ended = plan.schedule.decays and end <= progress.tokens
        self.decayed = f"the end of the decay at {end:,} tokens" if ended else ""
        self.data_state = self.loader.state()
        report.step(values, result, data.num_micro_batches, self.train_data.epochs(data.samples_seen))

    def _estimate_curvature(self) -> None:
        """From the sequences that this rank is about to train on."""
        ours, ranks = self.run.micro_bsz, self.runtime.world_size
        first = self.loader.cursor.samples_seen + self.runtime.rank * ours
        batch = together(self.runtime, lambda: self.train_data.batch(first, ours))
        tokens = to_device(batch.tokens, self.runtime.device)
        seed = (self.plan.seed * 1_000_003 + self.progress.step) * ranks + self.runtime.rank
        estimate_curvature(self.model, self.optimizer, tokens, self.runtime, seed=seed, ends=self.ends)

    def _save(self, saver: Saver) -> None:
        step, report = self.progress.step, saver.report
        self.at(f"step {step}, saving it")
        self.owned()
        with evaluated_weights(self.model, self.optimizer):
            meta: dict[str, Any] = {
                "step": step,
                "tokens": self.progress.tokens,
                "data": self.data_state,
                VALIDATION: jsonable(self.measured),
                KEPT: self.decayed,
                due.OWED: self.owed,
                "report": {**report.state(), "guard": self.guard.state()},
                "tokenizer": asdict(self.tokenizer) if self.tokenizer else None,
                **run_folder.identity(self.resolved),
            }
            saver.checkpoints.save(step, self.model, self.optimizer, meta, self.averages.tensors())


def validate_only(resolved: ResolvedRun, runtime: Runtime) -> dict[str, float]:
    """Measure the weights of --init_from on the validation data; writes nothing."""
    data = open_validation(resolved)
    assert data and resolved.run.init_from is not None, "checked when the options were resolved"
    model = build_model(resolved, runtime)
    load_weights(Path(resolved.run.init_from), model, runtime)
    return measure(model, data, resolved, runtime, document_ends(resolved.model, next(iter(data.values()))))


def run_training(resolved: ResolvedRun, signals: Signals | None = None) -> int:
    """Train or validate as the run asks, and say where things are; returns the exit code."""
    run = resolved.run
    phases.ended("imports and Plan")
    with failed_connections(run.collective_timeout):
        runtime = start_runtime(
            precision=run.precision,
            offloading=run.offloading,
            shards=run.shard_group,
            deterministic=run.deterministic,
            timeout=run.collective_timeout,
        )
        phases.ended("joining")
        cache = CompileCache(run.compile_cache, runtime.device)
        cache.open(runtime.barrier)
        if run.validation:
            values = validate_only(resolved, runtime)
            if runtime.is_main:
                print("\n".join(f"{key} {value:.6f}" for key, value in values.items()))
            return 0
        if runtime.is_main:
            print(dry_run_text(resolved), file=sys.stderr)
        finished = run_folder.finished_without_checkpoint(resolved) if run.resume in (True, "auto") else None
        tokens = runtime.gather(finished)[0]
        trainer = Trainer(resolved, runtime, cache.keep) if tokens is None else None
        if trainer is None or trainer.done:
            if runtime.is_main:
                print(finished_already(resolved, trainer.progress.tokens if trainer else cast(int, tokens)))
            if trainer is None or not trainer.spoilt:
                return 0
            if runtime.is_main:
                print("error: its last steps were skipped, and its weights are those before them.", file=sys.stderr)
            return EXIT_NOT_FINITE
        source, passes = trainer.train_data.most_passes(trainer.plan.tokens)
        if runtime.is_main and passes > MANY_PASSES:
            whose = "the data" if len(trainer.train_data.sources) == 1 else f"{source.name!r}"
            held = f"{source.stream.num_tokens:,} tokens of {whose}"
            print(
                f"note         the budget goes {passes:,.0f} times through the {held}; --max_tokens shortens the run",
                file=sys.stderr,
            )
        result = trainer.fit(signals)
        cache.keep()
        if runtime.is_main:
            print(f"run folder: {result.folder}")
            said = result.said or f"see it with: python -m lit_gpt.tools.inspect run {shlex.quote(str(result.folder))}"
            print(said, file=sys.stderr if said.startswith("error") else sys.stdout)
            sys.stdout.flush()
        runtime.barrier()  # torchrun ends all processes as soon as one leaves with a code other than 0
        return result.code
