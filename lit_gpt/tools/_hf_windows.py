"""Attention windows in a config.json. sliding_window counts the token itself, as LayerSpec.window does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError

FULL, SLIDING = "full_attention", "sliding_attention"
# Keys of the classes whose layers may differ.
LAYERED = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
KINDS = {
    "sliding_window": "a whole number",
    "use_sliding_window": "true or false",
    "max_window_layers": "a count",
    "layer_types": "a list",
}


def windows_of(config: ModelConfig) -> list[int]:
    """The different windows of the layers that have one."""
    return sorted({spec.window for spec in config.layers if spec.window is not None})


def one_window(config: ModelConfig) -> list[str]:
    """Reasons against a class that has one window in all layers, or none."""
    if len({spec.window for spec in config.layers}) == 1:
        return []
    some = [str(i) for i, spec in enumerate(config.layers) if spec.window is not None]
    return [f"window {' and '.join(map(str, windows_of(config)))} in some layers only ({', '.join(some)})"]


def one_width(config: ModelConfig) -> list[str]:
    """Reasons against a class whose layers have one window or none, each as layer_types says."""
    found = windows_of(config)
    return [f"windows {' and '.join(map(str, found))} in different layers"] if len(found) > 1 else []


def layered_keys(config: ModelConfig) -> dict[str, Any]:
    """sliding_window where layer_types says so, which transformers reads from 4.53 on.

    max_window_layers, the number of lower layers that see everything, counts where there is no layer_types.
    """
    windows = windows_of(config)
    first = next((i for i, spec in enumerate(config.layers) if spec.window is not None), config.depth)
    return {
        "use_sliding_window": bool(windows),
        "sliding_window": windows[0] if windows else None,
        "max_window_layers": first,
        "layer_types": [FULL if spec.window is None else SLIDING for spec in config.layers],
    }


def layered(layer: LayerSpec, depth: int, values: Mapping[str, Any], width: int | None = 4096) -> Any:
    """The layers that these keys ask for. width: the class's default of sliding_window.

    Raises UserError for kinds of layers that are others than these two.
    """
    sliding = bool(values.get("use_sliding_window"))
    first = values.get("max_window_layers", 28)
    kinds = values.get("layer_types") or [SLIDING if sliding and i >= first else FULL for i in range(depth)]
    window = values.get("sliding_window", width) if sliding else None
    if len(kinds) != depth or not all(k == FULL or (k == SLIDING and window is not None) for k in kinds):
        raise UserError(f"config.json asks for layer_types {kinds}, which cannot be expressed with window {window}.")
    return tuple(replace(layer, window=window if kind == SLIDING else None) for kind in kinds)
