"""What a step of an optimizer costs beside AdamW's, and what that is of a training step.

    python benchmarks/optimizer_step.py --sizes 8:16,16:8 --output docs/benchmarks/optimizer_step_h200.json
    torchrun --standalone --nproc_per_node 2 benchmarks/optimizer_step.py --sizes 16:8
    python benchmarks/optimizer_step.py --sizes 8:16,16:8 --optimizers adamw,muon --states fp32,int8

Each optimizer steps the same model with the gradients of one real micro-batch; times are medians over
the timed steps. Overhead is (its step - AdamW's) over the time that the batch's forward and
backward passes take with AdamW's step: from --tokens_per_sec of all processes together, or
measured here. Communication is what the all-to-alls take when nothing runs beside them; in a step
they run beside the work on other matrices.
"""

from __future__ import annotations

import gc
import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.config.run import RunConfig


def main(
    family: str = "transformer",
    sizes: str = "8:16,16:8",
    optimizers: str = "muon,muonh,normuon,muonball,hadam,lion",
    states: str = "fp32",
    steps: int = 10,
    warmup: int = 3,
    tokens_per_sec: float | None = None,
    batches: list[int] | None = None,
    output: str | None = None,
    options: dict[str, Any] | None = None,
) -> None:
    """Time optimizers, and print a table.

    Args:
        family: model family.
        sizes: comma-separated depth:micro_bsz pairs.
        optimizers: comma-separated optimizers beside adamw.
        states: comma-separated values of --optimizer_args.state, of those that have it; adamw with fp32 comes first.
        steps: timed steps.
        warmup: steps before them.
        tokens_per_sec: training speed with AdamW of all processes; default: that of forward and backward here.
        batches: batch sizes in tokens to give the overhead at; default 2,097,152 and 262,144.
        output: JSON file for the rows.
        options: further pretrain.py options, such as {optimizer_args: {ns_backend: torch}}.
    """
    batches = batches or [2**21, 2**18]
    runtime = start_runtime(precision=(options or {}).get("precision"))
    rows: list[dict[str, Any]] = []
    for depth, micro in ((int(d), int(m)) for d, m in (pair.split(":") for pair in sizes.split(","))):
        rows += measure(
            family,
            depth,
            micro,
            kinds(optimizers.split(","), states.split(",")),
            steps,
            warmup,
            tokens_per_sec,
            batches,
            options or {},
            runtime,
        )
    if runtime.is_main:
        show(rows, batches)
        if output:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).write_text(json.dumps(rows, indent=1) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


answer_early(__name__, reader_of(main))

import torch
import torch.distributed as dist
from sizes import CONTEXT, VOCAB
from timing import milliseconds
from torch import nn

from lit_gpt.optim import OPTIMIZERS, options_of
from lit_gpt.optim.engine.directions import Orthogonal
from lit_gpt.optim.engine.matrix_batches import Task, interleave
from lit_gpt.optim.engine.role_optimizer import RoleOptimizer
from lit_gpt.parallel import Runtime, finish_gradients, start_runtime
from lit_gpt.preflight.resolved_run import ResolvedRun, resolve_run
from lit_gpt.train.build import build_model, build_optimizer


def backward(model: nn.Module, resolved: ResolvedRun, runtime: Runtime) -> None:
    """Fresh gradients from one micro-batch of random tokens."""
    shape = (resolved.run.micro_bsz, resolved.plan.context)
    tokens = torch.randint(0, resolved.model.vocab_size, shape, device=runtime.device)
    model.zero_grad(set_to_none=True)
    (model(tokens, tokens).loss / tokens.numel()).backward()
    finish_gradients(model, runtime)


def exchange(optimizer: torch.optim.Optimizer) -> None:
    """Every all-to-all of a step, and nothing else."""

    def there_and_back(batch: Any) -> Task[None]:
        whole = yield from batch.assemble(batch.join(batch.params).to(torch.bfloat16))
        yield from batch.scatter(whole)

    with torch.no_grad():
        rules = [r for r in optimizer.rules if isinstance(getattr(r, "direction", None), Orthogonal)]  # type: ignore
        interleave(there_and_back(batch) for rule in rules for batch in rule.batches)


def options_of_rules(name: str) -> dict[str, Any]:
    """What --optimizer_args may hold for an optimizer of this project."""
    chosen = OPTIMIZERS.load(name)
    return options_of(chosen) if hasattr(chosen, "rules") else {}


def kinds(names: list[str], states: list[str]) -> list[tuple[str, str]]:
    """What is timed: optimizers with what their state is kept in, AdamW with fp32 first."""
    every = [(name, state) for name in ("adamw", *names) for state in states]
    possible = [(name, state) for name, state in every if state == "fp32" or "state" in options_of_rules(name)]
    return list(dict.fromkeys([("adamw", "fp32"), *possible]))


def measure(
    family: str,
    depth: int,
    micro_bsz: int,
    kinds: list[tuple[str, str]],
    steps: int,
    warmup: int,
    tokens_per_sec: float | None,
    batches: list[int],
    options: dict[str, Any],
    runtime: Runtime,
) -> list[dict[str, Any]]:
    """One row per optimizer at a size; the first one is AdamW."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {"ctx_len": CONTEXT, "vocab_size": VOCAB, "max_tokens": 1e12, "train_name": "mup", **options}
        run = RunConfig(train_data_dir=folder, train_model=family, depth=depth, micro_bsz=micro_bsz, **fields)
        resolved = resolve_run(replace(run, optimizer_args=None), runtime.world_size)
        model = build_model(resolved, runtime)
        clock = partial(milliseconds, device=runtime.device, steps=steps, warmup=warmup, before=runtime.barrier)
        passes = clock(lambda: backward(model, resolved, runtime)) / 1e3
        rate = tokens_per_sec or runtime.world_size * micro_bsz * resolved.plan.context / passes
        rows: list[dict[str, Any]] = []
        for name, state in kinds:
            known = options_of_rules(name)
            args = {key: value for key, value in (run.optimizer_args or {}).items() if key in known}
            args |= {"state": state} if "state" in known else {}
            plan = resolve_run(replace(run, optimizer=name, optimizer_args=args), runtime.world_size).plan
            optimizer: Any = build_optimizer(model, plan)
            optimizer.grad_scale = torch.ones((), device=runtime.device)  # as the trainer does
            optimizer.found_inf = torch.zeros((), device=runtime.device)
            step = clock(optimizer.step)
            row: dict[str, Any] = {"family": family, "depth": depth, "parameters": plan.counts["total"]}
            row |= {
                "optimizer": name,
                "state": state,
                "step_ms": step,
                "tokens_per_sec": rate,
                "ranks": runtime.world_size,
            }
            if runtime.world_size > 1 and isinstance(optimizer, RoleOptimizer):
                row["communication_ms"] = clock(lambda o=optimizer: exchange(o))
            base = rows[0]["step_ms"] if rows else step
            row["overhead"] = {str(b): (step - base) / (1e3 * b / rate + base) for b in batches}
            rows.append(row)
            del optimizer
            gc.collect()
        return rows


def show(rows: list[dict[str, Any]], batches: list[int]) -> None:
    """Print the rows as a table."""
    heads = "".join(f"{f'+ at {b:,}':>18}" for b in batches)
    print(f"{'model':<28}{'optimizer':>10}{'state':>6}{'step ms':>10}{'network ms':>12}{heads}")
    for r in rows:
        network = f"{r['communication_ms']:.2f}" if "communication_ms" in r else "-"
        model = f"{r['family']} d{r['depth']} ({r['parameters'] / 1e6:,.1f}M)"
        overhead = "".join(f"{r['overhead'][str(b)]:>18.2%}" for b in batches)
        print(f"{model:<28}{r['optimizer']:>10}{r['state']:>6}{r['step_ms']:>10.2f}{network:>12}{overhead}")


if __name__ == "__main__":
    run_command(command_of(main))
