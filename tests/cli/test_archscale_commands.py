"""Every training command that ArchScale's users type prints its Plan here, unchanged but for paths."""

from __future__ import annotations

import pytest

import pretrain

DEPTHS = (8, 12, 16, 20, 24)
DATA = "--train_data_dir D --val_data_dir D"
MOE = f"{DATA} --train_model transformer_gqa4_h2_moe --sparsity 8 --top_k 8 --share_expert true --global_aux true "
MOE += "--sqrt_gate true --train_name v2scale_mup_muonh_ga_qknorm_sgate_shexp --fsdp2 true"
LADDER = '--base_hps.warmup_tokens=0 --base_hps.t0=10.4e9 --base_hps.min_lr_mult=0.1 --resume="auto" --micro_bsz=16'
# Of its launch scripts, which pass them to dense models too.
EXPERTS = "--sparsity 32 --top_k 4 --aux_style switch --aux_gamma 0.1 --share_expert true --global_aux true"
DENSE = f"{DATA} --train_model transformer"
VARLEN = f"{DENSE} --max_tokens 4e10 --train_name scaling_mup_rbase_varlen --ctx_len"
PHI = "--train_data_dir D --base_hps.eta0=5e-4 --base_hps.b0=8388608 --base_hps.warmup_tokens0=25_165_824_000 "
PHI += '--ctx_len 8192 --max_tokens 5e12 --resume="auto" --train_model phi4miniflash --depth 32 --train_name scaling'

PLAIN = [
    f"{MOE} --depth 8",
    *(f"{MOE} --depth {d} {LADDER} --act_ckpt={'true' if d >= 20 else 'false'}" for d in DEPTHS),
    *(f"{DATA} --train_model sambay --depth {d} --train_name scaling_mup" for d in DEPTHS),
    *(f"{DENSE} --depth 16 --max_tokens {n}e11 --train_name scaling_mup_tie" for n in range(1, 7)),
    f"{VARLEN} 32768 --depth 16",
    f"{VARLEN} 131072 --depth 20 --fsdp_save_mem=true",
    PHI,
    "--train_data_dir D --train_model sambayda --depth 24 --vocab_size 200064 --train_name scaling_mup_tie "
    "--ctx_len 8192 --max_tokens 1e12",
    *(
        f"{DENSE} --depth 8 --base_hps.eta0={lr} --base_hps.b0={b} --train_name hp_sweep_lr{lr}_bs{b} --max_tokens 1e10"
        for lr, b in (("4e-4", 2**20), ("1e-3", 2**22))
    ),
    "--train_data_dir D --train_model mamba --depth 16 --ctx_len 16384 --train_name mamba_varlen --max_tokens 1e11",
    f"{DENSE} --depth 8 --num_workers=8 --precision=bf16 --compile=true --gradient_checkpointing=true",
]
# Options that the family lacks are one note, and --fsdp2, which nothing reads, is another.
NOTED = [
    *(f"{DENSE}_gqa4_h2 --depth {d} --train_name v2scale_mup_muonh_ga_qknorm {LADDER} {EXPERTS}" for d in (8, 24)),
    f"{DATA} --train_model sambay --depth 8 --train_name scaling_mup {EXPERTS}",
    f"{DATA} --train_model mamba --depth 8 --train_name scaling_mup {EXPERTS} --swa_len 2048",
]


@pytest.mark.parametrize("command", [*PLAIN, *NOTED])
def test_every_training_command_prints_its_plan(command, capsys, monkeypatch, tmp_path):
    """Those of dense models with options of experts ended in "has no experts, so --sparsity cannot act"."""
    monkeypatch.setenv("LIGHTNING_ARTIFACTS_DIR", str(tmp_path))
    assert pretrain.main([*command.replace('"', "").split(), "--dry_run", "true"]) == 0
    shown = capsys.readouterr().out
    assert "peak lr" in shown and f"run folder   {tmp_path}" in shown
    assert shown.count("\nnote ") == (command in NOTED) + ("--fsdp2" in command)
    assert not list(tmp_path.iterdir())
