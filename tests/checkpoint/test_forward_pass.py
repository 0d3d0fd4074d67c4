"""The one description of a forward pass: what it leaves out changes no logits, and what it names may."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import FEWER, VOCAB, model_of, tokens

from lit_gpt.checkpoint.forward_pass import forward_pass
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig, Starts
from lit_gpt.config.readers import NOBODY, SHAPES, fields_of
from lit_gpt.model import GPT
from lit_gpt.nn.mixers import MIXERS, reads_heads, retnet
from lit_gpt.scaling.base import Multipliers
from lit_gpt.scaling.plan import difference

PLAIN = Multipliers()
FOUR = (LayerSpec(),) * 4
MIXTURE = {"layers": (LayerSpec(), LayerSpec(experts=True)), "experts": Experts(2, 4)}
POST = {"post_norm": True}
WIDE = {"head_dim": 64, "yarn_scale": 4.0, "layers": (LayerSpec(window=5), LayerSpec())}  # for YaRN's ramp
# Fields that tables cannot hold, as no one types them.
DERIVED = {"padded_vocab_size"}


def small(**fields: Any) -> ModelConfig:
    sizes = {"n_embd": 32, "n_head": 4, "head_dim": 8, "n_kv_head": 2, "intermediate_size": 48, "block_size": 64}
    return ModelConfig(**{"family": "x", "depth": 2, **sizes, "layers": FOUR[:2], "vocab_size": VOCAB} | fields)


@torch.no_grad()
def tells(a: tuple[ModelConfig, Multipliers], b: tuple[ModelConfig, Multipliers]) -> str:
    """What shows that b is another model than a: "shapes" of its tensors, "logits" with the weights of a, or ""."""
    here, there = (model_of(*described).eval() for described in (a, b))
    if [(n, t.shape) for n, t in here.state_dict().items()] != [(n, t.shape) for n, t in there.state_dict().items()]:
        return "shapes"
    there.load_state_dict(here.state_dict())
    ids = torch.arange(24).expand(2, 24) // 7
    ours, theirs = (model(tokens(), doc_ids_BT=ids).logits for model in (here, there))
    # Rotary tables are in fp32, and documents that count from other positions round otherwise.
    return "" if ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=1e-5) else "logits"


def changed(fields: dict[str, Any], changes: dict[str, Any]) -> tuple[str, list[str]]:
    """What tells two models apart, and the lines in which their descriptions differ. changes: "experts." and so on."""
    of = {"experts": {}, "multipliers": {}, "layers": {}, "": {}}
    for name, value in changes.items():
        kind, _, field = name.rpartition(".")
        of[kind][field] = value
    base = small(**fields)
    layers = tuple(replace(spec, **of["layers"]) if i == 1 else spec for i, spec in enumerate(base.layers))
    experts = base.experts and replace(base.experts, **of["experts"])
    other = base.replace(**{"layers": layers, "experts": experts} | of[""]), replace(PLAIN, **of["multipliers"])
    return tells((base, PLAIN), other), difference(forward_pass(base, PLAIN), forward_pass(*other))


LEFT_OUT: list[tuple[dict[str, Any], dict[str, Any], str]] = [  # of a model, what changes, what tells
    ({}, {"family": "y"}, ""),
    ({}, {"dropout": 0.5}, ""),
    ({"token_smear": True}, {"starts": Starts(up=0.4, gate=0.1)}, ""),
    ({}, {"zero_output": True}, ""),
    ({}, {"varlen": True}, ""),
    ({"varlen": True}, {"doc_positions": "continue"}, ""),
    ({"varlen": True}, {"doc_len": 8}, ""),
    ({}, {"padding_multiple": 32}, ""),
    ({}, {"padding_multiple": 7}, "shapes"),
    ({}, {"block_size": 128}, ""),
    ({"position": "learned"}, {"block_size": 128}, "shapes"),
    ({}, {"intermediate_size": 64}, "shapes"),
    ({"ffn_multiple": 2.0}, {"intermediate_size": 64}, ""),
    ({}, {"ffn_multiple": 1.5}, ""),
    ({}, {"ffn_multiple": 2.0}, "shapes"),
    (MIXTURE, {"experts.aux_style": "entropy"}, ""),
    (MIXTURE, {"experts.aux_gamma": 0.5}, ""),
    (MIXTURE, {"experts.global_aux": True}, ""),
    (MIXTURE, {"experts.global_aux": True, "experts.exact_aux": True}, ""),
    (MIXTURE, {"experts.router_z_loss": 0.1}, ""),
    (MIXTURE, {"experts.bias_rate": 0.1}, "shapes"),
    (MIXTURE | {"experts": Experts(2, 4, bias_rate=0.1)}, {"experts.bias_rate": 0.2}, ""),
]


@pytest.mark.parametrize("case", LEFT_OUT, ids=lambda case: f"{[*case[0]]} {case[1]}")
def test_what_is_left_out_changes_no_logits(case: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    assert changed(*case[:2]) == (case[2], [])


def test_every_field_that_is_left_out_is_tried() -> None:
    tried = {name for _, changes, _ in LEFT_OUT for name in changes}
    marked = {prefix + name for kind, prefix in KINDS.items() for name in fields_of(kind, NOBODY, SHAPES)}
    assert marked - DERIVED == tried


NAMED: list[tuple[dict[str, Any], dict[str, Any]]] = [  # of a model, what changes: the first is what is tried
    ({}, {"depth": 4, "layers": FOUR}),
    *(({}, {name: value}) for name, value in {
        "n_embd": 40, "n_head": 2, "head_dim": 16, "n_kv_head": 4, "vocab_size": 60, "norm": "layernorm",
        "norm_eps": 0.1, "skip": "none", "logit_softcap": 2.0, "position": "none", "rope_base": 5.0,
        "rotary_fraction": 0.5, "share_per_layer": 1, "norm_gain": False, "multipliers.logit": 2.0,
        "multipliers.residual": 2.0, "multipliers.attention": 2.0,
        "layers": (LayerSpec(), LayerSpec("fox")), "layers.mixer": "fox", "layers.ffn": "relu2", "layers.window": 5,
        "layers.rope_base": 5.0, "layers.value_embedding": True,
    }.items()),
    *(({}, {name: True}) for name in (
        "tie_embeddings", "post_norm", "reordered_norm", "parallel_block", "qk_norm", "embedding_norm",
        "residual_scalars", "token_smear", "backout", "attn_gate", "attn_sink", "attn_norm", "attn_conv", "ffn_norm",
        "attn_bias", "qkv_bias", "mlp_bias",
    )),
    (POST, {"decoupled_norm": True}),
    (POST | {"decoupled_norm": True}, {"skip_gain": True}),
    (POST, {"layers.skip_projection": True}),
    ({"qk_norm": True}, {"joint_qk_norm": True}),
    ({"qk_norm": True}, {"qk_norm_scale": 1.5}),
    ({"backout": True}, {"backout_layer": 0}),
    (WIDE, {"yarn_scale": 8.0}),
    (WIDE, {"yarn_context": 512}),
    (WIDE | {"yarn_context": 512}, {"yarn_truncate": True}),
    (WIDE, {"yarn_windows": False}),
    # Two blocks each, one after the other and in turn: no shape tells.
    ({"depth": 4, "layers": FOUR, "share_per_layer": 2}, {"share_group": 2, "share_per_layer": 1}),
    ({"layers": (LayerSpec("gdn"),) * 2}, {"mixer_options": {"gdn": {"negative_eigenvalues": False}}}),
    ({"depth": 3, "layers": (LayerSpec(), LayerSpec(), LayerSpec("cross_attention", shares=1))}, {
        "layers": (LayerSpec(), LayerSpec(), LayerSpec("cross_attention", shares=0)), "layers.shares": None}),
    ({}, {"experts": Experts(2, 4), "layers": (LayerSpec(experts=True),) * 2}),
    (MIXTURE, {"layers.experts": False, "experts": None}),
    *((MIXTURE, {f"experts.{name}": value}) for name, value in {
        "sparsity": 3, "top_k": 2, "shared": 1, "gate": "sigmoid", "sqrt_gate": True, "capacity": 0.5}.items()),
    (MIXTURE | {"experts": Experts(2, 4, aux_gamma=0.0)}, {"experts.routing": "expert_choice"}),
    (MIXTURE, {"multipliers.router": 2.0}),
]  # fmt: skip
KINDS = {ModelConfig: "", Experts: "experts.", LayerSpec: "layers.", Multipliers: "multipliers."}


@pytest.mark.parametrize("case", NAMED, ids=lambda case: f"{[*case[0]]} {[*case[1]]}")
def test_what_is_named_can_be_told(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Each field is one that some model reads, and then the description says so, by its name."""
    fields, changes = case
    told, lines = changed(fields, changes)
    assert told
    name = next(iter(changes)).rpartition(".")[2]
    assert any(name in line.partition(":")[0].split(".") or f"{name}." in line for line in lines), lines


