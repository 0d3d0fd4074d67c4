"""--plugins: files of a person's own, what is refused, what a run folder keeps, and that nothing runs unasked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from spawn import run_distributed
from test_adding import as_plugins, command  # noqa: F401

import pretrain
from lit_gpt.architectures import FAMILIES, build
from lit_gpt.config.cli import parse
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.mixers import MIXERS, build_mixer, gdn
from lit_gpt.plugins import load_plugins
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import convert, generate, inspect

FAMILY = """
from lit_gpt.architectures.builders.dense import dense


def build(depth, shape):
    return dense(depth, shape)
"""


@pytest.fixture(autouse=True)
def _none_left() -> Iterator[None]:
    yield
    load_plugins([])


def refusal(tmp_path: Path, name: str, code: str) -> str:
    path = tmp_path / name
    path.write_text(code)
    with pytest.raises(UserError) as error:
        load_plugins([str(path)])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(FAMILY)
    load_plugins([str(tmp_path / "my_net.py")])
    assert "my_net" in FAMILIES.names() and build("my_net", 8).family == "my_net"
    load_plugins([])  # another command line
    with pytest.raises(UserError, match="Unknown model family 'my_net'"):
        build("my_net", 8)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("a.py", "x = 1\n\ny = 1 / 0\n", "a.py, line 3, fails: ZeroDivisionError: division by zero."),
        ("a.py", "def f():\n    return g()\n\n\nf()\n", "a.py, line 2, fails: NameError: name 'g' is not defined."),
        ("a.py", "def f(:\n", "a.py, line 1, fails: SyntaxError: invalid syntax"),
        ("a.py", "import lit_gpt.nothing\n", "a.py, line 1, fails: ModuleNotFoundError: No module named"),
        ("a.py", "a = '\x00'\n", "a.py, line 1, fails: "),
        ("a.py", "import sys\n\nsys.exit(0)\n", "a.py, line 3, fails: SystemExit: 0."),
        ("a.py", "x = 1\n", "is no entry: one function must say what it is (build(depth, shape): model family,"),
        ("a.py", "def build(width, shape):\n    pass\n", "is no entry"),
        ("a.py", f"{FAMILY}\n\ndef transfer(s):\n    pass\n", "is several entries"),
        ("transformer.py", FAMILY, "has the name of a built-in model family. Rename the file."),
        ("samba.py", FAMILY, "has the name of a built-in model family. Rename the file."),
        ("my-net.py", FAMILY, "the file's name is the entry's, so it must be such as my_rule.py."),
        ("my_net.txt", FAMILY, "the file's name is the entry's"),
    ],
)
def test_files_that_are_no_plugins(tmp_path: Path, name: str, code: str, says: str) -> None:
    assert says in refusal(tmp_path, name, code)
    assert "a" not in FAMILIES.names()


def test_entries_that_return_nothing(tmp_path: Path) -> None:
    """They were AttributeErrors about None, far from the plugin."""
    (tmp_path / "my_net.py").write_text("def build(depth, shape):\n    pass\n")
    (tmp_path / "my_rule.py").write_text("def transfer(situation):\n    pass\n")
    load_plugins([str(tmp_path / "my_net.py"), str(tmp_path / "my_rule.py")])
    with pytest.raises(UserError, match="build of the family 'my_net' returned NoneType; return a ModelConfig"):
        build("my_net", 8)
    line = ["--parameterization", "my_rule", "--train_model", "transformer", "--depth", "8"]
    with pytest.raises(UserError, match="transfer of the rule 'my_rule' returned NoneType; return a Transfer"):
        resolve_run(parse([*line, "--plugins", str(tmp_path / "my_rule.py"), "--vocab_size", "257"]), 1)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_plugins([str(tmp_path / "gone.py")])
    with pytest.raises(UserError, match="is a folder and not a file"):
        load_plugins([str(tmp_path)])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my_net.py").write_text(FAMILY)
    with pytest.raises(UserError, match=r"--plugins names two files my_net\.py"):
        load_plugins([str(tmp_path / folder / "my_net.py") for folder in ("a", "b")])


def test_a_file_runs_once_while_it_is_the_same(tmp_path: Path) -> None:
    """A run is resolved several times; dataclasses and compiled code must find the module that they are from."""
    path = tmp_path / "my_net.py"
    path.write_text(f"{FAMILY}\n\nclass Mark:\n    pass\n")
    load_plugins([str(path)])
    first = FAMILIES.load("my_net")
    load_plugins([str(path)])
    assert FAMILIES.load("my_net") is first is sys.modules[first.Mark.__module__]
    path.write_text(f"{FAMILY}\n\nNEW = True\n")
    load_plugins([str(path)])
    assert FAMILIES.load("my_net").NEW


def test_a_file_is_a_module_of_its_own(tmp_path: Path) -> None:
    """Its names were attributes of ours, and our __future__ imports were its."""
    path = tmp_path / "my_net.py"
    path.write_text(f"{FAMILY}\n\npath = kind = source = 3\n\n\ndef f(x: int): ...\n")
    load_plugins([str(path)])
    assert FAMILIES.load("my_net").f.__annotations__ == {"x": int}
    load_plugins([str(path)])
    assert build("my_net", 8).depth == 8


@pytest.mark.parametrize("words", ["--plugins a.py,b.py", "--plugins a.py b.py --depth 8", "--config lab.yaml"])
def test_ways_to_name_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({"plugins": ["a.py", "b.py"]}))
    assert parse(words.split()).plugins == ["a.py", "b.py"]
    assert parse(["--loggers", "wandb", "csv"]).loggers == ["wandb", "csv"]


def test_a_run_of_plugins_from_start_to_text(
    tmp_path: Path,
    as_plugins: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mixer and the family that has it: trained, resumed, refused where the code changed, and used by the tools."""
    torch.set_num_threads(1)
    lab, words = tmp_path / "lab", command(tmp_path, train_model="mine", optimizer="adamw")
    assert pretrain.main([*words, *as_plugins, "--stop_after", "5"]) == 75
    run = tmp_path / "out/added_mine_d2_ar16_ctx64"
    kept, mixer = run / "plugins/short_conv.py", lab / "short_conv.py"
    assert kept.read_bytes() == mixer.read_bytes()

    changed = mixer.read_text().replace("c * y", "y")
    mixer.write_text(changed)
    capsys.readouterr()
    assert pretrain.main([*words, *as_plugins]) == 2
    error = capsys.readouterr().err
    assert "numerics.plugins.short_conv: " in error and f"as they were then are in {run / 'plugins'}" in error
    assert kept.read_text() != changed
    with_kept = [str(kept) if word == str(mixer) else word for word in as_plugins]
    assert pretrain.main([*words, *with_kept]) == 0

    load_plugins([])
    capsys.readouterr()
    with pytest.raises(UserError, match=r"has layers of short_conv, a mixer that is not here.*copy in plugins/"):
        generate.main([str(run), "--prompt", "a", "--max_new_tokens", "2"])
    generate.main([str(run), "--prompt", "a", "--max_new_tokens", "2", "--tokenizer", "bytes", "--plugins", str(kept)])
    assert capsys.readouterr().err == ""
    convert.main([str(run), str(tmp_path / "model.safetensors"), "--plugins", str(mixer)])
    assert "note: the plugin short_conv is not what" in capsys.readouterr().err
    for what in (["run", str(run)], ["checkpoint", str(tmp_path / "model.safetensors")]):
        load_plugins([])
        assert inspect.main([*what, "--plugins", str(kept)]) == 0


