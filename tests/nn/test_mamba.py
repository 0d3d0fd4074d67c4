"""The Mamba mixers against transformers' with the same weights, and against themselves with caches and documents."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from lit_gpt import optim
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import MIXERS, build_mixer
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.roles import ROLES, roles_of
from lit_gpt.scaling.base import Init, Multipliers, RolePlan

B, T, WIDTH = 2, 21, 24
OPTIONS = {
    "mamba": {"d_state": 5, "dt_rank": 3},
    "mamba2": {"d_state": 5, "head_dim": 6, "head_multiple": 2},
}
MIXER_NAMES = list(OPTIONS)
JOINT = {  # matrix of --mixer_options joint -> the separate ones that it holds, from top to bottom
    "mamba": {"in_proj": ("x", "z"), "x_proj": ("dt_low", "B", "C")},
    "mamba2": {"in_proj": ("z", "x", "B", "C", "dt")},
}
CPU = torch.device("cpu")
PLANS = {name: RolePlan(lr=1e-2, weight_decay=0.1, init=Init("fan_in_uniform")) for name in ROLES}


def config(name: str, width: int = WIDTH, options: dict | None = None) -> ModelConfig:
    sizes = {"n_embd": width, "n_head": 2, "head_dim": 8, "n_kv_head": 2, "intermediate_size": 32}
    layers = (LayerSpec(mixer=name, memory="mixer"),)
    chosen = {name: OPTIONS[name] if options is None else options}
    return ModelConfig(family="tiny", depth=1, layers=layers, mixer_options=chosen, **sizes)


def mixer(name: str, dtype: torch.dtype = torch.float64, **changes) -> nn.Module:
    """Every parameter near its initial value, none neutral."""
    built = build_mixer(config(name, **changes), 0, Multipliers())
    init_parameters(built, PLANS, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in built.parameters():
            if p.role == "vector":
                p += 0.3 * torch.randn(p.shape, generator=generator)
    return built.to(dtype)


def sequence(length: int = T, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, length, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def documents() -> Tensor:
    t = torch.arange(T)
    return torch.stack([(t > 1).long() + (t > 12).long(), (t > 8).long() + (t > 9).long()])


def theirs_of(name: str, ours: nn.Module) -> nn.Module:
    """transformers' module with the weights of ours."""
    weights = {k: v.float() for k, v in ours.state_dict().items()}
    if name == "mamba":
        c = MambaConfig(hidden_size=WIDTH, state_size=5, expand=2, time_step_rank=3, num_hidden_layers=1)
        theirs = MambaMixer(c, 0)
        joined = {
            "in_proj.weight": ["x.weight", "z.weight"],
            "x_proj.weight": ["dt_low.weight", "B.weight", "C.weight"],
            "dt_proj.weight": ["dt.weight"],
            "dt_proj.bias": ["dt_bias"],
        }
    else:
        c = Mamba2Config(
            hidden_size=WIDTH,
            state_size=5,
            expand=2,
            num_heads=8,
            head_dim=6,
            n_groups=1,
            chunk_size=8,
            layer_norm_epsilon=1e-5,
            num_hidden_layers=1,
        )
        theirs = Mamba2Mixer(c, 0)
        joined = {
            "in_proj.weight": [f"{part}.weight" for part in ("z", "x", "B", "C", "dt")],
            "dt_bias": ["dt_bias"],
            "norm.weight": ["norm.weight"],
        }
    joined |= {"conv1d.weight": ["conv"], "conv1d.bias": ["conv_bias"], "out_proj.weight": ["out.weight"]}
    joined |= {"A_log": ["A_log"], "D": ["D"]}
    theirs.load_state_dict({key: torch.cat([weights[part] for part in parts]) for key, parts in joined.items()})
    return theirs.eval()


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_against_transformers(name):
    ours = mixer(name, torch.float32)
    theirs = theirs_of(name, ours)
    inputs = [sequence(dtype=torch.float32).requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0], Context())[0], theirs(inputs[1])]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    weight = torch.linspace(-1, 1, WIDTH)
    for y in outputs:
        (y * weight).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.A_log.grad, theirs.A_log.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours.conv.grad, theirs.conv1d.weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("calls", [[1] * T, [T - 3, 1, 1, 1], [5, 9, 2, 5]])
