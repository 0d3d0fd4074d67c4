"""Average the weights of several checkpoints of one model into an exported file.

    python -m lit_gpt.tools.average out/my_run/checkpoints/step-* --output average.safetensors

Averages along one run (arXiv 2306.03241) or over runs from one start (arXiv 2203.05482).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lit_gpt.checkpoint import check_suffix, write_exported
from lit_gpt.errors import UserError
from lit_gpt.evals.load import describe_model, load_weights_and_meta
from lit_gpt.scaling.plan import difference
from lit_gpt.tools._cli import parser_for, run_tool


def average(paths: Sequence[Path]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Mean weights, summed in float64, and the meta of the last path with "averaged" added.

    paths: any of the forms of evals.load, of models that are the same in everything but their
    weights. averaged lists the step and the tokens of each.
    Raises UserError for fewer than two, and for models that differ.
    """
    if len(paths) < 2:
        raise UserError(f"{len(paths)} checkpoint is given; an average needs two or more.")
    weights, meta = load_weights_and_meta(paths[0])
    total = {name: t.double() for name, t in weights.items()}
    metas = [meta]
    for path in paths[1:]:
        weights, meta = load_weights_and_meta(path)
        _check_same(paths[0], metas[0], path, meta)
        for name, tensor in weights.items():
            total[name] += tensor
        metas.append(meta)
    mean = {name: (t / len(paths)).to(weights[name].dtype) for name, t in total.items()}
    return mean, {**meta, "averaged": [{"step": m["step"], "tokens": m.get("tokens")} for m in metas]}


def _check_same(first: Path, meta: dict[str, Any], path: Path, other: dict[str, Any]) -> None:
    """The forward pass must be the same: the model, and the multipliers of the Plan."""
    here, there = _forward(meta, first), _forward(other, path)
    if changed := difference(here, there):
        listed = "\n".join(f"  {line}" for line in changed)
        raise UserError(f"{first} and {path} are not one model. Give checkpoints of one. What differs:\n{listed}")


def _forward(meta: dict[str, Any], path: Path) -> dict[str, Any]:
    config, plan = describe_model(meta, path)
    return {"model": config.to_dict(), "multipliers": asdict(plan.multipliers)}


def main(argv: list[str]) -> int:
    """Average and write."""
    parser = parser_for("average", "Average the weights of several checkpoints of one model into an exported file.")
    parser.add_argument(
        "paths", type=Path, nargs="+", help="step-* folders, run folders (their newest), exported files"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write, .pth or .safetensors")
    values = parser.parse_args(argv)
    check_suffix(values.output)
    weights, meta = average(values.paths)
    print(f"wrote {write_exported(weights, meta, values.output)}: the mean of {len(values.paths)} checkpoints")
    return 0


if __name__ == "__main__":
    run_tool(main)
