"""Experts in 8 bits on a GPU, against the emulation that test_experts_fp8.py compares with the definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_gpt.ops import experts_fp8
from lit_gpt.ops.experts import sort_pairs
from lit_gpt.ops.experts_fp8 import ScaledExperts, over_last, refusal
from lit_gpt.ops.fp8 import RECIPES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(bool(refusal("rowwise", 8)), reason="needs grouped products in 8 bits"),
]
T, D, E, INNER, K = 1024, 256, 15, 128, 3
scaled_expert_ffn: Any = experts_fp8.scaled_expert_ffn
grouped_product: Any = experts_fp8.grouped_product


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["rowwise", "mxfp8_emulated"])
def test_products_are_those_of_the_emulation(name: str) -> None:
    """Both forms; groups of 16 rows and of many; rows after the last group give nothing."""
    recipe, ends = RECIPES[name], torch.tensor([32, 64, 320, 352], dtype=torch.int32)
    x, w, dy = torch.randn(384, 256), torch.randn(4, 128, 256), torch.randn(384, 128)
    forms = [(x, w, 352), (dy.t().contiguous(), x.t().contiguous(), None)]
    for a, b, rows in forms:
        operands = over_last(a, recipe), over_last(b, recipe)
        wanted = grouped_product(*operands, ends, torch.float32, "auto")[:rows]
        on_gpu = [tuple(t.cuda() for t in o) for o in operands]
        got = grouped_product(*on_gpu, ends.cuda(), torch.float32, "auto")[:rows].cpu()
        # Fast sums keep about 14 bits of each partial sum on Hopper (arXiv:2412.19437, section 3.3.2).
        assert (got - wanted).norm() < 2**-6 * wanted.norm()


def results(device: str, name: str, kept: bool, compiled: bool, given: list[Tensor], chosen: Tensor) -> list[Tensor]:
    leaves = [t.to(device).requires_grad_() for t in given]
    scaled = ScaledExperts(name, kept)
    scaled.refresh(leaves[2:])

    def run(*leaves: Tensor) -> Tensor:
        return scaled_expert_ffn(*leaves, sort_pairs(chosen.to(device), E), scaled=scaled)

    y = (torch.compile(run, fullgraph=True) if compiled else run)(*leaves)
    dy = torch.randn(T, D, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)
    return [t.detach().cpu().float() for t in (y, *torch.autograd.grad(y, leaves, dy))]


@pytest.mark.parametrize("name", ["rowwise", "mxfp8_emulated"])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_is_that_of_the_emulation(name: str, kept: bool, compiled: bool) -> None:
    """Uneven groups, one of them empty. The bound is that of a few numbers that round to the other side."""
    scores = torch.randn(T, E) + torch.linspace(-1, 1, E)
    scores[:, 7] = -torch.inf
    x, gates = torch.randn(T, D).bfloat16(), torch.rand(T, K)
    given = [x, gates, torch.randn(E, 2 * INNER, D) / 16, torch.randn(E, D, INNER) / 11]
    chosen = scores.topk(K).indices
    wanted = results("cpu", name, kept, False, given, chosen)
    got = results("cuda", name, kept, compiled, given, chosen)
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(got, wanted)]
    assert max(errors) < 0.05, errors
