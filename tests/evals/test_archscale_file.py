"""ArchScale's checkpoints give the logits of its forward pass, written out by hand beside this (archscale_model.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from archscale_model import VOCAB, Sizes, logits, make, sambay

from lit_gpt.evals.archscale_file import TrainedWith
from lit_gpt.evals.trained_model import load_model

IDS = [5, 9, 63, 0, 17, 17, 40, 2, 33, 8, 21, 50]
DENSE = Sizes(8, 32, 8, 2, 4, ["attention"] * 8, [None] * 8)
HYBRID = Sizes(8, 32, 8, 2, 128, sambay(8), [5] * 5 + [None] * 3, rope=None)
DIFFERENTIAL = {"attention": "differential", "cross": "differential_cross"}
COMMON = {"ar": 4, "vocab_size": VOCAB, "ctx_len": 24}

# name -> sizes of the file, config, what is typed beside it
MODELS = {
    "plain": (DENSE, "transformer_d8", {"train_name": "scaling"}),
    "mup": (replace(DENSE, mup=True, rope=640_000.0), "transformer_d8", {"train_name": "scaling_mup_rbase_v"}),
    "tied": (replace(DENSE, tied=True, mup=True), "transformer_d8", {"train_name": "mup_tie"}),
    "muonh": (
        replace(DENSE, mup=True, scaled_logits=False, gated=True, qk_norm=True, head=128, heads=16, groups=4),
        "transformer_gqa4_h2_d8",
        {"train_name": "v2scale_mup_muonh_ga_qknorm"},
    ),
    "biases": (replace(DENSE, bias=True, groups=8), "transformer_mha_d8", {"train_name": "scaling_bias"}),
    "layernorm": (
        replace(DENSE, layernorm=True),
        "transformer_d8",
        {"train_name": "scaling", "norm_class": "LayerNorm"},
    ),
    "experts": (
        replace(DENSE, groups=4, experts=(2, 4, True, True), mup=True),
        "transformer_gqa4_moe_s2_k4_d8",
        {"train_name": "scaling_mup", "share_expert": True, "sqrt_gate": True},
    ),
    "sambay": (replace(HYBRID, mup=True), "sambay_d8", {"train_name": "scaling_mup", "swa_len": 5}),
    "sambay2": (
        replace(HYBRID, kinds=sambay(8, "mamba2"), memory="mamba2"),
        "sambay2_d8",
        {"train_name": "scaling", "swa_len": 5},
    ),
    "gdny": (
        replace(HYBRID, kinds=sambay(8, "gdn", 1), memory="gdn", mup=True),
        "gdny_d8",
        {"train_name": "scaling_mup", "swa_len": 5},
    ),
    "sambayda": (
        replace(HYBRID, kinds=[DIFFERENTIAL.get(kind, kind) for kind in HYBRID.kinds]),
        "sambayda_d8",
        {"train_name": "scaling", "swa_len": 5},
    ),
    "swayoco": (
        replace(HYBRID, kinds=["attention"] * 6 + ["cross"] * 2, rope=10_000.0),
        "swayoco_d8",
        {"train_name": "scaling", "swa_len": 5},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits(name, tmp_path):
    sizes, config, options = MODELS[name]
    state, file = make(sizes), tmp_path / "iter-000100-ckpt.pth"
    torch.save({"model": state, "iter_num": 200, "step_count": 100}, file)
    model, meta = load_model(file, compute_dtype=torch.float64, typed=TrainedWith(config, COMMON | options))
    model.double().stream_dtype = torch.float64
    with torch.no_grad():
        found = model(torch.tensor([IDS])).logits[0].double()
    expected = logits(state, sizes, IDS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert meta["step"] == 100
