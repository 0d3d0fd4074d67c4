"""What the tool that looks for thin margins reads from an assertion."""

from __future__ import annotations

import pytest
from margins import comparisons


@pytest.mark.parametrize(
    ("explained", "found"),
    [
        ("0.5 < (0.1 * tensor(20., dtype=torch.float64))\n{0.5 = f()\n}", [(0.5, 2.0, 1.5)]),
        ("tensor(3.) > -1e-2", [(3.0, -0.01, 3.01)]),
        ("(2 <= 5 and 'text' in names)", [(2, 5, 3)]),
        ("abs(3) < 4", []),
        ("found == expected", []),
    ],
)
def test_comparisons(explained: str, found: list[tuple[float, float, float]]) -> None:
    assert list(comparisons(explained)) == found
