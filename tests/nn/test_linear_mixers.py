"""The linear mixers: documents, caches, sizes, initial values; and against transformers with copied weights."""

from __future__ import annotations

import pytest
import recurrences as naive
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as olmo
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.init import init_parameters
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import MIXERS, build_mixer
from lit_gpt.ops.linear_attention import linear_attention
from lit_gpt.roles import ROLES, roles_of
from lit_gpt.scaling.base import Init, Multipliers, RolePlan

WIDTH = 24
OPTIONS = {
    "gdn": {"heads": 3, "key_dim": 4, "expand_v": 1.5},
    "deltanet": {"heads": 2, "expand_k": 0.75},
    "gla": {"heads": 2, "gate_rank": 3},
    "retnet": {"heads": 2},
    "kda": {"heads": 3, "key_dim": 4, "expand_v": 2.0, "rank": 5},
}
MIXER_NAMES = list(OPTIONS)


def config_of(name: str, width: int = WIDTH, small: bool = True, **spec) -> ModelConfig:
    options = {"mixer_options": {name: OPTIONS[name]}} if small else {}
    sizes = {"n_embd": width, "n_head": 4, "head_dim": 6, "n_kv_head": 4, "intermediate_size": 8}
    return ModelConfig(family=name, depth=1, layers=(LayerSpec(name, **spec),), **sizes, **options)


def mixer_of(name: str, dtype: torch.dtype = torch.float64, **spec) -> nn.Module:
    """With every parameter away from its neutral value, A_log and biases near their usual sizes."""
    mixer = build_mixer(config_of(name, **spec), 0, Multipliers()).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in mixer.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            centre = 1.0 if "norm" in key else 0.0
            p.copy_(centre + 0.3 * noise if p.ndim == 1 else noise * p.shape[-1] ** -0.5)
    return mixer


