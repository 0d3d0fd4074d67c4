"""docs/adding.md keeps its word: the files it shows, put in place, train and resume."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Lfm2Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

import lit_gpt.architectures
import lit_gpt.data.formats
import lit_gpt.evals.tasks
import lit_gpt.nn.mixers
import lit_gpt.optim
import lit_gpt.scaling.rules
import pretrain
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.decoding import Decoder
from lit_gpt.evals.results import read_results
from lit_gpt.model import GPT
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import build_mixer
from lit_gpt.plugins import load_plugins
from lit_gpt.scaling.base import Multipliers
from lit_gpt.tools import evaluate

PAGE = Path(__file__).parents[2] / "docs/adding.md"
PACKAGES = {
    "architectures": lit_gpt.architectures,
    "nn/mixers": lit_gpt.nn.mixers,
    "optim": lit_gpt.optim,
    "scaling/rules": lit_gpt.scaling.rules,
    "data/formats": lit_gpt.data.formats,
    "evals/tasks": lit_gpt.evals.tasks,
}
MINE = """
def build(depth, shape):
    return dense(depth, shape, mixer="short_conv")
from lit_gpt.architectures.builders.dense import dense
"""


def entries() -> Iterator[tuple[str, str, str]]:
    """Room, name and code of every file of the page."""
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        room, name = re.match(r"# lit_gpt/([\w/]+)/(\w+)\.py\n", code).groups()  # type: ignore[union-attr]
        yield room, name, code


@pytest.fixture
def in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The page's files in a second folder of their packages: the options that a command needs to have them, none."""
    modules = []
    for room, name, code in entries():
        folder = tmp_path / "added" / room
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(code)
        monkeypatch.setattr(PACKAGES[room], "__path__", [*PACKAGES[room].__path__, str(folder)])
        modules.append(f"lit_gpt.{room.replace('/', '.')}.{name}")
    yield []
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def as_plugins(tmp_path: Path) -> Iterator[list[str]]:
    """The page's files, and a family of its mixer, in one folder of a person."""
    folder = tmp_path / "lab"
    folder.mkdir()
    for room, name, code in entries():
        if room != "evals/tasks":  # no kind of plugin
            (folder / f"{name}.py").write_text(code)
    (folder / "mine.py").write_text(MINE)
    yield ["--plugins", *map(str, sorted(folder.iterdir()))]
    load_plugins([])


@pytest.fixture(params=["in_place", "as_plugins"])
def options(request: pytest.FixtureRequest) -> list[str]:
    """Both ways."""
    return request.getfixturevalue(request.param)


def command(tmp_path: Path, **changes: Any) -> list[str]:
    """A short run on a .npy file of two words in turn, less what makes the page's entries known."""
    data = tmp_path / "ids"
    data.mkdir(exist_ok=True)
    with open(data / "train_0.bin", "wb") as file:
        np.save(file, np.tile(np.array([3, 9, 4, 1], dtype=np.uint16), 8000))
    given = {
        "train_model": "transformer_alternate",
        "optimizer": "sign_momentum",
        "parameterization": "mup_tokens",
        "depth": 2,
        "ar": 16,
        "base_hps.d0": 1,
        "base_hps.ar0": 128,
        "base_hps.t0": 2560,
        "base_hps.eta0": 2e-3,
        "base_hps.warmup_tokens": 0,
        "base_hps.b0": 512,
        "train_name": "added",
        "vocab_size": 257,
        "ctx_len": 64,
        "max_tokens": 10240,
        "log_step": 1,
        "train_data_dir": data,
        "out_dir": tmp_path / "out",
        "resume": "auto",
    }
    return [word for key, value in {**given, **changes}.items() for word in (f"--{key}", str(value))]


