"""Memory and time of decoding over the length of the prompt: caches, prefill, and each new token.

    python benchmarks/decode.py --families transformer,sambay --prompts 4096,32768 --output FILE.json
    python benchmarks/decode.py --device meta --dtype bf16        # the bytes of the caches alone, without a GPU

Bytes are the sum of the tensors that layers keep of one prompt, after its prefill. "Full" computes every layer for
every position of the prompt, as training does; a prefill leaves out what the last position does not need. A new token
is timed for one sequence, and for a batch of copies of it. Weights are random; the figures are medians. With --output
a figure of the same name is drawn beside the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from lit_gpt import architectures
from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.metrics.figures import count_tokens, save, subplots
from lit_gpt.scaling.base import Init, Multipliers, RolePlan
from lit_gpt.utils.files import write_text


def main(
    families: str = "transformer,sambay,swayoco,gdny",
    depth: int = 16,
    prompts: str = "2048,8192,32768",
    batch: int = 16,
    new_tokens: int = 64,
    ar: int | None = None,
    device: Literal["cpu", "cuda", "meta"] | None = None,
    dtype: Literal["fp32", "bf16"] | None = None,
    output: str | None = None,
) -> None:
    """Measure every family at every prompt length, and print a table.

    Args:
        families: comma-separated model families.
        depth: their depth.
        prompts: comma-separated prompt lengths in tokens.
        batch: sequences that are decoded together.
        new_tokens: tokens that are timed after each prompt.
        ar: aspect ratio; default the family's.
        device: default cuda where there is one; meta counts bytes and measures nothing.
        dtype: of weights' products, keys and values; default bf16 on a GPU, fp32 elsewhere.
        output: JSON file for the rows, with a PNG beside it.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype or ("bf16" if place == "cuda" else "fp32")
    rows: list[dict[str, Any]] = []
    print(f"{'model':<20}{'prompt':>8}" + "".join(f"{name:>15}" for name, _ in COLUMNS.values()))
    for family in families.split(","):
        for prompt in map(int, prompts.split(",")):
            model = build(family, depth, ar, prompt, place, DTYPES[kind])
            rows.append({"family": family, "depth": depth, "prompt": prompt, "dtype": kind, "batch": batch})
            rows[-1] |= measure(model, prompt, batch, new_tokens)
            cells = [f"{rows[-1][key] / unit:,.2f}" if key in rows[-1] else "-" for key, (_, unit) in COLUMNS.items()]
            print(f"{family + f' d{depth}':<20}{prompt:>8}" + "".join(f"{cell:>15}" for cell in cells), flush=True)
    if output:
        keep(rows, place, Path(output))
        draw(rows, Path(output).with_suffix(".png"))


answer_early(__name__, reader_of(main))

import torch
from timing import milliseconds
from torch import Tensor

from lit_gpt.evals.decoding import Decoder
from lit_gpt.evals.steps import Steps, worthwhile
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.nn.cache import tensors
from lit_gpt.roles import ROLES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARMUP = 2  # new tokens that are not timed: the first ones compile kernels
COLUMNS = {  # of the table: key of a row, unit, and how many of the row's units are one of these
    "cache_bytes": ("cache MiB", 2**20),
    "full_ms": ("full ms", 1),
    "prefill_ms": ("prefill ms", 1),
    "prefill_tokens_per_sec": ("prefill tok/s", 1),
    "token_ms": ("token ms", 1),
    "batch_tokens_per_sec": ("batch tok/s", 1),
    "peak_bytes": ("peak GiB", 2**30),
}
PANELS = {  # key of a row, label, how many of the row's units are one of these, scale
    "cache_bytes": ("Cache per sequence (MiB)", 2**20, "log"),
    "prefill_ms": ("Time to the first new token (ms)", 1, "log"),
    "token_ms": ("Time per new token, one sequence (ms)", 1, "linear"),
    "batch_tokens_per_sec": ("New tokens per second of a batch", 1, "linear"),
}


def build(family: str, depth: int, aspect_ratio: int | None, context: int, device: str, dtype: torch.dtype) -> GPT:
    """The family with random weights of this dtype; on the meta device without any."""
    config = architectures.build(family, depth, aspect_ratio=aspect_ratio, block_size=context)
    with torch.device(device):
        model = GPT(config, Multipliers(), compute_dtype=dtype)
    if device != "meta":
        plan = RolePlan(lr=0, weight_decay=0, init=Init("normal", std=0.02))
        init_parameters(model, dict.fromkeys(ROLES, plan), 0)
    return model.cast_products().eval()


