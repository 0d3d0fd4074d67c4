"""build_plan for commands that people type, and the values of single steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_helpers import lr_fraction, model_of, plan_of, run_of, typed
from pytest import approx

from lit_gpt.config.cli import parse
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.resolve import resolve
from lit_gpt.errors import UserError
from lit_gpt.nn import mlp
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.preflight.model_options import ffn_width, model_config
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.describe import describe
from lit_gpt.scaling.plan import count_steps, difference, far_batch, small_budget, step_values, unseen_warmup
from lit_gpt.scaling.schedule import fraction

MICRO = 8192  # one process, micro_bsz 2, context 4096
DATA = "--train_data_dir D --val_data_dir D"


def plan_typed(line: str, ranks: int = 1) -> Plan:
    return plan_of(resolve(typed(line))[0], ranks)


@pytest.mark.parametrize(
    ("tokens", "steps"),  # tokens / 2^21, rounded up
    [("1e11", 47_684), ("2e11", 95_368), ("4e11", 190_735), ("6e11", 286_103)],
)
def test_data_scaling_at_1b(tokens: str, steps: int) -> None:
    p = plan_typed(f"{DATA} --train_model transformer --depth 16 --max_tokens {tokens} --train_name scaling_mup_tie")
    assert (p.family, p.depth, p.rule, p.optimizer) == ("transformer", 16, "mupp", "adamw")
    assert (p.tokens, p.steps, p.batch_tokens) == (int(float(tokens)), steps, 2**21)
    assert p.schedule.name == "linear" and p.schedule.warmup_tokens == 1e9 and p.schedule.final == 0
    assert p.roles["vector"].lr == approx(4.242640687e-4)
    assert p.roles["matrix"].lr == approx(2.121320344e-4)
    assert p.roles["embedding"].init.std == 0.02, "tied"
    assert (p.beta1, p.beta2, p.eps, p.grad_clip) == (0.9, 0.95, 1e-8, 1.0)


def test_long_context() -> None:
    line = f"{DATA} --train_model transformer --depth 16 --ctx_len 32768 --max_tokens 4e10"
    p = plan_typed(f"{line} --train_name scaling_mup_rbase_varlen", ranks=8)
    assert p.context == 32768
    assert p.batch_tokens == 2**21, "8 ranks x 2 x 32768 = 2^19"
    assert p.steps == 19_074  # 4e10 / 2^21 = 19073.49
    saved = resolve(typed(f"{line} --train_name scaling_mup_rbase_varlen --fsdp_save_mem=true"))[0]
    assert plan_of(saved, 8) == p, "where the memory lives changes no number of the Plan"


def test_a_batch_sweep_moves_the_base_with_the_batch() -> None:
    sweep = "--train_model transformer --depth 8 --train_name hp_sweep_lr3e-4_bs1048576 --max_tokens 1e10"
    p = plan_typed(f"{sweep} --base_hps.eta0=3e-4 --base_hps.b0=1048576")
    assert (p.rule, p.batch_tokens, p.base_batch_tokens) == ("sp", 2**20, 2**20)
    assert p.roles["matrix"].lr == approx(3e-4), "the batch is the base batch, so no factor"
    assert p.steps == 9537  # 1e10 / 2^20 = 9536.74


@pytest.mark.parametrize("depth", [8, 12, 16, 20, 24])
def test_the_dense_ladder_in_the_form_of_the_moe_one(depth: int) -> None:
    p = plan_typed(
        f"{DATA} --train_model transformer_gqa4_h2 --depth {depth} --train_name v2scale_mup_ga_qknorm_sgate_shexp "
        "--fsdp2 true --base_hps.warmup_tokens=0 --base_hps.t0=10.4e9 --base_hps.min_lr_mult=0.1 "
        '--resume="auto" --micro_bsz=16 --act_ckpt=true'
    )
    budget = {8: 10.400, 12: 28.489, 16: 61.876, 20: 115.592, 24: 194.666}[depth]
    assert p.tokens / 1e9 == approx(budget, abs=5.01e-4)
    assert (p.schedule.warmup_tokens, p.schedule.final) == (0, 0.1)
    assert p.independent_weight_decay and p.roles["matrix"].weight_decay == 4e-5
    assert lr_fraction(p, 0, step_values(p, 0, 16 * 4096)) == approx(1.0, abs=2e-4)


def ramped(**fields: object) -> Plan:
    return plan_of(run_of("mup", depth=16, max_tokens=4e10, bramp_ratio=4, **fields))  # type: ignore[arg-type]


def test_a_growing_batch_keeps_depth_and_width_factors() -> None:
    """ArchScale falls back to eta0 sqrt(r) for every parameter once the ramp starts (departure D31)."""
    p, plain = ramped(), plan_of(run_of("mup", depth=16, max_tokens=4e10))
    first, full = step_values(p, 0, MICRO), step_values(p, 4 * 10**9, MICRO)
    assert first.batch_tokens == 2**21 and full.batch_tokens == 2**23
    for seen, now, root in ((0, first, 1.0), (4 * 10**9, full, 2.0)):  # sqrt(b / b0)
        at = lr_fraction(p, seen, now)
        assert now.lr["vector"] / at == approx(4.242640687e-4 * root)
        assert now.lr["matrix"] / at == approx(2.121320344e-4 * root)
        assert now.weight_decay == {name: r.weight_decay for name, r in plain.roles.items()}
    # Half-way up, at 2.5 percent of 4e10 tokens: m = 2.5, so 2.5 x 2^21 and sqrt(2.5).
    half = step_values(p, 10**9, MICRO)
    assert half.batch_tokens == 5 * 2**20
    assert half.lr["matrix"] / lr_fraction(p, 10**9, half) == approx(2.121320344e-4 * 1.5811388301)


def test_a_growing_batch_rederives_betas_eps_and_decay() -> None:
    plans = [ramped(batch_rule=rule) for rule in ("sde", "sdew")]
    sde, sdew = (step_values(p, 4 * 10**9, MICRO) for p in plans)
    assert (sde.eps, sde.betas["matrix"][1]) == approx((5e-9, 0.8))
    assert (sdew.eps, sdew.betas["vector"][1], sdew.weight_decay["matrix"]) == approx((5e-9, 0.9, 0.2))
    assert sdew.lr["matrix"] / lr_fraction(plans[1], 4 * 10**9, sdew) == approx(2.121320344e-4)


def test_a_ramp_that_a_batch_rule_cannot_follow_fails_before_training() -> None:
    with pytest.raises(UserError, match=r"beta2 = -0.600 at 32 times the base batch"):
        plan_of(run_of(depth=8, batch_rule="sde", bramp_ratio=32))


def test_every_step_is_whole_micro_batches_and_the_budget_is_spent() -> None:
    p = plan_of(run_of("mup", max_tokens=3e8, total_bsz=2**16, bramp_ratio=3, hps={"warmup_tokens": 1e7}))
    seen, batches = 0, []
    while seen < p.tokens:
        batches.append(step_values(p, seen, MICRO).batch_tokens)
        seen += batches[-1]
    assert {b % MICRO for b in batches} == {0}
    assert batches == sorted(batches) and (batches[0], batches[-1]) == (2**16, 3 * 2**16)
    assert len(batches) < p.steps and count_steps(p, MICRO) == len(batches)
    assert count_steps(replace(p, batch_ramp=1), MICRO) == p.steps
    assert f"in at most {p.steps:,} steps" in describe(p, None), "the table said that it takes all of them"


def test_learning_rates_of_steps() -> None:
    # 10 steps of 2^16 tokens, warm-up of 2 of them: the schedule in the middle of each step.
    p = plan_of(run_of(max_tokens=10 * 2**16, total_bsz=2**16, hps={"warmup_tokens": 2 * 2**16, "b0": 2**16}))
    fractions = [step_values(p, i * 2**16, MICRO).lr["matrix"] / p.roles["matrix"].lr for i in range(10)]
    assert fractions == approx([0.25, 0.75, *((15 - 2 * i) / 16 for i in range(8))])
    assert step_values(p, 0, MICRO).lr == {name: 0.25 * r.lr for name, r in p.roles.items()}


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.7, 1.0])
def test_the_last_step_learns_however_little_is_left(part: float) -> None:
    p = plan_of(run_of(max_tokens=int((9 + part) * 2**16), total_bsz=2**16, hps={"warmup_tokens": 0}))
    assert p.steps == 10
    last = step_values(p, 9 * 2**16, MICRO).lr["matrix"] / p.roles["matrix"].lr
    assert last == approx(part / 2 / (9 + part), rel=1e-3)


def test_plans_survive_json() -> None:
    p = ramped(batch_rule="sde", optimizer_args={"momentum": 0.9, "nested": {"a": [1, 2]}}, schedule="wsd")
    assert Plan.from_dict(json.loads(json.dumps(p.to_dict()))) == p


def test_a_curriculum_is_told_phase_by_phase() -> None:
    p = plan_of(run_of("mup"))
    phases = [{"from_tokens": 0, "weights": {"web": 2.0, "code": 1.0}}, {"from_tokens": 10**10, "weights": {"code": 7}}]
    curriculum = replace(p, curriculum=phases)
    assert Plan.from_dict(json.loads(json.dumps(curriculum.to_dict()))) == curriculum != p
    lines = describe(curriculum, None).splitlines()
    n = lines.index("curriculum   from 0: web 0.6667, code 0.3333")
    assert lines[n + 1] == "             from 10,000,000,000: code 1"
    assert "curriculum" not in describe(p, None)
    old = p.to_dict()
    del old["curriculum"]
    assert Plan.from_dict(old) == p, "of a version without curricula"


def test_difference_names_every_leaf() -> None:
    a = plan_of(run_of("mup"))
    assert difference(a.to_dict(), a.to_dict()) == []
    matrix = replace(a.roles["matrix"], lr=1.0)
    b = replace(a, seed=1, roles={**a.roles, "matrix": matrix}, optimizer_args={"k": 2})
    assert difference(a.to_dict(), b.to_dict()) == [
        "optimizer_args.k: None -> 2",
        f"roles.matrix.lr: {a.roles['matrix'].lr} -> 1.0",
        "seed: 3407 -> 1",
    ]


def test_a_warmup_that_is_given_must_fit() -> None:
    with pytest.raises(UserError, match=r"1,000,000,000 tokens does not fit.*1,000,000,000 tokens.*warmup_tokens"):
        plan_of(run_of(max_tokens=1e9, hps={"warmup_tokens": 1e9}))
    assert plan_of(run_of(max_tokens=1e9 + 1, hps={"warmup_tokens": 1e9})).tokens == 10**9 + 1


def test_a_small_budget_has_a_warmup_of_its_own() -> None:
    """It was 1e9 tokens in a budget of 1e7, which stopped `--depth 4 --ar 32 --max_tokens 1e7` (departure D89)."""
    warmups = {
        n: plan_of(run_of(max_tokens=n)).schedule.warmup_tokens for n in (1e7, 9.5e9 - 1, 9.5e9, 9.5e9 + 1, 1e12)
    }
    assert warmups == {1e7: approx(1e7 / 9.5), 9.5e9 - 1: approx(1e9 - 1 / 9.5), 9.5e9: 1e9, 9.5e9 + 1: 1e9, 1e12: 1e9}
    assert plan_of(run_of("midtrain", max_tokens=1e9)).schedule.warmup_tokens == 0
    assert plan_of(run_of("mup_muon", max_tokens=1e9)).schedule.warmup_tokens == 0
    assert plan_of(run_of("super_mup", max_tokens=1e8)).schedule.warmup_tokens == approx(1e8 / 9.5)
    small = plan_of(run_of("super_mup", max_tokens=1e8, hps={"t0": 5e8}))  # 1e9 / t0 of the budget were two of it
    assert small.schedule.warmup_tokens == approx(1e8 / 9.5)


def test_all_budgets_of_wsd_s_have_the_warmup_of_the_first() -> None:
    p = plan_of(run_of("mup", depth=8, decay_at=["1B", "2B"]))
    assert p.schedule.warmup_tokens == approx(1e9 / 9.5) and len(p.schedule.decays) == 2


def test_a_batch_that_micro_batches_miss_is_said() -> None:
    one = plan_of(run_of(max_tokens=1e9)).batch_tokens  # whole micro-batches, whatever they are
    plan = plan_of(run_of(max_tokens=1e9, total_bsz=one))
    assert plan.batch_tokens == one
    assert f"a batch of {one:,} tokens, not {one // 2:,}" in far_batch(one // 2, plan)[0]
    assert not far_batch(None, plan) and not far_batch(one + one // 20, plan)


def test_a_small_budget_has_a_batch_of_its_own_at_the_same_rates() -> None:
    """Two million tokens a step ended it after five (departure D90)."""
    small, large = plan_of(run_of(max_tokens=8.192e7)), plan_of(run_of(max_tokens=9.5e9))
    assert (small.batch_tokens, small.steps, large.batch_tokens) == (81920, 1000, 2**21)
    assert small.roles == large.roles and small.beta2 == large.beta2
    assert plan_of(run_of(max_tokens=1e6)).batch_tokens == 8192, "one micro-batch"
    assert plan_of(run_of(max_tokens=1e7, total_bsz=2**20)).batch_tokens == 2**20
    assert plan_of(run_of(max_tokens=1e7, hps={"b0": 2**20})).batch_tokens == 2**20


def test_what_is_smaller_is_said() -> None:
    run = run_of(max_tokens=1e7)
    (note,) = small_budget(run.base_hps, plan_of(run))
    assert "warm-up of 1,052,631 tokens, not 1e+09" in note and "batch of 8,192 tokens, not 2,097,152" in note
    given = run_of(max_tokens=1e7, total_bsz=8192, hps={"warmup_tokens": 1e5})
    assert small_budget(given.base_hps, plan_of(given)) == () == small_budget(run_of().base_hps, plan_of(run_of()))


def test_a_budget_must_hold_one_batch() -> None:
    with pytest.raises(UserError, match=r"8,191 is less than one batch of 8,192"):
        plan_of(run_of("midtrain", max_tokens=2**13 - 1))
    assert plan_of(run_of("midtrain", max_tokens=2**13)).steps == 1


def test_an_unknown_rule_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"Unknown scaling rule 'mupb'.*Did you mean 'mup' or 'mupp'"):
        plan_of(run_of(parameterization="mupb"))


def test_the_table_shows_the_numbers_of_the_plan() -> None:
    p = plan_of(run_of("mup_wsd_cosine", depth=16, bramp_ratio=2))
    text = describe(p, OPTIMIZERS.facts(p.optimizer))
    for piece in ("transformer d16", f"{p.tokens:,}", "ramps to x2", "wsd", "cosine", "0.000212132", "0.176777"):
        assert piece in text
    assert "expert" not in text, "roles that the model lacks are left out"


def test_the_base_model_is_the_family_at_the_base_depth() -> None:
    run = run_of("mup", depth=16, hps={"d0": 16})
    assert plan_of(run).tokens == 9_500_000_000
    assert plan_of(run).roles["matrix"].lr == approx(6e-4)
    assert model_of(run, 16).parameters["matrix"] == 973_078_528


PLAIN = "--depth 8 --vocab_size 32000 --train_model"


def test_ar_reaches_the_base_model_of_a_command() -> None:
    """At d8 --ar 64 planned a quarter of t0, and MuonH's rate at 1.56 times eta0, as if the base were 1024 wide."""
    plans = [
        resolve_run(typed(f"{PLAIN} transformer --ar 64 --train_name v2scale_mup_muonh {more}"), 1).plan
        for more in ("", "--base_hps.ar0 128")
    ]
    assert plans[0].tokens == 9_500_000_000 and plans[0].roles["matrix"].lr == approx(6e-4)
    assert plans[1].tokens < 0.4 * 9.5e9 and plans[1].roles["matrix"].lr > 1.3 * 6e-4
    deep = resolve_run(typed("--depth 16 --vocab_size 32000 --ar 64 --train_name scaling_mup"), 1).plan
    assert deep.multipliers.logit == 0.5, "as ArchScale's d0 / d"
    # 12 ar^2 d^3 + 2 ar d^2 (H + K) h with H = d, K = d/4 and h = ar, all in 64^2: 8 times from d8 to d16.
    assert deep.tokens / 9.5e9 == approx(8, rel=1e-3)


