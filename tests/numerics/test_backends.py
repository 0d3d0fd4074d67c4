"""How one of several implementations is chosen, and what a person is told."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.ops.backends import Backend, choose, explain_table, missing


class Request(NamedTuple):
    device: str
    size: int


def reference(x):
    """Does everything."""
    return x


TABLE = {
    "library": Backend(reference, lambda r: missing("no_such_library.kernels")),
    "small": Backend(reference, lambda r: "it is for sizes below 4" if r.size >= 4 else ""),
    "reference": Backend(reference, lambda r: ""),
}


def test_the_first_that_does_it():
    assert choose("doubling", TABLE, Request("cpu", 3)) == "small"
    assert choose("doubling", TABLE, Request("cpu", 4)) == "reference"
    assert choose("doubling", TABLE, Request("cpu", 3), "reference") == "reference"
    rows = explain_table(TABLE, Request("cpu", 4))
    assert [row[1] for row in rows] == [False, False, True] and rows[2][2] == "Does everything."


def test_what_cannot_be_used_is_explained():
    with pytest.raises(UserError, match=r"Unknown doubling backend 'smal'. Did you mean 'small'\?"):
        choose("doubling", TABLE, Request("cpu", 3), "smal")
    with pytest.raises(UserError, match="sizes below 4"):
        choose("doubling", TABLE, Request("cpu", 9), "small")
    with pytest.raises(UserError, match=r"no_such_library.kernels is not installed \(pip install no_such_library\)"):
        choose("doubling", TABLE, Request("cpu", 9), "library")


def test_cuda_on_the_reference_warns_once():
    with pytest.warns(UserWarning, match="tripling uses its slow.*no_such_library.*sizes below 4"):
        choose("tripling", TABLE, Request("cuda", 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("tripling", TABLE, Request("cuda", 9)) == "reference"
        assert choose("quadrupling", TABLE, Request("cpu", 9)) == "reference"


@pytest.mark.parametrize("size", [3, 9])
def test_choosing_is_no_graph_break(size):
    """Not even the first import of a library, nor the warning."""

    def run(x):
        name = choose("compiled", TABLE, Request("cuda", size))
        return x * (2 if name == "small" else 3)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compiled(torch.ones(1)).item() == {3: 2, 9: 3}[size]
