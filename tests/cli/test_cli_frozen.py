"""The command line is a promise: options of ArchScale exist, and none changes unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lit_gpt.config.resolve import ALIASES
from lit_gpt.config.run import RunConfig

OPTIONS = Path(__file__).with_name("options.txt")
# Option -> default in ArchScale's signature. None for sparsity and top_k: the family's, which is 1 and 2 in all of
# ArchScale's (tests/architectures/test_hybrid_families.py).
ARCHSCALE: dict[str, Any] = {
    "train_data_dir": "data/redpajama_sample",
    "val_data_dir": None,
    "load_dir": None,
    "resume": False,
    "train_model": "transformer",
    "train_name": "scaling_mup_tie_rbase_prolong_varlen",
    "depth": 16,
    "max_tokens": None,
    "ctx_len": None,
    "swa_len": None,
    "data_mixture": None,
    "fsdp_save_mem": False,
    "use_mlflow": False,
    "save_step": None,
    "micro_bsz": 2,
    "total_bsz": None,
    "yarn_scale": 1.0,
    "sparsity": None,
    "top_k": None,
    "use_flce": None,
    "norm_class": None,
    "fp8": False,
    "fp4": False,
    "post_norm": None,
    "bramp_ratio": None,
    "aux_style": None,
    "aux_gamma": None,
    "fsdp2": False,
    "num_extrp": None,
    "offloading": False,
    "ortho_init": False,
    "diag_init": False,
    "maxfan_init": False,
    "act_ckpt": False,
    "share_expert": None,
    "global_aux": None,
    "sqrt_gate": None,
    "head_init_std": 0.02,
    "logging_multiprocessing": True,
    "ar": None,
    "wandb_project": "discrete-llm",
}
# Fields of base_hps. None here: resolved in the Plan, to 0.1 or 4e-5, and to 1e9 or 0.
ARCHSCALE_HPS: dict[str, Any] = {
    "d0": 8,
    "eta0": 6e-4,
    "b0": 2_097_152,
    "t0": 9.5e9,
    "hd0": 128,
    "w_init_scale": 1.0,
    "n0_mult": 237_568,
    "weight_decay": None,
    "eps": 1e-8,
    "min_lr_mult": 0.0,
    "warmup_tokens": None,
    "beta1": 0.9,
    "beta2": 0.95,
    "muon_beta": 0.95,
    "weight_lr_scale": 1.0,
}
# A value of each option as the shell passes it; null where the launch scripts may.
TYPED = (
    "--train_data_dir D --val_data_dir null --data_mixture m.json --load_dir null --resume auto "
    "--train_model samba --train_name a_mup --depth 8 --max_tokens 1e10 --ctx_len 8192 --swa_len null "
    "--fsdp_save_mem true --use_mlflow true --save_step null --micro_bsz=16 --total_bsz 8388608 "
    "--yarn_scale 4 --sparsity 8 --top_k 8 --use_flce null --norm_class LayerNorm --fp8 false --fp4 false "
    "--post_norm true --bramp_ratio 4 --aux_style entropy --aux_gamma 0.1 --fsdp2 true --num_extrp null "
    "--offloading true --ortho_init true --diag_init true --maxfan_init true --act_ckpt true "
    "--share_expert true --global_aux true --sqrt_gate true --head_init_std null "
    "--logging_multiprocessing false --ar null --wandb_project p"
)


def parser() -> ArgumentParser:
    made = ArgumentParser(exit_on_error=False)
    made.add_class_arguments(RunConfig)
    return made


def options() -> dict[str, Any]:
    """Every leaf option and its default."""
    return dict(parser().get_defaults().items())


def test_options_of_archscale_exist_with_their_defaults() -> None:
    ours = options()
    expected = ARCHSCALE | {f"base_hps.{key}": value for key, value in ARCHSCALE_HPS.items()}
    assert expected.keys() - ours.keys() == set()
    assert {key: ours[key] for key in expected} == expected


def test_options_of_archscale_take_the_values_that_its_users_type() -> None:
    words = TYPED.split()
    assert {w.removeprefix("--").partition("=")[0] for w in words if w.startswith("--")} == ARCHSCALE.keys()
    parsed = parser().parse_args(words)
    assert (parsed.max_tokens, parsed.micro_bsz, parsed.head_init_std, parsed.act_ckpt) == (1e10, 16, None, True)
    hps = [f"--base_hps.{key}={value}" for key, value in ARCHSCALE_HPS.items() if value is not None]
    parsed = parser().parse_args([*hps, "--base_hps.weight_decay=0.1"])
    assert parsed.base_hps.weight_decay == 0.1 and parsed.base_hps.b0 == 2**21


def test_the_options_are_frozen() -> None:
    frozen, now = OPTIONS.read_text(encoding="utf-8").split(), sorted(options())
    gone, new = sorted(set(frozen) - set(now)), sorted(set(now) - set(frozen))
    assert frozen == now, (
        f"The command line changed. Gone: {gone}. New: {new}. An option that is gone breaks commands that people "
        f"type: keep it, or add its old spelling to ALIASES. If the change is meant, make {OPTIONS.name} read, one "
        "option per line:\n" + "\n".join(now)
    )


def test_aliases_lead_to_options_and_are_none() -> None:
    names = {f"--{option}" for option in options()}
    assert set(ALIASES.values()) <= names
    assert names.isdisjoint(ALIASES)
