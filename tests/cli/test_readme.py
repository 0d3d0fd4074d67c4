"""The documentation is true: its commands run, its links lead somewhere, its tables match the code.

Every command of every page is carried out in a tiny form or checked without carrying it out; one that nothing here
knows fails the test. Training commands are dry-run. The other code blocks are run by test_code_blocks.py.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import PAGES, ROOT, commands, prose
from script_module import script_module

import pretrain
from lit_gpt.architectures import FAMILIES
from lit_gpt.config.names import TOKENS
from lit_gpt.config.resolve import ALIASES
from lit_gpt.data.prepare import prepare as data_prepare
from lit_gpt.data.prepare.corpora import public_corpus
from lit_gpt.evals.tasks import TASKS
from lit_gpt.lab.planning import plan_rows
from lit_gpt.lab.rows import read_pairs, words_of
from lit_gpt.lab.study import read_study
from lit_gpt.tools import overlap
from lit_gpt.tools._evaluate_cli import parser_of

reproduce, train_step, families, cpu, beside_others, decode, scan = (
    script_module(f"benchmarks/{name}.py")
    for name in ("reproduce", "train_step", "families", "cpu", "compare", "decode", "scan")
)
fetch_script = script_module("scripts/fetch.py")
prepare_text = script_module("scripts/prepare_text.py")
README = ROOT / "README.md"
OF_LM_EVAL = {"--model", "--model_args", "--tasks", "--include_path", "--batch_size", "--device", "--gen_kwargs"}
OF_LM_EVAL |= {"--metadata", "--trust_remote_code", "--use_cache"}
NOT_YET = {"lc"}  # tokens that the README names as refused
PAGE_OF = {line: page for page in reversed(PAGES) for line in commands(page)}  # the first one that has a command
COMMANDS = [pytest.param(page, line, id=f"{page.stem}-{line[:60]}") for line, page in PAGE_OF.items()]


def shown_help(words: list[str]) -> str:
    """What `python WORDS --help` prints; run in this process, for the imports are the slow part."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as end:
        if words[0] == "-m":
            patch.setattr(sys, "argv", [words[1], *words[2:], "--help"])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        script = ROOT / words[0]
        patch.syspath_prepend(script.parent)  # a script finds its siblings in its own folder
        patch.setattr(sys, "argv", [str(script), *words[1:], "--help"])
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code in (0, None)
    return shown.getvalue()