def test_loss_free_balance_trains_without_the_balance_loss() -> None:
    """--bias_rate left the loss on at weight 0.001; it is on beside the biases where its weight is given."""
    moe = f"{PLAIN} transformer_gqa4_moe --train_name mup --sparsity 4 --top_k 2"
    gammas = {"": 0.001, "--bias_rate 0.001": 0.0, "--bias_rate 0.001 --aux_gamma 0.01": 0.01, "--bias_rate 0": 0.001}
    for more, gamma in gammas.items():
        experts = resolve_run(typed(f"{moe} {more}"), 1).model.experts
        assert experts is not None and experts.aux_gamma == gamma, more
    one = resolve_run(typed(f"{moe} --top_k 1 --bias_rate 0.001"), 1).model.experts
    assert one is not None and (one.gate, one.aux_gamma) == ("all", 0.0)


def test_plans_and_options_of_older_runs_load() -> None:
    folder = Path(__file__).parents[2] / "docs/examples/transformer_d8"
    old = Plan.from_dict(json.loads((folder / "plan.json").read_text()))
    again = resolve_run(parse(["--config", str(folder / "config.yaml")]), 1).plan
    assert (again.tokens, again.steps, again.schedule) == (old.tokens, old.steps, old.schedule)
    for name, role in old.roles.items():
        assert (again.roles[name].lr, again.roles[name].weight_decay) == approx((role.lr, role.weight_decay))