@pytest.mark.parametrize("name", MIXER_NAMES)
def test_cached_calls_make_the_whole(name, calls):
    module, x = mixer(name), sequence()
    whole, shared = module(x, Context())
    cache, pieces = module.new_cache(B, T, CPU, torch.float64), []
    for part in x.split(calls, dim=1):
        pieces.append(module(part, Context(), None, cache))
    torch.testing.assert_close(torch.cat([y for y, _ in pieces], dim=1), whole)
    torch.testing.assert_close(torch.cat([m.memory for _, m in pieces], dim=1), shared.memory)


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_a_prompt_padded_on_the_left(name):
    """After it the cache knows the prompt and nothing of the padding."""
    module, x = mixer(name), sequence()
    pads = torch.tensor([7, 15])
    ids = (torch.arange(16) >= pads[:, None]).long()
    cache = module.new_cache(B, T, CPU, torch.float64)
    module(x[:, :16], Context(doc_ids=ids), None, cache)
    rest = torch.cat([module(part, Context(), None, cache)[0] for part in x[:, 16:].split([1, 4], dim=1)], dim=1)
    for row, pad in enumerate(pads):
        alone, _ = module(x[row : row + 1, pad:], Context())
        torch.testing.assert_close(rest[row], alone[0, -5:])


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_packed_documents_are_as_separate_ones(name):
    module, ids = mixer(name), documents()
    weight = torch.linspace(-1, 1, T * WIDTH, dtype=torch.float64).view(T, WIDTH)

    def separate(x: Tensor) -> Tensor:
        rows = []
        for row, doc in zip(x, ids):
            pieces = row.split(doc.unique_consecutive(return_counts=True)[1].tolist())
            rows.append(torch.cat([module(piece[None], Context())[0][0] for piece in pieces]))
        return torch.stack(rows)

    results = []
    for run in (lambda x: module(x, Context(doc_ids=ids))[0], separate):
        x = sequence().requires_grad_()
        y = run(x)
        gradients = torch.autograd.grad((y * weight).sum(), [x, *module.parameters()])
        results.append([y, *gradients])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_bfloat16_stays_close(name):
    """Matrices and kernels in bfloat16, vectors in fp32, as they arrive under FSDP2."""
    module = mixer(name, torch.float32)
    expected, _ = module(sequence(dtype=torch.float32), Context())
    for p in module.parameters():
        p.data = p.data if p.role == "vector" else p.data.bfloat16()
    y, shared = module(sequence(dtype=torch.bfloat16), Context(doc_ids=torch.zeros(B, T, dtype=torch.long)))
    assert y.dtype == shared.memory.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert (y - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_default_sizes_and_initial_values(name):
    """At a width that no head divides."""
    settings = config(name, width=40, options={})
    with torch.device("meta"):
        assert set(roles_of(build_mixer(settings, 0, Multipliers())).values()) == {"matrix", "conv", "vector"}
    module = build_mixer(settings, 0, Multipliers())
    init_parameters(module, PLANS, seed=0)
    inner = {"mamba": 80, "mamba2": 512}[name]
    assert module.out.weight.shape == (40, inner)
    assert MIXERS.load(name).memory(settings, 0) == (inner, name == "mamba2")
    step = F.softplus(module.dt_bias)
    assert 0.9e-3 < step.min() < step.max() < 0.11
    if name == "mamba":
        assert module.dt.weight.shape == (80, 3)
        torch.testing.assert_close(module.A_log.exp(), torch.arange(1.0, 17).expand(80, 16))
    else:
        assert module.A_log.shape == (8,) and ((module.A_log >= 0) & (module.A_log <= math.log(16))).all()
    y, shared = module(torch.randn(1, 9, 40), Context())
    assert y.isfinite().all() and shared.memory.shape == (1, 9, inner)
    matrices = sum(p.numel() for p in module.parameters() if p.role != "vector")
    assert module.flops(100) == 2 * matrices + 4 * inner * {"mamba": 16, "mamba2": 128}[name]


def joined(name: str) -> tuple[nn.Module, nn.Module]:
    """A mixer with separate maps, and one with joint matrices of the same weights."""
    separate = mixer(name)
    whole = mixer(name, options={**OPTIONS[name], "joint": True})
    weights = separate.state_dict()
    for matrix, parts in JOINT[name].items():
        weights[f"{matrix}.weight"] = torch.cat([weights.pop(f"{part}.weight") for part in parts])
    whole.load_state_dict(weights)
    return separate, whole


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_joint_matrices_are_the_same_map(name):
    """ArchScale's in_proj and x_proj: outputs, gradients, FLOPs, cached calls and start are those of separate maps."""
    separate, whole = joined(name)
    x, ids = sequence(), documents()
    results = []
    for module in (separate, whole):
        module.zero_grad()
        y, shared = module(x, Context(doc_ids=ids))
        (y * torch.linspace(-1, 1, WIDTH, dtype=torch.float64)).sum().backward()
        cache = module.new_cache(B, T, CPU, torch.float64)
        steps = torch.cat([module(part, Context(), None, cache)[0] for part in x.split([5, 1, T - 6], dim=1)], dim=1)
        gradients = {k: p.grad for k, p in module.named_parameters()}
        for matrix, parts in JOINT[name].items():
            if module is separate:
                gradients[f"{matrix}.weight"] = torch.cat([gradients.pop(f"{part}.weight") for part in parts])
        results.append({"y": y, "memory": shared.memory, "steps": steps, **gradients})
    assert results[0].keys() == results[1].keys()
    for key in results[0]:
        torch.testing.assert_close(results[1][key], results[0][key])
    assert whole.flops(T) == separate.flops(T)
    for matrix, parts in JOINT[name].items():
        fresh = build_mixer(config(name, options={**OPTIONS[name], "joint": True}), 0, Multipliers())
        init_parameters(fresh, PLANS, seed=0)
        weight = fresh.get_parameter(f"{matrix}.weight")
        limit = weight.shape[1] ** -0.5
        assert weight.role == "matrix" and 0.9 * limit < weight.abs().max() <= limit, parts


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_joint_matrices_take_one_orthogonal_step(name):
    """A step of Muon on in_proj has equal singular values over the whole matrix, not over its parts."""
    options = {name: {**OPTIONS[name], "joint": True}}
    run = RunConfig(train_model=name, depth=1, ar=WIDTH, vocab_size=64, ctx_len=32, train_name="mup_muon")
    run = replace(run, base_hps=BaseHyperparameters(d0=1, weight_decay=0.0), mixer_options=options, max_tokens=3e6)
    resolved = resolve_run(replace(run, optimizer_args={"ns_dtype": "fp32", "ns_steps": 12}), 1)
    model = GPT(resolved.model)
    init_parameters(model, resolved.plan.roles, seed=0)
    optimizer = optim.build(parameter_groups(model, resolved.plan), resolved.plan)
    weight = model.blocks[0].mixer.in_proj.weight
    before, generator = weight.detach().clone(), torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach() - before)
    assert values.min() > 0.5 * values.max() > 0
