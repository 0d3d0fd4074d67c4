"""Fifty steps give the losses that they gave before."""

from __future__ import annotations

import json

import numpy as np
import pytest
from golden_runs import RUNS, file_of, losses

# Sums in another order (micro-batches of 1, 2, 8; the plain loss and attention) moved a loss by at
# most 2e-7 of it, 1, 2 or 4 threads by nothing. Another CPU or torch sums in another order too.
# A wrong beta2 (0.951 for 0.95) moves one by 3e-4, eps 1e-7 for 1e-8 by 4e-3.
TOLERANCE = 5e-5


@pytest.mark.parametrize("name", RUNS)
def test_losses(name, data, tmp_path):
    expected, found = json.loads(file_of(name).read_text()), losses(name, data, tmp_path)
    message = "If the numbers are meant to change: python tests/e2e/make_golden.py, and say why in the commit."
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=0, err_msg=message)
