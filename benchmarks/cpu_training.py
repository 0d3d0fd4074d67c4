"""The rows of cpu.py for the whole trainer: its steps, and those of a loop by hand that trains the same model.

The model is a Llama of the size that the laptop demo trains (lit_gpt/tools/demo.py), with a head of its own, under
AdamW in fp32. Ours is the Trainer as pretrain.py has it: packed shards through the loader, hyper-parameters of the
Plan, guard, clipping, metrics and log lines. The loop by hand has the Llama of plain_loop.py, which is what a person
would write for this: windows of a numpy memmap, scaled_dot_product_attention, F.cross_entropy, clip_grad_norm_, torch's
fused AdamW, and a log line as often. Neither is compiled, since ours is not by default on a CPU. Both start from the
same weights and read the same windows, so that their losses must agree.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import torch
from plain_loop import plain
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.data.formats.packed import HEADER, write_shard
from lit_gpt.parallel import start_runtime
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train.loop import Trainer
from lit_gpt.train.reporter import Reporter
from lit_gpt.train.run_folder import write_archive

DEPTH, ASPECT_RATIO, CONTEXT, SEQUENCES = 4, 32, 128, 8  # of the demo
STEPS, RATE, BUDGET, CLIP = 10, 1e-3, 10**10, 1.0  # steps between log lines; a budget that no benchmark gets to
WINDOWS = 8192

Side = Callable[[int], float]  # trains for so many steps, and gives the mean loss of those since its last log line


def sides(folder: Path, vocabulary: int, depth: int = DEPTH, context: int = CONTEXT) -> tuple[Side, Side]:
    """Our trainer and the loop by hand, each after STEPS steps, whose losses agreed."""
    shard = folder / "train_0000000000.bin"
    # Small ids are much more frequent, as in text, so that there is something to learn within few steps.
    drawn = np.random.default_rng(0).random(WINDOWS * context + 1)
    write_shard(shard, (vocabulary**drawn - 1).astype("<u2"))
    trainer = built(folder, vocabulary, depth, context)
    assert trainer.resolved.model.padded_vocab_size == vocabulary, "the loop's head would have tokens that ours has not"
    ours, loop = steps_of(trainer, folder / "ours.log"), ByHand(trainer, shard, folder / "theirs.log")
    assert loop.parameters == trainer.plan.counts["total"] and loop.tokens == trainer.plan.batch_tokens
    for steps in (1, STEPS - 1):
        np.testing.assert_allclose(ours(steps), loop.run(steps), rtol=1e-4)
    return ours, loop.run


def built(folder: Path, vocabulary: int, depth: int, context: int) -> Trainer:
    """The Trainer of a run in this folder, and of the data that is there."""
    batch = SEQUENCES * context
    run = RunConfig(
        train_data_dir=str(folder),
        out_dir=str(folder),
        train_model="transformer",
        train_name="beside_a_loop",
        parameterization="sp",
        optimizer="adamw",
        depth=depth,
        ar=ASPECT_RATIO,
        ctx_len=context,
        micro_bsz=SEQUENCES,
        total_bsz=batch,
        max_tokens=BUDGET,
        vocab_size=vocabulary,
        grad_clip=CLIP,
        log_step=STEPS,
        base_hps=BaseHyperparameters(d0=depth, b0=batch, t0=BUDGET, eta0=RATE, warmup_tokens=0),
    )
    resolved = resolve_run(run, 1)
    trainer = Trainer(resolved, start_runtime(precision=run.precision))
    write_archive(resolved)
    return trainer


def steps_of(trainer: Trainer, log: Path) -> Side:
    """Steps of the Trainer, whose console lines go to a file."""
    with redirect_stderr(log.open("w")):
        report = Reporter(trainer.resolved, trainer.runtime, trainer.optimizer, trainer.progress, None, trainer.owned)

    def run(steps: int) -> float:
        for _ in range(steps):
            trainer.step(report)
        return report.last_loss

    return run


class ByHand:
    """A loop by hand: model and optimizer of a Trainer's shapes, weights and rates, and windows in its order."""

    def __init__(self, trainer: Trainer, shard: Path, log: Path):
        plan, config = trainer.plan, trainer.resolved.model
        self.trunk, self.head_VD = plain(config)
        copy_weights(trainer.model.state_dict(), self.trunk, self.head_VD)
        self.params = [*self.trunk.parameters(), self.head_VD]
        decay, betas = plan.roles["matrix"].weight_decay, (plan.beta1, plan.beta2)
        self.optimizer = torch.optim.AdamW(
            self.params, plan.roles["matrix"].lr, betas, plan.eps, weight_decay=decay, fused=True
        )
        self.tokens, self.parameters = SEQUENCES * plan.context, sum(p.numel() for p in self.params)
        (source,) = trainer.train_data.sources
        self.batches = batches(shard, [source.start(k) for k in range(source.num_windows)], plan.context)
        self.log, self.step, self.loss, self.since = log.open("w"), 0, torch.zeros(()), 0

    def run(self, steps: int) -> float:
        """See Side."""
        mean, begin = 0.0, time.perf_counter()
        for _ in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = RATE * (1 - (self.step + 0.5) * self.tokens / BUDGET)
            tokens_BT, targets_BT = next(self.batches)
            loss = F.cross_entropy(F.linear(self.trunk(tokens_BT), self.head_VD).flatten(0, 1), targets_BT.flatten())
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.params, CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.loss += loss.detach()
            self.step, self.since = self.step + 1, self.since + 1
            if self.step == 1 or self.step % STEPS == 0:
                mean, norm = self.loss.item() / self.since, norm.item()
                speed = self.since * self.tokens / (time.perf_counter() - begin)
                print(
                    f"step {self.step} loss {mean:.4f} norm {norm:.2f} tokens/s {speed:.0f}", file=self.log, flush=True
                )
                self.since = 0
                self.loss.zero_()
        return mean


def copy_weights(ours: dict[str, Tensor], trunk: nn.Module, head_VD: Tensor) -> None:
    """Into the Llama by hand, which multiplies by queries, keys and values at once, and by gate and up one by one."""
    named = {"wte.weight": ours["wte.weight"], "norm.weight": ours["norm.weight"]}
    for i in range(sum(name.endswith("ffn.down.weight") for name in ours)):
        old, new = (lambda name, i=i: ours[f"blocks.{i}.{name}.weight"]), f"blocks.{i}."
        named[new + "qkv.weight"] = torch.cat([old("mixer." + name) for name in "qkv"])
        named[new + "gate.weight"], named[new + "up.weight"] = old("ffn.up").chunk(2)
        same = {"out": "mixer.out", "down": "ffn.down", "norm1": "norm1", "norm2": "norm2"}
        named |= {f"{new}{theirs}.weight": old(name) for theirs, name in same.items()}
    trunk.load_state_dict(named)
    with torch.no_grad():
        head_VD.copy_(ours["head.weight"])


def batches(shard: Path, starts: list[int], context: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (B, T) of the windows that begin at `starts`, again and again."""
    packed, order = np.memmap(shard, "<u2", "r", HEADER.size), itertools.cycle(starts)
    while True:
        rows = np.stack([packed[s : s + context + 1] for s in itertools.islice(order, SEQUENCES)])
        both = torch.from_numpy(rows.astype(np.int64))
        yield both[:, :-1], both[:, 1:]
