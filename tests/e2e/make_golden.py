"""Write the golden files anew: `python tests/e2e/make_golden.py`.

Do so only when a change is meant to change the numbers, and say in the commit why it does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from golden_runs import RUNS, file_of, losses
from tiny_run import make_corpus

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        data = make_corpus(Path(folder))
        for name in RUNS:
            found = losses(name, data, Path(folder) / name)
            file_of(name).write_text(json.dumps([round(loss, 7) for loss in found], indent=0) + "\n")
