"""lm-eval's own `hf` model, on models with their own code, gives eval.py's numbers: dense, SambaY, experts."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_gpt.config.cli import parse
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.tools import convert
from lit_gpt.train.loop import run_training

lm_eval = pytest.importorskip("lm_eval", reason="pip install -e '.[eval]'")
pytest.importorskip("accelerate", reason="pip install -e '.[eval]'")
TASKS = ["local_choices", "local_rolling", "local_generate"]
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


def evaluate(tasks: Path, model: Any, **options: Any) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=TASKS, task_manager=manager, log_samples=True, bootstrap_iters=0, **options
    )


def answers(samples: list[dict[str, Any]]) -> list[Any]:
    found = [resp[0] for sample in sorted(samples, key=lambda s: s["doc_id"]) for resp in sample["resps"]]
    return [value[0] if isinstance(value, tuple | list) else value for value in found]


def test_log_likelihoods_perplexity_and_texts(run, tasks, tmp_path):
    """lm-eval pads on the right to score and on the left to generate."""
    from lit_gpt.evals.lm_eval_model import TrainedModel

    assert convert.main([str(run), str(tmp_path / "hf"), "--to", "hf", "--hf_class", "remote"]) == 0
    arguments = {"pretrained": str(tmp_path / "hf"), "dtype": "float32", "max_length": 64, "trust_remote_code": True}
    theirs = evaluate(tasks, "hf", model_args=arguments, device="cpu", batch_size=4)
    ours = evaluate(tasks, TrainedModel.load(str(run), device="cpu", batch_size=16))
    for task in TASKS[:2]:
        pairs = zip(answers(ours["samples"][task]), answers(theirs["samples"][task]), strict=True)
        assert all(math.isclose(float(a), float(b), rel_tol=1e-4, abs_tol=1e-4) for a, b in pairs), task
    assert answers(ours["samples"][TASKS[2]]) == answers(theirs["samples"][TASKS[2]])
    assert any(answers(ours["samples"][TASKS[2]])), "something was generated"
    for metric in ("bits_per_byte,none", "word_perplexity,none"):
        found = (results["results"][TASKS[1]][metric] for results in (ours, theirs))
        assert math.isclose(*found, rel_tol=1e-4), metric