def tokens(length: int = naive.LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    return naive.normal(naive.BATCH, length, WIDTH, seed=0, dtype=dtype)


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_packed_documents_equal_separate_ones(name):
    mixer, x = mixer_of(name), tokens().requires_grad_()

    def alone(part: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = mixer(part, Context())
        return y, y[:, -1]

    packed, _ = mixer(x, Context(doc_ids=naive.ids()))
    separate, _ = naive.separately(alone, x)
    torch.testing.assert_close(packed, separate)
    weight = naive.normal(*packed.shape, seed=3)
    leaves = [x, *mixer.parameters()]
    gradients = (torch.autograd.grad((y * weight).sum(), leaves) for y in (packed, separate))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cuts", [(64, 1, 1, 1), (1, 2, 3, 30, 1), (70,)])
@pytest.mark.parametrize("name", MIXER_NAMES)
@torch.no_grad()
def test_prefill_and_steps_equal_the_whole(name, cuts):
    mixer, x = mixer_of(name), tokens()
    cache = mixer.new_cache(naive.BATCH, 99, x.device, x.dtype)
    parts = x.split([*cuts, naive.LENGTH - sum(cuts)], dim=1)
    y = torch.cat([mixer(part, Context(), None, cache)[0] for part in parts], dim=1)
    torch.testing.assert_close(y, mixer(x, Context())[0])


@pytest.mark.parametrize("name", MIXER_NAMES)
@pytest.mark.parametrize("padding", [(0, 5), (9, 10)])
@torch.no_grad()
def test_a_prompt_padded_on_the_left(name, padding):
    """Pads are document 0. Afterwards the cache holds what the prompt alone would have left."""
    mixer, x, prompt = mixer_of(name), tokens(16), 11
    ids = (torch.arange(prompt) >= torch.tensor(padding)[:, None]).long()
    cache = mixer.new_cache(naive.BATCH, 99, x.device, x.dtype)
    parts = [mixer(x[:, :prompt], Context(doc_ids=ids), None, cache)[0]]
    parts += [mixer(x[:, t : t + 1], Context(), None, cache)[0] for t in range(prompt, 16)]
    y = torch.cat(parts, dim=1)
    for b, pads in enumerate(padding):
        torch.testing.assert_close(y[b, pads:], mixer(x[b : b + 1, pads:], Context())[0][0])


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_half_precision_is_finite_and_near(name):
    """At most 2.5 times as far from fp32 as rounding of inputs and matrices alone takes it; seen are 0.9 to 1.5."""
    mixer, x = mixer_of(name, torch.float32), tokens(dtype=torch.float32)
    y, _ = mixer(x.bfloat16(), Context())
    assert y.dtype == torch.bfloat16
    exact, _ = mixer(x, Context())
    control = mixer_of(name, torch.float32)
    for p, q in zip(control.parameters(), mixer.parameters()):
        p.data = p.data if q.role == "vector" else p.data.bfloat16().float()
    rounded, _ = control(x.bfloat16().float(), Context())
    assert (y.float() - exact).norm() < 2.5 * (rounded - exact).norm()
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_compiled(name):
    mixer, x = mixer_of(name), tokens(20)
    compiled = torch.compile(mixer, backend="eager")
    torch.testing.assert_close(compiled(x, Context())[0], mixer(x, Context())[0])


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_default_sizes_on_the_meta_device(name):
    """About the weights that the papers say, and FLOPs of 2 per weight of a matrix or kernel and the state's."""
    with torch.device("meta"):
        mixer = build_mixer(config_of(name, 1024, small=False), 0, Multipliers())
    roles = roles_of(mixer)
    weights = sum(p.numel() for key, p in mixer.named_parameters() if roles[key] in ("matrix", "conv"))
    squares = {"gdn": 6.02, "deltanet": 6.02, "gla": 4.02, "retnet": 8.0, "kda": 4.54}
    assert weights / 1024**2 == pytest.approx(squares[name], rel=0.02)
    heads, key_dim, value_dim = mixer.sizes
    per_state = 6 if name in ("gdn", "deltanet", "kda") else 4
    assert mixer.flops(4096) == 2 * weights + per_state * heads * key_dim * value_dim


@pytest.mark.parametrize(("width", "heads"), [(1920, 6), (1024, 3), (64, 1)])
def test_the_memory_of_gdn(width, heads):
    """heads = ceil(int(0.75 n) / 256) of 512 values each, read before gate and norm."""
    form = MIXERS.load("gdn").memory(config_of("gdn", width, small=False), 0)
    assert form == (512 * heads, True)
    mixer, x = mixer_of("gdn", memory="mixer"), tokens(9)
    y, shared = mixer(x, Context())
    assert shared.memory.shape == (*x.shape[:2], MIXERS.load("gdn").memory(config_of("gdn"), 0).width)
    gated = shared.memory * F.silu(mixer.gate(x))
    torch.testing.assert_close(mixer.out(mixer.norm(gated, x.dtype)), y)
    assert mixer_of("gdn")(x, Context())[1] is None


def test_deltanet_heads_keep_within_the_kernels():
    mixer = build_mixer(config_of("deltanet", 1920, small=False), 0, Multipliers())
    heads, key_dim, _ = mixer.sizes
    assert heads == 12 and key_dim == 240


def test_without_convolution():
    mixer = build_mixer(config_of("gdn").replace(mixer_options={"gdn": {"conv": 0}}), 0, Multipliers())
    assert mixer.qkv.conv is None and mixer.new_cache(1, 9, torch.device("cpu"), torch.float32).conv is None


@pytest.mark.parametrize("name", ["gdn", "kda"])
def test_initial_decays(name):
    """exp(A_log) within its range, and time steps between 1e-3 and 0.1, uniform in their logarithm."""
    config = config_of(name).replace(mixer_options={name: {"heads": 400, "key_dim": 4}})
    mixer = build_mixer(config, 0, Multipliers())
    init_parameters(mixer, {r: RolePlan(1.0, 0.0, Init("zeros")) for r in ROLES}, seed=1)
    low, high = {"gdn": (0.01, 16), "kda": (1, 16)}[name]
    rates, steps = mixer.A_log.detach().exp(), F.softplus(mixer.dt_bias.detach())
    assert rates.min() >= 0.99 * low and rates.max() <= 1.01 * high
    assert rates.mean() == pytest.approx((low + high) / 2, rel=0.1)
    assert steps.min() >= 0.99e-3 and steps.max() <= 0.101
    assert steps.log10().mean() == pytest.approx(-2, abs=0.1)


def copy_qkv(mixer: nn.Module, theirs: nn.Module) -> None:
    for name in ("q", "k", "v"):
        getattr(theirs, f"{name}_proj").weight.copy_(getattr(mixer.qkv, name).weight)
    theirs.conv1d.weight.copy_(mixer.qkv.conv)
    theirs.b_proj.weight.copy_(mixer.b.weight)
    theirs.o_proj.weight.copy_(mixer.out.weight)


class OverAllHeads(nn.Module):
    """Our output norm in the place of theirs: gate first, then over all heads, which are rows there."""

    def __init__(self, norm: nn.Module, heads: int):
        super().__init__()
        self.norm, self.heads = norm, heads

    def forward(self, o: Tensor, gate: Tensor) -> Tensor:
        joined = (o * F.silu(gate)).unflatten(0, (-1, self.heads)).flatten(1)
        return self.norm(joined, joined.dtype).view_as(o)


@torch.no_grad()
def test_gdn_against_olmo_hybrid():
    """All of their module but its norm, which is per head and before the gate."""
    mixer, x = mixer_of("gdn", torch.float32), tokens(70, torch.float32)
    heads, key_dim, value_dim = mixer.sizes
    config = olmo.OlmoHybridConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=heads,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim,
    )
    theirs = olmo.OlmoHybridGatedDeltaNet(config, 0)
    copy_qkv(mixer, theirs)
    theirs.a_proj.weight.copy_(mixer.a.weight)
    theirs.g_proj.weight.copy_(mixer.gate.weight)
    theirs.A_log.copy_(mixer.A_log)
    theirs.dt_bias.copy_(mixer.dt_bias)
    theirs.o_norm = OverAllHeads(mixer.norm, heads)
    torch.testing.assert_close(mixer(x, Context())[0], theirs(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gdn_against_qwen3_next():
    """The same, with joint projections: head by head q, k, v and gate, and b and a. Its beta is below 1."""
    ours = config_of("gdn").replace(mixer_options={"gdn": {"negative_eigenvalues": False}})
    mixer, x = build_mixer(ours, 0, Multipliers()), tokens(70, torch.float32)
    init_parameters(mixer, {r: RolePlan(1.0, 0.0, Init("fan_in_uniform")) for r in ROLES}, seed=1)
    heads, key_dim, value_dim = mixer.sizes
    config = qwen3_next.Qwen3NextConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim,
    )
    theirs = qwen3_next.Qwen3NextGatedDeltaNet(config, 0)

    def by_head(*maps: nn.Module) -> Tensor:
        return torch.cat([m.weight.unflatten(0, (heads, -1)) for m in maps], dim=1).flatten(0, 1)

    theirs.in_proj_qkvz.weight.copy_(by_head(mixer.qkv.q, mixer.qkv.k, mixer.qkv.v, mixer.gate))
    theirs.in_proj_ba.weight.copy_(by_head(mixer.b, mixer.a))
    theirs.conv1d.weight.copy_(mixer.qkv.conv)
    theirs.A_log.copy_(mixer.A_log)
    theirs.dt_bias.copy_(mixer.dt_bias)
    theirs.norm = OverAllHeads(mixer.norm, heads)
    theirs.out_proj.weight.copy_(mixer.out.weight)
    torch.testing.assert_close(mixer(x, Context())[0], theirs(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_kda_against_kimi_linear():
    config = kimi.KimiLinearConfig(
        hidden_size=WIDTH, num_hidden_layers=2, linear_head_dim=4, linear_num_heads=3, rms_norm_eps=1e-5
    )
    theirs = kimi.KimiLinearDeltaAttention(config, 0)
    ours = config_of("kda").replace(mixer_options={"kda": {"heads": 3, "key_dim": 4}})
    mixer = build_mixer(ours, 0, Multipliers())
    init_parameters(mixer, {r: RolePlan(1.0, 0.0, Init("fan_in_uniform")) for r in ROLES}, seed=1)
    copy_qkv(mixer, theirs)
    theirs.forget_gate.f_a_proj.weight.copy_(mixer.a_down.weight)
    theirs.forget_gate.f_b_proj.weight.copy_(mixer.a_up.weight)
    theirs.forget_gate.A_log.copy_(mixer.A_log.view_as(theirs.forget_gate.A_log))
    theirs.forget_gate.dt_bias.copy_(mixer.dt_bias)
    theirs.g_a_proj.weight.copy_(mixer.gate_down.weight)
    theirs.g_b_proj.weight.copy_(mixer.gate_up.weight)
    x = tokens(70, torch.float32)
    torch.testing.assert_close(mixer(x, Context())[0], theirs(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_retnet_is_the_parallel_form_of_its_paper():
    """(Q K^T * D) V with complex rotations of pairs and D = gamma^(n - m): arXiv:2307.08621, equation 5."""
    mixer, x = mixer_of("retnet"), tokens(13)
    heads, key_dim, _ = mixer.sizes
    q, k, v = (m(x).unflatten(-1, (heads, -1)) for m in (mixer.qkv.q, mixer.qkv.k, mixer.qkv.v))
    theta = 10_000.0 ** (-torch.arange(0, key_dim, 2, dtype=torch.float64) / key_dim)
    turn = torch.polar(torch.ones(13, key_dim // 2).double(), torch.arange(13)[:, None] * theta)[:, None]
    q, k = (torch.complex(*t.chunk(2, dim=-1)) * turn for t in (q, k))
    gamma = 1 - 2.0 ** (-5 - torch.arange(heads).double())
    distance = torch.arange(13)[:, None] - torch.arange(13)
    decay = torch.where(distance >= 0, gamma[:, None, None] ** distance, 0)
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k.conj()).real * key_dim**-0.5
    o = torch.einsum("bhnm,bmhv->bnhv", scores * decay, v)
    y = mixer.out(mixer.norm(o, o.dtype).flatten(2) * F.silu(mixer.gate(x)))
    torch.testing.assert_close(mixer(x, Context())[0], y, rtol=1e-5, atol=1e-5)  # decays are in fp32


@torch.no_grad()
def test_gla_decays_by_its_gate():
    """alpha = sigmoid(a)^(1/16) (arXiv:2312.06635, section 4.4)."""
    mixer, x = mixer_of("gla"), tokens(9)
    heads = mixer.sizes[0]
    q, k, v = (m(x).unflatten(-1, (heads, -1)) for m in (mixer.qkv.q, mixer.qkv.k, mixer.qkv.v))
    a = x @ mixer.a_down.weight.T @ mixer.a_up.weight.T + mixer.a_up.bias
    alpha = (1 / (1 + (-a).exp())) ** (1 / 16)
    o, _ = linear_attention(q, k, v, alpha.log().unflatten(-1, (heads, -1)))
    y = mixer.out(mixer.norm(o, o.dtype).flatten(2) * F.silu(mixer.gate(x)))
    torch.testing.assert_close(mixer(x, Context())[0], y)
