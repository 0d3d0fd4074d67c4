"""lm-eval's own `hf` model, on models with their own code, gives eval.py's numbers: dense, SambaY, experts."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from lm_eval_runs import TASKS, answers, check_equal, evaluate, ours

from lit_gpt.config.cli import parse
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.tools import convert
from lit_gpt.train.loop import run_training

pytest.importorskip("lm_eval", reason="pip install -e '.[eval]'")
pytest.importorskip("accelerate", reason="pip install -e '.[eval]'")
FAMILIES = {
    "transformer": "--depth 2",
    "sambay": "--depth 8",
    "transformer_gqa4_moe": "--depth 4 --sparsity 2 --top_k 2",
}
LINE = (
    "--train_name mup --ar 16 --ctx_len 64 --micro_bsz 4 --total_bsz 256 --max_tokens 2560 --base_hps.b0 256 "
    "--base_hps.warmup_tokens 512 --base_hps.eta0 1e-2 --num_workers 0 --compile false"
)


@pytest.fixture(autouse=True, scope="module")
def modules(tmp_path_factory):
    """Where transformers copies code to; offline."""
    from transformers import dynamic_module_utils

    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
            patch.delitem(sys.modules, name)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, trained, tmp_path_factory) -> Path:
    """Ten steps on the data of `trained`."""
    data, out = trained.parents[1] / "data", tmp_path_factory.mktemp("remote")
    line = f"--train_model {request.param} {FAMILIES[request.param]} {LINE} --train_data_dir {data} --out_dir {out}"
    resolved = resolve_run(parse(line.split()), 1)
    assert run_training(resolved) == 0
    return resolved.folder


def test_log_likelihoods_perplexity_and_texts(run, tasks, tmp_path):
    """lm-eval pads on the right to score and on the left to generate."""
    assert convert.main([str(run), str(tmp_path / "hf"), "--to", "hf", "--hf_class", "remote"]) == 0
    arguments = {"pretrained": str(tmp_path / "hf"), "dtype": "float32", "max_length": 64, "trust_remote_code": True}
    theirs = evaluate(tasks, "hf", model_args=arguments, device="cpu", batch_size=4)
    mine = evaluate(tasks, ours(run, batch_size=16))
    check_equal(answers(mine), answers(theirs), 1e-4)
    for metric in ("bits_per_byte,none", "word_perplexity,none"):
        found = (results["results"][TASKS[1]][metric] for results in (mine, theirs))
        assert math.isclose(*found, rel_tol=1e-4), metric
