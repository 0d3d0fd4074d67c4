"""What a CPU is used for here, beside the usual way to do it: side by side, in paired rounds on one machine.

    OMP_NUM_THREADS=1 python benchmarks/cpu.py --seconds 30 --output FILE.json

Each row does the same work in two ways, which are first checked to give the same. In a round both run, one after the
other, and in the next round in the other order, so that a busy machine slows both; the round's ratio is the peer's time
over ours, above 1 where ours is faster. The table has the median of these ratios, and the quartiles around it.

    bytes, records   scripts/prepare_text.py with one process, and a loop over the lines that writes one array for each
    bytes, files     the same of a folder of texts
    new tokens       greedy text of a Llama with a cache, and model.generate of transformers
    save             a model with AdamW's state, on the disk and with sums, and torch.save, a sync, and a sum of it
    save, no sums    the same, and torch.save with a sync, where nobody can tell later whether the file is intact
    mamba2           a step's forward and backward passes, and those of transformers' model of the same weights
    loss             of a head of 32,000 tokens, forward and backward, and F.cross_entropy of all logits
    training         ten steps of the Trainer with a model of the demo's size, and those of a loop by hand
    training, 32k    the same at a vocabulary of 32,000
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import numpy as np

from lit_gpt import architectures
from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.config.model import ModelConfig
from lit_gpt.data.meta import NAME
from lit_gpt.data.prepare import prepare
from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Init, Multipliers, RolePlan


def main(only: str | None = None, seconds: float = 30, folder: str | None = None, output: str | None = None) -> None:
    """Run both sides of every row, and print the table.

    Args:
        only: comma-separated beginnings of rows' names; default all.
        seconds: of each row, about.
        folder: folder on the disk to write to; default: one for temporary files.
        output: JSON file for the figures.
    """
    chosen = [name for name in ROWS if only is None or name.startswith(tuple(only.split(",")))]
    if not chosen:
        raise UserError(f"--only {only} is the beginning of no row. Give beginnings of {', '.join(ROWS)}.")
    rows: list[dict[str, Any]] = []
    load = os.getloadavg()[0]  # of other processes, which slow both sides, and ours more where it uses a second core
    print(f"{'':<18}{'ours s':>9}{'peer s':>9}{'peer/ours':>11}{'quartiles':>14}{'rounds':>8}")
    for name in chosen:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            row = figures(rounds(ROWS[name](Path(place)), seconds))
        rows.append({"what": name, **row})
        spread = f"{row['low']:.2f}-{row['high']:.2f}"
        print(
            f"{name:<18}{row['ours_s']:>9.3f}{row['peer_s']:>9.3f}{row['ratio']:>11.2f}{spread:>14}{row['rounds']:>8}",
            flush=True,
        )
    if output:
        keep(rows, f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, load {load:.1f}", Path(output))


answer_early(__name__, reader_of(main))

import torch
from checkpoint import Alone, with_adamw
from cpu_training import STEPS, sides
from decode import keep
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.checkpoint import Checkpointer
from lit_gpt.evals.generation import stream
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.ops.loss import linear_cross_entropy
from lit_gpt.roles import ROLES
from lit_gpt.tools._hf import write_hf
from lit_gpt.utils.files import digest

TEXT_BYTES = 1 << 25


class Pair(NamedTuple):
    """Two ways to do the same work."""

    ours: Callable[[], Any]
    peer: Callable[[], Any]


def words(count: int) -> str:
    """So many characters of words without a meaning."""
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz     "), count)
    return "".join(letters)


def records(folder: Path) -> Pair:
    """JSON lines of some 3,000 characters."""
    text = words(1 << 20)
    starts = np.random.default_rng(1).integers(0, len(text) - 6000, TEXT_BYTES // 3000)
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps({"text": text[s : s + 100 + s % 5800]}) + "\n" for s in starts))
    return _preparation(folder, file, lambda: (json.loads(line)["text"] for line in file.open(encoding="utf-8")))


def files(folder: Path) -> Pair:
    """Texts of 2 MiB."""
    text, source = words(1 << 22), folder / "texts"
    source.mkdir()
    for i in range(TEXT_BYTES >> 21):
        (source / f"{i:03}.txt").write_text(text[i * 999 : i * 999 + (1 << 21)])
    return _preparation(folder, source, lambda: (p.read_text(encoding="utf-8") for p in sorted(source.iterdir())))


def _preparation(folder: Path, source: Path, texts: Callable[[], Any]) -> Pair:
    output, plain, end = folder / "prepared", folder / "plain.bin", np.array([256], "<u2")

    def ours() -> None:
        shutil.rmtree(output, ignore_errors=True)
        options: dict[str, Any] = {"num_workers": 1, "validation_fraction": 0.0, "shard_tokens": 1 << 30}
        prepare(str(source), str(output), **options, progress=False)

    def peer() -> None:
        plain.unlink(missing_ok=True)  # as above; to write over it would cost half as much again
        with plain.open("wb") as file:
            for text in texts():
                file.write(np.frombuffer(text.encode(), np.uint8).astype("<u2").data)
                file.write(end.data)

    ours()
    peer()
    (shard,) = output.glob("*.bin")
    assert shard.read_bytes()[24:] == plain.read_bytes() and (output / NAME).exists()
    return Pair(ours, peer)


def random_model(config: ModelConfig) -> GPT:
    """In fp32, with every weight drawn."""
    model = GPT(config)
    init_parameters(model, dict.fromkeys(ROLES, RolePlan(lr=0, weight_decay=0, init=Init("normal", std=0.02))), 0)
    return model


def theirs(model: GPT, folder: Path) -> Any:
    """The model of transformers with the same weights, as `convert` writes it."""
    from transformers import AutoModelForCausalLM

    place = write_hf(model.state_dict(), model.config, Multipliers(), folder / "hf")
    return AutoModelForCausalLM.from_pretrained(place, local_files_only=True, dtype=torch.float32)


def new_tokens(folder: Path, depth: int = 4, prompt: int = 64, count: int = 32) -> Pair:
    """A prompt of so many tokens, and so many more, one row."""
    model = random_model(architectures.build("transformer", depth)).eval()
    other = theirs(model, folder).eval()
    tokens_1T = torch.randint(model.config.vocab_size, (1, prompt))

    def ours() -> list[int]:
        return [int(token) for token in stream(model, tokens_1T, count)]

    def peer() -> list[int]:
        options = {"do_sample": False, "attention_mask": torch.ones_like(tokens_1T)}
        return other.generate(tokens_1T, max_new_tokens=count, min_new_tokens=count, **options)[0, prompt:].tolist()

    assert ours() == peer()
    return Pair(ours, peer)


def saves(folder: Path, sums: bool, depth: int = 3) -> Pair:
    """Until a checkpoint is on the disk. sums: the peer makes one, too."""
    model, optimizer = with_adamw(depth, "cpu")
    saver, step = Checkpointer(folder / "checkpoints", Alone(), keep_last=1), 0

    def ours() -> None:
        nonlocal step
        step += 1
        saver.save(step, model, optimizer, {"tokens": step})
        assert saver.wait()

    def peer() -> None:
        with (folder / "state.tmp").open("wb") as file:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())
        if sums:
            digest(folder / "state.tmp")
        os.replace(folder / "state.tmp", folder / "state.pt")

    return Pair(ours, peer)


def mamba2(folder: Path, depth: int = 4, length: int = 512) -> Pair:
    """One row, with as many targets."""
    config = architectures.build("mamba2", depth, aspect_ratio=128, block_size=length)
    config = config.replace(layers=tuple(replace(spec, ffn=None) for spec in config.layers))
    return trained(random_model(config), folder, length)


def trained(model: GPT, folder: Path, length: int) -> Pair:
    """A row's loss and its gradients, by us and by transformers."""
    other = theirs(model, folder).train()
    tokens_1T, targets_1T = torch.randint(model.config.vocab_size, (2, 1, length))

    def ours() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = model(tokens_1T, targets_1T).loss
        assert loss is not None
        loss.backward()
        return loss / length

    def peer() -> Tensor:
        other.zero_grad(set_to_none=True)
        loss = F.cross_entropy(other(tokens_1T, use_cache=False).logits.flatten(0, 1), targets_1T.flatten())
        loss.backward()
        return loss

    torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-4)
    return Pair(ours, peer)


