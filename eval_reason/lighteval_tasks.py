"""The benchmarks as LightEval's custom tasks (its --custom-tasks). launch.py starts LightEval with this file.

Written for LightEval 0.13, where a task of one's own must not have the name of a built-in one: ours start with reason_.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc
from prompts import BENCHMARKS, Benchmark, prompt_of

SEED = int(os.environ["REASON_SEED"])
SAMPLES = os.environ.get("REASON_SAMPLES")


def _document(benchmark: Benchmark) -> Callable[[dict[str, Any], str], Doc]:
    def document(line: dict[str, Any], task_name: str = "") -> Doc:
        prompt = prompt_of(benchmark, line, SEED)
        return Doc(task_name=task_name, query=prompt.text, choices=prompt.choices, gold_index=prompt.right)

    return document


def _task(name: str, benchmark: Benchmark) -> LightevalTaskConfig:
    metric = Metrics.pass_at_k_math if benchmark.answer else Metrics.gpqa_instruct_pass_at_k
    return LightevalTaskConfig(
        name=f"reason_{name}",
        prompt_function=_document(benchmark),
        hf_repo=benchmark.repository,
        hf_subset=benchmark.subset,
        hf_avail_splits=[benchmark.split],
        evaluation_splits=[benchmark.split],
        generation_size=None,  # up to the model's length: a limit equal to it would cut every prompt
        metrics=[metric(sample_params={"k": 1, "n": int(SAMPLES or benchmark.samples)})],
        stop_sequence=[],
        version=1,
    )


TASKS_TABLE = [_task(name, benchmark) for name, benchmark in BENCHMARKS.items()]
