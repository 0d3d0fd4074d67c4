"""What is on this machine, in a run folder, or in a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.parsers import Parser
from lit_gpt.errors import UserError
from lit_gpt.metrics.summary import SUMMARY_FILE
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.describe import describe
from lit_gpt.tools._cli import local_path, parser_for
from lit_gpt.tools._model_cli import add_plugins
from lit_gpt.tools._run_differences import check_run, differences
from lit_gpt.utils.files import read_object, understood
from lit_gpt.utils.text import aligned

EXAMPLES = (
    ("env", "the machine, and what each operation will run on"),
    ("env --nccl", "also check the links between the GPUs of this node"),
    ("run out/my_run out/other_run", "two runs, and what differs between them"),
    ("checkpoint out/my_run --verify", "the newest checkpoint of a run, with its checksums"),
)
ABOUT = {  # what there is to inspect
    "env": "The machine, its optional libraries, and which implementation each operation will use.",
    "run": "A run folder: where it stands, its Plan, its parameters.",
    "checkpoint": "A checkpoint or an exported file: its step, Plan and parameters.",
}


def build_parser() -> Parser:
    """The parser of this tool's command line."""
    parser = parser_for("inspect", "What is on this machine, in a run folder, or in a checkpoint?", EXAMPLES)
    commands = parser.add_subcommands(required=True, dest="what")
    of_env = parser_for("inspect env", ABOUT["env"])
    of_env.add_argument("--nccl", action="store_true", help="check the links and collectives between this node's GPUs")
    commands.add_subcommand("env", of_env, help=of_env.description)
    for name in ("run", "checkpoint"):
        command = parser_for(f"inspect {name}", ABOUT[name])
        command.add_argument("path", type=local_path, help="run folder, step-* folder or exported file")
        if name == "checkpoint":
            command.add_argument("--verify", action="store_true", help="only check that the files are what was written")
        else:
            command.add_argument(
                "other", type=local_path, nargs="?", help="another run folder: what differs between the two"
            )
        add_plugins(command)
        commands.add_subcommand(name, command, help=command.description)
    return parser


answer_early(__name__, lambda words: build_parser().parse_args(words))

import torch

from lit_gpt.checkpoint import all_checkpoints, damage, load_exported, newest_published, none_left
from lit_gpt.evals.trained_model import describe_model, load_meta
from lit_gpt.model import GPT
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.roles import roles_of
from lit_gpt.tools import _collectives as collectives
from lit_gpt.tools import _environment as environment
from lit_gpt.tools._model_values import use_plugins

PLAN, MODEL, CURVE_FILE = "plan.json", "model.json", "loss_curve.png"  # see train/run_folder.py
OF_SUMMARY = ("finished", "train_loss", "metric/val_", "time/total", "throughput/tokens_per_sec")


def env() -> str:
    """The machine, its optional libraries, and which implementation each operation will use."""
    sections = {
        "machine": environment.system(),
        "optional libraries": environment.libraries(),
        "operations, first usable first": environment.operations(environment.best_device()),
    }
    return "\n\n".join(f"{title}\n{aligned(rows, indent=2)}" for title, rows in sections.items())


def run(path: Path) -> str:
    """A run folder: where it stands, its Plan, its parameters.

    Raises UserError when it is none.
    """
    check_run(path, PLAN)
    with understood(path):
        plan, model = Plan.from_dict(read_object(path / PLAN)), ModelConfig.from_dict(read_object(path / MODEL))
    with understood(path / "checkpoints"):
        state = _state(path)
    with understood(path):
        return _described(state, plan, model)


def checkpoint(path: Path) -> str:
    """A checkpoint or an exported file: its step, Plan and parameters."""
    meta = load_meta(path)  # of an export, the contents are checked here
    config, _ = describe_model(meta, path)
    if "plan" not in meta:  # imported from elsewhere
        return "\n\n".join([aligned([("step", "none: these weights were imported")]), parameter_table(config)])
    with understood(path):
        plan = Plan.from_dict(meta["plan"])
        return _described(_progress(meta, plan), plan, config)


