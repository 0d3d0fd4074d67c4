"""Which steps are not taken: decided on the device, counted there, and read now and then.

A step whose gradient norm is not finite is never taken, and changes neither weights nor momentum (departure D54). With
--skip_spikes a step far above its past is not taken either, as by OLMo-core's SkipStepOptimizer
(https://github.com/allenai/OLMo-core/blob/main/src/olmo_core/optim/skip_step_optimizer.py); there the past holds all
steps, here those that were taken, so that a spike does not widen the band for the next one.

After --max_skips such steps in a row none is taken any more, and the loop ends the run: the weights are those before
the first of them, whenever the host comes to read the count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lit_gpt.ops.transfer import to_host
from lit_gpt.parallel import GradNorms, Runtime

WINDOW = 128  # steps taken that count as the past; half of them must be there first. Both are OLMo-core's.


class StepGuard:
    """Asked at every step on every rank; all of them decide alike.

    max_skips: steps in a row. sigmas: standard deviations above the mean that make a spike, 0 for none. state: from
    the checkpoint that a run continues; a count that ended the run starts again.
    spiked: 0-d, 1 when the last step asked about was a spike. spike: (3,) step, loss and norm of the newest one.
    """

    def __init__(self, runtime: Runtime, max_skips: int, sigmas: float, state: dict[str, Any] | None = None):
        self.runtime, self.max_skips, self.sigmas = runtime, max_skips, sigmas
        skips, taken, past = (state["skips"], state["taken"], state["past"]) if state else (0, 0, [])
        self._skips = torch.tensor(skips if skips < max_skips else 0, device=runtime.device)
        self._taken = torch.tensor(taken if past and sigmas else 0, device=runtime.device)
        self._past = torch.zeros(2, WINDOW, dtype=torch.float64, device=runtime.device)
        if past and sigmas:
            self._past += torch.tensor(past, dtype=torch.float64, device=runtime.device)
        self._slots = torch.arange(WINDOW, device=runtime.device)
        self.spiked = torch.zeros((), device=runtime.device)
        self.spike = torch.zeros(3, dtype=torch.float64, device=runtime.device)
        self._norms: torch.Tensor | None = None  # of every gradient in the newest step that was skipped
        self._roles: tuple[str, ...] = ()
        self._told: Callable[[], torch.Tensor] | None = None  # the count at the step asked about last

    def skip(self, step: int, loss: torch.Tensor, norms: GradNorms) -> torch.Tensor:
        """1 on the device when this step must not be taken, else 0; both fp32, 0-d.

        step: its number. loss: this rank's share. Collective with sigmas, without a wait for the device.
        """
        ended = self._skips >= self.max_skips
        skip = ~torch.isfinite(norms.total) | ended
        if self.sigmas:
            skip |= self._watch(step, torch.stack([self.runtime.sum(loss), norms.total]).double(), skip)
        self._skips = torch.where(skip, self._skips + 1, 0)
        if self._norms is None or self._norms.shape != norms.each.shape:
            self._norms = norms.each
        self._norms = torch.where(skip & ~ended, norms.each, self._norms)
        self._roles = norms.roles
        return skip.float()

    def _watch(self, step: int, now_2: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Whether a step that is not skipped anyway is a spike, a 0-d bool; one that is none joins the past.

        now_2: loss and gradient norm, in float64, since the variance of 128 nearly equal numbers is a small difference.
        """
        kept = self._slots < self._taken
        n = kept.sum()
        mean_2 = self._past.where(kept, 0).sum(1) / n
        sigma_2 = ((self._past - mean_2[:, None]).where(kept, 0).square().sum(1) / (n - 1)).sqrt()
        spike = ~skip & (n >= WINDOW // 2) & ((now_2 - mean_2) > self.sigmas * sigma_2).any()
        taken = ~skip & ~spike & torch.isfinite(now_2).all()
        here = (self._slots == self._taken % WINDOW) & taken
        self._past = torch.where(here, now_2[:, None], self._past)
        self._taken = self._taken + taken
        self.spiked = spike.float()
        self.spike = torch.where(spike, torch.cat([now_2.new_full((1,), step), now_2]), self.spike)
        return spike

    def ended(self, step: int, last: bool) -> bool:
        """Whether max_skips steps in a row were skipped, or all of a run up to its last step.

        Asks the device every max_skips steps, whatever is logged; a GPU answers one step later, and is at that step
        meanwhile. At the last step at once.
        """
        if last:
            return int(self._skips) >= min(self.max_skips, step)
        told = to_host(self._skips) if step % self.max_skips == 0 else None
        if self.runtime.runs_ahead:
            told, self._told = self._told, told
        return told is not None and int(told()) >= self.max_skips

    def stuck(self) -> bool:
        """Whether max_skips steps in a row were skipped by now; waits for the device."""
        return int(self._skips) >= self.max_skips

    def why(self, step: int) -> str:
        """A sentence about the steps that were skipped, up to `step`. Collective."""
        skips = int(self._skips)
        bad = [] if self._norms is None else (~torch.isfinite(self._norms)).tolist()
        mine = sorted({role for role, wrong in zip(self._roles, bad) if wrong})
        said = ",".join(text or "" for text in self.runtime.gather(",".join(mine)))
        roles = sorted(set(said.split(",")) - {""})
        which = f"the gradients of role {', '.join(roles)} were" if roles else "the norm of all gradients was"
        what = f"{which} not finite" if roles or not self.sigmas else "a spike of the loss or of the gradient norm"
        first, last = step - skips + 1, step - skips + min(skips, self.max_skips)
        return (
            f"Steps {first} to {last} were skipped one after the other (--max_skips {self.max_skips}): in step {last} "
            f"{what}. The weights are those after step {first - 1}."
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to decide alike; waits for the device."""
        past = self._past.tolist() if self.sigmas else []
        return {"skips": int(self._skips), "taken": int(self._taken), "past": past}
