"""Average the weights of several checkpoints of one model into an exported file.

    python -m lit_gpt.tools.average out/my_run/checkpoints/step-* --output average.safetensors

Averages along one run (arXiv:2306.03241) or over runs from one start (arXiv:2203.05482).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.errors import UserError
from lit_gpt.evals.model_tokenizer import with_tokenizer
from lit_gpt.scaling.plan import difference
from lit_gpt.tools._cli import check_given, local_path, parser_for
from lit_gpt.tools._model_cli import add_plugins, add_weights


def read(argv: list[str]) -> Namespace:
    """The parsed command line."""
    parser = parser_for("average", "Average the weights of several checkpoints of one model into an exported file.")
    parser.add_argument(
        "paths", type=local_path, nargs="+", help="step-* folders, run folders (their newest), exported files"
    )
    parser.add_argument("--output", type=local_path, required=True, help="file to write, .pth or .safetensors")
    add_weights(parser)
    add_plugins(parser)
    values = parser.parse_args(argv)
    check_given(values)
    return values


answer_early(__name__, read)

import torch

from lit_gpt.checkpoint import check_suffix, newest_published, write_exported
from lit_gpt.checkpoint.forward_pass import forward_pass
from lit_gpt.checkpoint.retention import KEPT, VALIDATION
from lit_gpt.evals.trained_model import check_weights, describe_model, load_weights_and_meta
from lit_gpt.tools._model_values import use_plugins


def average(paths: Sequence[Path], weights: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Mean weights, summed in float64, and the meta of the last path with "averaged" added.

    paths: any of the forms of evals.trained_model, of models that are the same in everything but their
    weights. averaged lists the step and the tokens of each. weights: which average of each, see
    load_weights_and_meta.
    Raises UserError for fewer than two, for models or dtypes that differ, for weights that are not those of their
    model or not finite, and for tensors of whole numbers that differ: those have no mean.
    """
    if len(paths) < 2:
        raise UserError(f"{len(paths)} checkpoint is given; an average needs two or more.")
    total: dict[str, torch.Tensor] = {}
    first: dict[str, torch.Tensor] = {}
    metas: list[dict[str, Any]] = []
    for path in paths:
        tensors, meta = load_weights_and_meta(path, weights)
        metas.append(meta)
        check_weights(tensors, describe_model(meta, path)[0], path)
        first = first or tensors
        _check_same(paths[0], _described(paths[0], metas[0], first), path, _described(path, meta, tensors))
        for name, tensor in tensors.items():
            _check_kind(name, first[name], tensor, paths[0], path)
            total[name] = total[name] + tensor if name in total else tensor.double()
    mean = {
        n: (t / len(paths)).to(first[n].dtype) if first[n].is_floating_point() else first[n] for n, t in total.items()
    }
    meta = with_tokenizer(metas[-1], paths[-1])
    return mean, {
        **{key: value for key, value in meta.items() if key not in (VALIDATION, KEPT)},  # of the last one alone
        "averaged": [{"step": m.get("step"), "tokens": m.get("tokens")} for m in metas],
    }


def _check_apart(paths: Sequence[Path]) -> None:
    """Raise UserError for a checkpoint that is given twice, also as the newest of its run."""
    first: dict[Path, int] = {}
    for i, path in enumerate(paths):
        if (other := first.setdefault((newest_published(path) or path).resolve(), i)) != i:
            raise UserError(f"{paths[other]} and {path} are one checkpoint, which would count twice. Give it once.")


def _described(path: Path, meta: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The forward pass, and what it leaves to the names and shapes of tensors."""
    return forward_pass(*describe_model(meta, path)) | {"tensors": {n: list(t.shape) for n, t in tensors.items()}}


def _check_same(first: Path, here: dict[str, Any], path: Path, there: dict[str, Any]) -> None:
    if changed := difference(here, there):
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(f"{first} and {path} are not one model: they differ in {'; '.join(changed[:4])}{more}.")


def _check_kind(name: str, here: torch.Tensor, there: torch.Tensor, first: Path, path: Path) -> None:
    if here.dtype != there.dtype:
        raise UserError(
            f"{name} is {here.dtype} in {first} and {there.dtype} in {path}; bring them to one with convert --dtype."
        )
    if not here.is_floating_point() and not torch.equal(here, there):
        raise UserError(f"{name} holds whole numbers that differ between {first} and {path}: those have no mean.")


def write_average(paths: Sequence[Path], output: Path, weights: str | None = None) -> str:
    """Write the mean to an exported file; what was done, in words.

    Raises UserError for a checkpoint that is given twice, and as the parts of it do.
    """
    check_suffix(output)
    _check_apart(paths)
    tensors, meta = average(paths, weights)
    return f"wrote {write_exported(tensors, meta, output)}: the mean of {len(paths)} checkpoints"


def main(argv: list[str]) -> int:
    """Average and write."""
    values = read(argv)
    use_plugins(values.plugins)
    print(write_average(values.paths, values.output, values.weights))
    return 0


if __name__ == "__main__":
    run_command(main)
