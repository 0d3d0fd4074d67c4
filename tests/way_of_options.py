"""How long is the way of a run's options? Counts, over one real run of two steps on the CPU, what receives them.

    python tests/way_of_options.py

From pretrain.main until the first training step begins, each function of this repository that is called with the
options, with the resolved run, or with a trainer that holds it is on the way, in the order of the first calls. A return
upward is a step of that order from a room to one of a higher floor (floors: tests/test_layers.py; the entry point is
above all of them).
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from test_layers import FLOOR_OF

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the entry point is no part of the package

import pretrain  # noqa: E402
from lit_gpt.config.run import RunConfig  # noqa: E402
from lit_gpt.data.formats.packed import write_shard  # noqa: E402
from lit_gpt.preflight.resolved_run import ResolvedRun  # noqa: E402

TINY = "--train_model transformer --train_name mup --depth 2 --ar 8 --ctx_len 32 --micro_bsz 2 --total_bsz 64 "
TINY += "--max_tokens 128 --base_hps.d0 2 --base_hps.warmup_tokens 0 --vocab_size 64 --num_workers 0 --compile false"


class Reached(BaseException):
    """The first training step begins."""


def way() -> list[str]:
    """What is on the way, as "file:function", in order of the first call."""
    found: dict[str, None] = {}

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(ROOT)) or code.co_name.startswith("<"):
            return
        file = str(Path(code.co_filename).relative_to(ROOT))
        if (file, code.co_name) == ("lit_gpt/train/step.py", "train_step"):
            raise Reached
        if any(holds(frame.f_locals.get(name)) for name in code.co_varnames[: code.co_argcount]):
            found.setdefault(f"{file}:{getattr(code, 'co_qualname', code.co_name)}")  # of Python 3.11

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        write_shard(Path(folder) / "train_0.bin", np.arange(4096, dtype=np.uint16) % 64)
        sys.setprofile(watch)
        try:
            pretrain.main([*TINY.split(), "--train_data_dir", folder, "--out_dir", folder])
        except Reached:
            pass
        finally:
            sys.setprofile(None)
    return list(found)


def holds(value: Any) -> bool:
    """Whether an argument is the options or has them."""
    return isinstance(value, RunConfig | ResolvedRun) or isinstance(getattr(value, "resolved", None), ResolvedRun)


def floor(step: str) -> int:
    """Of "lit_gpt/room/file.py:function"; the entry point is above all."""
    parts = Path(step.partition(":")[0]).parts
    return FLOOR_OF[parts[1].removesuffix(".py")] if parts[0] == "lit_gpt" else len(FLOOR_OF)


def upward(steps: list[str]) -> list[str]:
    """The returns upward of a way, as "from -> to"."""
    return [f"{a} -> {b}" for a, b in pairwise(steps) if floor(b) > floor(a)]


if __name__ == "__main__":
    steps = way()
    returns = upward(steps)
    print("\n".join(steps))
    print("returns upward:", *returns, sep="\n  ")
    print(f"{len(steps)} functions, {len({s.partition(':')[0] for s in steps})} files, {len(returns)} returns upward")