def test_every_field_that_is_named_is_tried() -> None:
    """But for a memory, which is no model without the unit that reads it."""
    tried = {name for _, changes in NAMED for name in changes}
    fields = {prefix + f.name for kind, prefix in KINDS.items() for f in dataclasses.fields(kind)}
    marked = {prefix + name for kind, prefix in KINDS.items() for name in fields_of(kind, NOBODY, SHAPES)}
    assert fields - marked - {"layers.memory"} == tried


def layers_of(mixer: str) -> tuple[LayerSpec, ...]:
    if mixer == "gmu":
        return (LayerSpec("mamba", memory="mixer"), LayerSpec("gmu", shares=0))
    return (LayerSpec(), LayerSpec(mixer, shares=0)) if "cross" in mixer else (LayerSpec(mixer),) * 2


def fewer(mixer: str) -> dict[str, Any]:
    return {name: FEWER[name] for name in {spec.mixer for spec in layers_of(mixer)} & FEWER.keys()}


@pytest.mark.parametrize("mixer", MIXERS.names())
def test_a_mixer_reads_what_it_says(mixer: str) -> None:
    """Its own heads may be as many as the model's are said to be, which shapes tell."""
    fields, read = {"layers": layers_of(mixer), "mixer_options": fewer(mixer)}, reads_heads(mixer)
    told, lines = changed(fields, {"n_head": 8})
    assert (told != "" and lines != []) if read else (told != "logits" and lines == [])
    of_heads = {"head_dim": 16, "n_kv_head": 4, "position": "none", "qk_norm": True, "yarn_scale": 2.0}
    for changes in (of_heads, {"multipliers.attention": 3.0}):
        told, lines = changed(fields, changes)
        assert bool(told) == bool(lines) == read
    with torch.device("meta"):
        assert (layers_of(mixer)[1] in GPT(small(**fields)).attending) == read


