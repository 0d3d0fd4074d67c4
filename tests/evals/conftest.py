"""A small trained model with a tokenizer of its own, and local tasks for lm-eval."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from held_out_text import document
from tiny_run import WORDS, make_text

from lit_gpt.config.cli import parse
from lit_gpt.data.prepare import prepare
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train.loop import run_training

LINE = (
    "--train_model transformer --depth 2 --ar 16 --train_name mup --ctx_len 64 --micro_bsz 4 --total_bsz 256 "
    "--max_tokens 5120 --base_hps.d0 1 --base_hps.ar0 64 --base_hps.hd0 16 --base_hps.b0 256 "
    "--base_hps.warmup_tokens 512 --base_hps.eta0 1e-2 --num_workers 0 --compile false"
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Twenty steps on words; a BPE of 300 tokens."""
    root = tmp_path_factory.mktemp("judged")
    (root / "texts").mkdir()
    for i in range(30):
        (root / "texts" / f"{i:02d}.txt").write_text(make_text(i))
    data = str(root / "data")
    prepare(str(root / "texts"), data, tokenizer="train", vocab_size=300, num_workers=1, progress=False)
    resolved = resolve_run(parse([*LINE.split(), "--train_data_dir", data, "--out_dir", str(root / "out")]), 1)
    assert run_training(resolved) == 0
    return resolved.folder


@pytest.fixture(scope="session")
def held_out(trained, tmp_path_factory) -> str:
    """Of the model's tokens; half of its documents are held out."""
    folder = tmp_path_factory.mktemp("cloze")
    (folder / "text").mkdir()
    for i in range(40):
        (folder / "text" / f"{i}.txt").write_text(document(i))
    options: dict[str, Any] = {"num_workers": 1, "progress": False, "validation_fraction": 0.5}
    prepare(str(folder / "text"), str(folder / "data"), tokenizer=str(trained / "tokenizer"), **options)
    return str(folder / "data")


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: {kind}
test_split: test
metadata: {{version: 1.0}}
"""
CHOICES = """
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
GENERATE = """
doc_to_text: "{{question}}"
doc_to_target: "x"
generation_kwargs: {until: ["\\n", "th"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="session")
def tasks(tmp_path_factory) -> Path:
    """choices: four answers, one of them empty of bytes in common; rolling: texts of up to 300 tokens; generate."""
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(0)

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    rows = {
        "choices": [
            {
                "question": words(draw.randint(1, 9)),
                "choices": [" " + words(draw.randint(1, 4)) for _ in "1234"],
                "answer": i % 4,
            }
            for i in range(12)
        ],
        "rolling": [{"text": words(count)} for count in (1, 9, 80, 130)],
        "generate": [{"question": words(draw.randint(1, 9))} for _ in range(6)],
    }
    kinds = {"choices": ("multiple_choice", CHOICES), "rolling": ("loglikelihood_rolling", ROLLING)}
    kinds["generate"] = ("generate_until", GENERATE)
    for name, (kind, text) in kinds.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, rows[name])))
        (folder / f"{name}.yaml").write_text(TASK.format(name=f"local_{name}", data=data, kind=kind) + text)
    return folder
