"""On a GPU: the fast path against float64, without a host sync, compiled, and the trainer's step.

A token near a tie changes its expert in bf16: of 6,144 pairs here 12 to 23 do, and the router's gradient moves by 6 to
14% whatever multiplies the experts. So routing is compared in fp32, the kernels with the choice of experts given, and
whole models in bf16 with control runs, also where every token uses every expert. pytest -s prints the distances.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from controls import FP32_BOUNDS, by_role, disturb, tensors_near, within_controls

from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops.experts import expert_ffn, sort_pairs
from lit_gpt.ops.grouped_gemm import BACKENDS, Request
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, RolePlan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

EXPERTS = Experts(4, 4, shared=True, sqrt_gate=True, aux_gamma=0.1)
CONFIG = ModelConfig(
    "test", 2, 256, 4, 64, 1, 512, (LayerSpec(experts=True),) * 2, vocab_size=512, block_size=256, experts=EXPERTS
)
ALL_USED = CONFIG.replace(experts=replace(EXPERTS, sparsity=1))
DEVICE = "cuda"
KERNELS = pytest.mark.parametrize("name", ["torch", "quack"])
Tensors = dict[str, torch.Tensor]


def need(name: str) -> None:
    if reason := BACKENDS[name].refuses(Request(DEVICE, torch.bfloat16)):
        pytest.skip(reason)


def results(config: ModelConfig, dtype: torch.dtype, backend: str, compiled: bool = False, noise: int = 0) -> Tensors:
    """Gradients of a loss of every kind, and counts, of one model; noise as in controls.disturb."""
    master = torch.promote_types(dtype, torch.float32)
    with torch.device(DEVICE):
        gpt = GPT(config, compute_dtype=dtype, residual_dtype=master, expert_backend=backend).to(master)
    init_parameters(gpt, {role: RolePlan(1e-2, 0.0, Init("fan_in_uniform")) for role in ROLES}, 0)
    disturb(gpt, noise)
    for block in gpt.blocks if compiled else ():
        block.forward = torch.compile(block.forward, fullgraph=True)
    tokens = torch.randint(0, 512, (4, 256), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    _, loss, routed = gpt(tokens, tokens.roll(-1, 1))
    (loss / tokens.numel() + 0.01 * routed.probs_E.square().mean() / tokens.numel()).backward()
    return {"loss": loss.detach(), "counts": routed.counts_E, **{n: p.grad for n, p in gpt.named_parameters()}}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["plain", "padded"])
def test_in_fp32_tokens_find_the_same_experts(name, compiled):
    expected = results(CONFIG, torch.float64, "plain")
    found = results(CONFIG, torch.float32, name, compiled)
    assert torch.equal(found["counts"], expected["counts"].float())
    tensors_near({"grads": found}, {"grads": expected}, FP32_BOUNDS, f"{name} {compiled}")


@KERNELS
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("config", [ALL_USED, CONFIG], ids=["all", "chosen"])
def test_kernels_equal_plain_torch(config, compiled, name):
    """The router's gradient had to be within 10% of plain torch in bf16, whose own is 6 to 14% off where ties are."""
    need(name)
    oracle = {"grads": results(config, torch.float64, "plain")}
    controls = [{"grads": results(config, torch.bfloat16, "plain", noise=i)} for i in range(4)]
    found = {"grads": results(config, torch.bfloat16, name, compiled)}
    within_controls(found, oracle, controls, by_role(config), f"{name} {compiled}", keys=("grads",))


def experts_given(dtype: torch.dtype, backend: str) -> Tensors:
    """Output and gradients of 15 experts, each token's 3 given: uneven groups, one of them empty."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1024, 15, generator=generator) + torch.linspace(-1, 1, 15)
    scores[:, 7] = -torch.inf
    shapes = ((1024, 256), (1024, 3), (15, 256, 256), (15, 256, 128))
    x, gates, up, down = (torch.randn(s, generator=generator) / 16 for s in shapes)
    leaves = [x.bfloat16().to(dtype), gates.softmax(-1).to(torch.promote_types(dtype, torch.float32))]
    leaves += [w.bfloat16().to(dtype) for w in (up, down)]
    leaves = [leaf.to(DEVICE).requires_grad_() for leaf in leaves]
    y = expert_ffn(*leaves, sort_pairs(scores.topk(3).indices.to(DEVICE), 15), backend=backend)
    dy = torch.randn(y.shape, generator=generator).bfloat16().to(DEVICE, dtype)
    return dict(zip(("y", "x", "gates", "up", "down"), (y, *torch.autograd.grad(y, leaves, dy))))


@KERNELS
def test_kernels_with_the_choice_of_experts_given(name):
    need(name)
    oracle, control, found = (
        {"given": experts_given(dtype, backend)}
        for dtype, backend in ((torch.float64, "plain"), (torch.bfloat16, "plain"), (torch.bfloat16, name))
    )
    groups = {each: [each] for each in oracle["given"]}
    within_controls(found, oracle, [control], groups, name, keys=("given",))


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
