"""A registry's one convention: plain files and rows are entries, sub-packages are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_gpt.data.prepare.recipes import RECIPES
from lit_gpt.errors import UserError
from lit_gpt.plugins import KINDS
from lit_gpt.registry import Registry


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A package with two plain files, a sub-package and a row."""
    folder = tmp_path / "some_registry"
    (folder / "helpers").mkdir(parents=True)
    for name in ("__init__", "first", "second_one", "helpers/__init__", "helpers/third"):
        (folder / f"{name}.py").write_text("def build(a, b, *rest):\n    return a\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return Registry("some_registry", "thing", "build(a, b)", {"row": SimpleNamespace(build=lambda x, y: x)})


def test_entries(made: Registry) -> None:
    assert made.names() == ["first", "row", "second_one"]
    assert made.load("first").build(1, 2) == made.load("row").build(1, 2) == 1
    assert "helpers" not in made and made.resolve("Second-One") == "second_one"
    with pytest.raises(UserError, match=r"Unknown thing 'frist'\. Did you mean 'first'\? Available: first, row"):
        made.load("frist")


@pytest.mark.parametrize("name", ["helpers", "third", "__init__", "helpers.third"])
def test_helpers_are_never_offered(made: Registry, name: str) -> None:
    with pytest.raises(UserError, match="Unknown thing"):
        made.load(name)


def test_what_takes_a_file(made: Registry) -> None:
    assert made.takes(made.load("first")) and not made.takes(made.load("row"))
    assert not made.takes(SimpleNamespace(build=3)) and not made.takes(SimpleNamespace())


@pytest.mark.parametrize("registry", [*KINDS, RECIPES], ids=lambda registry: registry.kind)
def test_every_entry_is_one(registry: Registry) -> None:
    """Helpers among the entries were offered as such, or had to be listed; and each name means one thing."""
    assert [name for name in registry.names() if not registry.takes(registry.load(name))] == []
    assert len(set(registry.built_in())) == len(registry.built_in())
    assert not any(name.startswith("_") for name in registry.names())
