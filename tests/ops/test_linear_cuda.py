"""fla's kernels in bf16 against plain torch in fp32: values, last states, gradients."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.init import init_parameters
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import build_mixer
from lit_gpt.ops import delta_rule as delta
from lit_gpt.ops import linear_attention as linear
from lit_gpt.ops.boundaries import document_offsets
from lit_gpt.ops.linear_recurrence import Call, describe
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, Multipliers, RolePlan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
LENGTH, HEADS = 300, 3
TABLES = {"linear": linear.BACKENDS, "delta": delta.BACKENDS}
CONFIGURATIONS = 2  # that Triton compiles and times for a kernel and shapes; fla offers up to forty
FORMS = {"linear": ("none", "constant", "head", "channel"), "delta": ("none", "head", "channel")}
CASES = [(op, row, form) for op, table in TABLES.items() for row in table if row != "plain" for form in FORMS[op]]


@pytest.fixture(autouse=True, scope="module")
def few_configurations():
    """Only the lightest ones: compiling all of them takes an hour, and this asks whether results are right."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("triton"):
            tuner = import_module("triton.runtime.autotuner").Autotuner
            allowed = tuner.prune_configs
            patch.setattr(tuner, "prune_configs", lambda self, named: lightest(allowed(self, named)))
        yield


def lightest(configurations: list[Any]) -> list[Any]:
    """Those with the smallest tiles and the fewest stages, which fit into shared memory where any does."""

    def weight(configuration: Any) -> tuple[int, int]:
        tile = prod(v for v in configuration.kwargs.values() if isinstance(v, int) and v > 0)
        return configuration.num_stages * tile, configuration.num_warps

    return sorted(configurations, key=weight)[:CONFIGURATIONS]


def documents(length: int) -> Tensor:
    return torch.stack([torch.arange(length) // 77, torch.arange(length) // 133]).cuda()


def inputs(form: str, length: int, key_dim: int, value_dim: int, delta_rule: bool) -> list[Tensor | None]:
    """q, k, v, beta, log decay, state in fp32, values that bf16 holds."""
    g = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, device="cuda")

    q, k, v = (draw(2, length, HEADS, d).bfloat16().float() for d in (key_dim, key_dim, value_dim))
    beta = 2 * draw(2, length, HEADS).sigmoid() if delta_rule else None
    shapes = {"constant": (HEADS,), "head": (2, length, HEADS), "channel": (2, length, HEADS, key_dim)}
    decay = None if form == "none" else -0.1 * draw(*shapes[form]).exp()
    return [q, k, v, beta, decay, draw(2, HEADS, key_dim, value_dim)]


def results(row, given, dtype: torch.dtype, packed: bool, gradients: bool) -> list[Tensor]:
    """o, the final state, and the gradients of what has one."""
    q, k, v, beta, decay, state = (x if x is None else x.clone().requires_grad_(gradients) for x in given)
    ids = documents(q.shape[1]) if packed else None
    halves = [x.to(dtype) for x in (q, k, v)]
    o, final = row.run(
        Call(*halves, beta, decay, 0.1, beta is not None, ids, None if ids is None else document_offsets(ids), state)
    )
    if not gradients:
        return [o.float(), final]
    generator = torch.Generator("cuda").manual_seed(1)
    loss = sum((y.float() * torch.randn(y.shape, generator=generator, device="cuda")).sum() for y in (o, final))
    leaves = [x for x in (q, k, v, beta, None if decay is None or decay.ndim == 1 else decay) if x is not None]
    return [o.detach().float(), final.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dims", [(64, 64), (256, 512), (152, 152)])
@pytest.mark.parametrize(("op", "row", "form"), CASES)
def test_kernels_agree_with_plain_torch(op, row, form, dims, packed):
    steps = row == "fla_steps"
    given = inputs(form, 40 if steps else LENGTH, *dims, op == "delta")
    q, k, v = (x.bfloat16().requires_grad_(not steps) for x in given[:3])
    request = describe(Call(q, k, v, *given[3:5], 0.1, False, None, None, given[5]))
    if reason := TABLES[op][row].refuses(request):
        pytest.skip(reason)
    ours = results(TABLES[op][row], given, torch.bfloat16, packed, not steps)
    theirs = results(TABLES[op]["plain"], given, torch.float32, packed, not steps)
    for i, (a, b) in enumerate(zip(ours, theirs)):
        assert (a - b).norm() < (0.02 if i < 2 else 0.05) * b.norm(), f"result {i}"


def mixer_of(name: str, width: int) -> nn.Module:
    sizes = {"n_embd": width, "n_head": 4, "head_dim": 64, "n_kv_head": 4, "intermediate_size": 8}
    config = ModelConfig(family=name, depth=1, layers=(LayerSpec(name),), **sizes)
    mixer = build_mixer(config, 0, Multipliers()).cuda()
    init_parameters(mixer, {r: RolePlan(1.0, 0.0, Init("fan_in_uniform")) for r in ROLES}, seed=1)
    return mixer


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["gdn", "deltanet", "gla", "retnet", "kda"])
def test_mixers_train_as_with_plain_torch(name, packed):
    x = torch.randn(2, LENGTH, 512, generator=torch.Generator("cuda").manual_seed(2), device="cuda")
    ids = documents(LENGTH) if packed else None
    offsets = None if ids is None else document_offsets(ids)
    found = []
    for kernels, dtype in (("auto", torch.bfloat16), ("plain", torch.float32)):
        mixer = mixer_of(name, 512)
        y, _ = mixer(x.to(dtype), Context(doc_ids=ids, cu_seqlens=offsets, kernels=kernels))
        y.float().square().sum().backward()
        found.append([y.detach().float(), *(p.grad.float() for p in mixer.parameters())])
    for a, b in zip(*found):
        assert (a - b).norm() < 0.1 * b.norm()


@pytest.mark.parametrize("name", ["gdn", "deltanet", "gla", "retnet", "kda"])
@torch.no_grad()
def test_mixers_decode_as_they_read(name):
    """A prompt padded on the left, then token by token, against the unpadded whole."""
    mixer = mixer_of(name, 512)
    x = torch.randn(2, 130, 512, generator=torch.Generator("cuda").manual_seed(2), device="cuda").bfloat16()
    ids = (torch.arange(120, device="cuda") >= torch.tensor([[0], [13]], device="cuda")).long()
    cache = mixer.new_cache(2, 130, x.device, x.dtype)
    parts = [mixer(x[:, :120], Context(doc_ids=ids, cu_seqlens=document_offsets(ids)), None, cache)[0]]
    parts += [mixer(x[:, t : t + 1], Context(), None, cache)[0] for t in range(120, 130)]
    y = torch.cat(parts, dim=1).float()
    for b, pads in enumerate((0, 13)):
        whole = mixer(x[b : b + 1, pads:].float(), Context(kernels="plain"))[0][0]
        assert (y[b, pads:] - whole).norm() < 0.03 * whole.norm()