def test_averages_are_part_of_the_plan() -> None:
    """Plans of runs without them, also of versions that knew none, are what they were."""
    line = f"{DATA} --train_model transformer --depth 16 --train_name x --max_tokens 1e10"
    two, one, none = (plan_typed(f"{line} {ema}") for ema in ("--ema 1B,100M", "--ema 1.5B", ""))
    assert (two.ema, one.ema, none.ema) == ([10**8, 10**9], [15 * 10**8], [])
    said = "EMA with half-lives of 100M and 1B tokens (decay 0.985569 and 0.998547 per step of 2,097,152)"
    assert f"averages     {said}\n" in describe(two, OPTIMIZERS.facts("adamw"))
    assert "EMA with a half-life of 1.5B tokens (decay 0.999031 per" in describe(one, OPTIMIZERS.facts("adamw"))
    assert "averages" not in describe(none, OPTIMIZERS.facts("adamw"))
    assert Plan.from_dict(json.loads(json.dumps(two.to_dict()))) == two != none
    old = {key: value for key, value in none.to_dict().items() if key != "ema"}
    assert Plan.from_dict(old) == none
    assert difference(none.to_dict(), two.to_dict()) == ["ema: [] -> [100000000, 1000000000]"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--schedule cos_inf", "needs the length of its constant end"),
        ("--schedule cos_inf --cos_inf_tokens 1B", "would have a rate of 0"),
        ("--schedule cosine --cos_inf_tokens 1B", "--cos_inf_tokens acts in --schedule cos_inf"),
        ("--schedule wsd --decay exp", "--decay exp never reaches a rate of 0"),
        ("--schedule none --base_hps.warmup_tokens 1M", "--schedule none has no warm-up"),
    ],
)
def test_schedules_that_cannot_be(line: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve(typed(line))


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ({"schedule": "wsd", "decay_fraction": 0.04}, r"--decay_fraction 0.04 is about the last 32,768 tokens, and no"),
        (
            {"schedule": "cos_inf", "cos_inf_tokens": 32768, "hps": {"min_lr_mult": 0.1, "warmup_tokens": 0}},
            r"--cos_inf_tokens 32,768 is about .*Give a larger --cos_inf_tokens or --max_tokens",
        ),
    ],
)
def test_an_end_that_no_step_would_see_is_refused(ends: dict[str, Any], says: str) -> None:
    """A wsd whose decay was shorter than half of a step trained at its peak to the end, and nothing said so."""
    batch: dict[str, Any] = {"max_tokens": 12.5 * 2**16, "total_bsz": 2**16}
    with pytest.raises(UserError, match=says):
        plan_of(run_of(**batch, **{"hps": {"warmup_tokens": 0}, **ends}))


