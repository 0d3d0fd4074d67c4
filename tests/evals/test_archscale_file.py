"""ArchScale's checkpoints give the logits of its forward pass, written out by hand beside this (archscale_model.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from archscale_model import VOCAB, Sizes, logits, make, sambay

from lit_gpt.config.command import exit_code
from lit_gpt.errors import UserError
from lit_gpt.evals.archscale_file import TrainedWith, read_typed
from lit_gpt.evals.results import read_results
from lit_gpt.evals.trained_model import load_model, load_weights_and_meta
from lit_gpt.tools import convert, evaluate, generate

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
    "post_norm": (
        replace(DENSE, post=True, head=128, heads=16, groups=4),
        "transformer_gqa4_h2_skipw_d8",
        {"train_name": "scaling_postnorm_decouple_skipgain", "post_norm": True},
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


PLAIN = TrainedWith("transformer_d8", COMMON | {"train_name": "scaling_mup"})
TYPED = "train_name=scaling_mup,ar=4,vocab_size=320,ctx_len=24"


@pytest.fixture
def file(tmp_path):
    return saved(tmp_path, make(DENSE))


def saved(folder, content, name="iter-000100-ckpt.pth"):
    torch.save(content, folder / name)
    return folder / name


def test_a_table_of_tensors_alone(file, tmp_path):
    """As torch.compile names them, too."""
    state = make(DENSE)
    whole = saved(tmp_path, {"model": state, "optimizer": {}, "hparams": {}}, "whole.pth")
    compiled = saved(tmp_path, {f"_orig_mod.{name}": t for name, t in state.items()}, "compiled.pth")
    weights, meta = load_weights_and_meta(file, typed=PLAIN)
    for other in (whole, compiled):
        again, _ = load_weights_and_meta(other, typed=PLAIN)
        assert all(torch.equal(weights[name], again[name]) for name in weights | again)
    assert meta["multipliers"]["logit"] == 1 and meta["multipliers"]["residual"] == 1 / 4


def test_what_the_file_says(tmp_path, capsys):
    """The hparams of its run are enough; a typed option is used instead, and config is compared."""
    kept = {"model_name": "transformer_d8", "train_config": "scaling_mup_tie", "seq_len": 24, "ar": 4, "lr": 0.1}
    kept |= {"base_hps.d0": 4, "base_hps.hd0": 128, "fsdp2": True, "vocab_size": 1}
    path = saved(tmp_path, {"model": make(replace(DENSE, tied=True)), "hparams": kept, "step_count": 7})
    _, meta = load_weights_and_meta(path, typed=TrainedWith(options={"vocab_size": VOCAB}))
    assert meta["multipliers"]["logit"] == 4 / 8 and meta["model"]["tie_embeddings"] and meta["step"] == 7
    assert not capsys.readouterr().err
    options = {"vocab_size": VOCAB, "base_hps.d0": 16}
    _, meta = load_weights_and_meta(path, typed=TrainedWith("transformer_d8", options))
    assert meta["multipliers"]["logit"] == 2
    assert "trained with base_hps.d0 4; 16 is used" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"config is sambay_d8, but .* is transformer_d8"):
        load_weights_and_meta(path, typed=TrainedWith("sambay_d8", options))


def test_tokens_that_archscale_does_not_see(file, capsys):
    """It looks for substrings: rbase at the end of a name did nothing there."""
    options = COMMON | {"train_name": "tie_mup_rbase"}
    _, meta = load_weights_and_meta(file, typed=TrainedWith("transformer_d8", options))
    assert meta["model"]["rope_base"] == 10_000 and not meta["model"]["tie_embeddings"]
    said = capsys.readouterr().err
    assert "the token rbase" in said and "the token tie" in said


def test_families_of_one_depth_are_their_own_base(tmp_path):
    path = saved(tmp_path, make(replace(HYBRID, kinds=sambay(8, "mamba", 1))))
    typed = TrainedWith("mambay_d8", COMMON | {"train_name": "scaling_mup", "swa_len": 5})
    assert load_weights_and_meta(path, typed=typed)[1]["multipliers"]["logit"] == 1


def without(name):
    return {other: t for other, t in make(DENSE).items() if other != name}


WRONG = {
    "does not say which model it is and how it was trained": (without(""), None, {}),
    "does not say how it was trained": (without(""), "transformer_d8", COMMON),
    "in which ArchScale sees|ArchScale sees 'muon'": (without(""), "transformer_d8", {"train_name": "amuonx_mup"}),
    "lacks transformer.h.2.mlp.w1.weight": (without("transformer.h.2.mlp.w1.weight"), "transformer_d8", {}),
    "it has also transformer.h.8.x": (without("") | {"transformer.h.8.x": torch.ones(2)}, "transformer_d8", {}),
    "it has 8 blocks of width 32": (without(""), "transformer_d12", {}),
    "lacks .*q_norm": (without(""), "transformer_d8", {"qk_norm": True}),
    r"q_proj.weight is \(32, 32\), not \(2048, 32\)": (without(""), "transformer_gqa4_h2_d8", {}),
    "head that is not its token table": (without(""), "transformer_d8", {"tie_embeddings": True}),
    "token table as its head": (make(replace(DENSE, tied=True)), "transformer_d8", {}),
    "learnable sinks": (without(""), "transformersa_d8", {}),
    "qk_norm in cross-attention": (without(""), "sambay_d8", {"qk_norm": True}),
    "layers of gla": (without(""), "gla_d8", {}),
    "one routed expert": (without(""), "transformer_gqa4_moe_s4_k1_d8", {}),
    "--ctx_lem": (without(""), "transformer_d8", {"ctx_lem": 3}),
    "neither an exported file nor": ([1, 2], "transformer_d8", {}),
}


@pytest.mark.parametrize("said", WRONG)
def test_one_sentence(said, tmp_path):
    content, config, options = WRONG[said]
    options = {"train_name": "scaling_mup"} | COMMON | options if options is not COMMON and config else options
    with pytest.raises(UserError, match=said):
        load_weights_and_meta(saved(tmp_path, content), typed=TrainedWith(config, options))


def test_nothing_in_a_file_runs(tmp_path):
    class Harmful:
        def __reduce__(self):
            return exec, ("raise SystemExit(1)",)

    path = saved(tmp_path, {"model": make(DENSE), "optimizer": Harmful()})
    with pytest.raises(UserError, match="more than tensors and plain values"):
        load_weights_and_meta(path, typed=PLAIN)


def test_skip_projections_that_nothing_reads(tmp_path, capsys):
    """Pre-norm models of transformer_gqa4_h2_skipw have them in ArchScale."""
    sizes = replace(DENSE, head=128, heads=16, groups=4)
    state = make(sizes) | {f"transformer.h.{i}.skip_proj.weight": torch.ones(32, 32) for i in (3, 7)}
    typed = TrainedWith("transformer_gqa4_h2_skipw_d8", COMMON | {"train_name": "scaling"})
    assert load_weights_and_meta(saved(tmp_path, state), typed=typed)
    assert "h.3.skip_proj.weight, transformer.h.7.skip_proj.weight are read by nothing" in capsys.readouterr().err


def test_commands(file, tmp_path, capsys):
    """convert, to a file that says what it is, and to Llama; generate; an evaluation, kept beside the file."""
    described = ["--config", "transformer_d8", "--trained_with", TYPED]
    out = tmp_path / "model.safetensors"
    assert exit_code(convert.main, [str(file), str(out), *described]) == 0
    model, _ = load_model(out)
    with torch.no_grad():
        found = model(torch.tensor([IDS])).logits[0].double()
    torch.testing.assert_close(found, logits(make(DENSE), replace(DENSE, mup=True), IDS), rtol=1e-3, atol=1e-3)
    assert exit_code(convert.main, [str(file), str(tmp_path / "hf"), "--to", "hf", *described]) == 0
    words = ["--prompt", "a", "--tokenizer", "bytes", "--max_new_tokens", "3", "--device", "cpu"]
    assert exit_code(generate.main, [str(file), *words, *described]) == 0
    task = "--min_eval_len 3 --max_eval_len 3 --eval_num_batches 4 --eval_batch_size 1 --num_eval 1 --max_length 512"
    words = ["--checkpoint_path", str(file), *task.split(), "--tokenizer_name", "bytes", "--device", "cpu"]
    assert exit_code(evaluate.main, ["phonebook", *words, *described]) == 0
    (result,) = read_results(file)
    assert result.task == "phonebook" and result.settings["trained_with"]["train_name"] == "scaling_mup"
    capsys.readouterr()
    assert exit_code(generate.main, [str(out), "--prompt", "a", "--trained_with", "ar=4"]) == 2
    assert "says itself how it was trained, so ar cannot" in capsys.readouterr().err


def test_lm_eval_takes_options_of_training(file):
    pytest.importorskip("lm_eval", reason="pip install -e '.[eval]'")
    from lit_gpt.evals.lm_eval_model import TrainedModel

    model = TrainedModel.load(str(file), "transformer_d8", tokenizer="bytes", device="cpu", **PLAIN.options)
    assert model.judged.meta["multipliers"]["residual"] == 1 / 4
    with pytest.raises(UserError, match="model_args train_nam is unknown"):
        TrainedModel.load(str(file), "transformer_d8", tokenizer="bytes", device="cpu", train_nam="scaling")


def test_words_of_another_form():
    assert read_typed("a=1,base_hps.d0=2") == {"a": "1", "base_hps.d0": "2"}
    for text in ("a", "a=", "=1", "a=1,,b=2"):
        with pytest.raises(UserError, match="no option=value"):
            read_typed(text)
