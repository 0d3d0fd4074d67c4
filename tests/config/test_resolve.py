"""From typed options to meant ones: aliases, defaults, tokens, contradictions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from plan_helpers import typed

from lit_gpt.config.resolve import resolve, translate_aliases
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.errors import UserError


def resolved(**fields: Any) -> RunConfig:
    return resolve(RunConfig(**{"train_name": "plain", **fields}))[0]


def problems_of(**fields: Any) -> list[str]:
    hps = BaseHyperparameters(**fields.pop("hps", {}))
    with pytest.raises(UserError) as error:
        resolved(base_hps=hps, **fields)
    lines = str(error.value).splitlines()
    return lines[1:] or [f"  - {lines[0].removesuffix('.')}"]  # one problem is one sentence


def test_aliases() -> None:
    words = ["--gradient_checkpointing=true", "--base_hps.warmup_tokens0", "5", "--depth=8", "--x=a=b"]
    assert translate_aliases(words) == ["--act_ckpt=true", "--base_hps.warmup_tokens", "5", "--depth=8", "--x=a=b"]
    run = typed("--gradient_checkpointing=true --base_hps.warmup_tokens0=25_165_824_000")
    assert run.act_ckpt is True and run.base_hps.warmup_tokens == 25_165_824_000


def test_numbers_and_null_as_the_launch_scripts_type_them() -> None:
    run = typed("--max_tokens 5e12 --base_hps.eta0=5e-4 --base_hps.b0=8388608 --ctx_len 8192 --head_init_std null")
    assert (run.max_tokens, run.base_hps.eta0, run.base_hps.b0) == (5e12, 5e-4, 8_388_608)
    assert run.head_init_std is None
    nothing = typed("--max_tokens null --ar null --swa_len null --total_bsz null --save_step null --norm_class null")
    assert nothing == RunConfig()
    guide = typed("--num_workers=8 --precision=bf16 --compile=true --gradient_checkpointing=true --num_extrp null")
    assert (guide.num_workers, guide.precision, guide.compile) == (8, "bf16", True)
    assert typed("--resume auto").resume == "auto" and typed("--resume true").resume is True
    assert typed("--optimizer_args.momentum 0.9").optimizer_args == {"momentum": 0.9}


def test_defaults_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_ARTIFACTS_DIR", raising=False)
    run = resolved()
    assert (run.ctx_len, run.total_bsz, run.save_step, run.num_extrp, run.bramp_ratio) == (None, None, 1000, 4, 1)
    assert (run.parameterization, run.optimizer, run.schedule) == ("sp", "adamw", "linear")
    assert (run.act_ckpt, run.offloading, run.out_dir, run.precision) == ("off", False, "out", None)
    assert run.base_hps == BaseHyperparameters()
    monkeypatch.setenv("LIGHTNING_ARTIFACTS_DIR", "elsewhere")
    assert resolved().out_dir == "elsewhere"
    assert resolved(out_dir="here").out_dir == "here"


def test_resolving_twice_changes_nothing() -> None:
    run = resolve(typed("--train_name v2scale_super_mup_tie_wsd_cosine --fsdp_save_mem true --use_mlflow true"))[0]
    assert resolve(run)[0] == run


def test_tokens_reach_the_run() -> None:
    run, name = resolve(RunConfig())
    assert (run.parameterization, run.tie_embeddings, run.rope_base, run.varlen) == ("mupp", True, 640_000.0, True)
    assert name.labels == ("scaling", "prolong")
    with pytest.raises(UserError, match=r"--rope_base 10000.0 disagrees with the token 'rbase'"):
        resolve(RunConfig(train_name="mup_rbase", rope_base=1e4))


def test_a_flag_beats_the_default_name_and_leaves_the_run_name_true() -> None:
    """Nobody typed the default train_name, so nobody should read that it disagrees with a flag."""
    run, name = resolve(typed("--parameterization sp --rope_base 1e4"))
    assert (run.parameterization, run.rope_base, run.tie_embeddings) == ("sp", 1e4, True)
    assert run.train_name == "scaling_tie_prolong_varlen" and name.tokens == ("tie", "varlen")


@pytest.mark.parametrize(
    ("fields", "name"), [({"depth": None}, "depth"), ({"base_hps": BaseHyperparameters(d0=None)}, "base_hps.d0")]
)
def test_null_is_refused_however_the_options_were_made(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=f"^--{name} was given null, which it cannot be. Leave it out"):
        resolved(**fields)


def test_forms_of_act_ckpt() -> None:
    assert [resolve(typed(f"--act_ckpt {v}"))[0].act_ckpt for v in ("true", "off")] == ["full", "off"]
    meaning = {True: "full", False: "off", "full": "full", "selective": "selective", "off": "off"}
    assert {given: resolved(act_ckpt=given).act_ckpt for given in meaning} == meaning


def test_fsdp_save_mem_is_both() -> None:
    both = resolved(fsdp_save_mem=True)
    assert (both.act_ckpt, both.offloading) == ("full", True)
    assert resolved(fsdp_save_mem=True, act_ckpt="selective").act_ckpt == "selective"


def test_forms_of_precision() -> None:
    assert resolve(typed("--precision 32"))[0].precision == "fp32"
    meaning = {"bf16": "bf16", "bf16-mixed": "bf16", "fp32": "fp32", None: None}
    assert {given: resolved(precision=given).precision for given in meaning} == meaning


def test_old_names_of_options() -> None:
    assert resolved(use_mlflow=True).loggers == ["mlflow"]
    assert resolved(use_mlflow=True, loggers=["mlflow", "csv"]).loggers == ["mlflow", "csv"]
    assert resolved(load_dir="c").init_from == "c"
    assert problems_of(load_dir="a", init_from="b") == [
        "  - --load_dir a is the old name of --init_from, which is b; give one of them"
    ]


def test_model_names_carry_depth_and_experts() -> None:
    run = resolved(train_model="transformer_d8")
    assert (run.train_model, run.depth) == ("transformer", 8)
    run = resolved(train_model="transformer_gqa4_moe_s8_k4_d12")
    assert (run.train_model, run.depth, run.sparsity, run.top_k) == ("transformer_gqa4_moe", 12, 8, 4)
    assert resolved(train_model="transformer_d8", depth=8).depth == 8
    for fields in ({"train_model": "transformer_d8", "depth": 12}, {"train_model": "x_moe_s8_k4", "top_k": 8}):
        with pytest.raises(UserError, match=r"--train_model .* and --(depth 12|top_k 8) disagree"):
            resolved(**fields)


def test_every_contradiction_is_in_one_message() -> None:
    found = problems_of(
        depth=0,
        micro_bsz=0,
        max_tokens=-1.0,
        grad_clip=-1.0,
        label_smoothing=2.0,
        resume=True,
        init_from="c",
        yarn_scale=4.0,
        hps={"b0": 0.0, "warmup_tokens": -1.0, "min_lr_mult": 1.5, "hd0": 0, "muon_beta": 1.0},
    )
    assert found == [
        "  - --depth is 0; it must be from 1 to 2,000",
        "  - --max_tokens is -1.0; it must be from 1 to 1e16",
        "  - --micro_bsz is 0; it must be from 1 to 1,000,000",
        "  - --base_hps.b0 is 0.0; it must be from 1 to 1e12",
        "  - --base_hps.hd0 is 0; it must be from 1 to 65,536",
        "  - --base_hps.min_lr_mult is 1.5; it must be from 0 to 1",
        "  - --base_hps.warmup_tokens is -1.0; it must be from 0 to 1e16",
        "  - --base_hps.muon_beta is 1.0; it must be at least 0 and below 1",
        "  - --grad_clip is -1.0; it must be from 0 to 1,000,000,000",
        "  - --label_smoothing is 2.0; it must be 0, or at least 1e-06 and below 1",
        "  - --resume continues a run and --init_from starts one; give one of them, or --resume auto with "
        "--init_from: start from the weights, later go on from the run's own checkpoints",
        "  - --yarn_scale only acts in a midtrain or validation run; add that token to --train_name",
    ]


@pytest.mark.parametrize(
    "field",
    ["ctx_len", "save_step", "num_extrp", "bramp_ratio", "total_bsz", "log_step", "sparsity", "top_k"],
)
def test_a_zero_is_not_taken_for_nothing_given(field: str) -> None:
    assert [line.split(";")[0] for line in problems_of(**{field: 0})] == [f"  - --{field} is 0"]


@pytest.mark.parametrize("beta", ["beta1", "beta2", "muon_beta"])
def test_a_momentum_of_one_never_forgets(beta: str) -> None:
    assert problems_of(hps={beta: 1.0}) == [f"  - --base_hps.{beta} is 1.0; it must be at least 0 and below 1"]


@pytest.mark.parametrize(
    "fields", [{"fp4": True, "fp8_recipe": "rowwise"}, {"train_name": "x_lc"}, {"decay_fraction": 0.0}]
)
def test_what_cannot_be_done_is_said(fields: dict[str, Any]) -> None:
    assert len(problems_of(**fields)) == 1


def test_4_bits_are_a_recipe_of_fp8() -> None:
    run = resolved(fp4=True)
    assert run.fp8 and run.fp8_recipe == "te_nvfp4" and resolve(run)[0] == run


def test_validation_needs_weights_and_data() -> None:
    assert "validation needs --init_from" in problems_of(train_name="validation")[0]
    run = resolved(train_name="x_validation", load_dir="c", val_data_dir="d", yarn_scale=4.0)
    assert run.validation and run.init_from == "c"
    assert resolved(train_name="midtrain", yarn_scale=4.0).yarn_scale == 4.0


def test_the_typed_run_is_left_alone() -> None:
    run = RunConfig(train_name="mup")
    before = dataclasses.asdict(run)
    resolve(run)
    assert dataclasses.asdict(run) == before
