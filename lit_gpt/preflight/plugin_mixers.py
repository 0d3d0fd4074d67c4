"""Mixers of plugins, tried on random vectors: one that sees later tokens trains to losses that are too good, and one
that carries something over the end of a document mixes documents up. Nothing else would say so.

The mixer is the run's own, in its size, but alone and on the CPU. Mixers of this repository have tests instead.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.init import init_parameters
from lit_gpt.nn.block import Block, Stream, pair
from lit_gpt.nn.context import Backends, Contexts, Keys, layer_contexts
from lit_gpt.nn.mixers import MIXERS, SharedState, build_mixer
from lit_gpt.roles import FILLED, ROLES
from lit_gpt.scaling.base import Init, Multipliers, RolePlan

TOKENS = 32
# Change of an output, as a part of the largest output, that is no rounding: the sums of a transform over all tokens
# differ by some 1e-6 in fp32, and what leaks through a mean over them by 1e-2.
LEAK = 1e-4
STARTS = dict.fromkeys(ROLES, RolePlan(1.0, 0.0, Init("fan_in_uniform")))  # none is zero, so that nothing is hidden


def check_mixers(config: ModelConfig) -> None:
    """Raise UserError for a mixer of a plugin whose outputs depend on later tokens, or on another document.

    A layer of every kind is tried. What cannot run here, such as a kernel for GPUs, is left to training.
    """
    tried = {spec: i for i, spec in enumerate(config.layers) if spec.mixer in MIXERS.plugins}
    for i in tried.values():
        try:
            _check_layer(config, i)
        except UserError:
            raise
        except Exception:  # whatever a plugin raises: its first step will, and say where
            continue


@torch.no_grad()
def _check_layer(config: ModelConfig, i: int) -> None:
    name, layer, half = config.layers[i].mixer, _Layer(config, i), TOKENS // 2
    if (found := layer.first_change(TOKENS - 1, range(TOKENS - 1), None)) is not None:
        raise UserError(
            f"The mixer {name} sees later tokens: another last token of {TOKENS} changes its output at token "
            f"{found + 1}, so losses would be too good. Make it causal (docs/adding.md)."
        )
    ends = (torch.arange(TOKENS) // half)[None] if config.varlen else None
    if config.varlen and (found := layer.first_change(half - 1, range(half, TOKENS), ends)) is not None:
        raise UserError(
            f"The mixer {name} sees the document before: another last token of it changes the output at token "
            f"{found - half + 1} of the next. Let nothing pass where context.doc_ids changes (docs/adding.md), or give "
            "--varlen false."
        )


class _Layer:
    """A layer's mixer and the layers that it reads of, with random weights and inputs."""

    def __init__(self, config: ModelConfig, i: int):
        self.config, self.layer, self.modules = config, i, dict[int, nn.Module]()
        at: int | None = i
        while at is not None:
            lends_network = at != i and config.layers[at].memory == "ffn"
            make = partial(Block, compute_dtype=torch.float32) if lends_network else build_mixer
            self.modules[at] = _random(make(config, at, Multipliers()))
            at = config.layers[at].shares
        self.x_BTD = torch.randn(1, TOKENS, config.n_embd, generator=torch.Generator().manual_seed(0))
        self.tokens_BT = torch.zeros(1, TOKENS, dtype=torch.long)

    def first_change(self, at: int, of: range, doc_ids_BT: Tensor | None) -> int | None:
        """The first token among `of` whose output is another one where token `at` is; None where none is."""
        before = self.output(self.x_BTD, self.tokens_BT, doc_ids_BT)
        x_BTD, tokens_BT = self.x_BTD.clone(), self.tokens_BT.clone()
        x_BTD[:, at], tokens_BT[:, at] = 1 - 2 * x_BTD[:, at], 1
        change = (self.output(x_BTD, tokens_BT, doc_ids_BT) - before).abs().amax((0, 2))
        return next((t for t in of if change[t] > LEAK * before.abs().max()), None)

    def output(self, x_BTD: Tensor, tokens_BT: Tensor, doc_ids_BT: Tensor | None) -> Tensor:
        """Of the mixer, (1, TOKENS, n)."""
        attending = [self.config.layers[i] for i, m in self.modules.items() if _attends(m)]
        keys, backends = Keys(TOKENS, doc_ids_BT), Backends(kernels="plain")
        inputs = self.config, attending, torch.arange(TOKENS), doc_ids_BT, keys, torch.float32, backends, tokens_BT
        contexts = layer_contexts(*inputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self._run(self.layer, x_BTD, contexts)[0]

    def _run(self, i: int, x_BTD: Tensor, contexts: Contexts) -> tuple[Tensor, SharedState | None]:
        spec, module = self.config.layers[i], self.modules[i]
        shared = None if spec.shares is None else self._run(spec.shares, x_BTD, contexts)[1]
        context = contexts[spec.window, spec.rope_base]
        if isinstance(module, Block):
            stream, state = module(Stream(x_BTD, torch.zeros_like(x_BTD), first=x_BTD), context, shared)
            return stream.x, state
        return pair(module, module(x_BTD, context, shared, None), x_BTD)


def _attends(module: nn.Module) -> bool:
    return getattr(module.mixer if isinstance(module, Block) else module, "attends", False)


def _random(module: nn.Module) -> nn.Module:
    """With weights of ordinary sizes; what starts at a value of its own, such as 0, is moved away from it."""
    init_parameters(module, STARTS, 0)
    for n, p in enumerate(module.parameters()):
        if p.role in FILLED:  # type: ignore[attr-defined]
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(n)), alpha=0.1)
    return module.eval()
