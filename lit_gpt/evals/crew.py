"""Processes that share the questions of an evaluation, each with the whole model, and all know every answer.

Every process runs the same evaluation. Where it asks the model, each answers a part of the questions, and then they
exchange the answers, so that what follows is the same everywhere. An error of one process ends the evaluation in all:
none waits for answers that do not come.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from lit_gpt.errors import UserError
from lit_gpt.parallel.gloo import one_thread_per_group
from lit_gpt.utils.launcher import world_size

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Failed(UserError):
    """An evaluation that one of the processes could not go on with."""


class _Part(NamedTuple):
    """What a process has to say: what all were asked, as a checksum; its answers by place; what went wrong."""

    asked: int | None
    answers: dict[int, Any]
    wrong: str | None


@dataclass
class Crew:
    """rank, of `count` processes. gather: what each says, by rank, on all of them; it is called as often on each.

    A context: it ends when all processes have left it.
    """

    rank: int
    count: int
    gather: Callable[[Any], list[Any]]
    over: bool = False

    def divide(
        self,
        asked: Sequence[Asked],
        work: Callable[[list[Asked]], list[Answer]],
        key: Callable[[Asked], Hashable] | None = None,
    ) -> list[Answer]:
        """work(asked), to which each process contributes; questions with the same key are one process's.

        Raises Failed where one of them fails, or was asked something else.
        """
        if self.count == 1:
            return work(list(asked))
        keys: Sequence[Hashable] = range(len(asked)) if key is None else list(map(key, asked))
        order = {k: i for i, k in enumerate(dict.fromkeys(keys))}
        mine = [i for i, k in enumerate(keys) if order[k] % self.count == self.rank]
        checksum = zlib.crc32(repr(asked).encode())
        try:
            answers = dict(zip(mine, work([asked[i] for i in mine])))
        except Exception as error:
            self._exchange(_Part(checksum, {}, _words(error)), error)
            raise  # not reached: the exchange raises
        found: dict[int, Answer] = {}
        for part in self._exchange(_Part(checksum, answers, None)):
            found |= part.answers
        return [found[i] for i in range(len(asked))]

    def _exchange(self, mine: _Part, cause: BaseException | None = None) -> list[_Part]:
        self.over = True  # also where the exchange itself fails
        parts: list[_Part] = self.gather(mine)
        wrong = next((part.wrong for part in parts if part.wrong is not None), None)
        if wrong is None and len({part.asked for part in parts}) > 1:
            wrong = "the processes do not ask the same questions: their data or libraries differ"
        if wrong is not None:
            raise Failed(wrong) from cause
        self.over = False
        return parts

    def __enter__(self) -> Crew:
        self.over = False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """All are told of an error that came between two exchanges; one that ends the process is told by nobody."""
        if self.count > 1 and not self.over and (error is None or isinstance(error, Exception)):
            self._exchange(_Part(None, {}, None if error is None else _words(error)), error)


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)


ALONE = Crew(0, 1, lambda mine: [mine])


def join() -> Crew:
    """The processes that torchrun or accelerate started. They exchange answers only, over gloo."""
    if (count := world_size()) == 1:
        return ALONE
    if not dist.is_initialized():
        one_thread_per_group()
        dist.init_process_group("gloo")

    def gather(mine: Any) -> list[Any]:
        everyone = [None] * count
        dist.all_gather_object(everyone, mine)
        return everyone

    return Crew(dist.get_rank(), count, gather)
