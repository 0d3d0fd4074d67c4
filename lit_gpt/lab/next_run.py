"""From a law and a budget to the options of the run to train next: the family of the runs, at the size it asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.config.cli import parse
from lit_gpt.config.resolve import resolve
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.lab.fit_report import Guess, Report
from lit_gpt.lab.fit_text import guess_lines, head
from lit_gpt.lab.runs import Run
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.plugins import load_plugins
from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.model_options import model_config
from lit_gpt.preflight.resolved_run import ResolvedRun, resolve_run
from lit_gpt.scaling.plan import Counted
from lit_gpt.train.folder_names import CONFIG
from lit_gpt.utils.files import read_object, write_text

# What the law decides, what the scaling rule decides, and what belongs to one run only.
DECIDED = {"depth", "ar", "max_tokens"}
OF_THE_RULE = {"total_bsz"}
OF_ONE_RUN = {
    *("out_dir", "resume", "init_from", "fork_from", "load_dir", "stop_after", "dry_run", "validation", "midtrain"),
    *("tracker_name", "tracker_group", "tracker_tags", "decay_at", "decay_tokens", "plugins"),
}
NEAR = 0.05  # share of N, within which the runs' own aspect ratio is kept
RATIOS = (
    0.75,
    0.8125,
    0.875,
    0.9375,
    1.0625,
    1.125,
    1.1875,
    1.25,
)  # of aspect ratios that are tried where no depth comes near
DEEPEST = 512


@dataclass(frozen=True)
class Choice:
    """A model near the size that the law asks for. counted: by the same counting as the Plan's."""

    depth: int
    ar: int | None
    counted: Counted
    wanted: float
    size: float

    @property
    def off(self) -> float:
        """How far the size is from the wanted one, ln(size / wanted)."""
        return abs(math.log(self.size / self.wanted))