def test_a_decay_of_more_than_half_a_step_is_seen() -> None:
    hps = {"warmup_tokens": 0, "min_lr_mult": 0.0}
    for ramp, share in ((1, 0.051), (2, 0.101)):  # of ten steps, the ones after a ramp
        tokens = 10 * 2**16
        p = plan_of(
            run_of(schedule="wsd", decay_fraction=share, max_tokens=tokens, total_bsz=2**16, bramp_ratio=ramp, hps=hps)
        )
        last = step_values(p, tokens - ramp * 2**16, MICRO)
        assert last.lr["matrix"] < p.roles["matrix"].lr * (2**0.5 if ramp > 1 else 1)
    given = run_of(schedule="wsd", decay_tokens=2**16, decay_fraction=0.01, max_tokens=tokens, total_bsz=2**16)
    assert len(plan_of(given).schedule.decays) == 1, "--decay_tokens is the length"


def test_a_warmup_that_no_step_sees_is_said() -> None:
    tokens: dict[str, Any] = {"max_tokens": 10 * 2**16, "total_bsz": 2**16}
    for warmup, seen in ((2**15, False), (2**15 + 1, True), (0, True)):
        p = plan_of(run_of(hps={"warmup_tokens": warmup}, **tokens))
        assert (unseen_warmup(warmup, p) == ()) == seen == (not warmup or lr_fraction(p, 0, step_values(p, 0, 1)) < 1)
    assert unseen_warmup(None, p) == ()


