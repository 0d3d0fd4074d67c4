"""Which weights an evaluation judged, for its result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gpt.checkpoint import all_checkpoints
from lit_gpt.checkpoint.layout import SUMS, is_complete, step_of
from lit_gpt.evals.results import Subject, owner_of
from lit_gpt.utils.files import digest


def subject_of(path: Path, meta: Mapping[str, Any], weights: str | None = None) -> Subject:
    """The model of a run folder, step folder or exported file, and the meta that it was loaded with."""
    # The newest checkpoint may be damaged, and then an older one was loaded, which its meta tells.
    single = path.is_file() or is_complete(path)
    found = path if single else next(p for p in all_checkpoints(path) if step_of(p) == meta["step"])
    plan = meta.get("plan")
    counts = {}
    if plan:
        flops = plan["model_flops_per_token"] * meta.get("tokens", 0)
        counts = {"parameters": plan["counts"]["non_embedding"], "flops": flops}
    return Subject(
        name=owner_of(path).name,
        checkpoint=found.name,
        checksum=digest(found if found.is_file() else found / SUMS),
        weights=weights or "trained",
        step=meta.get("step", 0),
        tokens=meta.get("tokens", 0),
        **counts,
    )
