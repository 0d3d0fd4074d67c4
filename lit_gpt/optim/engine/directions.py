"""Directions: from gradients and state to where the weights should go.

| direction | what it is |
|---|---|
| Orthogonal | momentum, made orthogonal by Newton-Schulz: Muon (kellerjordan.github.io/posts/muon) |
| Adam | m / (sqrt(v) + eps) (arXiv:1412.6980), or with Nesterov momentum: NAdam (Dozat 2016) |
| Sign | the sign of an interpolated momentum: Lion (arXiv:2302.06675) |

Shapes are those of matrix_batches.py. State that has the shape of its parameter is sharded like it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_gpt.config.words import FLOATS
from lit_gpt.errors import UserError
from lit_gpt.ops.newton_schulz import iteration, orthogonalize
from lit_gpt.optim.engine.matrix_batches import Batch, Task, local
from lit_gpt.optim.engine.role_optimizer import Control, Group, State

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, known) for name, known in FLOATS.items()}
MOMENTUM_DECAY = 4e-3  # psi of NAdam's momentum schedule: torch's, and Keras' before it


def buffers(batch: Batch, state: State, key: str) -> list[Tensor]:
    """The local parts of one kind of state."""
    return [local(state[p][key]) for p in batch.params]


@dataclass(frozen=True)
class Orthogonal:
    """Momentum made orthogonal: U V^T, where U S V^T is the singular value decomposition of the momentum.

    The momentum is M <- mu M + G with the group's mu; with nesterov, mu M + G of the new M takes its place.
    Newton-Schulz iterations approximate U V^T: ns names their coefficients, ns_steps is their number, ns_dtype what
    they compute in (see ops/newton_schulz.py). "auto" is bf16 on a GPU and fp32 on a CPU, where products in bf16 take
    five to ten times as long. Every block of a matrix (matrix_batches.Batch) is made orthogonal by itself.
    """

    nesterov: bool = True
    ns: str = "tuned"
    ns_steps: int = 5
    ns_dtype: str = "auto"
    ns_backend: Literal["auto", "quack", "torch"] = "auto"

    def __post_init__(self) -> None:
        iteration(self.ns, self.ns_steps)
        if self.ns_dtype not in ("auto", *DTYPES):
            raise UserError(
                f"Newton-Schulz in {self.ns_dtype!r} is not possible. Use one of {', '.join(DTYPES)}, auto."
            )

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """The momentum M, in fp32 and in the shape of the parameter."""
        return {"momentum": torch.zeros_like(p)}

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """See role_optimizer.Direction."""
        u_BrC, momenta = control.gradients(batch), buffers(batch, state, "momentum")
        grads = batch.split(u_BrC)
        torch._foreach_mul_(momenta, control.decay(group["mu"]))
        torch._foreach_add_(momenta, grads)
        if self.nesterov:
            torch._foreach_add_(grads, momenta, alpha=group["mu"])
        else:
            torch._foreach_copy_(grads, momenta)
        # What travels is bf16 or fp32 and never fp16: gradients are divided by their norm only after they have
        # travelled, and before that they may be too large or too small for fp16.
        wire = torch.bfloat16 if self._dtype(batch.device) == torch.bfloat16 else torch.float32
        whole = yield from batch.assemble(u_BrC.to(batch.device, wire))
        direction = yield from batch.scatter(self._orthogonal(whole, batch.blocks).to(wire))
        return direction.to(u_BrC.device, torch.float32)

    def _orthogonal(self, u_bRC: Tensor, blocks: int) -> Tensor:
        b, rows, columns = u_bRC.shape
        maps = u_bRC.reshape(b * blocks, rows // blocks, columns)
        how = iteration(self.ns, self.ns_steps)
        return orthogonalize(maps, how, self._dtype(maps.device), self.ns_backend).reshape(u_bRC.shape)

    def _dtype(self, device: torch.device) -> torch.dtype:
        return DTYPES.get(self.ns_dtype, torch.float32 if device.type == "cpu" else torch.bfloat16)


@dataclass(frozen=True)
class Adam:
    """Adam's direction m / (sqrt(v) + eps), bias-corrected; with nesterov that of NAdam (Dozat 2016).

    betas, eps: in place of those of the group. corrected: False leaves the moments biased towards their start at 0.
    """

    nesterov: bool = False
    betas: tuple[float, float] | None = None
    eps: float | None = None
    corrected: bool = True

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """Step count and both moments; for NAdam the product of its momenta too."""
        state = {"step": torch.zeros((), device=p.device)}
        state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return state | ({"mu_product": torch.ones((), device=p.device)} if self.nesterov else {})

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """See role_optimizer.Direction."""
        yield from ()
        g_BrC, (beta1, beta2) = control.gradients(batch), self.betas or group["betas"]
        grads, m, v = batch.split(g_BrC), buffers(batch, state, "exp_avg"), buffers(batch, state, "exp_avg_sq")
        torch._foreach_mul_(m, control.decay(beta1))
        torch._foreach_add_(m, grads, alpha=1 - beta1)
        torch._foreach_mul_(v, control.decay(beta2))
        torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
        steps = buffers(batch, state, "step")
        torch._foreach_add_(steps, control.rate(1.0))
        step = steps[0].clamp(min=1.0)  # a first step that is skipped must not divide by 0
        m_BrC, v_BrC = batch.join(m), batch.join(v)
        eps = group["eps"] if self.eps is None else self.eps
        if not self.corrected:
            return m_BrC.div_(v_BrC.sqrt_().add_(eps))
        root = v_BrC.div_(1 - beta2**step).sqrt_().add_(eps)
        if not self.nesterov:
            return m_BrC.div_(1 - beta1**step).div_(root)
        # torch.optim.NAdam's schedule: mu_t = beta1 (1 - 0.96^(t psi) / 2), and its running product for the bias.
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (t * MOMENTUM_DECAY)) for t in (step, step + 1))
        products = buffers(batch, state, "mu_product")
        product = products[0] * mu
        torch._foreach_mul_(products, torch.where(control.skip, 1.0, mu))
        g_BrC.mul_((1 - mu) / (1 - product)).add_(m_BrC * (following / (1 - product * following)))
        return g_BrC.div_(root)


@dataclass(frozen=True)
class Sign:
    """sign(beta1 M + (1 - beta1) G), and M <- beta2 M + (1 - beta2) G after it; the group has betas."""

    def new_state(self, p: Tensor) -> dict[str, Tensor]:
        """The momentum M, in the shape of the parameter."""
        return {"exp_avg": torch.zeros_like(p)}

    def __call__(self, batch: Batch, group: Group, state: State, control: Control) -> Task[Tensor]:
        """See role_optimizer.Direction."""
        yield from ()
        g_BrC, momenta, (beta1, beta2) = control.gradients(batch), buffers(batch, state, "exp_avg"), group["betas"]
        direction = batch.join(momenta).mul_(beta1).add_(g_BrC, alpha=1 - beta1).sign_()
        torch._foreach_mul_(momenta, control.decay(beta2))
        torch._foreach_add_(momenta, batch.split(g_BrC), alpha=1 - beta2)
        return direction