def test_schedules_of_the_second_benchmark() -> None:
    """Both spellings of a decay are one; a constant end leaves tokens for the cosine; none has no warm-up."""
    for spelt, meant in (("sqrt", "1-sqrt"), ("1-sqrt", "1-sqrt"), ("miror_cosine", "mirror_cosine")):
        assert plan_of(run_of(schedule="wsd", decay=spelt)).schedule.decay == meant
    end: dict[str, Any] = {"schedule": "cos_inf", "hps": {"min_lr_mult": 0.1}, "max_tokens": 10e9}
    plan = plan_of(run_of(cos_inf_tokens=2e9, **end))
    assert (plan.schedule.constant_end, fraction(plan.schedule, 8.5e9)) == (2 * 10**9, 0.1)
    assert "constant for the last 2,000,000,000 tokens" in describe(plan, None)
    with pytest.raises(UserError, match="leave nothing of a budget"):
        plan_of(run_of(cos_inf_tokens=9.5e9, **end))
    assert step_values(plan_of(run_of(schedule="none")), 0, 1).lr["matrix"] == plan_of(run_of()).roles["matrix"].lr


def test_init_std() -> None:
    """Of every linear map, of a tied table, and under plain of any table; refused where no weight would start by it."""
    for rule, tied, table in (("sp", False, 1e-4), ("sp", True, 0.006), ("plain", False, 0.006)):
        roles = plan_of(run_of(parameterization=rule, tie_embeddings=tied, init_std=0.006)).roles
        assert [roles[r].init.std for r in ("matrix", "head", "router", "embedding")] == [0.006] * 3 + [table]
    with pytest.raises(UserError, match="--init_std acts where weights start from N"):
        plan_of(run_of(parameterization="mup", init_std=0.02))


def test_width_of_feed_forward_networks() -> None:
    """The widths of published models: LLaMA 7B and 13B, and those of arXiv:2509.01440."""
    published = {(4096, 256): 11008, (5120, 256): 13824, (768, 256): 2048, (2048, 256): 5632}
    assert {key: ffn_width(*key, gated=True) for key in published} == published
    assert ffn_width(768, 256, gated=False) == 3072

    def config(more: str) -> ModelConfig:
        return model_config(resolve(typed(f"--depth 6 --ffn_multiple_of 256 {more}"))[0], 6, None)

    line = "--train_model baseline --ffn_multiple_of 1000"  # the family's own multiple is 4
    network = mlp.build(model_config(resolve(typed(line))[0], 8, None), 0)
    assert network and network.down.weight.shape == (512, 1.5 * 2000)
    assert [config(m).intermediate_size for m in ("", "--mlp relu2", "--mlp gelu")] == [2048, 2048, 3072]
    assert config("--norm_eps 1e-6").norm_eps == 1e-6
