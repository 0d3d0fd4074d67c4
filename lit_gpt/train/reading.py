"""Work on which all ranks depend: when one of them cannot do it, none goes on without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

from lit_gpt.data.stream import DataError
from lit_gpt.errors import NotOwner, NotWritten, UserError
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


def on_main(runtime: Runtime, work: Callable[[], T]) -> T | None:
    """work() on the main process, for which the others wait. Its UserError is raised on all ranks.

    Collective, on the host.
    """
    error, result = None, None
    if runtime.is_main:
        try:
            result = work()
        except UserError as e:
            error = e
    told = runtime.gather(None if error is None else f"{error.code} {error}")[0]
    if error is not None:
        raise error
    if told is not None:
        code, _, text = told.partition(" ")
        kinds = {str(kind.code): kind for kind in (NotWritten, NotOwner)}
        raise kinds.get(code, UserError)(text)
    return result
