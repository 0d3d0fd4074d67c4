"""Do intervals hold what they promise? Every law is fitted to many draws of runs whose numbers are known.

    python benchmarks/coverage.py --json docs/benchmarks/coverage.json

Each law has an example: known numbers, the runs of a small study, and the noise of seeds. Of each draw the law is
fitted with its 90% intervals, as the tool `fit` makes them. Prints, for every number, the share of draws whose interval
holds the true one, with the binomial 95% interval of that share; the bias of the fit; and its spread. `a new run` is
the share of new runs at the same places inside the prediction interval. The table is also in docs/fits.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.scaling.coverage import coverage
from lit_gpt.scaling.intervals import LEVEL
from lit_gpt.scaling.laws import LAWS, law_named
from lit_gpt.utils.files import write_text


def main(words: Sequence[str]) -> None:
    """Measure, print and write the coverage of the laws."""
    args = _arguments(words)
    found = json.loads(args.json.read_text(encoding="utf-8")) if args.json and args.json.is_file() else {}
    laws = found.get("laws", {}) if found.get("draws") == args.draws and found.get("samples") == args.samples else {}
    for name in args.laws or LAWS.names():
        if law_named(name).example is None:
            continue
        begun = time.perf_counter()
        laws[name] = rows_of(name, args.draws, args.samples)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        if args.json:
            whole = {"level": LEVEL, "draws": args.draws, "samples": args.samples, "laws": dict(sorted(laws.items()))}
            write_text(args.json, json.dumps(whole, indent=1) + "\n")
    print(table(laws))


def rows_of(name: str, draws: int, samples: int) -> dict[str, dict[str, Any]]:
    """Number -> its figures, in JSON types."""
    found = {}
    for number, covered in coverage(law_named(name), draws, samples).items():
        low, high = covered.interval
        figures = {"held": covered.held / covered.tried, "low": low, "high": high}
        if covered.true == covered.true:
            figures |= {"true": covered.true, "bias": covered.bias, "spread": covered.spread}
        found[number] = {key: float(f"{value:.4g}") for key, value in figures.items()}
    return found


def table(laws: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A Markdown table with a line for each number."""
    lines = ["| law | number | true | interval holds it | bias | spread |", "|---|---|---|---|---|---|"]
    for name, numbers in laws.items():
        for number, row in numbers.items():
            held = f"{row['held']:.0%} ({row['low']:.0%} to {row['high']:.0%})"
            known = (f"{row['true']:.4g}", held, f"{row['bias']:+.1%}", f"{row['spread']:.1%}") if "true" in row else ""
            lines.append(f"| {name} | {number} | {' | '.join(known or ('', held, '', ''))} |")
    return "\n".join(lines)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = PlainParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("laws", nargs="*", help="Laws to measure. Default: all")
    parser.add_argument("--draws", type=int, default=200, help="Sets of runs. Default: 200")
    parser.add_argument("--samples", type=int, default=100, help="Resamples of each set. Default: 100")
    parser.add_argument("--json", type=Path, help="Write the figures here; laws that are not measured stay in it.")
    return parser.parse_args(words)


if __name__ == "__main__":
    run_command(main)
