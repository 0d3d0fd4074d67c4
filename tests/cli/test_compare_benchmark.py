"""The comparison with other trainers: its loop is the model it says it is, and ratios are of one round. No timing."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from script_module import script_module
from torch.nn import functional as F

from lit_gpt.config.command import command_of, exit_code
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Init, RolePlan

compare, plain_loop = (script_module(f"benchmarks/{name}.py") for name in ("compare", "plain_loop"))
SETTING = compare.Setting(depth=4, micro_bsz=2, context=16, steps=2, warmup=1, residual_precision="fp32", ar=8)


@pytest.mark.parametrize(("stream", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_loop_trains_our_transformer(stream: torch.dtype, tolerance: float) -> None:
    """With our weights it has our loss, and a step moves all of them."""
    torch.manual_seed(0)
    c = SETTING.shapes.replace(vocab_size=64)
    model, peer = GPT(c, residual_dtype=stream), plain_loop.plain(c, stream)
    init_parameters(model, dict.fromkeys(ROLES, RolePlan(lr=0, weight_decay=0, init=Init("normal", std=0.2))), 0)
    mine = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in peer.trunk.named_parameters():
            block = name.removesuffix("qkv.weight")
            name = name.replace(".out", ".mixer.out").replace(".down", ".ffn.down")
            if name.endswith("qkv.weight"):
                p.copy_(torch.cat([mine[f"{block}mixer.{part}.weight"] for part in "qkv"]))
            elif name.endswith(("gate.weight", "up.weight")):
                gate, up = mine[name.replace("gate", "up").replace("up", "ffn.up")].chunk(2)
                p.copy_(gate if "gate" in name else up)
            else:
                p.copy_(mine[name])
        peer.head_VD.copy_(mine["head.weight"])
    tokens_BT, targets_BT = torch.randint(64, (2, 3, 16))
    before = [p.clone() for p in (*peer.trunk.parameters(), peer.head_VD)]
    step = plain_loop.stepper(peer, plain_loop.loss_function(None, on_gpu=False)[1], None, on_gpu=False)
    ours = model(tokens_BT, targets_BT).loss / 48
    torch.testing.assert_close(step(0, tokens_BT, targets_BT), ours, rtol=tolerance, atol=0)
    assert all((old != p).any() for old, p in zip(before, (*peer.trunk.parameters(), peer.head_VD)))


def test_the_loss_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(plain_loop, "CHUNK_LOGITS", 3 * 11)
    hidden_ND, head_VD = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (8, 11))
    targets_N = torch.randint(11, (8,))
    loss_of = plain_loop.loss_function("chunked", on_gpu=False)[1]
    ours, theirs = loss_of(hidden_ND, head_VD, targets_N), F.cross_entropy(hidden_ND @ head_VD.T, targets_N)
    pairs = [torch.autograd.grad(3 * loss, (hidden_ND, head_VD)) for loss in (ours, theirs)]
    # The logits are cast to fp32, which is what they are made of where they are many.
    torch.testing.assert_close((ours, *pairs[0]), (theirs, *pairs[1]), rtol=1e-5, atol=1e-6, check_dtype=False)


def test_runs_and_their_table(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A peer of each kind: each is the same size, and one that is not installed is left out with a sentence."""

    def in_this_process(words: list[str], **options: Any) -> SimpleNamespace:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            code = exit_code(command_of(compare.main), words[2:])
        return SimpleNamespace(stdout=shown.getvalue(), returncode=code)

    names = {name: getattr(subprocess, name) for name in ("PIPE", "TimeoutExpired")}
    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(run=in_this_process, **names))
    monkeypatch.setitem(sys.modules, "litgpt", None)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)  # for all tests that follow, otherwise
    output = tmp_path / "compare.json"
    words = ["--peers", "plain,litgpt,ours", "--sizes", "2:1", "--rounds", "2", "--context", "16", "--ar", "16"]
    words += ["--steps", "2", "--warmup", "1", "--output", str(output)]
    assert exit_code(command_of(compare.main), words) == 0
    found = json.loads(output.read_text())
    # The other way round in the second round, without the one that was missing.
    assert [row["peer"] for row in found["rows"]] == ["plain", "litgpt", "ours", "ours", "plain"]
    plain, litgpt, ours = found["tables"][0]
    assert plain["parameters"] == ours["parameters"] > 0 and plain["of_plain"] == [1, 1, 1]
    assert ours["rounds"] == 2 and ours["of_plain"] and "litgpt" in litgpt["why"]
    assert "litgpt              none:" in capsys.readouterr().out


def row(peer: str, number: int, speed: float, parameters: int = 1000) -> dict[str, Any]:
    figures = {"tokens_per_sec": speed, "parameters": parameters, "peak_memory_gib": None}
    return {"peer": peer, "round": number, **figures}


def test_ratios_are_of_one_round() -> None:
    rows = [row("plain", 0, 100), row("ours_rowwise", 0, 110), row("ours_rowwise", 1, 240), row("plain", 1, 200)]
    rows += [row("plain_rowwise", 0, 55), {"peer": "plain_rowwise", "round": 1, "failed": "no memory"}]
    rows += [row("litgpt", 0, 100, parameters=1011)]
    by_hand, ours, rowwise, litgpt = compare.summary(rows)
    assert by_hand["tokens_per_sec"] == [125, 150, 175]
    assert ours["of_plain"] == pytest.approx([1.125, 1.15, 1.175]) and ours["of_plain_in_8_bits"] == [2, 2, 2]
    assert rowwise["rounds"] == 1 and "of_plain" not in litgpt
    assert compare.text(litgpt).endswith("no ratio: it has 1,011 parameters, and plain 1,000")


def test_who_fails_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(compare, "alone", lambda *arguments: {"failed": "OutOfMemoryError: too large"})
    with pytest.raises(SystemExit, match=r"^plain failed"):
        compare.main(peers="plain", rounds=2)
    assert capsys.readouterr().out.count("too large") == 2  # as it happens, and in the table; once for both rounds


def test_a_crash_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no such kernel\nand a long story")

    monkeypatch.setitem(compare.PEERS, "torchtitan", broken)
    assert compare.measured("torchtitan", SETTING) == {"failed": "RuntimeError: no such kernel"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--peers", "plain,nanogpt"], "nanogpt, which is none. Give some of plain, litgpt, torchtitan, ours"),
        (["--peers", "ours_fast"], "or ours_RECIPE with one of tensorwise, rowwise"),
        (["--warmup", "0"], "at least 1"),
    ],
)
def test_wrong_options(words: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert exit_code(command_of(compare.main), words) != 0
    assert said in capsys.readouterr().err
