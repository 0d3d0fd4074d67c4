"""Options that were taken and changed nothing, in silence: a note says so, and none is said of those that act."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gpt.config.cli import parse
from lit_gpt.plugins import load_plugins
from lit_gpt.preflight.resolved_run import resolve_run

SMALL = "--depth 4 --ar 16 --ctx_len 64 --vocab_size 257 --base_hps.d0 4 --max_tokens 1M --total_bsz 1k "


def notes(line: str) -> tuple[str, ...]:
    """Those of a small run, but for its small batch and warm-up."""
    found = resolve_run(parse((SMALL + line).split()), 1).notes
    return tuple(note for note in found if not note.startswith(("defaults for", "a batch of")))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--train_name x --head_init_std 0.5", "--head_init_std (--parameterization sp starts the head by itself)"),
        ("--train_name x --head_init_std null", "--head_init_std (--parameterization sp starts the head by itself)"),
        ("--train_name x_mup_tie --head_init_std 0.5", "--head_init_std (the head is the token table)"),
        ("--train_name x --base_hps.muon_beta 0.9", "--base_hps.muon_beta (--optimizer adamw)"),
        ("--train_name x --optimizer lion --base_hps.eps 1e-6", "--base_hps.eps (--optimizer lion)"),
        ("--train_name x --optimizer sgd --base_hps.beta1 0.8", "--base_hps.beta1 (--optimizer sgd)"),
        ("--train_name x_muonh --base_hps.weight_decay 0.1", "--base_hps.weight_decay (--parameterization hyperp, "),
        (
            "--train_name x --schedule constant --base_hps.min_lr_mult 0.1",
            "--base_hps.min_lr_mult (--schedule constant)",
        ),
        ("--train_name x --decay_tokens 100k --decay_fraction 0.5", "--decay_fraction (--decay_tokens is given)"),
        ("--train_name x --max_tokens=1M --decay_at 1M --lower_peaks true", "--lower_peaks (there is one decay)"),
        ("--train_name x_midtrain --base_hps.warmup_tokens 100k", "--base_hps.warmup_tokens (no warm-up)"),
        ("--train_name x --param_count analytic", "--param_count (--max_tokens is given)"),
        ("--train_name x --count_embeddings true", "--count_embeddings (--max_tokens is given)"),
        (
            "--train_name x --base_hps.weight_decay 0 --cautious_weight_decay true",
            "--cautious_weight_decay (nothing is ",
        ),
        ("--train_name x --norm_gain false --base_hps.vector_lr_scale 2", "--base_hps.vector_lr_scale (no such "),
        ("--train_name x --ortho_init true --diag_init true", "--ortho_init (a later start is given, too)"),
        (
            "--train_name x_mup --depth_scale false",
            "--depth_scale false (--parameterization mupp has a factor of its own)",
        ),
    ],
)
def test_options_on_which_nothing_depends(line: str, says: str) -> None:
    (note,) = notes(line)
    assert note.startswith(f"nothing in this run depends on {says}")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--train_model mamba --varlen true --doc_positions continue", "mamba reads --doc_positions (no positions)"),
        ("--mlp none --ffn_norm true", "transformer reads --ffn_norm (no feed-forward networks)"),
        ("--mlp none --ffn_multiple_of 64", "transformer reads --ffn_multiple_of (no feed-forward networks)"),
        ("--skip none --depth_scale true", "transformer reads --depth_scale (no residual stream)"),
        ("--compile false --compile_cache x", "this run reads --compile_cache (no --compile)"),
        ("--position none --yarn_scale 2 --midtrain true", "transformer reads --yarn_scale (no rotary positions)"),
        (
            "--train_model transformer_gqa4_moe --sparsity 2 --bias_rate 0.01 --global_aux true --aux_style entropy",
            "transformer_gqa4_moe reads --aux_style, --global_aux (no balance loss)",
        ),
        (
            "--train_model transformer_gqa4_moe --bias_rate 0.01",
            "transformer_gqa4_moe reads --bias_rate (no experts beside those that every token uses)",
        ),
        (
            "--train_model transformer_gqa4_moe --aux_gamma 0.1 --router_gate all --expert_capacity 1",
            "transformer_gqa4_moe reads --router_gate, --expert_capacity, --aux_gamma (no experts beside those that "
            "every token uses)",
        ),
        ("--share_per_layer 4", "transformer reads --share_per_layer (no layers that share a block)"),
        ("--num_extrp 2 --eval_tasks phonebook", "this run reads --num_extrp (no --val_data_dir)"),
        (
            "--eval_tasks phonebook --eval_step 5 --eval_tasks_step 9",
            "this run reads --eval_step (no --val_data_dir)",
        ),
        (
            "--tracker_group x --tracker_name y",
            "this run reads --tracker_name, --tracker_group (no --loggers wandb or ",
        ),
        ("--wandb_entity x --loggers mlflow", "this run reads --wandb_entity (no --loggers wandb)"),
        (
            "--init_from x --embedding_init_std 0.3 --head_start flat",
            "this run reads --embedding_init_std, --head_start (no tables that are drawn, which the checkpoint has)",
        ),
        (
            "--act_offload 0.5 --act_ckpt full --compile false",
            "this run reads --act_offload (no --compile, without which --act_ckpt full leaves nothing)",
        ),
        ("--health_step 1000", "this run reads --health_step (no such step)"),
        ("--save_step 300 --keep_every 400", "this run reads --keep_every (no checkpoint at such a step)"),
        ("--eval_positions true --eval_step 5", "this run reads --eval_step, --eval_positions (no --val_data_dir)"),
        ("--sample_tokens 5", "this run reads --sample_tokens (no --sample_prompts)"),
        ("--eval_tasks_limit 5", "this run reads --eval_tasks_limit (no --eval_tasks)"),
        ("--wandb_project x --loggers csv", "this run reads --wandb_project (no --loggers wandb or mlflow)"),
        ("--fp8_gather true", "this run reads --fp8_gather (no --fp8)"),
        ("--fp8_recipe rowwise", "this run reads --fp8_recipe (no --fp8)"),
        ("--precision fp32 --residual_precision bf16", "this run reads --residual_precision (no --precision bf16)"),
    ],
)
def test_options_that_nothing_reads(line: str, says: str) -> None:
    (note,) = notes(f"--train_name x {line}")
    assert note.startswith(f"nothing in {says}")


def test_an_offload_of_no_layer() -> None:
    (note,) = notes("--train_name x --depth 1 --base_hps.d0 1 --act_offload 0.001")
    assert note == "nothing in this run reads --act_offload (no layer before the last one)"


@pytest.mark.parametrize(
    "line",
    [
        "x_mup --head_init_std null",
        "x_mup --head_init_std 0.1 --embedding_init_std 0.3 --base_hps.w_init_scale 2 --base_hps.vector_lr_scale 2",
        "x --base_hps.beta1 0.8 --base_hps.beta2 0.9 --base_hps.eps 1e-12 --cautious_weight_decay true",
        "x --base_hps.warmup_tokens 2k --base_hps.min_lr_mult 0.01 --base_hps.weight_decay 1e-9 --base_hps.eta0 1e-9",
        "x --optimizer sophia --base_hps.beta2 0.8",  # which needs more than gradients
        "x_mup_muon --base_hps.muon_beta 0.9 --base_hps.beta1 0.8 --base_hps.warmup_tokens 0",
        "v2scale_mup_muonh --diag_init true --eval_tasks phonebook --eval_step 5",
        "x --decay_at 500k,1M --lower_peaks true --decay_fraction 0.5",
        "x_tie_rbase --train_model sambay --swa_len 16",
        "x --train_model mamba --position learned --act_offload 0.001",
        "x --health_step 900 --save_step 200 --keep_every 300",
        "x --save_step 300 --keep_every 400 --stop_after 400",
        "x --train_model transformer_gqa4_moe --aux_gamma 0.1 --aux_style entropy --router_gate sigmoid",
        "x --num_extrp 2 --eval_step 3 --eval_tasks phonebook --eval_tasks_step 5 --val_data_dir v",
        "x --loggers wandb --tracker_group x --wandb_entity y",
    ],
)
def test_nothing_is_said_of_options_that_act(line: str) -> None:
    assert notes(f"--train_name {line}") == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "x_tie --embedding_init_std 0.8",
            "the embedding, which is the head here, starts at N(0, 0.8), so first logits are",
        ),
        (
            "x_mup --head_init_std 0.5",
            "the head starts at N(0, 0.5), so first logits are of size 4: try --head_init_std 0.02",
        ),
        ("x --embedding_init_std 0.8", None),
        ("x_tie", None),
    ],
)
def test_a_start_far_above_a_guess_is_said(line: str, says: str | None) -> None:
    """configs/baseline.yaml gives tables a start that, with --tie_embeddings true, made a first loss of 14."""
    found = notes(f"--train_name {line}")
    assert not found if says is None else len(found) == 1 and found[0].startswith(says)


RULE = """
from dataclasses import replace

