"""The options of a run: every option of pretrain.py is a field of RunConfig.

Fields stand in groups (lit_gpt/config/groups), each with its type, its bounds, its default and its help. `None` means
"from a token of --train_name, from the family, or the default that the help names"; names.py and
preflight/resolved_run.py turn this into resolved values once. What a value may be stands in its type, and bounds.py
checks it, however the options were made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_type_hints

from lit_gpt.config.groups.machine import (
    ArchScaleOptions,
    LoggingOptions,
    PrecisionOptions,
    ProcessOptions,
    RunOptions,
    ValidationOptions,
)
from lit_gpt.config.groups.model import AttentionOptions, DataOptions, ExpertOptions, ModelOptions, NormOptions
from lit_gpt.config.groups.stream import StreamOptions
from lit_gpt.config.groups.training import (
    BaseHyperparameters,
    BatchOptions,
    OptimizerOptions,
    ScalingOptions,
)

__all__ = ["BaseHyperparameters", "RunConfig"]


@dataclass
class RunConfig(
    # from the last to the first that the help shows, for that is the order of fields in a dataclass with bases
    ArchScaleOptions,
    ExpertOptions,
    StreamOptions,
    NormOptions,
    AttentionOptions,
    ProcessOptions,
    PrecisionOptions,
    LoggingOptions,
    ValidationOptions,
    RunOptions,
    OptimizerOptions,
    ScalingOptions,
    BatchOptions,
    ModelOptions,
    DataOptions,
):
    """Train a language model: a family, a depth, a scaling rule, a folder of tokens."""


# The parser gets the types without their notes. By itself it would look for the names in them here, not in the groups.
RunConfig.__init__.__annotations__ |= get_type_hints(RunConfig)
