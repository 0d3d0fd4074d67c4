"""Time to the first token: how much of a prompt's work a model may leave out.

    python benchmarks/prefill.py --families transformer,sambay --depth 16 --contexts 4096,32768 --output FILE.json

Layers at the end of a YOCO model read keys, values and memory of earlier layers and keep nothing
of their own, so that a prefill computes them for the last position alone. "full" computes every
layer for every position, as training does. Weights are random; the median of 5 after 2.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from timing import milliseconds

from lit_gpt import architectures
from lit_gpt.config.command import command_of, run_command
from lit_gpt.evals.decoding import Decoder
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, Multipliers, RolePlan


def build(family: str, depth: int, aspect_ratio: int | None, context: int, device: torch.device) -> GPT:
    """The family with random weights, in bf16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = architectures.build(family, depth, aspect_ratio=aspect_ratio, block_size=context)
    with device:
        model = GPT(config, Multipliers(), compute_dtype=dtype)
    init_parameters(model, {role: RolePlan(lr=0, weight_decay=0, init=Init("normal", std=0.02)) for role in ROLES}, 0)
    return model.eval()


@torch.inference_mode()
def prefill(model: GPT, tokens_1T: torch.Tensor, last_only: bool) -> float:
    """Milliseconds of one prefill of a prompt, to the logits of its next token; making its caches is not timed."""
    decoder = Decoder(model, 1, 0)

    def fresh() -> None:
        nonlocal decoder
        decoder = Decoder(model, 1, tokens_1T.shape[1] + 1)

    def run() -> None:
        model.logits(decoder.hidden(tokens_1T, last_only=last_only)[:, -1])

    return milliseconds(run, tokens_1T.device, steps=5, before=fresh)


def main(
    families: str = "transformer,sambay,swayoco",
    depth: int = 16,
    contexts: str = "4096,32768",
    ar: int | None = None,
    output: str | None = None,
) -> None:
    """Measure every family at every prompt length, and print a table.

    Args:
        families: comma-separated model families.
        depth: their depth.
        contexts: comma-separated prompt lengths in tokens.
        ar: aspect ratio; default the family's.
        output: JSON file for the rows.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    print(f"{'model':<20}{'prompt':>8}{'full ms':>10}{'prefill ms':>12}{'saved':>8}")
    for family in families.split(","):
        for length in map(int, contexts.split(",")):
            model = build(family, depth, ar, length, device)
            tokens_1T = torch.randint(0, model.config.vocab_size, (1, length), device=device)
            full, short = (prefill(model, tokens_1T, last_only) for last_only in (False, True))
            rows.append({"family": family, "depth": depth, "prompt": length, "full_ms": full, "prefill_ms": short})
            print(f"{family + ' d' + str(depth):<20}{length:>8}{full:>10.1f}{short:>12.1f}{1 - short / full:>8.0%}")
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        Path(output).write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    run_command(command_of(main))
