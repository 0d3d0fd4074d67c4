"""What each idea of a model is worth: loss and time with it taken out, or added, against the runs without that change.

    python plots/plot_ablation.py out/baseline_ablation --output ablation.png

Reads a study whose rows are called FAMILY_IDEA_sSEED, such as launch_scripts/studies/baseline_ablation.yaml. Prints a
table, and writes PNG, PDF and JSON. Runs of one seed see the same data in the same order, so what a seed does to all of
them is taken out; intervals, of 95%, follow from what is left, which all settings of a family share (Student's t). Time
is that of a token, in percent. What a host does to the speed of all its runs is taken out, too, where environment.json
or a column `host` names it.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.figures import SMALL, dress, panels, write
from lit_gpt.lab.run_files import FINISHED
from lit_gpt.lab.runs import Run, read_runs
from lit_gpt.metrics.figures import COLORS
from lit_gpt.scaling.noise import Difference, in_blocks

SAME_BUDGET = 1.01  # the last step of a run may be a part of a batch longer than that of another
UNKNOWN = Difference(math.nan, math.nan, 0)
Groups = dict[str, list[Run]]  # idea -> its runs, which differ in the seed


class Worth(NamedTuple):
    """How much larger loss (nats per token) and time (percent) are than those of the control. mean: of the loss."""

    idea: str
    runs: int
    mean: float
    loss: Difference
    time: Difference


def collect(runs: Sequence[Run]) -> dict[str, Groups]:
    """Family -> idea -> runs, in the order of their names.

    Raises UserError for a name that is none of such a study, and for runs of one family with different budgets.
    """
    found: dict[str, Groups] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        family, seed = str(run.value("train_model")), run.value("seed")
        head, tail = f"{family}_", f"_s{seed:.0f}" if isinstance(seed, int | float) else "_s?"
        if not (run.name.startswith(head) and run.name.endswith(tail)):
            raise UserError(
                f"The run {run.name} of the family {family} is not called FAMILY_IDEA_sSEED, such as "
                f"{head}token_smear{tail}, or is there twice."
            )
        if run.state != FINISHED or not math.isfinite(run.numbers.get("loss", math.nan)):
            print(f"left out: {run.name} ({run.state if run.state != FINISHED else 'no loss'})", file=sys.stderr)
        else:
            if run.numbers.get("tokens_per_sec", 0) <= 0:
                print(f"{run.name} has no speed: only its loss counts", file=sys.stderr)
            found[family][run.name[len(head) : -len(tail)]].append(run)
    for family, groups in found.items():
        check_budgets(family, [run for of in groups.values() for run in of])
    return found


def check_budgets(family: str, runs: Sequence[Run]) -> None:
    """Raise UserError for runs that were trained on different numbers of tokens, which no idea explains."""
    tokens = {run.numbers["tokens"]: run.name for run in runs if "tokens" in run.numbers}
    if tokens and max(tokens) > SAME_BUDGET * min(tokens):
        low, high = min(tokens), max(tokens)
        raise UserError(
            f"The runs of {family} cannot be compared: {tokens[low]} has {low:,.0f} tokens, and {tokens[high]} "
            f"{high:,.0f}. Give runs of one budget."
        )


def worths(groups: Groups, control: str) -> list[Worth]:
    """The control first, then the others, the largest difference of loss first."""
    runs = [(idea, run.value("seed"), run) for idea, of in groups.items() for run in of]
    losses = in_blocks({(idea, seed): run.numbers["loss"] for idea, seed, run in runs}, control)
    speeds = {(idea, host(run) or seed, seed): run.numbers.get("tokens_per_sec", 0) for idea, seed, run in runs}
    times = {key: -math.log(speed) for key, speed in speeds.items() if speed > 0}
    slower = in_blocks(times, control) if any(idea == control for idea, *_ in times) else {}

    def worth(idea: str) -> Worth:
        time, mean = slower.get(idea, UNKNOWN), statistics.fmean(run.numbers["loss"] for run in groups[idea])
        # Percent change by exp(t), so that a run of 60% more time has errors of 1.6 times those of ln(time).
        percent = Difference(100 * math.expm1(time.value), 100 * math.exp(time.value) * time.error, time.free)
        return Worth(idea, len(groups[idea]), mean, losses[idea], percent)

    alone = [idea for idea in groups if math.isnan(losses[idea].value)]
    for idea in alone:
        print(f"left out: {idea} (no seed of its runs leads to a run of {control})", file=sys.stderr)
    others = map(worth, groups.keys() - {control, *alone})
    return [worth(control), *sorted(others, key=lambda one: -one.loss.value)]


def host(run: Run) -> str:
    """Where it ran; "" where nobody says so."""
    return str(run.value("host") or run.environment.get("host", ""))


def table(family: str, found: Sequence[Worth]) -> str:
    """The same in Markdown."""
    lines = [f"| `{family}` | runs | loss | difference | time, % |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {found[0].idea} | {found[0].runs} | {found[0].mean:.4f} | | |"]
    lines += [
        f"| {one.idea} | {one.runs} | {one.mean:.4f} | {shown(one.loss, 4)} | {shown(one.time, 1)} |"
        for one in found[1:]
    ]
    return "\n".join(lines)


def shown(d: Difference, digits: int) -> str:
    """A difference with half of its interval, where these are known."""
    if math.isnan(d.value):
        return "not measured"
    return f"{d.value:+.{digits}f}" + (f" +- {d.half():.{digits}f}" if d.is_known else "")


def draw(found: Mapping[str, Sequence[Worth]], path: Path) -> list[Path]:
    """A row of panels for each family: loss on the left, time on the right."""
    tallest = max(len(of) for of in found.values())
    figure, axes = panels(len(found), 2, height=0.5 + 0.14 * tallest)
    for row, (family, of) in zip(axes, found.items()):
        for axis, key, unit in zip(
            row, ("loss", "time"), ("validation loss (nats per token)", "time of a token (percent)")
        ):
            changes = [getattr(one, key) for one in of[1:]]
            places, bars = range(len(changes), 0, -1), [d.half() if d.is_known else 0.0 for d in changes]
            axis.errorbar([d.value for d in changes], places, xerr=bars, fmt="o", ms=3, capsize=2, color=COLORS[0])
            axis.axvline(0, color="black", linewidth=0.8)
            axis.set_yticks(
                list(places), [one.idea.replace("_", " ") for one in of[1:]] if key == "loss" else [], fontsize=SMALL
            )
            axis.locator_params(axis="x", nbins=5)
            known = all(d.is_known for d in changes if math.isfinite(d.value))
            dress(axis, f"change of {unit}", title=family if known else f"{family} (noise unknown)")
    return write(figure, path, {family: [as_dict(one) for one in of] for family, of in found.items()})


def as_dict(one: Worth) -> dict[str, Any]:
    """For the JSON file; half_*: of the 95% intervals."""
    changes = {"loss": one.loss, "time_percent": one.time}
    halves = {f"half_{key}": d.half() for key, d in changes.items()}
    return {
        "idea": one.idea,
        "runs": one.runs,
        "mean_loss": one.mean,
        **{k: d.value for k, d in changes.items()},
        **halves,
    }


def main(arguments: Sequence[str]) -> None:
    """Draw the figure, print the tables and the paths."""
    parser = PlainParser(
        description="What each idea is worth in loss and in time, taken out of a model or added, with 95% intervals."
    )
    parser.examples = [("python plots/plot_ablation.py out/baseline_ablation", "runs are called FAMILY_IDEA_sSEED")]
    parser.add_argument("study", type=Path, nargs="+", help="output of the study")
    parser.add_argument("--control", default="nothing", help="the idea that changes nothing")
    parser.add_argument("--output", type=Path, default=Path("ablation.png"), help="picture to write, a PNG file")
    given = parser.parse_args(arguments)
    found = {}
    for family, groups in collect(read_runs(given.study)).items():
        if given.control not in groups or len(groups) < 2:
            raise UserError(
                f"{family} has no finished runs of {given.control} and of another idea. Found {list(groups)}."
            )
        found[family] = worths(groups, given.control)
        if len(found[family]) < 2:
            raise UserError(f"No idea of {family} shares a seed with {given.control}, so there is nothing to compare.")
        if not found[family][1].loss.is_known:
            print(f"{family}: too few seeds to say what is noise, so there are no intervals", file=sys.stderr)
        print(table(family, found[family]), end="\n\n")
    if not found:
        raise UserError("No run has finished. Run the study first.")
    print(*draw(found, given.output), sep="\n")


if __name__ == "__main__":
    run_command(main)