def make(words: list[str], folder: Path) -> None:
    recipe = re.search(rf"^{words[1]}:.*\n\t@?\$\(PY\) (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None, f"the Makefile has no target {words[1]}"
    if "-m lit_gpt." in recipe[1]:
        shown_help(recipe[1].split()[:2])


def dry_run(words: list[str], folder: Path) -> None:
    assert pretrain.main([*words, "--dry_run", "true", "--out_dir", str(folder)]) == 0
    assert not any(folder.iterdir())


def prepare(words: list[str], folder: Path) -> None:
    """The command as it is, on four small files and a small vocabulary."""
    source = folder / "my_text"
    source.mkdir()
    for name in ("a.txt", "b.txt", "a.py", "b.py"):  # some pages take --include '*.py'
        (source / name).write_text("To be, or not to be, that is the question. " * 20)
    tiny = {"--source": str(source), "--output": str(folder / "out"), "--vocab_size": "300"}
    words = [tiny.get(before, word) for before, word in zip(["", *words], words)]
    prepare_text.main([*words[1:], "--num_workers", "1"])
    assert {p.name for p in (folder / "out").glob("*.bin")} == {"train_0000000000.bin", "validation_0000000000.bin"}


def fetch(words: list[str], folder: Path) -> None:
    """The words are understood, and the corpus is in the table; tests/data/test_fetch.py downloads some."""
    if "--list" not in words:
        public_corpus(fetch_script.parse(words[1:])["name"])
    tool(words, folder)


def tool(words: list[str], folder: Path) -> None:
    """A program whose inputs are another command's outputs: its help knows the options."""
    program = words[: 2 if words[0] == "-m" else 1]
    known = ("run", "checkpoint", "env", "verify", "delete", "copy", "average")
    subcommand = [w for w in words[len(program) :][:1] if w in known]
    shown = shown_help([*program, *subcommand])
    assert {w for w in words if w.startswith("--") and w not in shown} == set()


def torchrun(words: list[str], folder: Path) -> None:
    dry_run(words[words.index("pretrain.py") + 1 :], folder)


def sweep(words: list[str], folder: Path) -> None:
    table, common = words[1], words[words.index("--") + 1 :]
    assert (ROOT / table).is_file()
    tool(words[:4], folder)
    dry_run(common, folder)


def ladder(words: list[str], folder: Path) -> None:
    """The study is read with the options that follow, and its first run is planned."""
    split = words.index("--") if "--" in words else len(words)
    shown = shown_help([words[0]])
    assert {word for word in words[:split] if word.startswith("--") and word not in shown} == set()
    plan_rows(read_study(ROOT / words[1], read_pairs(words[split + 1 :])).rows[:1])


def decays(words: list[str], folder: Path) -> None:
    split = words.index("--")
    tool(words[:split], folder)
    dry_run(words[split + 1 :], folder)


def compare(words: list[str], folder: Path) -> None:
    split = words.index("--") if "--" in words else len(words)
    tool(words[:split], folder)
    if split < len(words):
        dry_run(words[split + 1 :], folder)


def benchmark(words: list[str], folder: Path) -> None:
    """Of the optimizers that it names, some are planned as the benchmark would train them."""
    script = script_module("launch_scripts/optimizer_benchmark.py")
    split = words.index("--") if "--" in words else len(words)
    given, rest = script.parser().parse_args(words[:split]), words[split + 1 :]
    rows = [row for scale in script.scales_of(given.scale) for row in script.rows_of(scale, given)]
    for row in (rows[0], rows[-1]):
        assert pretrain.main([*words_of(row.options), *rest, "--vocab_size=32000", "--dry_run=true"]) == 0, row.name


def launcher(words: list[str], folder: Path) -> None:
    script = next(i for i, word in enumerate(words) if word.startswith("launch_scripts/"))
    subprocess.run(["bash", "-n", str(ROOT / words[script])], check=True)
    settings = {w.partition("=")[0] for w in words[:script] if "=" in w}
    assert {s for s in settings if s not in (ROOT / words[script]).read_text()} == set()
    dry_run(words[script + 1 :], folder)


def install(words: list[str], folder: Path) -> None:
    """The script is read by bash, and knows the variables and options that are given to it."""
    script = next(word for word in words if word.endswith(".sh"))
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    given = {word.partition("=")[0] for word in words if "=" in word or word.startswith("--")}
    assert {name for name in given if name not in (ROOT / script).read_text()} == set()


def activate(words: list[str], folder: Path) -> None:
    assert words == [".venv/bin/activate"]


def judged(words: list[str], folder: Path) -> None:
    """An evaluation of ours understands the words."""
    script, *words = words
    task = words.pop(0) if script == "lit_gpt.tools.evaluate" else script.removeprefix("eval_").removesuffix(".py")
    assert parser_of(task).parse_args(words)["checkpoint_path"]


def lm_eval_line(words: list[str], folder: Path) -> None:
    """lm-eval reads the words, some of which are for our model; tests/evals/test_lm_eval.py runs such a command."""
    script = words.index("eval.py")
    assert {word for word in words[script:] if word.startswith("--")} <= OF_LM_EVAL
    given = words[words.index("--model_args") + 1].split(",")
    accepted = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/evaluation.md").read_text(), re.MULTILINE)
    assert {argument.partition("=")[0] for argument in given} <= set(accepted)


HANDLERS: list[tuple[str, Callable[[list[str], Path], None], int]] = [  # start, handler, words it does not get
    ("make ", make, 0),
    ("python pretrain.py ", dry_run, 2),
    ("python scripts/prepare_text.py ", prepare, 1),
    ("python scripts/fetch.py ", fetch, 1),
    ("python -m lit_gpt.tools.evaluate ", judged, 2),
    ("python -m lit_gpt.tools.compare ", compare, 1),
    ("python -m lit_gpt.tools.", tool, 1),
    ("python plots/", tool, 1),
    ("python eval.py ", lm_eval_line, 1),
    ("accelerate launch eval.py ", lm_eval_line, 2),
    ("python eval_reason/", tool, 1),
    ("python eval_", judged, 1),
    ("python benchmarks/decays.py ", decays, 1),
    ("python benchmarks/", tool, 1),
    ("python scripts/", tool, 1),
    ("bash install.sh", install, 0),
    ("EXTRAS=", install, 0),
    ("source ", activate, 1),
    ("python launch_scripts/sweep.py ", sweep, 1),
    ("python launch_scripts/ladder.py ", ladder, 1),
    ("python launch_scripts/optimizer_benchmark.py ", benchmark, 2),
    ("torchrun ", torchrun, 1),
    ("sbatch ", launcher, 1),
    ("NNODES=", launcher, 0),
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # a module run here was imported before
@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands(page: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    known = [(handler, skip) for start, handler, skip in HANDLERS if command.startswith(start)]
    assert known, f"{page.name} has the command {command!r}, which no handler here covers"
    (handler, skip), folder = known[0], tmp_path / "out"
    folder.mkdir()
    handler(shlex.split(command)[skip:], folder)


def test_the_readme_begins_with_the_two_commands() -> None:
    assert commands(README)[:2] == ["make demo", "make test"]
    assert len(README.read_text().splitlines()) <= 250


def test_the_plan_of_the_readme_is_what_the_dry_run_prints(capsys: pytest.CaptureFixture) -> None:
    text = README.read_text()
    shown = re.search(r"^```text\n(model  .*?)^```", text, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert (
        pretrain.main(["--train_model", "transformer", "--depth", "16", "--train_name", "mup", "--dry_run", "true"])
        == 0
    )
    printed = capsys.readouterr().out
    for line in shown[1].splitlines():
        assert line.removesuffix("...") in printed


def rows(heading: str) -> list[str]:
    """First cells in backticks of a README table, and those of every further such cell."""
    section = README.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [cell for line in section.splitlines() if line.startswith("| `") for cell in line.strip("|").split("|")]


def test_the_family_table_is_true() -> None:
    from lit_gpt.architectures import build
    from lit_gpt.preflight.meta_model import count, meta_model

    cells = rows("Families")
    table = {cells[i].strip(" `"): [c.strip() for c in cells[i + 2 : i + 4]] for i in range(0, len(cells), 4)}
    assert set(table) <= set(FAMILIES.names())
    for family, sizes in table.items():
        counted = [count(meta_model(build(family, depth))).parameters["non_embedding"] for depth in (8, 16)]
        assert sizes == [f"{n / 1e6:.0f}M" for n in counted]


def test_the_token_table_is_complete() -> None:
    named = {token for cell in rows("Tokens of `--train_name`")[::2] for token in re.findall(r"`(\w+)`", cell)}
    assert named == set(TOKENS) - NOT_YET
    assert all(f"`{token}`" in README.read_text() for token in NOT_YET)


def test_paths_of_the_file_tree_exist() -> None:
    tree = README.read_text().split("## Where things are\n")[1].split("```")[1]
    folder = ROOT
    for line in tree.splitlines()[1:]:
        name = line.split()[0]
        folder = folder if line.startswith(" ") else ROOT
        assert (folder / name).exists(), line
        folder = ROOT / name if not line.startswith(" ") and name.endswith("/") else folder


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose(page))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_headings(page: Path) -> None:
    links = re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", prose(page))
    to = [((page.parent / path if path else page), anchor) for path, anchor in links]
    assert [(path.name, anchor) for path, anchor in to if path.is_file() and anchor not in headings(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_are_ascii_and_name_no_machine(page: Path) -> None:
    text = page.read_text(encoding="ascii")
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|opt|root|mnt)/", text)


def test_options_that_the_pages_name_exist() -> None:
    """A flag in running text is an option of pretrain.py, or of another program that the pages call."""
    known = {f"--{line}" for line in (ROOT / "tests/cli/options.txt").read_text().split()}
    known |= {"--nproc_per_node", "--nodes", "--help", "--logdir", "--base_hps", *ALIASES}
    folders = ("scripts", "plots", "launch_scripts", "lit_gpt/tools")
    programs = [p for folder in folders for p in (ROOT / folder).glob("*.py")]
    programs += [ROOT / f"lit_gpt/{name}.py" for name in ("config/resolve", "config/cli", "lab/figure_fits")]
    programs.append(ROOT / "benchmarks/decays.py")
    code = "".join(p.read_text() for p in programs)
    known |= set(re.findall(r'"(--\w+)"', code))
    # Of install.sh, pip, Docker and iconv, as far as the pattern below reads them.
    known |= {"--dry", "--dest", "--build", "--tag", "--rm", "--interactive", "--tty", "--ipc", "--volume", "--from"}
    for program in (
        data_prepare,
        fetch_script.plan_fetch,
        train_step.main,
        reproduce.main,
        families.main,
        cpu.main,
        beside_others.main,
        decode.main,
        scan.main,
        overlap.compare,
    ):
        known |= {f"--{name}" for name in inspect.signature(program).parameters}
    known |= OF_LM_EVAL | {f"--{name}" for task in TASKS.names() for name, _ in parser_of(task).get_defaults().items()}
    for page in PAGES:
        flags = set(re.findall(r"(?<![\w-])--[a-z]\w+(?:\.[a-z]\w*)*", page.read_text()))
        flags = {flag for flag in flags if not flag.startswith("--optimizer_args.")}  # checked by the optimizer
        assert flags <= known, page