from lit_gpt.scaling.base import Init
from lit_gpt.scaling.rules import sp


def transfer(s):
    base = sp.transfer(s)
    return replace(base, init=base.init | {"head": START})
"""


def test_a_rule_of_ones_own_is_asked(tmp_path: Path) -> None:
    """Whether an option acts is no list of rules."""
    try:
        for name, start in (("reading", "Init('normal', s.head_init_std)"), ("deaf", "Init('normal', 0.1)")):
            (tmp_path / f"{name}.py").write_text(RULE.replace("START", start))
            line = f"--train_name x --plugins {tmp_path / name}.py --parameterization {name} --head_init_std 0.2"
            assert len(notes(line)) == (name == "deaf")
    finally:
        load_plugins([])


@pytest.mark.parametrize(
    ("optimizer", "idle"),
    [
        ("adamw", ["muon_beta"]),
        ("signum", ["beta1", "beta2", "eps", "muon_beta"]),
        ("lion", ["eps", "muon_beta"]),
        ("muonh", []),
        ("adopt", ["eps", "muon_beta"]),
        ("sophia", ["eps", "muon_beta"]),  # which needs a model for its curvature, so its steps could not tell
    ],
)
def test_the_facts_tell_what_an_optimizer_reads(optimizer: str, idle: list[str]) -> None:
    """tests/optim/test_plan_is_true.py holds the facts to what steps do."""
    given = {"beta1": 0.5, "beta2": 0.5, "eps": 5e-9, "muon_beta": 0.5}
    words = " ".join(f"--base_hps.{key} {value}" for key, value in given.items())
    said = " ".join(notes(f"--train_name x --optimizer {optimizer} {words}"))
    assert [key for key in given if f"--base_hps.{key}" in said] == idle


def test_options_of_archscale_that_nothing_reads() -> None:
    """Its commands have them, and who types one expects something of it."""
    (note,) = notes("--train_name x --fsdp2 true --logging_multiprocessing false --base_hps.n0_mult 5")
    assert note == (
        "nothing reads --fsdp2 (several processes always train with FSDP2), --logging_multiprocessing (logging never "
        "holds up training), --base_hps.n0_mult (nor in ArchScale)"
    )
    assert notes("--train_name x --fsdp2 false --logging_multiprocessing true") == ()
