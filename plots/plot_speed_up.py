"""Effective speed-ups: how much less compute each ladder needs than the first one, for the same loss.

    python plots/plot_speed_up.py out/baseline out/variant out/other
    python plots/plot_speed_up.py runs.csv --group optimizer --fix alpha=0.15 offset=1.7

Each ladder is fitted together with the first: L = offset + factor (speed_up C)^-alpha, in which both share the offset
and alpha (the JSON says where these come from). An interval that holds 1 says that the two may be equally good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lit_gpt.config.command import run_command
from lit_gpt.errors import UserError
from lit_gpt.lab.figure_curves import STEPS, draw_runs
from lit_gpt.lab.figure_fits import add_fit, finish, fit_each, groups_of, parser_of
from lit_gpt.lab.figures import along, dress, legend, looks, panels, short, shown
from lit_gpt.lab.fit_report import Report, as_json, judge
from lit_gpt.lab.fit_runs import columns_of, fixed_of, sample
from lit_gpt.lab.runs import Run, column
from lit_gpt.scaling.laws import law_named

LADDER = "ladder"


def fitted(
    given: Any, groups: Mapping[str, Sequence[Run]], reads: Mapping[str, str]
) -> tuple[dict[str, Report], dict[str, str]]:
    """The law of each ladder and the first, and why others have none.

    Raises UserError where there is one ladder only, or none has a law.
    """
    if len(groups) < 2:
        raise UserError("A speed-up is of two ladders or more. Give a path for each, or --group COLUMN.")
    named = {g: [replace(r, settings={**r.settings, LADDER: g}) for r in runs] for g, runs in groups.items()}
    law, (first, *others), fixed = law_named("speed_up"), named, fixed_of(given.fix)
    pairs = {other: sample(law, [*named[first], *named[other]], reads) for other in others}

    def fit(other: str) -> Report:
        return judge("speed_up", law, pairs[other], fixed, given.noise, given.samples, given.level)

    return fit_each(others, fit, "speed-up")


def draw(groups: Mapping[str, Sequence[Run]], reports: Mapping[str, Report], reads: Mapping[str, str]) -> Any:
    """Runs and laws over compute, and speed-ups with their intervals."""
    tall = 0.35 + 0.16 * len(reports)
    figure, grid = panels(2, height=(2.3 + tall) / 2 + 0.2, height_ratios=(2.3, tall))
    top, bottom = grid[:, 0]
    styles = dict(zip(groups, looks(len(groups))))
    for group, runs in groups.items():
        draw_runs(top, runs, reads["x"], reads["loss"], styles[group], group)
    for row, (group, report) in enumerate(reports.items()):
        x = np.geomspace(report.sample.data["x"].min(), report.sample.data["x"].max(), STEPS)
        for variant, name in ((1.0, next(iter(groups))), (2.0, group)):
            said = report.fitted.curve({"x": x, "variant": np.full(STEPS, variant)})
            top.plot(x, said, color=styles[name].color, linewidth=1.0)
        value, ends = report.fitted.numbers["speed_up"], _ends(report)
        bar = None if ends is None else np.array([[value - ends[0]], [ends[1] - value]])
        bottom.errorbar(
            [value], [row], xerr=bar, fmt=styles[group].marker, color=styles[group].color, markersize=4, capsize=2
        )
    bottom.axvline(1, color="black", linewidth=0.8)
    bottom.set_yticks(range(len(reports)), [short(group, 16) for group in reports])
    bottom.set_ylim(len(reports) - 0.4, -0.6)
    dress(top, shown(reads["x"]), shown(reads["loss"]))
    dress(bottom, f"effective speed-up over {short(next(iter(groups)), 20)}")
    along(top, "x", reads["x"], np.concatenate([column(runs, reads["x"]) for runs in groups.values()]))
    legend(figure, [top])
    return figure


def _ends(report: Report) -> tuple[float, float] | None:
    return report.draws.intervals(report.level)["speed_up"] if report.draws else None


ABOUT = (
    "Effective speed-ups of ladders over the first one: how much less compute they need for the same loss, where all "
    "share the offset and the exponent of one power law."
)


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of("plot_speed_up", ABOUT, "out/baseline out/variant")
    add_fit(parser, ["x=flops"])
    given = parser.parse_args(arguments)
    reads = {**columns_of(law_named("speed_up"), given.x, given.y), "variant": LADDER}
    groups = groups_of(given, [reads["x"], reads["loss"]])
    reports, refused = fitted(given, groups, reads)
    found: dict[str, Any] = {group: as_json(report) for group, report in reports.items()}
    found |= {group: {"refused": why} for group, why in refused.items()}
    finish(given, draw(groups, reports, reads), {"baseline": next(iter(groups)), "groups": found})


if __name__ == "__main__":
    run_command(main)
