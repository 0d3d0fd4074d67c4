"""How long is the way of a run's options? Counts, over one real run of two steps on the CPU, what receives them.

    python tests/way_of_options.py

From pretrain.main until the first training step begins, each function of this repository that is called with the
options, with the resolved run, or with a trainer that holds it is on the way. A return upward is a call from a function
on the way into a room of a higher floor than its caller's (floors: tests/test_layers.py).
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
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


def way() -> tuple[dict[str, str], list[str]]:
    """(function -> its file, in order of the first call; returns upward as "caller -> called")."""
    on_the_way: dict[str, str] = {}
    upward: list[str] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(ROOT)) or code.co_name.startswith("<"):
            return
        file = str(Path(code.co_filename).relative_to(ROOT))
        if (file, code.co_name) == ("lit_gpt/train/step.py", "train_step"):
            raise Reached
        if not any(holds(frame.f_locals.get(name)) for name in code.co_varnames[: code.co_argcount]):
            return
        name = f"{file}:{code.co_qualname if hasattr(code, 'co_qualname') else code.co_name}"
        caller = frame.f_back
        above = str(Path(caller.f_code.co_filename)) if caller else ""
        if name not in on_the_way and floor(above) is not None and (here := floor(code.co_filename)) is not None:
            lower = floor(above)
            if lower is not None and here > lower:
                upward.append(f"{Path(above).relative_to(ROOT)} -> {name}")
        on_the_way.setdefault(name, file)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        write_shard(Path(folder) / "train_0.bin", np.arange(4096, dtype=np.uint16) % 64)
        sys.setprofile(watch)
        try:
            pretrain.main([*TINY.split(), "--train_data_dir", folder, "--out_dir", folder])
        except Reached:
            pass
        finally:
            sys.setprofile(None)
    return on_the_way, upward


def holds(value: Any) -> bool:
    """Whether an argument is the options or has them."""
    return isinstance(value, RunConfig | ResolvedRun) or isinstance(getattr(value, "resolved", None), ResolvedRun)


def floor(path: str) -> int | None:
    """Of a file of the package, else None."""
    package = ROOT / "lit_gpt"
    return (
        FLOOR_OF.get(Path(path).relative_to(package).parts[0].removesuffix(".py"))
        if Path(path).is_relative_to(package)
        else None
    )


if __name__ == "__main__":
    functions, ups = way()
    print("\n".join(functions))
    print(f"{len(functions)} functions, {len(set(functions.values()))} files, {len(ups)} returns upward: {ups}")
