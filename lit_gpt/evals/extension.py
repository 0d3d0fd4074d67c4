"""A longer context than the one of training, only where it is asked for: YaRN, or wider windows.

ArchScale turns YaRN on wherever the length differs from 4,096, for models that never saw it (departure D10).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch

from lit_gpt.config.bounds import Bounds, violations
from lit_gpt.config.groups.kinds import Length
from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.nn import rotary


@dataclass(frozen=True)
class Extension:
    """What is changed in a trained model, whose weights stay.

    yarn_scale: rotary positions as for a context this many times as long (arXiv:2309.00071); the longest input is then
    so much longer too. window: tokens that each windowed attention layer sees; layers without a window keep none.
    """

    yarn_scale: Annotated[float, Bounds(1, 10_000)] | None = None
    window: Length | None = None

    def __post_init__(self) -> None:
        if wrong := violations(self):
            raise UserError(f"{wrong[0].removeprefix('--')}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, to stand beside a result."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def of(self, config: ModelConfig) -> ModelConfig:
        """The extended model. Raises UserError where the model has nothing that an option could act on."""
        if self.yarn_scale is not None:
            config = self._stretched(config, self.yarn_scale)
        return config if self.window is None else self._windowed(config, self.window)

    def longest(self, config: ModelConfig) -> int:
        """Tokens that the extended model reads by default: the context of training, times the scale."""
        return config.block_size if self.yarn_scale is None else int(config.yarn_context * config.yarn_scale)

    @staticmethod
    def _stretched(config: ModelConfig, scale: float) -> ModelConfig:
        with torch.device("meta"):
            attending = GPT(config).attending
        bases = {config.base_of(spec) for spec in attending} - {0.0}
        if not bases or config.position == "none":
            raise UserError(f"{config.family} has no rotary positions, so yarn_scale cannot act. Drop it.")
        if scale <= config.yarn_scale:
            raise UserError(f"yarn_scale is {scale:g}; give more than the {config.yarn_scale:g} of training.")
        trained = config.yarn_context if config.yarn_scale > 1 else config.block_size
        config = config.replace(yarn_scale=float(scale), yarn_context=trained)
        for base in bases:
            rotary.inverse_frequencies(config, base=base)  # raises where YaRN does not fit
        return config

    @staticmethod
    def _windowed(config: ModelConfig, window: int) -> ModelConfig:
        if all(spec.window is None for spec in config.layers):
            raise UserError(f"{config.family} has no layer with a window, so window cannot act. Drop it.")
        layers = tuple(spec if spec.window is None else replace(spec, window=window) for spec in config.layers)
        return config.replace(layers=layers)


UNCHANGED = Extension()