def test_code_of_a_run_folder_never_runs_unasked(
    tmp_path: Path,
    as_plugins: list[str],  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever sends a run folder may have put anything there, and may name it in its config.yaml."""
    torch.set_num_threads(1)
    words = command(tmp_path, train_model="mine", optimizer="adamw")
    assert pretrain.main([*words, *as_plugins, "--stop_after", "2"]) == 75
    run = tmp_path / "out/added_mine_d2_ar16_ctx64"
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    for path in (run / "plugins").iterdir():
        path.write_text(trap)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["plugins"] = [str(path) for path in (run / "plugins").iterdir()]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    load_plugins([])
    assert pretrain.main(words) == 2  # the family is unknown
    assert pretrain.main([*words, *as_plugins, "--seed", "5"]) == 2  # what differs is found without the other plugins
    assert "--seed: 3407 -> 5" in capsys.readouterr().err
    load_plugins([])
    for tool in (lambda: inspect.main(["run", str(run)]), lambda: generate.main([str(run), "--prompt", "a"])):
        with pytest.raises(UserError):
            tool()
    assert not (tmp_path / "sprung").exists()
    assert pretrain.main([*words, *as_plugins]) == 0 and not (tmp_path / "sprung").exists()


def test_a_mixer_under_another_name_has_its_own_options(tmp_path: Path, as_plugins: list[str]) -> None:  # noqa: F811
    """Each mixer named itself to its options, so that those of a copy were dropped in silence."""
    shutil.copy(tmp_path / "lab/short_conv.py", tmp_path / "wide_conv.py")
    shutil.copy(gdn.__file__, tmp_path / "my_gdn.py")
    load_plugins([str(tmp_path / "wide_conv.py"), str(tmp_path / "my_gdn.py")])
    sizes = {"n_embd": 8, "n_head": 2, "head_dim": 4, "n_kv_head": 2, "intermediate_size": 16}
    given = {"wide_conv": {"width": 5}, "my_gdn": {"heads": 3, "key_dim": 4}}
    config = ModelConfig("x", 2, layers=(LayerSpec("wide_conv"), LayerSpec("my_gdn")), mixer_options=given, **sizes)
    assert build_mixer(config, 0, Multipliers()).conv.shape[-1] == 5
    assert build_mixer(config, 1, Multipliers()).sizes[:2] == (3, 4)
    assert MIXERS.load("my_gdn").memory(config, 1).width == 24


def train(words: list[str]) -> int:
    """One rank's run."""
    return pretrain.main(words)


def test_every_rank_loads_them(tmp_path: Path, as_plugins: list[str]) -> None:  # noqa: F811
    words = [*command(tmp_path, train_model="mine", micro_bsz=1), *as_plugins]
    assert run_distributed(train, 2, [*words, "--stop_after", "3"]) == [75, 75]
    assert run_distributed(train, 2, [*words, "--stop_after", "3"]) == [75, 75]


def test_the_original_may_move(tmp_path: Path, as_plugins: list[str]) -> None:  # noqa: F811
    """What counts is what is in the file, not where it lies."""
    torch.set_num_threads(1)
    words = command(tmp_path)
    assert pretrain.main([*words, *as_plugins, "--stop_after", "2"]) == 75
    shutil.move(tmp_path / "lab", tmp_path / "elsewhere")
    moved = [word.replace("/lab/", "/elsewhere/") for word in as_plugins]
    assert pretrain.main([*words, *moved, "--stop_after", "2"]) == 75
    assert "short_conv" in MIXERS.names()
