"""What the options of _model_cli mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_gpt.config.words import read_words
from lit_gpt.evals.archscale_file import TrainedWith, read_typed
from lit_gpt.plugins import load_plugins


def use_plugins(given: Sequence[str]) -> None:
    """Load what --plugins names. Raises UserError for a file that is no plugin."""
    load_plugins(read_words(",".join(given)))


def trained_with(values: Any) -> TrainedWith:
    """What the values of add_trained_with say. Raises UserError for --trained_with of another form."""
    return TrainedWith(values.config, read_typed(values.trained_with))
