"""Reading data on all ranks: when one of them cannot, none goes on without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

from lit_gpt.data.stream import DataError
from lit_gpt.parallel import Runtime

T = TypeVar("T")


def together(runtime: Runtime, read: Callable[[], T]) -> T:
    """read() on every rank. A DataError of one rank is raised on all, before any waits for it in the model.

    Collective, on the host: one number between ranks, and the message when there is one.
    """
    error, result = None, None
    try:
        result = read()
    except DataError as e:
        error = e
    if runtime.world_size > 1 and runtime.sum(torch.tensor(float(error is not None))).item():
        said = [text for text in runtime.gather(None if error is None else str(error)) if text is not None]
        raise DataError(said[0]) from error
    if error is not None:
        raise error
    return cast(T, result)
