"""What the command lines of tools that load a model share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_gpt.config.parsers import Parser
from lit_gpt.config.words import read_words
from lit_gpt.evals.archscale_file import TrainedWith, read_typed
from lit_gpt.plugins import load_plugins


def add_plugins(parser: Parser) -> None:
    """The option --plugins, of tools that build the model of a checkpoint. use_plugins loads them."""
    parser.add_argument(
        "--plugins",
        nargs="+",
        type=str,
        default=[],
        metavar="FILE",
        help="Python files with mixers of your own, where the model has some; default: none",
    )


def use_plugins(given: Sequence[str]) -> None:
    """Load what --plugins names. Raises UserError for a file that is no plugin."""
    load_plugins(read_words(",".join(given)))


def add_weights(parser: Parser) -> None:
    """The option --weights, of tools that load a trained model; evals.trained_model reads its value."""
    parser.add_argument(
        "--weights",
        type=str | None,
        default=None,
        help="weights to take: the name of an average that --ema kept, such as ema_1B; default: the trained weights",
    )


def add_trained_with(parser: Parser, config: bool = True) -> None:
    """The options that describe a checkpoint of ArchScale; `trained_with` reads their values. config: --config too."""
    if config:
        named = (
            "model of a checkpoint of ArchScale that does not say it, such as sambay_d16; default: what the file says"
        )
        parser.add_argument("--config", type=str | None, default=None, help=named)
    how = (
        "how a checkpoint of ArchScale was trained, as options of pretrain.py joined by commas, such as "
        "train_name=scaling_mup_rbase,ctx_len=8192; default: what the file says"
    )
    parser.add_argument("--trained_with", type=str | None, default=None, help=how)


def trained_with(values: Any) -> TrainedWith:
    """What the values of add_trained_with say. Raises UserError for --trained_with of another form."""
    return TrainedWith(values.config, read_typed(values.trained_with))