def verified(path: Path) -> str:
    """Every checkpoint at `path` and whether its files are what was written.

    path: a run, its checkpoints folder, one step folder, or an exported file. Raises UserError when one is damaged.
    """
    if path.is_file():
        load_exported(path)
        return f"{path}: whole"
    found = all_checkpoints(path)
    if not found:
        raise UserError(f"There is no checkpoint at {path}. Give a run folder, a step-* folder, or an exported file.")
    wrong = [damage(step) for step in found]
    rows = aligned([(step.name, f"damaged: {why}" if why else "whole") for step, why in zip(found, wrong)])
    if any(wrong):
        raise UserError(f"Not every checkpoint at {path} is whole:\n{rows}")
    return rows


def _state(path: Path) -> list[tuple[str, str]]:
    """The newest checkpoint of a run, and its summary once it has ended."""
    rows = []
    if newest_published(path) is None:
        rows.append(("checkpoint", "none is left" if none_left(path) else "none yet"))
    else:
        meta = load_meta(path)
        rows += _progress(meta, Plan.from_dict(meta["plan"]))
    if (path / SUMMARY_FILE).is_file():
        summary = read_object(path / SUMMARY_FILE)
        kept = {key: value for key, value in summary.items() if key.startswith(OF_SUMMARY)}
        rows += [(key, f"{value:,.5g}" if isinstance(value, float) else str(value)) for key, value in kept.items()]
    return rows + ([("curve", str(path / CURVE_FILE))] if (path / CURVE_FILE).is_file() else [])


def _progress(meta: dict[str, Any], plan: Plan) -> list[tuple[str, str]]:
    share = meta["tokens"] / plan.tokens
    rows = [("step", f"{meta['step']:,}"), ("tokens", f"{meta['tokens']:,} of {plan.tokens:,} ({share:.1%})")]
    return [*rows, *([("weights", str(meta["weights"]))] if "weights" in meta else [])]  # an exported average


def _described(state: list[tuple[str, str]], plan: Plan, config: ModelConfig) -> str:
    facts = OPTIMIZERS.facts(plan.optimizer) if plan.optimizer in OPTIMIZERS else None
    return "\n\n".join([aligned(state), describe(plan, facts), parameter_table(config)])


def parameter_table(config: ModelConfig) -> str:
    """Role, tensors, parameters and an example of each kind of shape, from a model on the meta device."""
    with torch.device("meta"):
        model = GPT(config)
    kinds, parameters = defaultdict(list), dict(model.named_parameters())
    for name, role in roles_of(model).items():
        kinds[role].append(parameters[name])
    rows = [("role", "tensors", "parameters", "shapes")]
    for role, tensors in kinds.items():
        shapes = dict.fromkeys("x".join(map(str, t.shape)) for t in tensors)
        rows.append((role, f"{len(tensors):,}", f"{sum(t.numel() for t in tensors):,}", _some(list(shapes))))
    total = sum(p.numel() for p in parameters.values())
    return aligned([*rows, ("all", f"{len(parameters):,}", f"{total:,}", "")], right=(1, 2))


def _some(shapes: list[str], limit: int = 6) -> str:
    return ", ".join(shapes[:limit]) + (f", and {len(shapes) - limit} more" if len(shapes) > limit else "")


def main(argv: list[str]) -> int:
    """Print what was asked for."""
    values = build_parser().parse_args(argv)
    if values.what == "env":
        print(collectives.report() if values.env.nccl else env())
        return 0
    asked = values[values.what]
    use_plugins(asked.plugins)
    if asked.get("verify"):
        print(verified(asked.path))
    elif asked.get("other"):
        print(differences(asked.path, asked.other))
    else:
        print(run(asked.path) if values.what == "run" else checkpoint(asked.path))
    return 0


if __name__ == "__main__":
    run_command(main)
