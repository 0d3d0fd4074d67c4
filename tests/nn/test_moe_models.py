"""Models with experts: counts, decoding, recomputation, compiled blocks, checkpointed settings."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from moe_models import LENGTH, VOCAB, config, model

from lit_gpt import ops
from lit_gpt.architectures import build
from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.config.run import RunConfig
from lit_gpt.evals.decoding import Decoder
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.parallel.recompute import recompute_in_backward
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, RolePlan
from lit_gpt.scaling.budget import analytic_parameters

FINE = Experts(sparsity=2, top_k=4, shared=True, sqrt_gate=True, aux_gamma=0.1)
TOKENS = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("depth", "billions"), [(8, 0.913), (12, 2.950), (16, 6.878), (20, 13.327), (24, 22.926)])
def test_total_parameters_of_the_published_ladder(depth, billions):
    """S8 k8 of transformer_gqa4_h2_moe, ArchScale's."""
    counts = count(meta_model(build("transformer_gqa4_h2_moe", depth, experts=Experts(8, 8)))).parameters
    assert counts["total"] / 1e9 == pytest.approx(billions, abs=6e-4)


def test_active_parameters_and_flops_are_those_of_the_dense_model_and_a_router():
    mixture = build("transformer_gqa4_h2_moe", 8, experts=Experts(8, 8))
    ours, dense = count(meta_model(mixture)), count(meta_model(build("transformer_gqa4_h2", 8)))
    router = ours.parameters["router"]
    assert router == 8 * 64 * 1024
    assert ours.parameters["active"] - router == dense.parameters["total"]
    assert ours.flops_per_token - 6 * router == dense.flops_per_token
    shared = count(meta_model(build("transformer_gqa4_h2_moe", 8, experts=Experts(8, 8, shared=True)))).parameters
    assert shared["total"] == ours.parameters["total"] - 8 * 1024 and shared["expert"] < ours.parameters["expert"]
    assert analytic_parameters(mixture) == analytic_parameters(build("transformer_gqa4_h2", 8))


def test_token_budgets_are_those_of_the_dense_model():
    """By active parameters, as ArchScale's TPP50 ladder: 10.4, 61.9 billion tokens at depths 8 and 16."""
    options = {"train_name": "v2scale_mup_muonh_ga_qknorm", "sparsity": 8, "top_k": 8, "train_data_dir": "none"}
    for depth, tokens in ((8, 10.4), (16, 61.876)):
        run = RunConfig(train_model="transformer_gqa4_h2_moe", depth=depth, param_count="analytic", **options)
        run.base_hps.t0 = 10.4e9
        assert resolve_run(run, 1).plan.tokens / 1e9 == pytest.approx(tokens, abs=1e-3)


def test_settings_survive_a_checkpoint():
    before = config(replace(FINE, capacity=1.5, routing="token_choice"))
    assert ModelConfig.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_run_names_and_flags():
    options = {"train_data_dir": "none", "max_tokens": 1e8, "train_name": "x_muon", "ctx_len": 64}
    by_name = resolve_run(RunConfig(train_model="sambay_gqa4_moe_s4_k2_d8", sqrt_gate=True, **options), 1)
    by_flag = resolve_run(
        RunConfig(train_model="sambay_gqa4_moe", depth=8, sparsity=4, top_k=2, sqrt_gate=True, **options), 1
    )
    assert by_name.model == by_flag.model and by_name.folder == by_flag.folder
    assert by_name.model.experts == Experts(4, 2, sqrt_gate=True)
    assert by_name.folder.name == "x_muon_sambay_gqa4_moe_s4_k2_d8_ctx64"


@pytest.mark.parametrize("family", ["transformer_gqa4_h2_moe", "sambay_gqa4_moe"])
def test_cached_decoding_equals_one_pass(family):
    """Dropless token choice looks at one token at a time."""
    shape = build(family, 4, aspect_ratio=32, experts=FINE, block_size=LENGTH)
    gpt = GPT(shape.replace(vocab_size=VOCAB), compute_dtype=torch.float64, residual_dtype=torch.float64).double()
    roles = {role: RolePlan(1e-2, 0.0, Init("normal", 0.1)) for role in ROLES}
    init_parameters(gpt, roles, 0)
    with torch.no_grad():
        expected, decoder = gpt(TOKENS).logits, Decoder(gpt, 2, LENGTH)
        pieces = [decoder(part) for part in TOKENS.split([5, 1, 1, LENGTH - 7], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)


def gradients(gpt: GPT) -> dict[str, torch.Tensor]:
    _, loss, routed = gpt(TOKENS, TOKENS.roll(-1, 1))
    (loss + (routed.probs_E * torch.arange(routed.probs_E.shape[-1])).sum()).backward()
    return {name: p.grad for name, p in gpt.named_parameters()}


@pytest.mark.parametrize("what", ["full", "selective"])
def test_recomputing_changes_nothing(what):
    expected, gpt = gradients(model(FINE)), model(FINE)
    for block in gpt.blocks:
        recompute_in_backward(block, what)
    for name, value in gradients(gpt).items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def no_machine_code(monkeypatch):
    """What compiles is captured by dynamo and split by autograd, and then runs as it is."""
    monkeypatch.setattr(ops.experts, "_compiled", cache(partial(torch.compile, backend="aot_eager")))


BIASED = replace(FINE, gate="sigmoid", aux_style="switch_seq", bias_rate=0.1)


@pytest.mark.parametrize("experts", [FINE, BIASED])
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-5)])
def test_compiled_blocks_equal_eager_ones(experts, dtype, error, no_machine_code):
    """The experts are one operation of the block's graph, compiled by itself."""

    def built() -> GPT:
        gpt = GPT(config(experts, layers=1), compute_dtype=dtype)
        gpt.load_state_dict(model(experts, layers=1).state_dict())
        return gpt

    expected, gpt = gradients(built()), built()
    assert gpt.backends.experts == "auto"  # in bf16 torch's product, which dynamo captures without a break
    for block in gpt.blocks:
        block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True)
    for name, value in gradients(gpt).items():
        torch.testing.assert_close(value, expected[name], rtol=error, atol=error, msg=lambda m, n=name: f"{n}: {m}")


def test_compiled_blocks_keep_what_eager_ones_keep(no_machine_code):
    """Rows gathered for experts and their weights in bf16 are made again; see ops.experts."""

    def kept(compiled: bool) -> list[int]:
        gpt = GPT(config(FINE, layers=1), compute_dtype=torch.bfloat16)
        gpt.load_state_dict(model(FINE, layers=1).state_dict())
        if compiled:
            gpt.blocks[0].forward = torch.compile(gpt.blocks[0].forward, backend="aot_eager", fullgraph=True)
        sizes = {}
        parameters = {p.data_ptr() for p in gpt.parameters()}

        def note(t: torch.Tensor) -> torch.Tensor:
            if t.data_ptr() not in parameters:
                sizes[t.data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            gpt(TOKENS, TOKENS)
        return sorted(sizes.values())

    assert sum(kept(True)) <= sum(kept(False))


def test_blocks_shared_by_layers():
    gpt = model(replace(FINE, bias_rate=0.1), share_per_layer=1)
    assert len(gpt.blocks) == 1 and gpt(TOKENS, head=False).routed.counts_E.shape == (2, 7)
