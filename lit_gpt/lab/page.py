"""One HTML file that holds everything it shows: style, code and data, and asks no network for anything."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PARTS = Path(__file__).with_name("page")
SCRIPTS = (
    "dom.js",
    "chart.js",
    "zoom.js",
    "table.js",
    "curves.js",
    "fits.js",
    "differences.js",
    "main.js",
)  # in this order
DIGITS = 6  # significant ones of the numbers: more than a screen shows


def page(content: Mapping[str, Any]) -> str:
    """The page that shows this content; see lit_gpt/lab/report.py for what it is."""
    text = (PARTS / "page.html").read_text(encoding="utf-8")
    script = "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    filled = {
        "TITLE": html.escape(str(content["title"])),
        "STYLE": (PARTS / "page.css").read_text(encoding="utf-8"),
        "CONTENT": embedded(content),
        "SCRIPT": script,
    }
    before, *rest = text.split("{{")  # each mark once, so that nothing that is filled in is looked at again
    parts = [part.partition("}}") for part in rest]
    return before + "".join(filled[name] + after for name, _, after in parts)


def embedded(content: Any) -> str:
    """As JSON that cannot end the element of HTML that it stands in."""
    text = json.dumps(plain(content), allow_nan=False, separators=(",", ":"))  # ASCII, so U+2028 is escaped as well
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(value: Any) -> Any:
    """The same in JSON's types: numbers that are not finite are null, other floats have DIGITS significant digits."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float | np.floating):
        return _number(float(value)) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else str(value)


def _number(value: float) -> float | int:
    """With DIGITS significant digits, and without ".0": half of a page is numbers of tokens."""
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