def test_the_files_of_the_page_train_and_resume(tmp_path: Path, options: list[str]) -> None:
    assert {room for room, _, _ in entries()} == PACKAGES.keys()
    torch.set_num_threads(1)
    words = command(tmp_path)
    assert pretrain.main([*words, *options, "--stop_after", "10"]) == 75
    assert pretrain.main([*words, *options]) == 0
    run = tmp_path / "out/added_transformer_alternate_d2_ar16_ctx64"
    plan = json.loads((run / "plan.json").read_text())
    # Width 32, base width 128: matrices 4 x. Four times the base tokens: 1/2.
    assert plan["roles"]["matrix"]["lr"] == pytest.approx(2e-3 * 4 / 2)
    assert plan["roles"]["vector"]["lr"] == pytest.approx(2e-3 / 2)
    assert json.loads((run / "model.json").read_text())["family"] == "transformer_alternate"
    losses = [json.loads(line)["metric/train_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 20 and losses[-1] < losses[0] - 1
    assert plan["roles"]["matrix"]["update_rule"] == "sign_momentum"
    of_parts = ["--optimizer", "muon_and_sign", "--optimizer_args.ns_steps", "4", "--train_name", "parts"]
    assert pretrain.main([*words, *options, *of_parts, "--max_tokens", "2560"]) == 0
    plan = json.loads((tmp_path / "out/parts_transformer_alternate_d2_ar16_ctx64/plan.json").read_text())
    assert plan["roles"]["matrix"]["lr"] == pytest.approx(2e-3), "Muon's steps need no factor for the width"


def test_the_evaluation_of_the_page(tmp_path: Path, in_place: list[str], capsys) -> None:
    """A model that has learnt two words in turn, which is in bytes here, is asked for lists of numbers."""
    words = command(tmp_path, train_model="transformer", optimizer="adamw", parameterization="mupp", max_tokens=2560)
    assert pretrain.main([*words, "--vocab_size", "257"]) == 0
    run = str(tmp_path / "out/added_transformer_d2_ar16_ctx64")
    line = ["recall", "--checkpoint_path", run, "--numbers", "3", "--tokenizer_name", "bytes"]
    assert evaluate.main(line) == 0
    assert re.search(r"^gain +-?\d", capsys.readouterr().out, re.MULTILINE)
    (result,) = read_results(Path(run))
    assert (result.task, result.examples, result.settings["numbers"]) == ("recall", 20, 3)


def short_conv(**options: Any) -> ModelConfig:
    layers = (LayerSpec("short_conv"),) * 2
    sizes = {"n_embd": 8, "n_head": 2, "head_dim": 4, "n_kv_head": 2, "intermediate_size": 16, "vocab_size": 31}
    return ModelConfig("x", 2, layers=layers, mixer_options={"short_conv": options} if options else {}, **sizes)


@torch.no_grad()
def test_the_mixer_of_the_page(in_place: list[str]) -> None:
    """Against transformers with the same weights; documents, and a prompt and steps, against whole rows."""
    ours = build_mixer(short_conv(), 0, Multipliers())
    theirs = Lfm2ShortConv(Lfm2Config(hidden_size=8, num_hidden_layers=1, conv_L_cache=3, layer_types=["conv"]), 0)
    torch.manual_seed(0)
    for p in ours.parameters():
        p.normal_()
    theirs.in_proj.weight.copy_(torch.cat([ours.b.weight, ours.c.weight, ours.x.weight]))
    theirs.conv.weight.copy_(ours.conv)
    theirs.out_proj.weight.copy_(ours.out.weight)
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(ours(x, Context())[0], theirs(x), rtol=1e-4, atol=1e-4)
    assert ours.flops(9) == 2 * (4 * 64 + 3 * 8)

    model, tokens = GPT(short_conv()), torch.randint(0, 31, (2, 9))
    for p in model.parameters():
        p.normal_(0.5, 0.5)
    ids = torch.tensor([0] * 4 + [1] * 5).expand(2, -1)
    alone = torch.cat([model(tokens[:, :4]).logits, model(tokens[:, 4:]).logits], dim=1)
    torch.testing.assert_close(model(tokens, doc_ids_BT=ids).logits, alone)
    decoder = Decoder(model, 2, 9)
    steps = [decoder(piece) for piece in tokens.split([4, 1, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(tokens).logits)
    with pytest.raises(UserError, match="option width of the mixer short_conv is 1; it must be a whole number of at"):
        build_mixer(short_conv(width=1), 0, Multipliers())
