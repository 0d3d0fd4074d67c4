"""Averages of the weights, kept while they are trained (--ema).

    average <- rho average + (1 - rho) weights,    rho = 0.5 ** (tokens of the step / half-life)

after every optimizer step, from the weights before the first one on. Half-lives are in tokens, so the decay of a step
follows its batch ("How to Scale Your EMA", arXiv:2307.13813), also where the batch grows during the run.

A step that was skipped changed no weights, but its tokens have passed: the average moves on towards the weights as
they are. Only parameters are averaged; what is evaluated with an average are the buffers as they are now, such as the
selection biases of experts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lit_gpt.config.words import write_tokens
from lit_gpt.optim.engine.matrix_batches import local
from lit_gpt.optim.engine.protocol import reshard
from lit_gpt.scaling.plan import ema_decay


def label(half_life: int) -> str:
    """What an average is called in metrics and by --weights, such as "ema_1B"."""
    return f"ema_{write_tokens(half_life)}"


class WeightAverages:
    """For each half-life an average of every parameter, of its dtype (fp32), on its device, and sharded like it.

    They start as the weights that the model has now. Make them before its first forward, after which FSDP2 may show
    gathered weights. half_lives: in tokens; without any, nothing is kept and nothing is done.
    """

    def __init__(self, model: nn.Module, half_lives: Sequence[int]) -> None:
        self.model, self.weights = model, dict(model.named_parameters())
        self.averages = {h: {name: p.detach().clone() for name, p in self.weights.items()} for h in half_lives}

    def tensors(self) -> dict[str, Tensor]:
        """<half-life>.<parameter> -> the average, not copied, as checkpoints name it."""
        return {f"{h}.{name}": t for h, average in self.averages.items() for name, t in average.items()}

    @torch.no_grad()
    def update(self, tokens: int) -> None:
        """Take the weights in after an optimizer step of `tokens` tokens. Nothing waits for the device."""
        for half_life, average in self.averages.items():
            for averages, weights in self._by_device(average):
                torch._foreach_lerp_(averages, weights, 1 - ema_decay(tokens, half_life))

    @contextmanager
    def in_model(self, half_life: int) -> Iterator[None]:
        """Within it the model's weights are this average. Afterwards both are what they were before, to the bit.

        They change places one parameter at a time, so no second copy of the model is needed.
        """
        self._exchange(half_life)
        try:
            yield
        finally:
            self._exchange(half_life)

    @torch.no_grad()
    def _exchange(self, half_life: int) -> None:
        reshard(self.model)
        for name, p in self.weights.items():
            weights, average = local(p), local(self.averages[half_life][name])
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)

    def _by_device(self, average: dict[str, Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """This rank's parts of an average and of the weights. Offloaded shards are on the host, and vectors are not.

        They are asked for at every step, since FSDP2 may move shards to memory of its own.
        """
        parts: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for name, p in self.weights.items():
            averages, weights = parts[local(p).device]
            averages.append(local(average[name]))
            weights.append(local(p))
        return list(parts.values())
