"""What this machine has: platform, devices, optional libraries, and what each operation will use."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import platform
from collections.abc import Callable

import torch

from lit_gpt import ops

Rows = list[tuple[str, ...]]

# Module -> the distributions that may bring it. A library that is found need not be used: see `operations`.
LIBRARIES = {
    "flash_attn": ("flash-attn",),
    "flash_attn.cute": ("flash-attn-4", "flash-attn-cute"),
    "fla": ("flash-linear-attention", "fla-core"),
    "mamba_ssm": ("mamba-ssm",),
    "causal_conv1d": ("causal-conv1d",),
    "quack": ("quack-kernels",),
    "transformer_engine": ("transformer-engine",),
    "liger_kernel": ("liger-kernel", "liger-kernel-nightly"),
    "torchao": ("torchao",),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "mlflow-skinny"),
    "pynvml": ("nvidia-ml-py", "pynvml"),
    "zstandard": ("zstandard",),
    "pyarrow": ("pyarrow",),
    "transformers": ("transformers",),
    "lm_eval": ("lm-eval",),
}


def best_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def system() -> Rows:
    """(what, value) of the machine, python, torch and every device."""
    rows = [
        ("platform", platform.platform()),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
        ("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"),
    ]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        rows.append((f"gpu {i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}"))
    return rows if torch.cuda.is_available() else [*rows, ("gpu", "none that torch can use")]


def libraries() -> Rows:
    """(module, version, "-" where it is not installed, or why it cannot be found)."""
    return [(module, _version(module, distributions)) for module, distributions in LIBRARIES.items()]


def _version(module: str, distributions: tuple[str, ...]) -> str:
    try:
        if importlib.util.find_spec(module) is None:
            return "-"
    except ModuleNotFoundError:  # the package that a dotted module would be in
        return "-"
    except Exception as error:  # that package is there, and fails when it is imported
        return f"broken: {error}"
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "version unknown"


def operations(device: torch.device) -> Rows:
    """(operation, backend, use, reason) in order of preference, for every lit_gpt.ops file with an `explain`."""
    rows: Rows = [
        ("loss", "chunked", "default", "never holds all logits"),
        ("loss", "plain", "on demand", "--use_flce false"),
    ]
    for module in pkgutil.iter_modules(ops.__path__):
        explain = getattr(importlib.import_module(f"{ops.__name__}.{module.name}"), "explain", None)
        if explain is not None:
            rows += _explained(module.name, explain, device)
    return rows


def _explained(name: str, explain: Callable[..., list[tuple[str, bool, str]]], device: torch.device) -> Rows:
    return [(name, backend, "usable" if usable else "no", reason) for backend, usable, reason in explain(device)]
