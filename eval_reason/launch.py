"""Start LightEval with vLLM on an exported model: the arguments of eval_reason.sh.

    ./eval_reason/eval_reason.sh [SEED] MODEL TASK OUT

LightEval runs in an environment of its own (eval_reason/requirements.txt), because vLLM needs a torch of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "eval_reason"
sys.path[:0] = [str(ROOT), str(HERE)]  # a script finds only its own folder

from prompts import BENCHMARKS, Benchmark  # noqa: E402

from lit_gpt.config.command import run_command  # noqa: E402
from lit_gpt.errors import UserError  # noqa: E402
from lit_gpt.utils.files import read_object, write_text  # noqa: E402

USAGE = "Type: ./eval_reason/eval_reason.sh [SEED] MODEL TASK OUT"
ENVIRONMENT = ROOT / ".venv-reason"
INSTALL = (
    "python -m venv .venv-reason && .venv-reason/bin/pip install -r eval_reason/requirements.txt, or put the "
    "lighteval command of another environment into PATH"
)
OWN_CODE = "scalelab"  # lit_gpt/tools/remote/configuration_scalelab.py
SEED = 42  # where none is given; the one that ArchScale's guide types
MAX_TOKENS = 32768  # ArchScale's, of a prompt and its answer together


class Job(NamedTuple):
    """What was asked for."""

    seed: int
    model: str
    task: str
    out: Path


def read_job(words: list[str]) -> Job:
    """The arguments, with or without the seed. Raises UserError where they mean nothing."""
    if len(words) not in (3, 4):
        raise UserError(f"{len(words)} arguments are given; three or four are needed. {USAGE}")
    seed = words.pop(0) if len(words) == 4 else str(SEED)
    model, task, out = words
    if not seed.isdecimal():
        raise UserError(f"The seed is {seed!r}, and must be a whole number from 0 on. {USAGE}")
    if task not in BENCHMARKS:
        raise UserError(f"There is no task {task!r}; give one of {', '.join(BENCHMARKS)}.")
    check_model(model)
    return Job(int(seed), model, task, Path(out))


def check_model(model: str) -> None:
    """Raises UserError for whatever is neither a Hugging Face folder nor a name on the Hub."""
    path = Path(model).expanduser()
    convert = f"python -m lit_gpt.tools.convert {model} hf_model --to hf"
    owners = (path.absolute(), *path.absolute().parents[:2])
    if (path / "config.json").is_file():
        if read_object(path / "config.json").get("model_type") == OWN_CODE:
            raise UserError(
                f"{model} is a model with its own code, which no class of vLLM computes. Generate the answers with "
                "transformers, and grade them with eval_reason/score.py."
            )
        return
    if path.is_file() or any((folder / "plan.json").is_file() for folder in owners):
        raise UserError(f"{model} is a model of this project, which vLLM does not read. First type: {convert}")
    if path.exists():
        raise UserError(f"{model} has no config.json, so it is no Hugging Face model. Give the folder of one.")
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise UserError(f"{model} does not exist. Give a Hugging Face folder, or a name such as owner/model.")


def model_config(job: Job, gpus: int) -> dict[str, object]:
    """VLLMModelConfig of LightEval 0.13, with ArchScale's values."""
    limit = MAX_TOKENS
    config = Path(job.model).expanduser() / "config.json"
    if config.is_file():  # vLLM refuses to go beyond what the model says of itself
        limit = min(limit, read_object(config).get("max_position_embeddings") or limit)
    return {
        "model_name": str(Path(job.model).expanduser().absolute()) if config.is_file() else job.model,
        "seed": job.seed,
        "dtype": "bfloat16",
        "data_parallel_size": gpus,
        "max_model_length": limit,
        "max_num_batched_tokens": max(limit, 2048),
        "gpu_memory_utilization": 0.8,
        "trust_remote_code": True,
        "generation_parameters": {"temperature": 0.6, "top_p": 0.95},
    }


def lighteval(environment: Mapping[str, str]) -> str:
    """The command. Raises UserError where there is none."""
    own = ENVIRONMENT / "bin/lighteval"
    found = str(own) if own.is_file() else shutil.which("lighteval", path=environment.get("PATH"))
    if found is None:
        raise UserError(f"LightEval is not installed. Type {INSTALL}.")
    return found


def count_gpus(environment: Mapping[str, str]) -> int:
    """GPUs that vLLM may use. Raises UserError where there is none."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    else:
        tool = shutil.which("nvidia-smi", path=environment.get("PATH"))
        query = [tool or "", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(query, capture_output=True, text=True).stdout.splitlines() if tool else []
    if not names:
        raise UserError("vLLM needs a GPU, and there is none here. Run this where nvidia-smi lists one.")
    return len(names)


def check_data(benchmark: Benchmark, environment: Mapping[str, str]) -> None:
    """Raises UserError for a data set that is not in the cache of a machine that is told to stay off the network."""
    if not any(environment.get(name, "0") not in ("", "0") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")):
        return
    home = Path(environment.get("HF_HOME") or Path.home() / ".cache/huggingface")
    hub = Path(environment.get("HF_HUB_CACHE") or home / "hub")
    if not (hub / f"datasets--{benchmark.repository.replace('/', '--')}").is_dir():
        raise UserError(f"{benchmark.repository} is not in {hub}, and HF_HUB_OFFLINE is set. {fetching(benchmark)}")


def fetching(benchmark: Benchmark) -> str:
    """How to get the data."""
    gated = "accept its terms on huggingface.co, type hf auth login, and then " if benchmark.answer is None else ""
    return f"Where there is a network, {gated}type: hf download --repo-type dataset {benchmark.repository}"


def main(words: list[str]) -> int:
    """Check everything, write LightEval's configuration, and run it."""
    if {"-h", "--help"} & set(words):
        print(__doc__, "\nTasks: ", ", ".join(BENCHMARKS), ".", sep="")
        return 0
    job, environment = read_job(words), dict(os.environ)
    benchmark = BENCHMARKS[job.task]
    command, gpus = lighteval(environment), count_gpus(environment)
    check_data(benchmark, environment)
    name = Path(job.model).expanduser().absolute().name if Path(job.model).expanduser().exists() else job.model
    folder = job.out / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / f"{job.task}-seed{job.seed}.yaml"
    write_text(settings, json.dumps({"model_parameters": model_config(job, gpus)}, indent=1) + "\n")  # also YAML
    environment |= {
        "REASON_SEED": str(job.seed),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), environment.get("PYTHONPATH")])),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # as LightEval's documentation asks for several GPUs
    }
    words = [command, "vllm", str(settings), f"reason_{job.task}|0", "--custom-tasks", str(HERE / "lighteval_tasks.py")]
    code = subprocess.run([*words, "--save-details", "--output-dir", str(folder)], env=environment).returncode
    if code:
        raise UserError(f"LightEval ended with code {code}; as it says above. If it lacks data: {fetching(benchmark)}")
    print(f"kept: {folder}")
    return 0


if __name__ == "__main__":
    run_command(main)
