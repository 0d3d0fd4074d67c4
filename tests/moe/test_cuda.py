"""On a GPU: the fast path against the reference, without a host sync, compiled, and the trainer's step."""

from __future__ import annotations

import pytest
import torch

from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops.grouped_gemm import BACKENDS, Request
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, RolePlan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

EXPERTS = Experts(4, 4, shared=True, sqrt_gate=True, aux_gamma=0.1)
CONFIG = ModelConfig(
    "test", 2, 256, 4, 64, 1, 512, (LayerSpec(experts=True),) * 2, vocab_size=512, block_size=256, experts=EXPERTS
)
KERNELS = pytest.mark.parametrize("name", ["torch", "quack"])


def need(name: str) -> None:
    if reason := BACKENDS[name].refuses(Request("cuda", torch.bfloat16)):
        pytest.skip(reason)


def built(**options) -> GPT:
    with torch.device("cuda"):
        gpt = GPT(CONFIG, compute_dtype=torch.bfloat16, **options)
    init_parameters(gpt, {role: RolePlan(1e-2, 0.0, Init("fan_in_uniform")) for role in ROLES}, 0)
    return gpt


def results(gpt: GPT) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 512, (4, 256), generator=torch.Generator().manual_seed(0)).cuda()
    loss, routed = gpt(tokens, tokens.roll(-1, 1), routing="with")
    (loss / tokens.numel() + 0.01 * routed.probs_E.square().mean() / tokens.numel()).backward()
    return {"loss": loss, "counts": routed.counts_E, **{n: p.grad for n, p in gpt.named_parameters()}}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """In bf16 a token near a tie may change its expert, which moves gradients of experts a little."""
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 0.1 * value.norm() + 1e-6, name


@KERNELS
@pytest.mark.parametrize("compiled", [False, True])
def test_kernels_equal_the_reference(compiled, name):
    need(name)
    expected, gpt = results(built(expert_backend="reference")), built(expert_backend=name)
    if compiled:
        for block in gpt.blocks:
            block.forward = torch.compile(block.forward, fullgraph=True)
    close(results(gpt), expected)


@KERNELS
def test_the_fast_path_does_not_wait_for_the_device(name):
    need(name)
    with torch.device("cuda"):
        moe = MixtureOfExperts(CONFIG, 0, 1.0)
        x = torch.randn(4, 256, 256, dtype=torch.bfloat16, requires_grad=True)
    torch.nn.init.normal_(moe.router.weight)
    moe(x, name)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, routed = moe(x, name)
        (y.float().square().mean() + routed.probs_E.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
