"""One optimizer over role groups: every group is stepped by the update rule of its role.

An optimizer's file says which rule a role gets (FACTS, which the Plan shows) and what each rule is made of
(`rules`). A rule is a direction (directions.py: where to go, from gradients and state) and an update
(updates.py: how far, and what is kept), over batches of equal shapes (matrix_batches.py); AdamW is a kernel of our own
or the fused one of torch.

State exists from construction on: checkpoints have the same tensors on every rank, and nothing is
stepped to make them. Whether a step is skipped, and how gradients are scaled, stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lit_gpt.optim.engine import adamw_triton
from lit_gpt.optim.engine.adamw_triton import Rates
from lit_gpt.optim.engine.matrix_batches import BATCH_ELEMENTS, Batch, Task, gradient, interleave, local, make_batches
from lit_gpt.optim.engine.packed import WRITES, State, pack_new, parts, unpacked
from lit_gpt.scaling.base import Plan

Group = dict[str, Any]


class Control(NamedTuple):
    """What the training loop found out about the gradients of this step.

    Both are 0-d tensors on the device, so that nothing waits for the host to read them.
    skip: bool, whether the step must change nothing. divisor: what the gradients are to be divided by.
    """

    skip: Tensor
    divisor: Tensor

    def rate(self, value: float) -> Tensor:
        """A learning rate: `value`, or 0 in a step that is skipped."""
        return torch.where(self.skip, 0.0, value)

    def decay(self, value: float) -> Tensor:
        """A factor on state: `value`, or 1 in a step that is skipped."""
        return torch.where(self.skip, 1.0, value)

    def gradients(self, batch: Batch) -> Tensor:
        """The gradients of a batch after division, (B, r, C); zeros in a step that is skipped.

        `where` and not a product with 0, because 0 times NaN is NaN.
        """
        g_BrC = batch.join([gradient(p) for p in batch.params])
        return torch.where(self.skip, 0.0, g_BrC).div_(self.divisor)


class Direction(Protocol):
    """Where to go. It sees this rank's rows of a batch of matrices; its state may be sharded like the parameter."""

    def new_state(self, p: Tensor) -> dict[str, Tensor]: ...

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """Update the state and return the direction (B, r, C), in fp32 and finite even in a skipped step."""
        ...


class Update(Protocol):
    """How far to go: moves the weights x (B, r, C) along a direction d, in place; not at all at a rate of 0."""

    def new_state(self, p: Tensor) -> dict[str, Tensor]: ...

    def __call__(
        self, batch: Batch, x_BrC: Tensor, d_BrC: Tensor, group: Group, state: State, control: Control
    ) -> Task[None]: ...


class Rule:
    """A direction and an update, over the parameters of one group in batches of equal shapes.

    blocks: of a parameter, see matrix_batches.Batch.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        direction: Direction,
        update: Update,
        blocks: Callable[[Tensor], int] = lambda p: 1,
    ):
        self.batches, self.direction, self.update = make_batches(params, blocks), direction, update

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """The tensors that this rule keeps for a parameter."""
        return {**self.direction.new_state(p), **self.update.new_state(p)}

    def tasks(self, group: Group, state: State, control: Control) -> Iterator[Task[None]]:
        """The step as one task per batch, for `interleave`."""
        return (self._task(batch, group, state, control) for batch in self.batches)

    def _task(self, batch: Batch, group: Group, state: State, control: Control) -> Task[None]:
        with unpacked(batch.params, state, control.skip) as wide:
            direction = yield from self.direction(batch, group, wide, control)
            weights = batch.join(batch.params)
            yield from self.update(batch, weights, direction, group, wide, control)
        batch.store(weights, batch.params)


class FusedAdamW:
    """AdamW (arXiv:1711.05101), a kernel for a tensor, which scales gradients and skips a step by itself: our own for
    what adamw_triton.py takes, for the others together torch's fused one.

    betas, eps: in place of the Plan's, which the loop writes into the group.
    """

    def __init__(self, betas: tuple[float, float] | None = None, eps: float | None = None):
        self.betas, self.eps = betas, eps

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """Step count and both moments, named as torch names them."""
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def tasks(self, group: Group, state: State, control: Control) -> Iterator[Task[None]]:
        """Steps at once; there is nothing to wait for."""
        (beta1, beta2), eps = self.betas or group["betas"], group["eps"] if self.eps is None else self.eps
        rates = Rates(group["lr"], group["weight_decay"], beta1, beta2, eps)
        taken = adamw_triton.taken(group["params"], state)
        adamw_triton.step(taken, state, rates, control.skip, control.divisor)
        chosen = set(taken)
        others = [p for p in group["params"] if p not in chosen] if taken else group["params"]
        if not any(WRITES in state[p] for p in others):
            self._step(others, rates, state, control)
            return iter(())
        for params in parts(others, BATCH_ELEMENTS):  # so that little state is out of its 8 bits at once
            with unpacked(params, state, control.skip) as wide:
                self._step(params, rates, wide, control)
        return iter(())

    def _step(self, params: Sequence[Tensor], rates: Rates, state: State, control: Control) -> None:
        """By torch's kernel."""
        kept = [state[p] for p in params]
        lists = [[local(of_p[key]) for of_p in kept] for key in ("exp_avg", "exp_avg_sq", "step")]
        adamw(
            [local(p) for p in params],
            [gradient(p) for p in params],
            lists[0],
            lists[1],
            [],
            lists[2],
            fused=True,
            grad_scale=control.divisor,  # the kernel divides by it, and does nothing where found_inf is 1
            found_inf=control.skip.float(),
            amsgrad=False,
            beta1=rates.beta1,
            beta2=rates.beta2,
            lr=rates.lr,
            weight_decay=rates.decay,
            eps=rates.eps,
            maximize=False,
        )


class RoleOptimizer(torch.optim.Optimizer):
    """Steps every group by its update rule.

    groups: see groups.parameter_groups. rules: name of an update rule -> what makes it for the parameters of
    a group. plan: betas and eps of Adam-like rules and mu, the momentum, of Muon-like ones, until the loop sets them.
    state: "int8" keeps moments in 8 bits, see packed.py.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: list[Group],
        rules: Mapping[str, Callable[[Sequence[Tensor]], Any]],
        plan: Plan,
        state: str = "fp32",
    ):
        super().__init__(groups, {"betas": (plan.beta1, plan.beta2), "eps": plan.eps, "mu": plan.momentum})
        self.rules = [rules[group["update_rule"]](group["params"]) for group in self.param_groups]
        with torch.no_grad():
            for group, rule in zip(self.param_groups, self.rules):
                for p in group["params"]:
                    new = rule.new_state(p)
                    self.state[p] = pack_new(p, new) if state == "int8" else new

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients; see docs/adding.md for grad_scale and found_inf."""
        devices = [local(group["params"][0]).device for group in self.param_groups]
        controls = {device: self._control(device) for device in set(devices)}
        interleave(
            task
            for group, rule, device in zip(self.param_groups, self.rules, devices)
            for task in rule.tasks(group, self.state, controls[device])
        )

    def _control(self, device: torch.device) -> Control:
        if self.found_inf is None or self.grad_scale is None:
            return Control(torch.zeros((), dtype=torch.bool, device=device), torch.ones((), device=device))
        skip = self.found_inf.to(device).bool()
        return Control(skip, torch.where(skip, 1.0, self.grad_scale.to(device)))
