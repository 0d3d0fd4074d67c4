"""A Hugging Face model with its linear maps in 8 or 4 bits, by torchao, and what that costs on validation data.

Weights alone are quantised; embeddings and head stay. transformers loads such a folder as it loads any other where
torchao is installed. quantization.json in it says what was done and what it cost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lit_gpt.config.model import IGNORE
from lit_gpt.data.corpus import Batch, Corpus, check_vocab
from lit_gpt.data.discover import open_corpus
from lit_gpt.errors import NotInstalled, UserError
from lit_gpt.evals.results import Metric
from lit_gpt.tools._environment import best_device
from lit_gpt.tools._hf_folder import check_new
from lit_gpt.utils.files import write_text

GROUP = 32  # weights of a row that share a scale in int4: the smallest group of torchao's kernels, so the most exact
SEQUENCES = 200  # as many as training validates on by default
REPORT = "quantization.json"
LIBRARIES = ("torchao", "transformers")


def check_installed() -> None:
    """Raises NotInstalled without torchao and transformers."""
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise NotInstalled(f'--quantize needs {" and ".join(missing)}. Type: pip install -e ".[quantize]"')


def quantized(write: Callable[[Path], Path], output: Path, kind: str, data_dir: str, context: int) -> Path:
    """Write `output`, a Hugging Face model in `kind`, and print what that costs on the validation data.

    write: makes the folder of the model as it is. data_dir: has a validation split. context: tokens of a sequence.
    Raises UserError for data or a model that cannot be used, and where `output` exists.
    """
    check_installed()
    check_new(output)
    corpus = open_corpus(data_dir, "validation", context, 0, shuffle=False, repeat=False)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=".tmp-") as folder:
        plain, made = write(Path(folder) / "plain"), Path(folder) / "made"
        before = _measured(plain, corpus, kind)
        _write(_load(plain, best_device(), kind), made, plain)
        after = _measured(made, corpus, kind)  # loaded as by whoever is given the folder
        report = _report(kind, before, after) | {"context": context, "data": data_dir}
        write_text(made / REPORT, json.dumps(report, indent=1) + "\n")
        os.replace(made, output)
    _say(report)
    return output


class _Measured(NamedTuple):
    """losses: of each sequence, nats per token. weights: how many are quantised, and all. size: bytes of the files."""

    losses: list[float]
    weights: tuple[int, int]
    size: int


def _measured(folder: Path, corpus: Corpus, kind: str) -> _Measured:
    device = best_device()
    model = _load(folder, device)
    check_vocab(corpus, model.config.vocab_size)
    _check_maps(model, kind)
    done = sum(m.weight.numel() for m in _maps(model).values() if type(m.weight.data) is not Tensor)
    weights = done, sum(p.numel() for p in model.parameters())
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return _Measured(_losses(model, corpus, device), weights, size)


def _load(folder: Path, device: torch.device, kind: str | None = None) -> Any:
    """The model of a folder, quantised on the way where a kind is given, ready to be asked."""
    from transformers import AutoModelForCausalLM, TorchAoConfig

    options: dict[str, Any] = {} if kind is None else {"quantization_config": TorchAoConfig(_config(kind))}
    with _without_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **options)
    return model.to(device).eval()


def _config(kind: str) -> Any:
    """torchao's words for a kind. Numbers of 4 bits take a byte each in the file: packed ones run on some GPUs only."""
    from torchao import quantization as ao

    bits: torch.dtype = torch.int4  # type: ignore[attr-defined]  # which torch's types leave out
    configs = {
        "int8": lambda: ao.Int8WeightOnlyConfig(),
        "int4": lambda: ao.IntxWeightOnlyConfig(weight_dtype=bits, granularity=ao.PerGroup(GROUP)),
        "fp8": lambda: ao.Float8WeightOnlyConfig(),
    }
    return configs[kind]()


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws a bar of progress for every file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _maps(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps that are quantised: all but the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


def _check_maps(model: nn.Module, kind: str) -> None:
    if not _maps(model):  # transformers' GPT-2 has Conv1D, which torchao leaves alone
        raise UserError(f"--quantize finds no torch.nn.Linear in {type(model).__name__}. Leave the option out.")
    odd = {name: m.in_features for name, m in _maps(model).items() if kind == "int4" and m.in_features % GROUP}
    if odd:
        name, width = next(iter(odd.items()))
        raise UserError(
            f"--quantize int4 takes weights in groups of {GROUP}, and {name} has rows of {width}. Give --quantize int8 "
            "or fp8."
        )


def _write(model: Any, folder: Path, plain: Path) -> None:
    """The quantised model, and the plain one's other files, such as the tokenizer."""
    with _without_bars():
        model.save_pretrained(folder)
    for file in plain.iterdir():
        if not (folder / file.name).exists() and ".safetensors" not in file.name:
            shutil.copy(file, folder)


@torch.inference_mode()
def _losses(model: Any, corpus: Corpus, device: torch.device) -> list[float]:
    """Nats per token of each of the first sequences, as transformers computes the logits."""
    rows = range(min(SEQUENCES, corpus.num_samples))
    return [_loss(model, corpus.batch(row, 1), device) for row in tqdm(rows, desc="validation", unit="sequence")]


def _loss(model: Any, batch: Batch, device: torch.device) -> float:
    tokens, targets = (torch.from_numpy(ids).to(device) for ids in (batch.tokens, batch.targets))
    logits: Tensor = model(tokens).logits.float()
    return F.cross_entropy(logits[0], targets[0], ignore_index=IGNORE).item()


def _report(kind: str, before: _Measured, after: _Measured) -> dict[str, Any]:
    """What was done, and the loss before and after; the standard error of the difference is that of pairs."""
    losses = {"before": before.losses, "after": after.losses}
    losses["difference"] = [b - a for a, b in zip(before.losses, after.losses)]
    return {
        "quantize": kind,
        "group": GROUP if kind == "int4" else None,
        "weights": dict(zip(("quantized", "all"), after.weights)),
        "bytes": {"before": before.size, "after": after.size},
        "loss": {name: vars(Metric.mean(values, "lower")) for name, values in losses.items()},
        "sequences": len(before.losses),
        "versions": {name: version(name) for name in ("torch", *LIBRARIES)},
    }


def _say(report: dict[str, Any]) -> None:
    weights, size = report["weights"], report["bytes"]
    share = weights["quantized"] / weights["all"]
    print(f"{report['quantize']}: {weights['quantized']:,} of {weights['all']:,} weights ({share:.0%}) quantised")
    print(f"weights in the files: {size['before'] / 1e6:,.1f} MB before, {size['after'] / 1e6:,.1f} MB after")
    for name, metric in report["loss"].items():
        error = "" if metric["stderr"] is None else f" +- {metric['stderr']:.2g}"
        print(f"loss {name:10} {metric['value']:.5f}{error}")
