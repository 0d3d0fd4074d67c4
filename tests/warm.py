"""What every process that trains does once and at its start: the server of spawn.py does it, and not each of its forks.

Nothing here computes with tensors: a process with threads must not be forked.
"""

from __future__ import annotations

import lit_gpt.data.formats.llmc
import lit_gpt.data.formats.megatron
import lit_gpt.data.formats.raw
import lit_gpt.optim.adamw  # noqa: F401
from lit_gpt.config.cli import parse

parse([])
