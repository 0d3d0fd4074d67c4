"""How much room numeric assertions have: the smallest margins, in units of their spread over machines and seeds.

    python tests/margins.py [paths and options for pytest]

runs tests with several instruction sets and seeds, and prints for each assertion that compares numbers, worst first,
min(slack) / (max(slack) - min(slack)). Slack is what is left to the bound, in units of the bound. As a plugin of
pytest (-p margins, with MARGINS naming a file) it writes a line for every comparison that held: assert_close,
allclose, approx, and assert with <, <=, > or >=. MARGINS_SEED shifts every seed of torch and numpy that a test sets in
its own process; golden numbers do not hold then.
"""

from __future__ import annotations

import ast
import functools
import json
import operator
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SETTINGS = {
    "own": {},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "mkl": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
SEEDS = (0, 1, 2)
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
OPERATORS |= {ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos}
NUMBER_OF = re.compile(r"(?:tensor|array|np\.float\d+)\((-?[\d.][\d.e+-]*)(?:, [^()]*)?\)")


class Recorder:
    """Slack of each comparison of the test that runs."""

    def __init__(self, path: str):
        self.file, self.test, self.counts = open(path, "w"), "", Counter[str]()  # noqa: SIM115

    def add(self, what: str, value: float, bound: float, slack: float) -> None:
        """value and bound as compared; slack in their units."""
        key = f"{self.test} {what}"
        self.counts[key] += 1
        row = {"key": f"{key} #{self.counts[key]}", "value": value, "bound": bound, "slack": slack / (abs(bound) or 1)}
        print(json.dumps(row), file=self.file, flush=True)

    def asserted(self, line: int, text: str, explained: str) -> None:
        """An assert with an order in it, read from pytest's explanation: the only place that has the values."""
        for value, bound, slack in comparisons(explained):
            self.add(f":{line} {text[:60]}", value, bound, slack)


def comparisons(explained: str) -> Iterator[tuple[float, float, float]]:
    """(left, right, slack) of each order in "0.01 < (0.1 * tensor(2.))"; nothing of what is no arithmetic."""
    text = NUMBER_OF.sub(r"(\1)", explained.splitlines()[0]).strip()
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return
    for node in tree.values if isinstance(tree, ast.BoolOp) else [tree]:
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            sign = {ast.Lt: 1, ast.LtE: 1, ast.Gt: -1, ast.GtE: -1}.get(type(node.ops[0]), 0)
            try:
                left, right = number(node.left), number(node.comparators[0])
            except (TypeError, KeyError, OverflowError):
                continue
            if sign:
                yield left, right, sign * (right - left)


def number(node: ast.AST) -> float:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](number(node.left), number(node.right))
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](number(node.operand))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    raise TypeError


def closeness(recorder: Recorder, found: Any, expected: Any, rtol: float, atol: float) -> None:
    """The element of two tensors that uses most of its tolerance."""
    import torch

    a, b = (torch.as_tensor(x).detach().cpu().double() for x in (found, expected))
    if a.numel() and a.shape == b.shape and rtol + atol > 0:
        used = ((a - b).abs() / (atol + rtol * b.abs()).clamp(min=1e-300)).nan_to_num(0.0).max().item()
        recorder.add("close", used, 1.0, 1.0 - used)