def write_next(report: Report, budget: float, path: Path) -> tuple[ResolvedRun, Guess]:
    """Write the YAML of the run that spends a budget best, and return what it resolves to.

    Raises UserError for a law without N and D, runs without folders or of several families, and what is no run.
    """
    guess = report.at_budget(budget)
    if not {"N", "D"} <= guess.place.keys():
        raise UserError(
            f"The law {report.name} does not say how to share a budget between parameters and tokens. Use --law "
            "chinchilla, isoflop or envelope with --next."
        )
    base = _options(report.sample.runs)
    choice = nearest(base, guess.place["N"], report.sample.reads["N"], report.sample.runs)
    tokens = tokens_for(report, choice, budget)
    options = {**base, "depth": choice.depth, "max_tokens": float(f"{tokens:.6g}")}
    options |= {} if choice.ar is None else {"ar": choice.ar}
    text = "\n".join([*_comments(report, guess, choice, path), yaml.safe_dump(options, sort_keys=False)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return resolve_run(parse([f"--config={path}", "--dry_run=true"]), 1), guess


def _options(runs: Sequence[Run]) -> dict[str, Any]:
    """The options that all runs have in common, where they are not the defaults."""
    folders = [run.folder for run in runs if run.folder is not None]
    if not folders:
        raise UserError("--next takes the options of the next run from these runs; give run folders, not a CSV file.")
    every = [yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) for folder in folders]
    if len(families := sorted({str(options["train_model"]) for options in every})) > 1:
        raise UserError(
            f"These runs are of several families: {', '.join(families)}. Choose one: --where "
            f"\"train_model == '{families[0]}'\"."
        )
    found = {}
    for name, default in dataclasses.asdict(RunConfig()).items():
        if name in DECIDED | OF_THE_RULE | OF_ONE_RUN or name not in every[0]:
            continue
        if isinstance(default, dict):
            own = {k: v for k, v in every[0][name].items() if v != default[k] and _common(every, name, k)}
            found |= {name: own} if own else {}
        elif every[0][name] != default and all(options.get(name) == every[0][name] for options in every):
            found[name] = every[0][name]
    ratios = {options.get("ar") for options in every}
    return found | ({"ar": ratios.pop()} if len(ratios) == 1 and None not in ratios else {})


def _common(every: Sequence[Mapping[str, Any]], name: str, key: str) -> bool:
    return all(options.get(name, {}).get(key) == every[0][name][key] for options in every)


def nearest(base: Mapping[str, Any], wanted: float, counts: str, runs: Sequence[Run]) -> Choice:
    """The depth, and where that is too coarse the aspect ratio, whose parameters come nearest to the wanted number.

    base: options of the runs. counts: the column that is counted, parameters or parameters_all.
    Raises UserError where no depth near the wanted one can be built.
    """
    run, _ = resolve(parse([f"--config={yaml.safe_dump(dict(base))}"]), OPTIMIZERS.resolve)
    load_plugins(run.plugins)
    run = dataclasses.replace(run, vocab_size=_vocabulary(runs))
    best, depth = None, _depth_near(wanted, counts, runs)
    for _ in range(2):  # the first guess knows the shapes of the runs only
        found = [_choice(run, d, run.ar, wanted, counts) for d in range(max(1, depth - 2), depth + 3)]
        best = _closest([best, *found])
        depth = depth if best is None else _scaled(best.depth, wanted / best.size)
    if best is None:
        raise UserError(f"No depth near {depth} of {run.train_model} can be built, so there is no next run.")
    if best.off <= NEAR:
        return best
    width = model_config(run, best.depth, run.ar).n_embd
    ratios = sorted({round(width / best.depth * share) for share in RATIOS})
    others = [_choice(run, d, r, wanted, counts) for d in range(max(1, best.depth - 1), best.depth + 2) for r in ratios]
    return _closest([best, *others]) or best


def _closest(choices: Iterable[Choice | None]) -> Choice | None:
    return min((choice for choice in choices if choice), key=lambda choice: choice.off, default=None)


def _vocabulary(runs: Sequence[Run]) -> int | None:
    """Of the runs' models, which took it from their data."""
    model = next(run.folder for run in runs if run.folder is not None) / "model.json"
    return read_object(model).get("vocab_size") if model.is_file() else None


def _depth_near(wanted: float, counts: str, runs: Sequence[Run]) -> int:
    known = [(run.numbers["depth"], run.numbers[counts]) for run in runs if {"depth", counts} <= run.numbers.keys()]
    if not known:
        raise UserError(f"These runs do not say their depth and {counts}, which --next needs.")
    depth, size = max(known)
    return _scaled(depth, wanted / size)


def _scaled(depth: float, by: float) -> int:
    """The depth of so many times the parameters: with the width, they go with its cube."""
    return max(1, min(DEEPEST, round(depth * by ** (1 / 3))))


def _choice(run: RunConfig, depth: int, ar: int | None, wanted: float, counts: str) -> Choice | None:
    """None where there is no such model: layouts and head sizes divide some depths and widths only."""
    try:
        counted = count(meta_model(model_config(run, depth, ar), run.precision))
    except UserError:
        return None
    found = counted.parameters
    size = found["non_embedding"] - found["total"] + found["active"]
    return Choice(depth, ar, counted, wanted, float(found["total"] if counts == "parameters_all" else size))


def tokens_for(report: Report, choice: Choice, budget: float) -> float:
    """Tokens that spend the budget with this model, counted as the law's budget is."""
    if report.law.budget_column(report.sample.reads) == "flops":
        return budget / choice.counted.flops_per_token
    return budget / (6 * choice.size)


def _comments(report: Report, guess: Guess, choice: Choice, path: Path) -> Iterator[str]:
    yield "# The run that spends a budget best, by a law that was fitted to smaller ones. Train it:"
    yield f"#   python pretrain.py --config {path}"
    yield from (f"# {line}" for line in [*head(report), *guess_lines(report, guess)])
    found = report.draws.intervals(report.level) if report.draws else {}
    for name, value in report.fitted.numbers.items():
        low, high = found.get(name, (math.nan, math.nan))
        yield f"# {name} = {value:.5g}" + (f" ({low:.5g} to {high:.5g})" if low < high else "")
    yield (
        f"# Depth {choice.depth} has {choice.size:.4g} of the {choice.wanted:.4g} parameters that it asks for; the "
        "tokens spend the budget with them. Batch and rates follow from the scaling rule."
    )
    yield from (f"# Note: {note}" for note in report.notes)
