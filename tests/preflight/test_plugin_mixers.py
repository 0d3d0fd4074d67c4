"""A mixer of one's own that looks ahead, or into other documents, trained in silence. No mixer of ours does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gpt.architectures import FAMILIES, build
from lit_gpt.config.cli import parse
from lit_gpt.config.model import LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, last_linear
from lit_gpt.nn.mixers import MIXERS
from lit_gpt.ops.conv import causal_conv
from lit_gpt.plugins import load_plugins
from lit_gpt.preflight.plugin_mixers import check_mixers
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.roles import role


class Own(nn.Module):
    """What it makes of the projected input is chosen; the whole begins at zero, as a person may want it."""

    def __init__(self, config: ModelConfig, what: str):
        super().__init__()
        self.what, self.inner, self.out = what, Linear(config.n_embd, config.n_embd), last_linear(config, config.n_embd)
        self.part = role(nn.Parameter(torch.empty(config.n_embd)), "vector", 0.0)
        self.kernel = role(nn.Parameter(torch.empty(config.n_embd, 1, 3)), "conv")

    def forward(self, x_BTD: Tensor, context: Context, shared: Any = None, cache: Any = None) -> Any:
        h = self.inner(x_BTD)
        ids = None if self.what == "conv over documents" else context.doc_ids
        mixed = {
            "nothing": lambda: h,
            "mean": lambda: h.mean(1, keepdim=True).expand_as(h),
            "next": lambda: h.roll(-1, 1),
            "norm over time": lambda: h / h.norm(dim=1, keepdim=True),
            "gpu only": lambda: h.cuda() if torch.cuda.is_available() else torch.ops.aten._no_such_kernel(h),
            "transform": lambda: torch.fft.irfft(
                torch.fft.rfft(h, 2 * h.shape[1], 1) * torch.fft.rfft(torch.ones(1, h.shape[1], 1), 2 * h.shape[1], 1),
                dim=1,
            )[:, : h.shape[1]],
        }.get(self.what, lambda: causal_conv(h, self.kernel, doc_ids=ids)[0])()
        return self.out(h + self.part * mixed), None

    def flops(self, context_length: int) -> float:
        return 1.0

    def new_cache(self, *_: Any) -> None: ...


def own(monkeypatch: pytest.MonkeyPatch, what: str, **changes: Any) -> ModelConfig:
    entry = SimpleNamespace(build=lambda config, index, multipliers: Own(config, what))
    monkeypatch.setitem(MIXERS.plugins, "own", entry)
    return build("transformer", 2, aspect_ratio=8).replace(layers=(LayerSpec("own"),) * 2, **changes)


@pytest.mark.parametrize(("what", "at"), [("mean", 1), ("next", 31), ("norm over time", 1)])
def test_mixers_that_see_later_tokens(monkeypatch: pytest.MonkeyPatch, what: str, at: int) -> None:
    for zero_output in (False, True):
        with pytest.raises(UserError, match=rf"^The mixer own sees later tokens: .* at token {at}, so losses would"):
            check_mixers(own(monkeypatch, what, zero_output=zero_output))


def test_a_mixer_that_sees_the_document_before(monkeypatch: pytest.MonkeyPatch) -> None:
    check_mixers(own(monkeypatch, "conv over documents"))
    check_mixers(own(monkeypatch, "conv", varlen=True))
    with pytest.raises(UserError, match=r"sees the document before: .* at token 1 of the next\. Let nothing pass"):
        check_mixers(own(monkeypatch, "conv over documents", varlen=True))


@pytest.mark.parametrize("what", ["nothing", "conv", "transform", "gpu only"])
def test_what_is_left_alone(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A transform over all tokens rounds them together; what needs another device is left to its first step."""
    check_mixers(own(monkeypatch, what))


def one_of_each() -> list[str]:
    """Families that together have every mixer."""
    found, seen = [], set[str]()
    for family in FAMILIES.names():
        mixers = {layer.mixer for layer in build(family, 8, aspect_ratio=16).layers}
        found += [family] * bool(mixers - seen)
        seen |= mixers
    return found


@pytest.mark.parametrize("family", one_of_each())
def test_no_mixer_of_this_repository_would_be_refused(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    for name in MIXERS.files():
        monkeypatch.setitem(MIXERS.plugins, name, MIXERS.load(name))
    config = build(family, 8, aspect_ratio=16)
    check_mixers(config)
    check_mixers(config.replace(varlen=True))


PLUGIN = """
from lit_gpt.nn.mixers import gla


def build(config, layer_index, multipliers):
    mixer = gla.build(config, layer_index, multipliers)
    forward = mixer.forward

    def ahead(x, *others):
        y, state = forward(x.flip(1), *others)
        return y.flip(1), state

    mixer.forward = ahead
    return mixer
"""
FAMILY = """
from lit_gpt.architectures.builders.dense import dense


def build(depth, shape):
    return dense(depth, shape, mixer="ahead")
"""


def test_a_run_with_such_a_plugin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ahead.py").write_text(PLUGIN)
    (tmp_path / "ahead_net.py").write_text(FAMILY)
    files = f"{tmp_path}/ahead.py,{tmp_path}/ahead_net.py"
    line = f"--train_model ahead_net --depth 2 --ar 64 --vocab_size 257 --plugins {files}"
    try:
        with pytest.raises(UserError, match="The mixer ahead sees later tokens"):
            resolve_run(parse(line.split()), 1)
    finally:
        load_plugins([])
