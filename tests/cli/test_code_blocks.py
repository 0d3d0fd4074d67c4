"""Every code block of every page is run, or says in the page why it is not.

Commands (bash) are carried out by test_readme.py. Here the blocks in Python are executed, one after the other and in
one namespace per page, in a folder that has a tiny trained run (out/my_run), prepared data (data/mine) and the
summaries of a ladder (out/ladder). Files of options (YAML) are read by the parser of pretrain.py, and JSON is parsed.
What a program prints (text) needs no test.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import matplotlib
import pytest
import tiny_run
import torch
import yaml
from pages import LANGUAGES, PAGES, Block, blocks, commands, name, prose

from lit_gpt.config.cli import parse
from lit_gpt.config.run import RunConfig

WITH_PYTHON = [page for page in PAGES if any(block.reason is None for block in blocks(page, "python"))]
DATA_BLOCKS = [block for page in PAGES for block in blocks(page, "yaml", "json") if block.reason is None]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/mine, tiny prepared text, and out/my_run, a model of a few thousand weights trained on it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lab")
    data = tiny_run.make_corpus(folder / "made")
    (folder / "data").mkdir()
    data.rename(folder / "data/mine")
    assert tiny_run.run(folder / "data/mine", folder / "made/out", val_data_dir=folder / "data/mine") == 0
    (folder / "out").mkdir()
    tiny_run.folder_of(folder / "made/out").rename(folder / "out/my_run")
    summary = json.loads((folder / "out/my_run/summary.json").read_text())
    for size in (1, 2, 4, 8):
        (folder / f"out/ladder/d{size}").mkdir(parents=True)
        changed = {"tokens": summary["tokens"] * size, "metric/val_loss@1x": 2 + 3 / size}
        (folder / f"out/ladder/d{size}/summary.json").write_text(json.dumps(summary | changed))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_it_is_and_why_it_is_not_run(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block} needs one of {LANGUAGES} behind its ```"
        assert block.reason is None or len(block.reason.split()) > 1, f"{block} needs a reason in its comment"
        typed = re.search(r"^\$? ?(python|pretrain\.py|torchrun|bash|make|pip|git) (?! )", block.text, re.MULTILINE)
        assert block.language != "text" or typed is None, f"{block} is no output but a command: {typed}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_code_is_hidden_in_an_indented_block(page: Path) -> None:
    """Four spaces after an empty line are code in Markdown too; such blocks were never tested."""
    hidden = re.findall(r"\n\n {4,}\S.*", re.sub(r"^( *[-*] |\d+\. ).*(\n+ +.*)*", "", prose(page), flags=re.MULTILINE))
    assert not hidden


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_runs(page: Path, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one module, as a reader would type it; dataclasses look their module up in sys.modules."""
    module = ModuleType("__page__")
    monkeypatch.setitem(sys.modules, "__page__", module)
    monkeypatch.chdir(lab)
    matplotlib.use("agg")
    for block in blocks(page, "python"):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.reason is None:
            exec(code, vars(module))


@pytest.mark.parametrize("block", DATA_BLOCKS, ids=str)
def test_yaml_and_json_are_read(block: Block, tmp_path: Path) -> None:
    if block.language == "json":
        json.loads(block.text)
    elif set(yaml.safe_load(block.text)) & set(RunConfig.__dataclass_fields__):
        options = tmp_path / "options.yaml"
        options.write_text(block.text, encoding="utf-8")
        parse(["--config", str(options)])


def test_the_parts_of_a_page(tmp_path: Path) -> None:
    """The reader of blocks itself: a comment belongs to the block below it, and fences may be indented."""
    page = tmp_path / "page.md"
    page.write_text(
        "A\n\n<!-- not run: needs a cluster -->\n```bash\nsrun x\n```\n\n```bash\n# why\nmake \\\n  test\n```\n\n"
        "- B\n\n  ```python\n  1 + 1\n  ```\n\n<!-- not run:-->\n```text\nx\n```\n"
    )
    assert commands(page) == ["make    test"]
    assert "```" not in prose(page) and prose(page).startswith("A")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pages.ROOT", tmp_path)
        found = [(block.language, block.reason, block.line) for block in blocks(page)]
    assert found == [
        ("bash", "needs a cluster", 5),
        ("bash", None, 9),
        ("python", None, 17),
        ("text", "", 22),
    ]
