"""The one picker of implementations."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.ops.backends import Backend, choose, explain_table, missing, observed, run


class Request(NamedTuple):
    device: str
    width: int = 4


TABLE = {
    "library": Backend(lambda x: x + 1, lambda r: missing("a_library_that_nobody_has.ops")),
    "narrow": Backend(lambda x: x + 2, lambda r: "" if r.width < 4 else "it is for widths below 4"),
    "plain": Backend(lambda x: x + 3, lambda r: ""),
}


def test_the_first_row_that_does_not_refuse():
    assert choose("sum", TABLE, Request("cpu", 2)) == "narrow"
    assert choose("sum", TABLE, Request("cpu")) == "plain"
    assert choose("sum", TABLE, Request("cpu", 2), "plain") == "plain"
    assert choose("sum", TABLE, Request("cpu", 2), "reference") == "plain", "what old command lines say"


@pytest.mark.parametrize(("here", "name"), [(False, "library"), (True, "plain")])
def test_an_observer_is_told_what_a_gpu_would_run(here, name, monkeypatch):
    """One elsewhere, where there is none here, has all libraries."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    seen = []

    def observer(row: Backend, on_gpu: Backend, arguments: tuple[int]) -> int:
        seen.append((row, on_gpu))
        return row.kernel(*arguments)

    with observed(observer):
        found = [run("sum", TABLE, Request("meta"), wanted, 1) for wanted in ("plain", "auto")]
    plain = TABLE["plain"]
    assert found == [4, 4 if here else 2] and seen[0] == (plain, plain) and seen[1][1] is TABLE[name]
    assert run("sum", TABLE, Request("cpu"), "auto", 1) == 4 and len(seen) == 2


def test_a_row_that_was_asked_for_and_cannot_run_is_an_error():
    with pytest.raises(UserError, match=r"a_library_that_nobody_has.* is not installed \(pip install"):
        choose("sum", TABLE, Request("cpu"), "library")
    with pytest.raises(UserError, match="Did you mean 'narrow'"):
        choose("sum", TABLE, Request("cpu"), "narow")


def test_leaving_a_gpu_to_plain_torch_warns_once_and_says_why():
    with pytest.warns(UserWarning, match="slow backend .plain., plain torch .library: .* not installed.*below 4"):
        choose("unique sum", TABLE, Request("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose("unique sum", TABLE, Request("cuda"))
        choose("another sum", TABLE, Request("cpu"))


@pytest.mark.filterwarnings("ignore:a compiled sum uses the slow")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_choosing_is_not_traced(device):
    """Dynamo would follow an import into the library, and stop at the warning."""

    def pick(x: torch.Tensor) -> torch.Tensor:
        return TABLE[choose("a compiled sum", TABLE, Request(device, x.shape[0]))].run(x)

    torch._dynamo.reset()
    compiled = torch.compile(pick, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(5)), torch.full((5,), 3.0))


def test_a_library_that_is_installed_is_not_missing():
    assert missing("torch.nn") == ""
    rows = explain_table(TABLE, Request("cpu"))
    assert [(name, usable) for name, usable, _ in rows] == [("library", False), ("narrow", False), ("plain", True)]