def loss(folder: Path, tokens: int = 1024, width: int = 256, vocabulary: int = 32000) -> Pair:
    """Of so many tokens at this width."""
    hidden_ND, head_VD = ((torch.randn(n, width) / width**0.25).requires_grad_() for n in (tokens, vocabulary))
    targets_N = torch.randint(vocabulary, (tokens,))

    def run(summed: Callable[[], Tensor]) -> tuple[Tensor | None, ...]:
        hidden_ND.grad = head_VD.grad = None
        value = summed()
        value.backward()
        return value, hidden_ND.grad, head_VD.grad

    ours = partial(run, lambda: linear_cross_entropy(hidden_ND, head_VD, targets_N))
    peer = partial(run, lambda: F.cross_entropy(hidden_ND @ head_VD.T, targets_N, reduction="sum"))
    torch.testing.assert_close(ours(), peer(), rtol=1e-3, atol=1e-4)
    return Pair(ours, peer)


def training(folder: Path, vocabulary: int, **sizes: int) -> Pair:
    """From one log line to the next; starts and saves do not count."""
    return Pair(*(partial(side, STEPS) for side in sides(folder, vocabulary, **sizes)))


ROWS: dict[str, Callable[[Path], Pair]] = {
    "bytes, records": records,
    "bytes, files": files,
    "new tokens": new_tokens,
    "save": partial(saves, sums=True),
    "save, no sums": partial(saves, sums=False),
    "mamba2": mamba2,
    "loss": loss,
    "training": partial(training, vocabulary=2048),
    "training, 32k": partial(training, vocabulary=32000),
}


def seconds(run: Callable[[], Any]) -> float:
    """How long one run takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def rounds(pair: Pair, limit: float, most: int = 1000) -> list[tuple[float, float]]:
    """(our seconds, the peer's) of at least three rounds after one that does not count, for about `limit` seconds."""
    found: list[tuple[float, float]] = []
    end = time.perf_counter() + limit
    while len(found) < 4 or (time.perf_counter() < end and len(found) <= most):
        order = (0, 1) if len(found) % 2 else (1, 0)
        times = {i: seconds(pair[i]) for i in order}
        found.append((times[0], times[1]))
    return found[1:]


def figures(found: list[tuple[float, float]]) -> dict[str, float]:
    """Medians of both sides and of their ratios, and the quartiles of the ratios."""
    ratios = [peer / ours for ours, peer in found]
    low, middle, high = quantiles(ratios, n=4)
    ours, peer = (median(side) for side in zip(*found))
    return {"ours_s": ours, "peer_s": peer, "ratio": middle, "low": low, "high": high, "rounds": len(found)}


if __name__ == "__main__":
    run_command(command_of(main))
