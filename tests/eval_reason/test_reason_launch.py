"""eval_reason.sh with a stand-in for LightEval: its command, and the parts of its package that the tasks use.

The stand-in has the interface of LightEval 0.13.0: the fields of LightevalTaskConfig and Doc, and the command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from script_module import script_module

ROOT = Path(__file__).parents[2]
launch, prompts = script_module("eval_reason/launch.py"), script_module("eval_reason/prompts.py")
GPQA = {
    "Question": "Which one?\n",
    "Correct Answer": "this",
    **{f"Incorrect Answer {i}": f"that {i}" for i in (1, 2, 3)},
}
PACKAGE = {
    "lighteval/__init__.py": "",
    "lighteval/metrics/__init__.py": "",
    "lighteval/tasks/__init__.py": "",
    "lighteval/metrics/metrics.py": """
class Metrics:
    pass_at_k_math = staticmethod(lambda sample_params: ("math", sample_params))
    gpqa_instruct_pass_at_k = staticmethod(lambda sample_params: ("letters", sample_params))
""",
    "lighteval/tasks/requests.py": """
from dataclasses import dataclass
@dataclass
class Doc:
    query: str
    choices: list
    gold_index: int
    task_name: str = ""
""",
    "lighteval/tasks/lighteval_task.py": """
from dataclasses import dataclass, field
@dataclass
class LightevalTaskConfig:
    name: str
    prompt_function: object
    hf_repo: str
    hf_subset: str
    metrics: list
    hf_avail_splits: list = field(default_factory=list)
    evaluation_splits: list = field(default_factory=list)
    few_shots_split: str | None = None
    few_shots_select: str | None = None
    generation_size: int | None = None
    stop_sequence: list | None = None
    num_samples: list | None = None
    num_fewshots: int = 0
    version: int = 0
