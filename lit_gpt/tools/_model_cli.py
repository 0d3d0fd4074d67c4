"""Options that tools which load a model share; _model_values reads them."""

from __future__ import annotations

from lit_gpt.config.parsers import Parser


def add_plugins(parser: Parser) -> None:
    """The option --plugins, of tools that build the model of a checkpoint."""
    parser.add_argument(
        "--plugins",
        nargs="+",
        type=str,
        default=[],
        metavar="FILE",
        help="Python files with mixers of your own, where the model has some; default: none",
    )


def add_weights(parser: Parser) -> None:
    """The option --weights, of tools that load a trained model; evals.trained_model reads its value."""
    parser.add_argument(
        "--weights",
        type=str | None,
        default=None,
        help="weights to take: the name of an average that --ema kept, such as ema_1B; default: the trained weights",
    )


def add_trained_with(parser: Parser, config: bool = True) -> None:
    """The options that describe a checkpoint of ArchScale. config: --config too."""
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
