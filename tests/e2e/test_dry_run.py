"""Plans without data: every dense family under every rule, and the commands of ArchScale's guide."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from tiny_run import pretrain

from lit_gpt.architectures import FAMILIES, experts_of
from lit_gpt.config.cli import parse
from lit_gpt.config.resolve import resolve
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.model_options import model_config
from lit_gpt.scaling.plan import build_plan
from lit_gpt.scaling.rules import RULES

BASE = 2**21  # tokens of the base batch
DATA = "--train_data_dir D --val_data_dir D"
MOE = f"{DATA} --train_model transformer_gqa4_h2_moe --sparsity 8 --top_k 8 --share_expert true --global_aux true "
MOE += "--sqrt_gate true --train_name v2scale_mup_muonh_ga_qknorm_sgate_shexp --fsdp2 true"
LADDER = "--base_hps.warmup_tokens=0 --base_hps.t0=10.4e9 --base_hps.min_lr_mult=0.1 --resume=auto --micro_bsz=16"
HYPERP = f"{DATA} --train_model transformer_gqa4_h2 --train_name v2scale_mup_muonh_ga_qknorm_sgate_shexp --fsdp2 true"
HYPERBALL = {"embedding": "adamw", "head": "adamh", "matrix": "muonh", "expert": "muonh", "router": "muonh"}
PHI = "--train_data_dir D --base_hps.eta0=5e-4 --base_hps.b0=8388608 --base_hps.warmup_tokens0=25_165_824_000 "
PHI += "--ctx_len 8192 --max_tokens 5e12 --resume=auto --train_model phi4miniflash --depth 32 --train_name scaling"
DENSE = f"{DATA} --train_model transformer"
LONG = f"{DENSE} --max_tokens 4e10 --train_name scaling_mup_rbase_varlen"
SWEEP = "--train_name hp_sweep_lr4e-4_bs1048576 --max_tokens 1e10"
TROUBLE = "--num_workers=8 --precision=bf16 --compile=true --gradient_checkpointing=true"

# Command -> what its Plan must say. sqrt(8 / depth) is muP++'s depth factor, 8 / depth muP's width factor.
COMMANDS: dict[str, list[str]] = {
    f"{MOE} --depth 8": [
        r"rule +hyperp, batch rule default, optimizer muonh",
        r"tokens +9,500,000,000 in",
        r"warm-up 0 tokens, final fraction 0$",
        r"logits 1, branches 0.25,",
        *(rf"{role} +0.0006 +0  {rule} " for role, rule in HYPERBALL.items()),
    ],
    f"{MOE} --depth 24 {LADDER} --act_ckpt=true": [
        r"warm-up 0 tokens, final fraction 0.1$",
        rf"logits 1, branches {48**-0.5:.6g},",
        r"tokens +194,459,930,853 in",
        rf"embedding +{6e-4 * 3**-0.5 * (194_459_930_853 / 10.4e9) ** -0.32:.6g} +0  adamw ",
        rf"head +{6e-4 * 3**-0.5 * (194_459_930_853 / 10.4e9) ** -0.32:.6g} +0  adamh ",
    ],
    f"{HYPERP} --depth 8 {LADDER}": [
        r"rule +hyperp, batch rule default, optimizer muonh",
        r"tokens +10,400,000,000 in",
        *(rf"{role} +0.0006 +0  {rule} " for role, rule in HYPERBALL.items() if role not in ("expert", "router")),
    ],
    f"{HYPERP} --depth 16 {LADDER} --act_ckpt=true --max_tokens 4.16e10": [
        r"warm-up 0 tokens, final fraction 0.1$",
        rf"matrix +{6e-4 * 0.5**0.5 * 4**-0.32:.6g} +0  muonh ",
        rf"embedding +{6e-4 * 0.5**0.5 * 4**-0.32:.6g} +0  adamw ",
    ],
    f"{DENSE} --depth 16 --train_name v2scale_mup_muon": [
        r"rule +mupp, batch rule default, optimizer muon$",
        r"warm-up 0 tokens",
        rf"matrix +{6e-4 * 0.5**0.5:.6g} +2e-05  muon ",
        r"logits 0.5,",
    ],
    f"{DENSE} --depth 16 --train_name mup_muonball": [
        rf"matrix +{6e-4 * 0.5**0.5:.6g} +0  muonball ",
        r"vector .* adamw ",
    ],
    f"{DENSE} --depth 16 --train_name mup_hadam": [rf"matrix +{6e-4 * 0.5**1.5:.6g} +0.1  nadam ", r"head .* adamw "],
    f"{DENSE} --depth 16 --train_name muon": [r"rule +sp, ", r"matrix +0.0006 +0.1  muon "],
    f"{DATA} --train_model sambay --depth 8 --train_name scaling_mup": [],
    f"{DENSE} --depth 16 --max_tokens 1e11 --train_name scaling_mup_tie": [
        rf"tokens +100,000,000,000 in {-(-(10**11) // BASE):,} steps of {BASE:,}",
        rf"embedding +{6e-4 * 0.5**0.5:.6g} +0 ",
        rf"matrix +{6e-4 * 0.5**1.5:.6g} +0.1 ",
        rf"branches {32**-0.5:.6g}, softmax scale {128**-0.5:.6g}",
        r"labels only +scaling$",
    ],
    f"{LONG} --depth 16 --ctx_len 32768": [r"context 32,768", rf"steps of {BASE:,}", r"_d16_ctx32768"],
    f"{LONG} --depth 20 --ctx_len 131072 --fsdp_save_mem=true": [r"context 131,072", rf"steps of {BASE:,}"],
    PHI: [],
    "--train_data_dir D --train_model sambayda --depth 24 --vocab_size 200064 --train_name scaling_mup_tie "
    "--ctx_len 8192 --max_tokens 1e12": [],
    f"{DENSE} --depth 8 --base_hps.eta0=4e-4 --base_hps.b0=1048576 {SWEEP} {TROUBLE}": [
        r"rule +sp,",
        r"10,000,000,000 in 9,537 steps of 1,048,576",
        r"matrix +0.0004 +0.1 ",
    ],
    "--train_data_dir D --train_model mamba --depth 16 --ctx_len 16384 --train_name mamba_varlen --max_tokens 1e11": [],
}


def dry_run(line: str) -> int:
    return pretrain.main([*line.split(), "--dry_run", "true"])


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_guide(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    code, shown = dry_run(command), capsys.readouterr()
    assert code == 0, shown.err
    assert str(tmp_path / "artifacts") in shown.out
    for line in COMMANDS[command]:
        assert re.search(line, shown.out, re.MULTILINE), f"{line}\n{shown.out}"
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


DENSE_FAMILIES = [name for name in FAMILIES.names() if experts_of(name) is None]
RULE_NAMES = RULES.names()


@pytest.mark.parametrize("i", range(len(DENSE_FAMILIES)), ids=DENSE_FAMILIES)
def test_families_and_rules(i, capsys):
    """At the base depth and batch every rule leaves the base learning rate alone. One of them is printed.

    Under baseline, tables have published rates of their own (tests/scaling/test_baseline_rule.py).
    """
    family, printed = DENSE_FAMILIES[i], RULE_NAMES[i % len(RULE_NAMES)]
    start = " --zero_output false" if family == "baseline" else ""  # muonh keeps projections at zero, and refuses them
    line = f"--train_model {family} --depth 8{start} --train_name x --parameterization"
    typed = parse(f"{line} sp".split())
    counted = count(meta_model(model_config(resolve(typed)[0], 8, None)))
    for rule in RULE_NAMES:
        optimizer = "muonh" if rule.startswith("hyperp") else None  # refused with others
        run, _ = resolve(replace(typed, parameterization=rule, optimizer=optimizer))
        plan = build_plan(run, OPTIMIZERS.facts(run.optimizer or "adamw"), counted, counted, 1)
        assert (plan.rule, plan.tokens, plan.batch_tokens) == (rule, 9_500_000_000, BASE)
        of_tables = () if rule == "baseline" else ("embedding",)
        assert {plan.roles[role].lr for role in ("matrix", *of_tables)} == {6e-4}
    options = " --optimizer muonh" if printed.startswith("hyperp") else ""
    assert dry_run(f"{line} {printed}{options}") == 0
    shown = capsys.readouterr().out
    assert re.search(rf"model +{family} d8,.*\nparameters +total [\d,]+(.|\n)*rule +{printed},", shown)
    assert re.search(r"tokens +9,500,000,000 in 4,530 steps of 2,097,152", shown)
    assert re.search(r"matrix +0.0006 ", shown)
    assert printed == "baseline" or re.search(r"embedding +0.0006 ", shown)
