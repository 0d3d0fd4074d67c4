"""Is training healthy: statistics of the activations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

OUTLIER_SIGMAS = 5.0  # a normal distribution has one value in 1.7 million beyond
_PARTS = {"attn": "mixer", "mlp": "ffn"}  # name in the metric keys -> attribute of a block


def rms(x_BTD: Tensor) -> Tensor:
    """Root mean square over all elements, a float32 scalar on the device of the input."""
    return x_BTD.float().square().mean().sqrt()


def outlier_pct(x_BTD: Tensor) -> Tensor:
    """Percent of elements further than 5 standard deviations from the mean of their own token."""
    centred = x_BTD.float() - x_BTD.float().mean(-1, keepdim=True)
    sigma = centred.square().mean(-1, keepdim=True).sqrt()
    return 100 * (centred.abs() > OUTLIER_SIGMAS * sigma).float().mean()


@torch.no_grad()
def activation_statistics(
    model: nn.Module, tokens_BT: Tensor, forward: Callable[[nn.Module, Tensor], Any] | None = None
) -> dict[str, float]:
    """Statistics of what every mixer and feed-forward network adds to the residual stream.

    It takes one extra forward pass in evaluation mode and without gradients, at the end of which the numbers go to
    the host in one transfer. Nothing is compiled in it, because hooks inside a compiled block do not fire. ArchScale
    takes the statistics in every forward pass (departure D80). All ranks of a sharded model must call it together;
    the numbers are those of this rank's tokens.

    model: has `blocks`, each with `mixer` and `ffn` (None where there is none).
    tokens_BT: a micro-batch. forward: how to run the model, default `model(tokens_BT)`.

    Keys: `metric/{attn,mlp}_output_rmsnorm_layer_<i>`, their `_mean` (root mean square over
    layers), `metric/{attn,mlp}_outlier_pct_layer_<i>` and their plain `_mean`.
    """
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(_recorder(found, part, layer))
        for layer, block in enumerate(model.get_submodule("blocks").children())
        for part, attribute in _PARTS.items()
        if (module := getattr(block, attribute)) is not None
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            forward(model, tokens_BT) if forward else model(tokens_BT)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    values = dict(zip(found, torch.stack(list(found.values())).tolist()))
    return values | _means(values)


def _recorder(found: dict[str, Tensor], part: str, layer: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        x_BTD = output[0] if isinstance(output, tuple) else output
        found[f"metric/{part}_output_rmsnorm_layer_{layer}"] = rms(x_BTD)
        found[f"metric/{part}_outlier_pct_layer_{layer}"] = outlier_pct(x_BTD)

    return hook


def _means(values: dict[str, float]) -> dict[str, float]:
    means: dict[str, float] = {}
    for part in _PARTS:
        norms, outliers = (
            [value for key, value in values.items() if key.startswith(f"metric/{part}_{kind}_layer_")]
            for kind in ("output_rmsnorm", "outlier_pct")
        )
        if norms:
            means[f"metric/{part}_output_rmsnorm_mean"] = math.sqrt(statistics.fmean(n * n for n in norms))
            means[f"metric/{part}_outlier_pct_mean"] = statistics.fmean(outliers)
    return means
