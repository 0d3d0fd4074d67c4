"""A run folder made by pretrain.py itself, shared by the tests of the tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gpt.config.cli import parse
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train.loop import run_training

LINE = (
    "--train_model transformerls --depth 4 --ar 16 --swa_len 8 --train_name mup_tie --ctx_len 32 --vocab_size 257 "
    "--micro_bsz 2 --total_bsz 64 --max_tokens 256 --save_step 2 --base_hps.b0 64 --base_hps.warmup_tokens 0 "
    "--base_hps.eta0 1e-2 --num_workers 0"
)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """Four steps on a little text, with checkpoints at steps 2 and 4."""
    root = tmp_path_factory.mktemp("run")
    (root / "data").mkdir()
    for i in range(20):
        (root / "data" / f"{i}.txt").write_text(f"Document {i} says: the cat sat on the mat. " * 5)
    resolved = resolve_run(parse([*LINE.split(), "--train_data_dir", str(root / "data"), "--out_dir", str(root)]), 1)
    assert run_training(resolved) == 0
    return resolved.folder


@pytest.fixture(autouse=True)
def quick(one_thread) -> None:
    """Models this small are slower on several threads."""
