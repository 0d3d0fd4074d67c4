"""Speed of experts: grouped products, a whole layer with a profile of where its time goes, and training.

    python benchmarks/moe.py --output docs/benchmarks/moe_h200.json
    python benchmarks/moe.py --tokens 256 --width 64 --hidden 16 --experts 8 --top_k 2 --train ""

The default sizes are those for which SonicMoE (arXiv:2512.14080) publishes about 365 TFLOP/s forward and 405
backward on an H100. FLOPs are of the matrix products of experts, 6 T K n I forward and 12 backward,
so routing and moving rows count as time and not as work. Tokens are spread at random.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.utils.files import write_text


def main(
    tokens: int = 24576,
    width: int = 1536,
    hidden: int = 256,
    experts: int = 128,
    top_k: int = 8,
    train: str = "8:8,8:16,16:2,16:4",
    train_dense: str = "8:16,16:8",
    batch: int = 131072,
    steps: int = 6,
    output: str | None = None,
) -> None:
    """Measure experts and print a table.

    Args:
        tokens: tokens of a micro-batch (T).
        width: width of the model (n).
        hidden: hidden width of one expert (I).
        experts: number of experts (E).
        top_k: experts that a token uses (K).
        train: depth:micro_bsz pairs of whole training runs with S = k = 8, smallest first; empty for none.
        train_dense: the same for the dense model of equal active size.
        batch: tokens of one step of these runs.
        steps: timed steps of each.
        output: JSON file for everything.
    """
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    # First, in processes of their own: what this one allocates is missing there.
    trained = training(train_dense, train, batch, steps) if train else []
    if output and train:
        write_text(Path(output), json.dumps({"training": trained}, indent=1) + "\n")  # kept if what follows fails
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    mixture = Experts(experts // top_k, top_k)
    specs = (LayerSpec(experts=True),)
    config = ModelConfig("benchmark", 1, width, 1, width, 1, hidden * top_k, specs, experts=mixture)
    with device:
        layer = MixtureOfExperts(config, 0, 1.0)
        x_TD = torch.randn(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    compiled = [False, True] if device.type == "cuda" else [False]
    request = Request(device.type, x_TD.dtype, (width, hidden))
    usable = [name for name, backend in BACKENDS.items() if not backend.refuses(request)]
    rows = [experts_alone(layer, x_TD, name, False) for name in usable]
    if device.type == "cuda":
        rows += [experts_alone(layer, x_TD, name, True) for name in ("torch", "quack") if name in usable]
        if not refusal("rowwise", experts):
            rows += [experts_alone(layer, x_TD, "", True, ScaledExperts("rowwise", kept)) for kept in (False, True)]
    rows += [whole_layer(layer, x_TD, how) for how in compiled]
    print(f"{'what':<40}{'forward ms':>12}{'TFLOP/s':>10}{'backward ms':>13}{'TFLOP/s':>10}")
    for r in rows:
        print(
            f"{r['what']:<40}{r['forward_ms']:>12.2f}{r['forward_tflops']:>10.1f}"
            f"{r['backward_ms']:>13.2f}{r['backward_tflops']:>10.1f}"
        )
    for part in rows[-1]["profile"]:
        print(f"  {part['share']:>6.1%} {part['ms']:>9.3f} ms  {part['kernel']}")
    sizes = {"T": tokens, "n": width, "I": hidden, "E": experts, "K": top_k}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    found = {"device": name, "torch": torch.__version__, "sizes": sizes, "rows": rows, "training": trained}
    if output:
        write_text(Path(output), json.dumps(found, indent=1) + "\n")


answer_early(__name__, reader_of(main))

import torch
from timing import milliseconds, where
from torch import Tensor

from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops.experts import expert_ffn, sort_pairs
from lit_gpt.ops.experts_fp8 import ScaledExperts, refusal, scaled_expert_ffn
from lit_gpt.ops.grouped_gemm import BACKENDS, Request

TRAIN_STEP = Path(__file__).with_name("train_step.py")


def rates(forward: Callable[[], Tensor], leaves: list[Tensor], flops: float, device: torch.device) -> dict[str, float]:
    """Milliseconds and TFLOP/s; backward is what both take less what forward takes."""
    y = forward()
    dy = torch.randn_like(y)

    def both() -> None:
        torch.autograd.grad(forward(), leaves, dy)

    one, two = milliseconds(forward, device), milliseconds(both, device)
    tflops = {"forward": flops / one / 1e9, "backward": 2 * flops / max(two - one, 1e-9) / 1e9}
    return {"forward_ms": one, "backward_ms": two - one, **{f"{k}_tflops": v for k, v in tflops.items()}}


def experts_alone(
    layer: MixtureOfExperts, x_TD: Tensor, backend: str, compiled: bool, scaled: ScaledExperts | None = None
) -> dict[str, Any]:
    """Gather, products, activation and weighted sum, with the routes given. scaled: in 8 bits."""
    e, tokens = layer.experts, len(x_TD)
    chosen_TK = torch.rand(tokens, e.routed, device=x_TD.device).topk(e.active).indices
    gates_TK = torch.full((tokens, e.active), 1 / e.active, device=x_TD.device, requires_grad=True)
    up, down = (w.detach().to(x_TD.dtype).requires_grad_() for w in (layer.up, layer.down))
    routes, leaves = sort_pairs(chosen_TK, e.routed), [x_TD, gates_TK, up, down]

    if scaled:
        scaled.refresh([up, down])

    def forward() -> Tensor:
        if scaled:
            return scaled_expert_ffn(x_TD, gates_TK, up, down, routes, scaled=scaled)
        return expert_ffn(x_TD, gates_TK, up, down, routes, backend=backend)

    run = torch.compile(forward) if compiled else forward
    way = backend if scaled is None else "8 bits, weights " + ("kept" if scaled.kept else "cast")
    name = f"experts, {way}" + (", compiled" if compiled else "")
    return {"what": name, **rates(run, leaves, flops(layer, tokens), x_TD.device)}


def whole_layer(layer: MixtureOfExperts, x_TD: Tensor, compiled: bool) -> dict[str, Any]:
    """Router, routing, experts and statistics as a block calls them."""
    leaves = [x_TD, *layer.parameters()]
    run = torch.compile(layer) if compiled else layer

    def forward() -> Tensor:
        return run(x_TD[None])[0]

    row = {
        "what": "layer" + (", compiled" if compiled else ""),
        **rates(forward, leaves, flops(layer, len(x_TD)), x_TD.device),
    }
    return {**row, "profile": where(lambda: torch.autograd.grad(forward().float().sum(), leaves))}


def flops(layer: MixtureOfExperts, tokens: int) -> float:
    """Of the experts' matrix products, forward."""
    return tokens * (layer.flops() - layer.router.flops())


def training(dense: str, mixture: str, batch: int, steps: int) -> list[dict[str, Any]]:
    """Tokens per second of the whole trainer: the dense family, then the mixture of equal active size.

    Rows that fail (memory) are left out, with what they said above.
    """
    rows = []
    for family, sizes, options in (
        ("transformer_gqa4_h2", dense, {}),
        ("transformer_gqa4_h2_moe", mixture, {"sparsity": 8, "top_k": 8}),
    ):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            words = ["--families", family, "--sizes", sizes, "--options", json.dumps(options), "--output", file.name]
            words += ["--batch", str(batch), "--steps", str(steps), "--warmup", "4", "--profile", "40"]
            subprocess.run([sys.executable, str(TRAIN_STEP), *words], check=False)
            rows += json.loads(Path(file.name).read_text() or "[]")
    return rows


if __name__ == "__main__":
    run_command(command_of(main))