def cache_bytes(decoder: Decoder) -> int:
    """What the layers keep between calls, exactly."""
    return sum(t.numel() * t.element_size() for cache in decoder.caches if cache is not None for t in tensors(cache))


@torch.inference_mode()
def prefill(model: GPT, tokens_1T: Tensor, last_only: bool) -> tuple[float, int]:
    """Milliseconds from a prompt to the logits of its next token, without making the caches, and their bytes then."""
    decoder = Decoder(model, 1, 0)

    def fresh() -> None:
        nonlocal decoder
        decoder = Decoder(model, 1, tokens_1T.shape[1])

    def run() -> None:
        model.logits(decoder.hidden(tokens_1T, last_only=last_only)[:, -1])

    return milliseconds(run, tokens_1T.device, steps=5, before=fresh), cache_bytes(decoder)


@torch.inference_mode()
def new_token(model: GPT, tokens_1T: Tensor, batch: int, count: int) -> float:
    """Milliseconds per step of so many copies of a prompt, each the likeliest token of the step before."""
    decoder = Decoder(model, 1, tokens_1T.shape[1] + WARMUP + count)
    next_B1 = decoder(tokens_1T, last_only=True).argmax(-1)
    # One prompt is computed, whatever the batch.
    rows = torch.zeros(batch, dtype=torch.long, device=tokens_1T.device)
    decoder.select(rows)
    next_B1 = next_B1[rows]
    model_step = Steps(decoder) if worthwhile(model, count) else decoder

    def step() -> None:
        nonlocal next_B1
        next_B1 = model_step(next_B1).argmax(-1)

    return milliseconds(step, tokens_1T.device, steps=count, warmup=WARMUP)


def measure(model: GPT, prompt: int, batch: int, new_tokens: int) -> dict[str, float]:
    """A row's figures; on the meta device the bytes alone."""
    device = model.wte.weight.device
    if device.type == "meta":
        return {"cache_bytes": cache_bytes(Decoder(model, 1, prompt))}
    tokens_1T = torch.randint(0, model.config.vocab_size, (1, prompt), device=device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    full_ms, _ = prefill(model, tokens_1T, last_only=False)
    prefill_ms, kept = prefill(model, tokens_1T, last_only=True)
    one, many = (new_token(model, tokens_1T, rows, new_tokens) for rows in (1, batch))
    row: dict[str, float] = {
        "cache_bytes": kept,
        "full_ms": full_ms,
        "prefill_ms": prefill_ms,
        "prefill_tokens_per_sec": 1e3 * prompt / prefill_ms,
        "token_ms": one,
        "tokens_per_sec": 1e3 / one,
        "batch_token_ms": many,
        "batch_tokens_per_sec": 1e3 * batch / many,
    }
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return row


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Cache and times over the length of the prompt."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    shown = {key: panel for key, panel in PANELS.items() if key in rows[0]}
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    figure, panels = subplots(5 * columns, 4 * lines, lines, columns)
    for axes, (key, (label, unit, scale)) in zip(panels.flat, shown.items()):
        for family in dict.fromkeys(row["family"] for row in rows):
            points = [(row["prompt"], row[key] / unit) for row in rows if row["family"] == family]
            axes.plot(*zip(*points), marker="o", markersize=4, label=family)
        axes.set(xscale="log", yscale=scale, xlabel="Prompt length (tokens)", ylabel=label)
        if scale == "linear":
            axes.set_ylim(bottom=0)
        else:  # a panel over less than a power of ten has numbers too
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.set_xticks(sorted({row["prompt"] for row in rows}), minor=False)
        axes.minorticks_off()
        count_tokens(axes.xaxis)
        axes.grid(alpha=0.3)
    panels.flat[0].legend()
    save(figure, path)


def keep(rows: list[dict[str, Any]], place: str, output: Path) -> None:
    """Write the rows, and what they were measured on, as JSON."""
    name = torch.cuda.get_device_name() if place == "cuda" else place
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run_command(command_of(main))
