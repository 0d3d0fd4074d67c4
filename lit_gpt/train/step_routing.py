"""The auxiliary losses of experts over one optimizer step, whatever ranks and micro-batches it has.

Every micro-batch of a step has as many tokens as any other, so the loss of the step is the mean
over ranks and micro-batches of what `loss` returns.

With global_aux the balance is that of the global batch (departure D26). Counts and probabilities are summed over
ranks, in one small all-reduce per micro-batch for all layers together, and over the micro-batches so far. So the
gradient of the last micro-batch of a step (without accumulation, of the only one) is exactly that of the loss over
the global batch, on any number of ranks; the gradient of an earlier one is that of the part of the batch seen until
then. With exact_aux all of them are exact, because a pass without gradients counts the whole step first. The value
that is logged is exact either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn

from lit_gpt.config.model import Experts
from lit_gpt.metrics.router_metrics import pack
from lit_gpt.model import GPT
from lit_gpt.nn import balance
from lit_gpt.nn.moe import MixtureOfExperts, Routed
from lit_gpt.parallel import Runtime


class StepRouting:
    """Follows the routers through one optimizer step; every step makes a new one.

    experts: the model's. micro_batches: how many each rank has in this step.
    """

    def __init__(self, experts: Experts, runtime: Runtime, micro_batches: int):
        self.experts, self.runtime = experts, runtime
        self.share = 1 / (micro_batches * runtime.world_size)
        self.total: Routed | None = None  # of this rank
        self.everywhere: torch.Tensor | None = None  # counts and probabilities of all ranks, (2, L, E)
        self.counted = False
        self.value = torch.zeros((), device=runtime.device)

    @torch.no_grad()
    def count_first(self, forward: Callable[[Any], Routed], batches: Iterable[Any]) -> None:
        """Count all micro-batches before the first backward pass, as exact_aux asks for. Collective.

        forward: one micro-batch -> what the routers did with it.
        """
        for batch in batches:
            self._see_everywhere(forward(batch))
        self.counted = True

    def loss(self, routed: Routed, shape: Sequence[int]) -> torch.Tensor:
        """The auxiliary loss of one micro-batch to back-propagate, a 0-d tensor, already times its share of the step.

        routed: what the routers did with this micro-batch, not detached. shape: (B, T). Collective with global_aux.
        """
        e, here = self.experts, Routed(*(v.detach() for v in routed))
        self.total = here if self.total is None else Routed(*(a + b for a, b in zip(self.total, here)))
        rows, tokens = shape[0], shape[0] * shape[1]
        loss = e.router_z_loss * (routed.z / tokens).sum()
        if not e.aux_gamma:
            return self.share * loss
        if e.aux_style == "switch_seq":
            term = value = routed.sequences.sum() / rows
        else:
            if e.global_aux and not self.counted:
                self._see_everywhere(here)
            counts_LE, probs_LE = (here.counts_E, here.probs_E) if self.everywhere is None else self.everywhere
            term = (balance.slope(counts_LE, probs_LE, e) * routed.probs_E).sum() / tokens
            value = balance.value(counts_LE, probs_LE, e).sum()
        # With global_aux the newest value covers all that were seen: at the end, the step.
        share = 1 / self.runtime.world_size if e.global_aux else self.share
        self.value = e.aux_gamma * share * value.detach() + (0 if e.global_aux else self.value)
        return self.share * (loss + e.aux_gamma * term)

    def _see_everywhere(self, routed: Routed) -> None:
        """Add the counts and probabilities of all ranks' micro-batches. Collective."""
        summed = self.runtime.sum(torch.stack([routed.counts_E, routed.probs_E]))
        self.everywhere = summed if self.everywhere is None else self.everywhere + summed

    def result(self) -> torch.Tensor:
        """This rank's sums, for `metrics.router_metrics.unpack`."""
        assert self.total is not None
        return pack(self.total, self.value)

    def move_biases(self, model: nn.Module, skipped: torch.Tensor) -> None:
        """Loss-free balancing (arXiv:2408.15664) after the step, unless it was skipped. Collective.

        Layers that share a block share its biases, which move by the sum of the layers' counts.
        """
        if not self.experts.bias_rate:
            return
        assert self.total is not None
        gpt = cast(GPT, model)
        counts_LE = self.runtime.sum(self.total.counts_E)
        by_block: dict[int, torch.Tensor] = {}
        layers = [b for b, spec in zip(gpt.block_of, gpt.config.layers) if spec.experts]
        for block, counts_E in zip(layers, counts_LE):
            by_block[block] = by_block.get(block, 0) + counts_E
        for block, counts_E in by_block.items():
            ffn = cast(MixtureOfExperts, gpt.blocks[block].ffn)
            balance.move_bias_(cast(torch.Tensor, ffn.balance), counts_E, self.experts.bias_rate * (1 - skipped))
