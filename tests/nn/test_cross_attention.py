"""Cross-attention reads another layer's keys and values exactly as that layer's own queries would."""

from __future__ import annotations

import pytest
import torch
from attention_layers import check_caches, check_documents, layer_config, mixer_of, model_of, tokens

from lit_gpt.config.model import LayerSpec
from lit_gpt.nn import rotary
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import SharedState
from lit_gpt.roles import roles_of

PAIRS = {"attention": "cross_attention", "differential_attention": "differential_cross_attention"}
OPTIONS = {
    "plain": {},
    "qk_norm": {"qk_norm": True},
    "conv": {"attn_conv": True, "qk_norm": True},
    "gate": {"attn_gate": True, "attn_norm": True, "attn_bias": True},
    "sink": {"attn_sink": True},
    "nope": {"position": "none"},
}


def config_of(mixer: str, window: int | None = None, **options):
    cross = LayerSpec(PAIRS[mixer], window=window, shares=1)
    layers = (LayerSpec(mixer, window=3), LayerSpec(mixer, window=window), cross, cross)
    return layer_config(mixer, layers=layers, **options)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mixer", PAIRS)
@torch.no_grad()
def test_with_the_weights_of_its_source_it_is_the_source(mixer, options):
    """So its queries get the same norm, convolution and rotation as the source's."""
    config = config_of(mixer, **OPTIONS[options])
    source, reader = mixer_of(config, 1), mixer_of(config, 2)
    shared = source.state_dict()
    if config.attn_conv:
        shared["conv"] = shared["conv"][: reader.conv.shape[0]]  # queries come first
    reader.load_state_dict({name: shared[name] for name in reader.state_dict()})
    if mixer == "differential_attention":
        reader.lambda_init = source.lambda_init
    x = torch.randn(2, 9, config.n_embd, dtype=torch.float64)
    context = Context(rope=rotary.tables(config, torch.arange(9)) if config.position == "rope" else None)
    expected, shared = source(x, context)
    y, nothing = reader(x, context, shared)
    torch.testing.assert_close(y, expected)
    assert nothing is None and not {"k", "v", "k_norm"} & {name.split(".")[0] for name in reader.state_dict()}


@pytest.mark.parametrize("options", ["plain", "conv", "gate", "sink"])
@pytest.mark.parametrize("mixer", PAIRS)
def test_gradients(mixer, options):
    """Of the input, of what is shared, and through the layer that shares it."""
    config = config_of(mixer, **OPTIONS[options])
    source, reader = mixer_of(config, 1), mixer_of(config, 2)
    context = Context(rope=rotary.tables(config, torch.arange(3)))
    x = torch.randn(1, 3, config.n_embd, dtype=torch.float64, requires_grad=True)
    k, v = (t.detach().requires_grad_() for t in source(x, context)[1].kv)
    assert torch.autograd.gradcheck(lambda x, k, v: reader(x, context, SharedState(kv=(k, v)))[0], (x, k, v))
    assert torch.autograd.gradcheck(lambda x: reader(x, context, source(x, context)[1])[0], (x,))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mixer", PAIRS)
def test_queries_are_normalised_as_keys_are(mixer, options):
    """Scaling what is projected changes nothing where QK-norm follows."""
    config = config_of(mixer, **OPTIONS[options])
    model = model_of(config)
    before = model(tokens()).logits
    with torch.no_grad():
        model.blocks[2].mixer.q.weight.mul_(3)
    changed = not torch.allclose(before, model(tokens()).logits, rtol=1e-4, atol=1e-4)
    assert changed == (not config.qk_norm or config.attn_conv)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("options", OPTIONS)
def test_caches_and_documents(options, window):
    config = config_of("attention", window, **OPTIONS[options])
    check_caches(config)
    check_documents(config)


def test_what_it_remembers():
    """Nothing, so that a prefill may skip it; with a convolution, the last projected queries."""
    cpu = torch.device("cpu")
    reader = mixer_of(config_of("attention"), 2)
    assert reader.new_cache(2, 9, cpu, torch.float32) is None
    reader = mixer_of(config_of("attention", attn_conv=True), 2)
    cache = reader.new_cache(2, 9, cpu, torch.float32)
    assert cache.kv is None


def test_a_short_convolution_has_its_role_and_its_flops():
    plain, conv = (mixer_of(config_of("attention", attn_conv=on), 1) for on in (False, True))
    assert roles_of(conv)["conv"] == "conv"
    assert conv.flops(9) - plain.flops(9) == 2 * 4 * (4 + 2 + 2) * 6
