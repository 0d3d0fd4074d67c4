"""How far a run may be from a float64 run of the same model: as far as rounding takes runs that are known to be right.

Runs are compared by the gradients of their first step and by how their weights moved, not by losses: a loss is one
number, which after a few steps of Adam depends on the signs of gradients near zero. An error over a whole role of
parameters is a mean over thousands of roundings, and hardly differs between two right runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.model import GPT
from lit_gpt.roles import REPLICATED, roles_of

Tensors = Mapping[str, Tensor]

# fp32 rounds to 2^-24 = 6e-8. A gradient is the end of a chain of about a hundred roundings; Adam adds that of an
# element near zero, whose error it multiplies by lr / eps. On a CPU the farthest tensors are off by 4e-6 and 6e-5.
# One target of 90 left out moves every gradient by 6% or more, one rounding of the gradients to TF32 by 4e-4.
FP32_BOUNDS = {"grads": 1e-4, "moved": 1e-3}
BF16_FACTOR = 2.0  # of the farthest of four controls; right runs on a CPU were at most 1.05 times as far


@torch.no_grad()
def disturb(model: nn.Module, seed: int) -> None:
    """Moves weights that are used in bf16 by 2^-10 of themselves, so that each is rounded anew. Seed 0 moves none."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters() if seed else ():
        if p.role not in REPLICATED:  # type: ignore[attr-defined]
            p.mul_(1 + 2**-10 * torch.randn(p.shape, generator=generator).to(p.device))


def by_role(config: ModelConfig) -> dict[str, list[str]]:
    """Names of a model's parameters."""
    with torch.device("meta"):
        roles = roles_of(GPT(config))
    return {role: [name for name in roles if roles[name] == role] for role in sorted(set(roles.values()))}


def distance(found: Tensors, oracle: Tensors, names: Iterable[str]) -> float:
    """|found - oracle| / |oracle| over the tensors of these names together."""
    pairs = [(found[name].double(), oracle[name].double()) for name in names]
    wrong = torch.stack([(a.to(b.device) - b).norm() for a, b in pairs]).norm()
    return (wrong / torch.stack([b.norm() for _, b in pairs]).norm()).item()


def tensors_near(found: Mapping[str, Any], oracle: Mapping[str, Any], bounds: Mapping[str, float], title: str) -> None:
    """Each tensor of each key within its bound. Prints the farthest (pytest -s)."""
    for key, bound in ((key, bounds[key]) for key in oracle if key in bounds):
        far = {name: distance(found[key], oracle[key], [name]) for name in oracle[key]}
        worst = max(far, key=far.__getitem__)
        print(f"{title} {key}: at most {far[worst]:.1e} ({worst}), allowed {bound:.1e}")
        assert far[worst] <= bound, (title, key, worst, far[worst])


def within_controls(
    found: Mapping[str, Any],
    oracle: Mapping[str, Any],
    controls: Sequence[Mapping[str, Any]],
    groups: Mapping[str, list[str]],
    title: str,
    keys: tuple[str, ...] = ("grads", "moved"),
) -> None:
    """Each group of tensors no farther from the oracle than BF16_FACTOR times the farthest control. Prints all."""
    for key in keys:
        for group, names in groups.items():
            value = distance(found[key], oracle[key], names)
            others = [distance(control[key], oracle[key], names) for control in controls]
            bound = BF16_FACTOR * max(others)
            print(f"{title} {key} {group}: {value:.2e}, controls {min(others):.2e} to {max(others):.2e}")
            assert value <= bound, (title, key, group, value, others)