def pairs(found: Any, expected: Any) -> Iterator[tuple[Any, Any]]:
    """Leaves of what assert_close compares."""
    if isinstance(expected, dict):
        for key in expected:
            yield from pairs(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        for each in zip(found, expected):
            yield from pairs(*each)
    else:
        yield found, expected


def watch(recorder: Recorder) -> None:
    """Wraps the functions that compare within tolerances."""
    import numpy as np
    import pytest
    import torch

    torch.set_printoptions(precision=9)  # values of asserts are read from what pytest prints
    scalar: Any = type(pytest.approx(1.0))
    exact, approx = torch.testing.assert_close, scalar.__eq__

    @functools.wraps(exact)
    def assert_close(actual: Any, expected: Any, **options: Any) -> None:
        exact(actual, expected, **options)
        for a, b in pairs(actual, expected):
            dtypes = [torch.as_tensor(x).dtype for x in (a, b)]
            default = torch.testing._comparison.default_tolerances(*dtypes)
            tolerance = (options.get(k) for k in ("rtol", "atol"))
            closeness(recorder, a, b, *(d if t is None else t for t, d in zip(tolerance, default)))

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, **options: Any) -> Any:
            if close := original(a, b, rtol=rtol, atol=atol, **options):
                closeness(recorder, a, b, rtol, atol)
            return close

        return allclose

    def equal(self: Any, actual: Any) -> bool:
        held = approx(self, actual)
        if held and isinstance(actual, int | float) and isinstance(self.expected, int | float) and self.tolerance:
            error = abs(actual - self.expected)
            recorder.add("approx", error, self.tolerance, self.tolerance - error)
        return held

    def numpys(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0, **options: Any) -> None:
        checked(actual, desired, rtol=rtol, atol=atol, **options)
        closeness(recorder, actual, desired, rtol, atol)

    checked, np.testing.assert_allclose = np.testing.assert_allclose, numpys
    torch.testing.assert_close, scalar.__eq__ = assert_close, equal
    torch.allclose, np.allclose = wrapped(torch.allclose), wrapped(np.allclose)  # type: ignore[assignment]


def shift_seeds(shift: int) -> None:
    """Every seed that is set from here on is another one."""
    import numpy as np
    import torch

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed((seed + 7919 * shift) % 2**63)

    everywhere, numpys = torch.manual_seed, np.random.default_rng
    torch.Generator = Generator  # type: ignore[misc]
    torch.manual_seed = lambda seed: everywhere(int(seed) + 7919 * shift)
    np.random.default_rng = lambda seed=None: numpys(seed + 7919 * shift if isinstance(seed, int) else seed)


if path := os.environ.get("MARGINS"):
    recorder = Recorder(path)
    watch(recorder)
    if seed := int(os.environ.get("MARGINS_SEED", "0")):
        shift_seeds(seed)

    def pytest_runtest_setup(item: Any) -> None:
        recorder.test = item.nodeid
        recorder.counts.clear()

    def pytest_assertion_pass(item: Any, lineno: int, orig: str, expl: str) -> None:
        recorder.asserted(lineno, orig, expl)


def run(arguments: list[str], setting: str, seed: int, out: Path) -> Path:
    """One run of pytest; returns its file of comparisons."""
    rows = out / f"{setting}-{seed}.jsonl"
    env = {**os.environ, **SETTINGS[setting], "MARGINS": str(rows), "MARGINS_SEED": str(seed), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHONPATH": f"{HERE}:{HERE.parent}", "PYTHONPYCACHEPREFIX": str(out / "pycache")}
    options = ["-p", "margins", "-p", "no:cacheprovider", "-o", "enable_assertion_pass_hook=true", "--tb=line"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments], env=env, capture_output=True, text=True
    )
    (out / f"{setting}-{seed}.txt").write_text(done.stdout + done.stderr)
    print(setting, seed, done.stdout.strip().splitlines()[-1:], flush=True)
    return rows


def table(files: list[Path], count: int = 25) -> Iterator[str]:
    """Lines of the worst: margin over spread, the range of the slack, bound, comparison."""
    slacks, bounds = defaultdict(list), {}
    for row in (json.loads(line) for file in files for line in file.read_text().splitlines()):
        slacks[row["key"]].append(row["slack"])
        bounds[row["key"]] = row["bound"]
    worst = sorted((min(s) / (max(s) - min(s)), key) for key, s in slacks.items() if max(s) > min(s))
    for margin, key in worst[:count]:
        low, high = min(slacks[key]), max(slacks[key])
        yield f"{margin:8.2f}  {low:10.3g} to {high:10.3g} of {bounds[key]:10.3g}  {key}"


def main(arguments: list[str]) -> None:
    out = Path(os.environ.get("OUT", "out/margins")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    files = [run(arguments, setting, seed, out) for seed in SEEDS for setting in SETTINGS]
    print("\n".join(table(files)))


if __name__ == "__main__":
    main(sys.argv[1:])