def other(name: str, value: Any) -> Any:
    if value is None:
        return {"heads": 4, "dt_rank": 3, "rank": 3, "lambda_init": 0.5}[name]
    return not value if isinstance(value, bool) else 2 * value


OPTIONS = [
    (mixer, field.name)
    for mixer in MIXERS.names()
    if hasattr(MIXERS.load(mixer), "Options") and "cross" not in mixer
    for field in dataclasses.fields(MIXERS.load(mixer).Options)
]


@pytest.mark.parametrize(("mixer", "name"), OPTIONS)
def test_options_of_mixers(mixer: str, name: str) -> None:
    kind, given = MIXERS.load(mixer).Options, FEWER.get(mixer, {})
    values = {mixer: given | {name: other(name, getattr(kind(**given), name))}}
    told, lines = changed({"layers": layers_of(mixer), "mixer_options": fewer(mixer)}, {"mixer_options": values})
    if name in fields_of(kind, SHAPES):
        assert told in ("", "shapes") and not lines
    else:
        assert told and [line.partition(":")[0] for line in lines] == [f"model.mixer_options.{mixer}.{name}"]


def test_a_field_added_later_counts() -> None:
    @dataclass(frozen=True)
    class Later(ModelConfig):
        soft_sign: float = 0.0

    @dataclass(frozen=True)
    class LaterLayer(LayerSpec):
        scale: float = 1.0

    @dataclass(frozen=True)
    class LaterMultipliers(Multipliers):
        embedding: float = 1.0

    values = {f.name: getattr(small(), f.name) for f in dataclasses.fields(ModelConfig) if f.init}
    values["layers"] = (LaterLayer(),) * 2
    before = forward_pass(Later(**values), LaterMultipliers())
    values["layers"] = (LaterLayer(), LaterLayer(scale=2.0))
    assert difference(before, forward_pass(Later(**values, soft_sign=3.0), LaterMultipliers(embedding=2.0))) == [
        "model.layers.1.scale: 1.0 -> 2.0",
        "model.soft_sign: 0.0 -> 3.0",
        "multipliers.embedding: 1.0 -> 2.0",
    ]


def test_a_mixer_of_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads all until it says otherwise, and its options count."""
    file = {name: value for name, value in vars(retnet).items() if name != "READS_HEADS"}
    base = {"layers": (LayerSpec("own"),) * 2}
    monkeypatch.setitem(MIXERS.plugins, "own", SimpleNamespace(**file))
    assert changed(base, {"n_kv_head": 4}) == ("", ["model.n_kv_head: 2 -> 4"])
    assert changed(base, {"mixer_options": {"own": {"rotary_base": 50.0}}}) == (
        "logits",
        ["model.mixer_options.own.rotary_base: 10000.0 -> 50.0"],
    )
    monkeypatch.setitem(MIXERS.plugins, "own", SimpleNamespace(**file, READS_HEADS=False))
    assert changed(base, {"n_kv_head": 4}) == ("", [])


def test_a_base_is_one_thing_wherever_it_is_said() -> None:
    """Of the model or of its layers, and none in layers that do not turn."""
    layers = (LayerSpec(), LayerSpec(rope_base=0.0), LayerSpec("mamba"), LayerSpec(rope_base=7.0))
    own = (LayerSpec(rope_base=5.0), LayerSpec(rope_base=0.0), LayerSpec("mamba", rope_base=3.0), LayerSpec())
    one, two = small(depth=4, layers=layers, rope_base=5.0), small(depth=4, layers=own, rope_base=7.0)
    assert tells((one, PLAIN), (two, PLAIN)) == "" and forward_pass(one, PLAIN) == forward_pass(two, PLAIN)
    moved = forward_pass(one.replace(rope_base=6.0), PLAIN)
    assert difference(forward_pass(one, PLAIN), moved) == ["model.rope_base: 5.0 -> 6.0"]