""",
}
# Loads the custom tasks as LightEval does, and writes down what it was given.
COMMAND = f"""#!{sys.executable}
import importlib.util, json, os, sys
words = sys.argv[1:]
assert words[0] == "vllm" and "--save-details" in words
spec = importlib.util.spec_from_file_location("tasks", words[words.index("--custom-tasks") + 1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
name, shots = words[2].split("|")
(task,) = [task for task in module.TASKS_TABLE if task.name == name]
row = json.loads(os.environ["ROW"])
doc = task.prompt_function(row, name)
said = dict(words=words, model=json.load(open(words[1]))["model_parameters"], repo=task.hf_repo, metrics=task.metrics,
            size=task.generation_size, query=doc.query, choices=doc.choices, gold=doc.gold_index)
json.dump(said, open(os.path.join(words[words.index("--output-dir") + 1], "said.json"), "w"))
sys.exit(int(os.environ.get("ENDS", 0)))
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with an exported model, and a stand-in for LightEval in PATH."""
    for name, text in PACKAGE.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/lighteval").write_text(COMMAND)
    (tmp_path / "bin/lighteval").chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(place: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {
        "PATH": f"{place / 'bin'}:/usr/bin:/bin",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(place / "site"),
        "CUDA_VISIBLE_DEVICES": "0,1",
        "ROW": json.dumps(GPQA),
    }
    return subprocess.run(
        [str(ROOT / "eval_reason/eval_reason.sh"), *words],
        capture_output=True,
        text=True,
        cwd=place,
        env=variables | environment,
    )


def test_archscales_command_with_and_without_the_seed(place):
    for words in (["model", "gpqa_diamond", "out"], ["42", "model", "gpqa_diamond", "out"]):
        done = run(place, *words)
        assert done.returncode == 0, done.stderr
        found = json.loads((place / "out/model/said.json").read_text())
        assert found["words"][2] == "reason_gpqa_diamond|0" and found["repo"] == "Idavidrein/gpqa"
        assert found["metrics"] == [["letters", {"k": 1, "n": 8}]] and found["size"] is None
        assert found["model"]["model_name"] == str(place / "model") and found["model"]["seed"] == 42
        assert found["model"]["max_model_length"] == 4096 and found["model"]["data_parallel_size"] == 2
        assert found["model"]["generation_parameters"] == {"temperature": 0.6, "top_p": 0.95}
        expected = prompts.prompt_of(prompts.BENCHMARKS["gpqa_diamond"], GPQA, 42)
        assert (found["query"], found["choices"], found["gold"]) == tuple(expected)


def test_a_model_of_the_hub(place):
    row = json.dumps({"problem": "1+1?", "answer": "2"})
    done = run(place, "7", "microsoft/Phi-4-mini-flash-reasoning", "aime24", "out", ROW=row)
    assert done.returncode == 0, done.stderr
    found = json.loads((place / "out/microsoft/Phi-4-mini-flash-reasoning/said.json").read_text())
    assert found["model"]["model_name"] == "microsoft/Phi-4-mini-flash-reasoning"
    assert found["model"]["max_model_length"] == 32768 and found["metrics"] == [["math", {"k": 1, "n": 64}]]


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["model", "aime24"], {}, "2 arguments are given; three or four are needed"),
        (["x", "model", "aime24", "out"], {}, "The seed is 'x'"),
        (["model", "aime23", "out"], {}, "There is no task 'aime23'; give one of aime24, aime25, math_500"),
        (["./none", "aime24", "out"], {}, "./none does not exist"),
        (["bin", "aime24", "out"], {}, "bin has no config.json"),
        (["run", "aime24", "out"], {}, "First type: python -m lit_gpt.tools.convert run hf_model --to hf"),
        (["run/checkpoints/step-000100", "aime24", "out"], {}, "First type: python -m lit_gpt.tools.convert run/check"),
        (["model.safetensors", "aime24", "out"], {}, "First type: python -m lit_gpt.tools.convert model.safetensors"),
        (["own", "aime24", "out"], {}, "own is a model with its own code, which no class of vLLM computes"),
        (["model", "aime24", "out"], {"CUDA_VISIBLE_DEVICES": ""}, "vLLM needs a GPU"),
        (["model", "aime24", "out"], {"PATH": "/usr/bin:/bin"}, "pip install -r eval_reason/requirements.txt"),
        (
            ["model", "aime24", "out"],
            {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"},
            "type: hf download --repo-type dataset HuggingFaceH4/aime_2024",
        ),
        (["model", "gpqa_diamond", "out"], {"ENDS": "3"}, "LightEval ended with code 3"),
        (["model", "gpqa_diamond", "out"], {"ENDS": "3"}, "hf auth login"),
    ],
)
def test_one_sentence_says_what_is_wrong(place, words, environment, said):
    (place / "run/checkpoints/step-000100").mkdir(parents=True)
    (place / "run/plan.json").write_text("{}")
    (place / "model.safetensors").write_text("")
    (place / "own").mkdir()
    (place / "own/config.json").write_text('{"model_type": "scalelab"}')
    done = run(place, *words, **environment)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_order_of_options_is_a_function_of_seed_and_question():
    """In every process, whatever its hash seed; and every order comes about as often."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import prompts; print(prompts.order_of('Which one?', 4, 42))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(ROOT / "eval_reason")],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (0, 1, 2)
    }
    assert said == {f"{prompts.order_of('Which one?', 4, 42)}\n"}
    orders = [tuple(prompts.order_of(f"question {i}", 4, 42)) for i in range(2400)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24 and sum((count - 100) ** 2 / 100 for count in counts) < 60  # chi-squared, 23 degrees
    assert any(prompts.order_of("Which one?", 4, seed) != prompts.order_of("Which one?", 4, 42) for seed in range(5))


def test_the_right_letter_is_where_the_right_answer_is():
    for seed in range(20):
        found = prompts.prompt_of(prompts.BENCHMARKS["gpqa_diamond"], GPQA, seed)
        assert f"\n{found.choices[found.right]}) this" in found.text and "\\boxed{}. Which one?\n\nA) " in found.text


def test_the_answer_of_gsm8k_is_behind_its_way():
    row = {"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
    assert prompts.prompt_of(prompts.BENCHMARKS["gsm8k"], row, 0).choices == ["7"]
