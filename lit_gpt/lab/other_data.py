"""Whether runs saw, or were judged by, the same data, and in the same way: figures of others do not compare."""

from __future__ import annotations

from collections.abc import Sequence

from lit_gpt.lab.run_files import judgements
from lit_gpt.lab.runs import Run


def different(runs: Sequence[Run], part: str) -> list[str]:
    """The names of one run for each content of the data; [] where it is one for all, or not known.

    part: train or validation. The content is of tokens, so that one text in two vocabularies is different data.
    """
    kinds: dict[str, str] = {}
    for run in runs:
        kinds.setdefault(run.environment.get("data", {}).get(part, {}).get("content", ""), run.name)
    kinds.pop("", None)
    return list(kinds.values()) if len(kinds) > 1 else []


def other_settings(runs: Sequence[Run], figure: str) -> list[str]:
    """The settings in which the evaluations differ that a figure, such as hellaswag/acc, is from; [] for a column."""
    if "/" not in figure:
        return []
    found = [{key: settings for key, _, settings in judgements(run.folder)} for run in runs if run.folder]
    of_figure = [settings[figure] for settings in found if figure in settings]
    keys = dict.fromkeys(key for settings in of_figure for key in settings)
    return [key for key in keys if len({repr(settings.get(key)) for settings in of_figure}) > 1]
