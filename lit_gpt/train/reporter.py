"""What a run says about itself: metrics, console lines, the summary and the curve.

The device is asked for numbers once per log interval, in one transfer; between two log
steps everything stays on the device (departure D77). A GPU's answer is read and written
after the next step has been given to it, so that it works meanwhile: files, NVML and
trackers take 10 to 30 ms, and more where files are far away.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from lit_gpt.config.run import RunConfig
from lit_gpt.config.validation_sets import validation_sets
from lit_gpt.errors import EXIT_NOT_FINITE, NotWritten, UserError
from lit_gpt.metrics.background import Texts
from lit_gpt.metrics.console import Console
from lit_gpt.metrics.curve import CURVE_FILE, draw_loss_curve
from lit_gpt.metrics.hardware import Hardware
from lit_gpt.metrics.node import Node
from lit_gpt.metrics.router_metrics import unpack
from lit_gpt.metrics.sinks import Sinks
from lit_gpt.metrics.spikes import SpikeDetector
from lit_gpt.metrics.summary import METRICS_FILE, read_rows, write_summary
from lit_gpt.metrics.throughput import CONVENTION, Throughput, peak_flops, typical
from lit_gpt.ops.transfer import to_host
from lit_gpt.optim.engine.averages import label
from lit_gpt.optim.engine.groups import describe_groups
from lit_gpt.optim.engine.protocol import telemetry
from lit_gpt.parallel import Runtime
from lit_gpt.preflight.resolved_run import ResolvedRun
from lit_gpt.scaling.plan import StepValues, count_steps
from lit_gpt.train.step import StepResult
from lit_gpt.train.stopping import EXIT_INTERRUPTED
from lit_gpt.train.validate import of_all
from lit_gpt.utils.files import understood

VECTOR_ROLE = "vector"


@dataclass(frozen=True)
class Asked:
    """A log line whose numbers are on their way from the device.

    steps: since the line before. told: waits for them.
    """

    step: int
    tokens: int
    steps: int
    values: StepValues
    result: StepResult
    micro_batches: int
    more: dict[str, float]
    told: Callable[[], torch.Tensor]


class Reporter:
    """Collects on every rank, writes on the main one.

    progress: the loop's counter object, read live. state: from the checkpoint of the run
    that this one continues. owned: called before anything is written, see metrics/sinks.py.
    """

    def __init__(
        self,
        resolved: ResolvedRun,
        runtime: Runtime,
        optimizer: torch.optim.Optimizer,
        progress: Any,
        state: dict[str, Any] | None,
        owned: Callable[[], None] = lambda: None,
    ):
        run, self.plan, self.folder, self.experts = resolved.run, resolved.plan, resolved.folder, resolved.model.experts
        self.log_step, self.skip_spikes, self.palm = run.log_step, run.skip_spikes, resolved.palm_flops_per_token
        self.runtime, self.optimizer, self.progress = runtime, optimizer, progress
        self.last_validation: dict[str, float] = {}
        self.last_of_all: dict[str, float] = {}
        self.sets = [name for name in validation_sets(run.val_data_dir) if name]
        self.last_loss = math.nan
        device = runtime.device
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        palm = self.palm / (self.plan.model_flops_per_token or 1.0)
        self.speed = Throughput(runtime.world_size, peak, palm=palm)
        self.hardware = Hardware(device)
        self._window = torch.zeros(3, device=device)  # summed loss of the steps taken, steps skipped, spikes of these
        self._window_steps = 0
        self._asked: Asked | None = None
        self._spikes = {"loss": SpikeDetector(), "gradient norm": SpikeDetector()}
        if state is not None:
            with understood("The checkpoint's report"):
                self.speed.load_state_dict(state["speed"])
                loss, skipped, spiked = (*state["window"], 0)[:3]  # older checkpoints know no spikes
                self._window += torch.tensor([loss if runtime.is_main else 0.0, skipped, spiked], device=device)
                self._window_steps = 0 + state["window_steps"]  # a sum, which only a number can be part of
        self._sinks = self._open_sinks(run, owned) if runtime.is_main else None
        self._node = Node(self.folder, gpus=device.type == "cuda") if runtime.is_main else None
        if self._sinks and progress.step:
            self._recall()
        steps = count_steps(self.plan, runtime.world_size * run.micro_bsz * self.plan.context)
        self._console = Console(self.plan.tokens, steps, enabled=runtime.is_main, start_tokens=progress.tokens)

    def _open_sinks(self, run: RunConfig, owned: Callable[[], None]) -> Sinks:
        """Open the files and trackers that metrics go to; trackers are given options, Plan and parameter groups."""
        plan, config = self.plan, dataclasses.asdict(run)
        for key, value in config.pop("base_hps").items():
            config[f"base_hps.{key}"] = value
        matrix = plan.roles["matrix"]
        config |= {"learning_rate": matrix.lr, "weight_decay": matrix.weight_decay, "train_tokens": plan.tokens}
        config["parameter_groups"] = describe_groups(self.optimizer)
        config["plan"] = plan.to_dict()
        return Sinks(
            self.folder,
            run.loggers,
            run_name=run.tracker_name or self.folder.name,
            project=run.wandb_project,
            entity=run.wandb_entity,
            group=run.tracker_group,
            tags=run.tracker_tags or (),
            config=config,
            resume_step=self.progress.step,
            owned=owned,
        )

    def _recall(self) -> None:
        """The last losses of the run that this one continues, for a summary of what ends before it logs anything."""
        rows = read_rows(self.folder / METRICS_FILE) if self._logged() else []
        known = {key: value for row in rows for key, value in row.items() if value is not None}
        self.last_loss = known.get("metric/train_loss", math.nan)
        self.last_validation = {key: value for key, value in known.items() if key.startswith("metric/val_")}
        self.last_of_all = {key: value for key, value in known.items() if key.startswith("metric/full_val_")}

    def step(self, values: StepValues, result: StepResult, micro_batches: int, epochs: dict[str, float]) -> None:
        """Account for one optimizer step, which the device may still be at; every log_step steps, log it."""
        self.tell()
        tokens, ranks = values.batch_tokens, self.runtime.world_size
        taken = torch.where(result.skipped > 0, 0.0, result.loss)
        self._window += torch.stack([taken, result.skipped, result.spiked])
        self._window_steps += 1
        self.speed.step(
            tokens=tokens,
            samples=tokens // self.plan.context,
            batches=micro_batches * ranks,
            flops=tokens * self.plan.model_flops_per_token,
        )
        step, finished = self.progress.step, self.progress.finished
        if step == 1 or finished or step % self.log_step == 0:
            self._ask(values, result, micro_batches, epochs)
            if step == 1 or finished or not self.runtime.runs_ahead:
                self.tell()
        self._console.update(step, self.progress.tokens, None if math.isnan(self.last_loss) else self.last_loss)

    def _ask(self, values: StepValues, result: StepResult, micro_batches: int, epochs: dict[str, float]) -> None:
        summed = self.runtime.sum(self._window)
        norms = result.norms
        read = torch.stack([summed[0], *self._window[1:], norms.total, norms.weight, norms.vector])
        if result.routing is not None:
            read = torch.cat([read, self.runtime.sum(result.routing)])
        more = telemetry(self.optimizer) | {f"data/epoch/{name}": epoch for name, epoch in epochs.items()}
        here = self.progress.step, self.progress.tokens, self._window_steps
        self._asked = Asked(*here, values, result, micro_batches, more, to_host(read))
        self._window_steps = 0
        self._window.zero_()

    def tell(self) -> None:
        """Write the log line that the device was asked for, if there is one."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        read = asked.told().tolist()
        skipped, spiked, *norms = int(read[1]), int(read[2]), *read[3:6]
        self._warn(asked, skipped, spiked)
        taken = asked.steps - skipped
        loss = read[0] / taken if taken else math.nan
        if taken:
            self._watch(asked.step, {"loss": loss, "gradient norm": norms[0]})
            self.last_loss = loss
        rates = self.speed.metrics()
        if not self._sinks or not self._node:
            return
        row = {
            "metric/train_loss": loss,
            "metric/train_ppl": math.exp(min(loss, 700.0)),  # e^710 is more than the largest float
            "metric/skipped_steps": skipped,
        }
        if self.skip_spikes:
            row["metric/skipped_spikes"] = spiked
        row |= self._step_values(asked.values, norms, asked.micro_batches)
        if self.experts:
            row |= unpack(read[6:], self.experts.routed, asked.values.batch_tokens)
        self._sinks.log(row | asked.more | rates | self.hardware.metrics() | self._node.metrics(), asked.step)
        self._console.line(
            asked.step,
            asked.tokens,
            loss,
            lr=asked.values.lr["matrix"],
            grad_norm=norms[0],
            tokens_per_sec=rates.get("throughput/tokens_per_sec"),
            mfu=rates.get("throughput/device/mfu"),
            mfu_palm=rates.get("throughput/device/mfu_palm"),
        )

    def _step_values(self, values: StepValues, norms: list[float], micro_batches: int) -> dict[str, float]:
        plan, clip = self.plan, self.plan.grad_clip
        ratio = min(clip / max(norms[0], 1e-30), 1.0) if clip else 1.0
        row = {
            "metric/grad_norm": norms[0],
            **({"metric/grad_norm_clip_ratio": ratio} if plan.grad_clip_type == "global" else {}),
            "metric/weight_grad_norm": norms[1],
            "metric/vector_grad_norm": norms[2],
            "metric/weight_learning_rate": values.lr["matrix"],
            "metric/vector_learning_rate": values.lr[VECTOR_ROLE],
            "metric/intrinsic_learning_rate": values.lr["matrix"] * values.weight_decay["matrix"],
            "metric/optimizer_beta1": values.betas["matrix"][0],
            "metric/optimizer_beta2": values.betas["matrix"][1],
            "metric/optimizer_eps": values.eps,
        }
        if plan.batch_ramp != 1:
            row |= {
                "metric/grad_accum_steps": micro_batches,
                "metric/effective_batch_size": values.batch_tokens,
                "metric/batch_multiplier": values.batch_tokens / plan.batch_tokens,
                "metric/batch_ratio": values.batch_tokens / plan.base_batch_tokens,
                "metric/optimizer_weight_decay": values.weight_decay["matrix"],
            }
        return row

    def _warn(self, asked: Asked, skipped: int, spiked: int) -> None:
        """Say which steps were not taken, and why."""
        if skipped > spiked:
            bad = skipped - spiked
            self.note(f"warning: {bad} of the last {asked.steps} steps had a non-finite gradient; skipped them")
        if spiked:
            step, loss, norm = asked.result.spike.tolist()
            self.note(
                f"warning: {spiked} of the last {asked.steps} steps were spikes, more than {self.skip_spikes:g} "
                f"sigma above the mean; skipped them (the newest is step {step:.0f}: loss {loss:.4f}, gradient norm "
                f"{norm:.4g})"
            )

    def _watch(self, step: int, values: dict[str, float]) -> None:
        """Warn of each value that is a spike."""
        for name, value in values.items():
            if self._spikes[name].update(value):
                self.note(f"warning: the {name} at step {step}, {value:.4g}, is far above its recent past")

    def record(self, values: dict[str, float]) -> None:
        """Log further numbers of the current step."""
        self.tell()
        if self._sinks:
            self._sinks.log(values, self.progress.step)

    def validation(self, values: dict[str, float], whole: dict[str, float]) -> None:
        """Log the result of a validation. whole: that on all data; {} where it was not measured, and so of values."""
        self.last_validation = values or self.last_validation
        self.last_of_all = of_all(whole) or self.last_of_all
        self.record({**values, **of_all(whole), "total_tokens": self.progress.tokens})
        for name, found in (("validation loss", values), ("validation loss on all data", whole)):
            if found:
                self.note(f"{name}: {self._told(found)}")

    def texts(self, rows: Texts) -> None:
        """Give samples of text to the trackers."""
        if self._sinks:
            self._sinks.texts(rows, self.progress.step)

    def scores(self, values: dict[str, float], said: list[str]) -> None:
        """Log what evaluations found, and what went wrong with them."""
        if values:
            self.record({**values, "total_tokens": self.progress.tokens})
            self.note("; ".join(f"{k} {v:.4f}" for k, v in values.items() if not k.endswith("_stderr")))
        for sentence in said:
            self.note(sentence)

    def _told(self, values: dict[str, float]) -> str:
        """The losses of a validation in a line: of the sets, and of the averages."""
        shown = "; ".join(f"{name} {_with_bits(values, f'_{name}')}" for name in self.sets) or _with_bits(values)
        averages = "".join(f"; {name} {_losses(values, f'_{name}')}" for name in map(label, self.plan.ema))
        return shown + averages

    @contextmanager
    def pause(self, kind: str) -> Iterator[None]:
        """Time spent inside counts as `kind` and not as training."""
        self.tell()
        self.speed.pause(kind)
        try:
            yield
        finally:
            self.speed.resume()

    def note(self, text: str) -> None:
        """A line for the person watching."""
        self._console.note(text)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on counting, also in the middle of a log interval. Collective."""
        self.tell()
        window = [self.runtime.sum(self._window)[0].item(), *self._window[1:].tolist()]
        return {"speed": self.speed.state_dict(), "window": window, "window_steps": self._window_steps}

    def close(self, code: int, saved: bool) -> None:
        """Write the summary and the curve, close the sinks. Called on every way out.

        code: of the process; a run that has finished ends with 0. saved: the last checkpoint is there. Without it a
        run has not finished either, and cannot go on from where it was.
        Raises NotWritten, after everything was tried, for what is not there afterwards.
        """
        if not self._sinks:
            return
        with suppress(RuntimeError):  # of a GPU that failed: that error ends the run, and is on its way already
            self.tell()
        self._console.close()
        problems = []
        for write in (self._sinks.close, lambda: self._summarize(code, saved), self._draw):
            try:
                write()
            except NotWritten as problem:
                problems.append(str(problem))
        if problems:
            raise NotWritten(" ".join(problems))

    def _logged(self) -> bool:
        metrics = self.folder / METRICS_FILE
        return metrics.is_file() and metrics.stat().st_size > 0

    def _draw(self) -> None:
        if not self._logged():
            return
        try:
            draw_loss_curve(self.folder, self._bytes_per_token())
        except NotWritten:
            raise
        except UserError as nothing:  # every loss is no number, which is no reason to end with the code of bad input
            print(f"note: {CURVE_FILE} is not drawn: {nothing}", file=sys.stderr)

    def _summarize(self, code: int, saved: bool) -> None:
        if self._logged():
            write_summary(self.folder, self._summary(code, saved))

    def _summary(self, code: int, saved: bool) -> dict[str, Any]:
        plan, rates = self.plan, self.speed.metrics() | typical(read_rows(self.folder / METRICS_FILE))
        return {
            "run": self.folder.name,
            "finished": saved and code == 0 and self.progress.finished,
            "interrupted": code == EXIT_INTERRUPTED,
            "diverged": code == EXIT_NOT_FINITE,
            "saved": saved,
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "train_loss": self.last_loss,
            **self.last_validation,
            **self.last_of_all,
            **{k: v for k, v in rates.items() if k.startswith(("throughput/", "time/"))},
            **{f"parameters/{k}": v for k, v in plan.counts.items()},
            "model_flops_per_token": plan.model_flops_per_token,
            "palm_flops_per_token": self.palm,
            "mfu_convention": CONVENTION,
            "learning_rate": plan.roles["matrix"].lr,
            "depth": plan.depth,
            "family": plan.family,
            "rule": plan.rule,
            **({"fork": dataclasses.asdict(plan.fork)} if plan.fork else {}),
        }

    def _bytes_per_token(self) -> float | None:
        """Of the text that was validated on, where it is known."""
        bits = self.last_validation.get("metric/val_bpb@1x")
        return self.last_validation["metric/val_loss@1x"] / math.log(2) / bits if bits else None


def _with_bits(values: dict[str, float], of: str = "") -> str:
    bits = values.get("metric/val_bpb@1x".replace("@", f"{of}@"))
    return _losses(values, of) + (f" ({bits:.3f} bits per byte at 1x)" if bits is not None else "")


def _losses(values: dict[str, float], of: str = "") -> str:
    """Validation losses at every multiple, such as "1x 3.0120, 2x 2.9871". of: "_ema_1B" or "_web", their label."""
    prefix = f"metric/val_loss{of}@"
    return ", ".join(f"{k.removeprefix(prefix)} {v:.4f}" for k, v in values.items() if k.startswith(prefix))
