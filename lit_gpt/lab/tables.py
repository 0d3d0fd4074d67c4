"""CSV files of runs: a line for each run, or Weights & Biases' export of a chart, with a column for each run."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_gpt.errors import UserError

# Of a chart: "my run - metric/val_loss@1x", and beside it the lowest and highest value of what was averaged.
OF_A_RUN = re.compile(r"(?P<run>.+) - (?P<metric>[\w./@]+?)(?P<bound>__M(?:IN|AX))?")


@dataclass(frozen=True)
class Curve:
    """One metric of one run: x, (points,), is the first column of the chart, named `over`, and y its values.

    state: of a run that has not finished, as far as that is known; else "".
    """

    over: str
    x: np.ndarray
    y: np.ndarray
    state: str = ""


def read_lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(number of the line, cells by the names of the header) of each line; empty cells are left out.

    Raises UserError for a file that is no table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header, lines = [name.strip() for name in reader.fieldnames or ()], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file that can be read ({error}).") from error
    _check_header(path, header)
    found = []
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise UserError(f"{path}, line {number}: the number of cells is not that of the header.")
        found.append((number, {key.strip(): cell.strip() for key, cell in line.items() if cell.strip()}))
    return found


def _check_header(path: Path, header: list[str]) -> None:
    """Raises UserError for a name that stands twice, of which one column would be lost, and for another separator."""
    if twice := [name for name in dict.fromkeys(header) if name and header.count(name) > 1]:
        raise UserError(f"{path} has {header.count(twice[0])} columns called {twice[0]!r}. Rename or remove one.")
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise UserError(f"The columns of {path} are separated by {other!r}. Separate them by commas.")


def is_chart(lines: list[tuple[int, dict[str, str]]]) -> bool:
    """Whether the columns are runs, and not the lines."""
    return any(OF_A_RUN.fullmatch(name) for _, cells in lines for name in cells)


def curves(path: Path) -> dict[str, dict[str, Curve]]:
    """Run -> metric -> curve, of a file that Weights & Biases exported from a chart.

    Raises UserError for another file, and for cells that are no numbers.
    """
    lines = read_lines(path)
    if not is_chart(lines):
        raise UserError(
            f"{path} is no exported chart: it has no column such as 'my_run - metric/val_loss@1x'. In Weights & "
            "Biases, open the menu of a chart and choose Export CSV."
        )
    with path.open(newline="", encoding="utf-8-sig") as file:
        over = next(csv.reader(file))[0].strip()
    found: dict[str, dict[str, Curve]] = {}
    for name in dict.fromkeys(name for _, cells in lines for name in cells):
        named = OF_A_RUN.fullmatch(name)
        if named is None or named["bound"]:
            continue
        points = [
            (_number(path, n, cells.get(over, "nan")), _number(path, n, cells[name]))
            for n, cells in lines
            if name in cells
        ]
        x, y = np.array(points, dtype=np.float64).T
        found.setdefault(named["run"], {})[named["metric"]] = Curve(over, x, y)
    return found


def number_of(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(path: Path, line: int, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{path}, line {line}: {text!r} is no number.") from error
