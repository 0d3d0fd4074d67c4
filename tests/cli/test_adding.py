"""docs/adding.md keeps its word: the files it shows, put in place, train and resume."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch

import lit_gpt.architectures
import lit_gpt.optim
import lit_gpt.scaling
import pretrain

PAGE = Path(__file__).parents[2] / "docs/adding.md"
PACKAGES = {"architectures": lit_gpt.architectures, "optim": lit_gpt.optim, "scaling": lit_gpt.scaling}


@pytest.fixture
def in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The page's files in a second folder of their packages; their module names."""
    modules = []
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        room, name = re.match(r"# lit_gpt/(\w+)/(\w+)\.py\n", code).groups()  # type: ignore[union-attr]
        folder = tmp_path / "added" / room
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(code)
        monkeypatch.setattr(PACKAGES[room], "__path__", [*PACKAGES[room].__path__, str(folder)])
        modules.append(f"lit_gpt.{room}.{name}")
    yield modules
    for module in modules:
        sys.modules.pop(module, None)


def test_the_files_of_the_page_train_and_resume(tmp_path: Path, in_place: list[str]) -> None:
    assert len(in_place) == 3
    torch.set_num_threads(1)
    words = random.Random(0)
    text = tmp_path / "text"
    text.mkdir()
    for i in range(40):
        (text / f"{i}.txt").write_text(" ".join(words.choices(["to", "be", "or", "not"], k=300)))
    options = (
        "--train_model transformer_alternate --optimizer signum --parameterization mup_tokens --depth 2 --ar 16 "
        "--base_hps.d0 1 --base_hps.t0 2560 --base_hps.warmup_tokens 0 --base_hps.eta0 2e-3 --base_hps.b0 512 "
        "--train_name added --vocab_size 257 --ctx_len 64 --max_tokens 10240 --log_step 1 "
        f"--train_data_dir {text} --out_dir {tmp_path / 'out'} --resume auto"
    ).split()
    assert pretrain.main([*options, "--stop_after", "10"]) == 75
    assert pretrain.main(options) == 0
    run = tmp_path / "out/added_transformer_alternate_d2_ar16_ctx64"
    plan = json.loads((run / "plan.json").read_text())
    # Width 32, base width 128 (depth 1 without --ar): matrices 4 x. Four times the base tokens: 1/2.
    assert plan["roles"]["matrix"]["lr"] == pytest.approx(2e-3 * 4 / 2)
    assert plan["roles"]["vector"]["lr"] == pytest.approx(2e-3 / 2)
    losses = [json.loads(line)["metric/train_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 20 and losses[-1] < losses[0] - 1
