"""The report of a study: one HTML file to look at, to send and to print, which needs no network.

    python -m lit_gpt.tools.report out/my_study --output report.html
    python -m lit_gpt.tools.report out/my_study --live 30
    python -m lit_gpt.tools.report out/my_study --where 'depth > 8' --law power chinchilla power:x=tokens

It has the question, all runs (sort, filter), their curves (zoom, logarithmic axes), fits with intervals and residuals,
the noise of repeated runs, and every configuration with the difference of any two.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.page import page
from lit_gpt.lab.report import content, is_done
from lit_gpt.tools._cli import local_path
from lit_gpt.utils.files import told, write_text


def write(paths: list[Path], output: Path, where: str | None, laws: list[str], samples: int, live: float = 0.0) -> bool:
    """Write the page; whether no run changes any more. live: seconds after which the page loads itself again."""
    found = content(paths, where, laws, samples)
    done = is_done(found)
    with told(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page({**found, "live": 0 if done else live}))
    return done


def main(argv: list[str]) -> int:
    """Write the page, and again and again where that is asked for."""
    given = _parser().parse_args(argv)
    if given.live is not None and not 1 <= given.live <= 86400:
        raise UserError(f"--live is {given.live:g}; give seconds between two writes, from 1 to 86400.")
    if given.samples < 1:
        raise UserError(f"--samples is {given.samples}; it must be at least 1.")
    output = given.output or given.study[0].with_name(f"{given.study[0].resolve().stem}_report.html")
    asked = (given.study, output, given.where, given.law, given.samples)
    done = write(*asked, live=given.live or 0.0)
    print(f"{output}: open it in a browser", flush=True)
    while given.live and not done:
        time.sleep(given.live)
        try:
            done = write(*asked, live=given.live)
        except (UserError, OSError) as error:  # a file that a run is just writing; the next time it is whole
            print(f"note: not written this time: {error}", file=sys.stderr, flush=True)
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="python -m lit_gpt.tools.report",
        description="Write the report of a study: one HTML file that needs no network.",
    )
    add = parser.add_argument
    add("study", type=local_path, nargs="+", metavar="STUDY", help="folder of a study or of runs, or a CSV file")
    add("--output", type=local_path, help="file to write; default: STUDY_report.html beside the study")
    add("--where", help="condition that chooses runs, such as 'depth == 8'; default: all runs")
    add(
        "--law",
        nargs="+",
        default=[],
        metavar="LAW",
        help="laws to fit, such as chinchilla or power:x=tokens,c=0; default: power, the lowest losses over compute",
    )
    add("--samples", type=int, default=1000, help="resamples for the intervals of a law")
    add("--live", type=float, help="write again every so many seconds while runs train; default: write once")
    return parser


if __name__ == "__main__":
    run_command(main)
