"""Kinds of values that several options share, each with its bounds.

The upper bounds are far above what anyone trains: they catch slips, such as a budget that was typed for a depth.
"""

from __future__ import annotations

from typing import Annotated, Literal

from lit_gpt.config.bounds import LONGEST_PATH, Bounds, Text
from lit_gpt.config.words import Tokens

ScheduleName = Literal["linear", "cosine", "cos_inf", "wsd", "wsd_s", "constant", "none"]
ClipType = Literal["global", "local", "elementwise"]
# 1-sqrt and mirror_cosine have other spellings, see config/resolve.py.
DecayShape = Literal["linear", "cosine", "1-sqrt", "sqrt", "square", "exp", "mirror_cosine", "miror_cosine"]
Depth = Annotated[int, Bounds(1, 2_000)]
Length = Annotated[int, Bounds(1, 2**30)]  # tokens of a sequence
Experts = Annotated[int, Bounds(1, 10_000)]
Steps = Annotated[int, Bounds(1, 1e9)]
StepsOrNever = Annotated[int, Bounds(0, 1e9)]
Batch = Annotated[Tokens, Bounds(1, 1e12)]
Budget = Annotated[Tokens, Bounds(1, 1e16)]
Scale = Annotated[float, Bounds(0, 1e6)]
# A share that is a probability; no run shows whether it is 0 or below a millionth.
Share = Annotated[float, Bounds(1e-6, 1, "high", or_zero=True)]
Epsilon = Annotated[float, Bounds(1e-30, 1)]  # far enough from the smallest normal number of fp32, 1.2e-38
Beta = Annotated[float, Bounds(0, 1, "high")]  # a moving average with beta 1 never forgets
Folder = Annotated[str, Text("a path", LONGEST_PATH, path=True, shown="FOLDER")]
File = Annotated[str, Text("a path", LONGEST_PATH, path=True, shown="FILE")]
Path = Annotated[str, Text("a path", LONGEST_PATH, path=True, shown="PATH")]
AutoOrPath = Annotated[str, Text("a path", LONGEST_PATH, path=True, shown="auto, PATH")]
Name = Annotated[str, Text("a name", 128)]
Label = Annotated[str, Text("a name", 150, without="/\\")]  # of the run folder, whose suffixes need the rest of 255
