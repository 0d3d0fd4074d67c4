"""docs/loggers.md explains every key that is logged, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from pages import ROOT

from lit_gpt.metrics.router_metrics import unpack
from lit_gpt.metrics.summary import read_metrics

PAGE = (ROOT / "docs/loggers.md").read_text(encoding="utf-8").split("## What the keys mean")[1]
KEYS = re.findall(r"^\| `([\w@<>/]+)` \|", PAGE, re.MULTILINE)
GROUP = re.compile(r"(metric|throughput|time|checkpoint|system)/[\w*@/]*[\w*]|data/epoch/\*")


def keys_of_the_code() -> Iterator[str]:
    """Strings that are keys, with * where an f-string puts a value; beginnings of keys end in _, @ or /."""
    for path in sorted((ROOT / "lit_gpt").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                text = node.value
            else:
                continue
            if GROUP.fullmatch(text) and not text.endswith("_"):
                yield text


def explained(key: str) -> bool:
    """Whether the table has a key that was logged."""
    return any(re.fullmatch(re.sub("<.*?>", "[^/]+", known), key) for known in KEYS)


def test_every_key_of_the_code_is_explained() -> None:
    for key in set(keys_of_the_code()):
        pattern = ".+".join(map(re.escape, key.split("*")))
        assert explained(key) or any(re.fullmatch(pattern, known) for known in KEYS), f"docs/loggers.md lacks {key}"


def test_every_key_of_the_page_is_in_the_code() -> None:
    found = set(keys_of_the_code()) | {"step", "time", "total_tokens", "samples"}
    # Made from other keys by train.validate.labelled and of_all, and by train.task_scores.
    labelled = ["metric/val_loss_ema_<length>@<i>x", "metric/val_loss_<name>@<i>x", "metric/full_val_loss@<i>x"]
    labelled += ["eval/<task>/<figure>"]
    patterns = [".+".join(map(re.escape, key.split("*"))) for key in found]
    lost = [k for k in KEYS if k not in labelled and not any(re.fullmatch(p, k) for p in patterns)]
    assert not lost
    assert len(KEYS) == len(set(KEYS))


def test_the_keys_of_a_real_run_and_of_experts_are_explained() -> None:
    logged = read_metrics(ROOT / "docs/examples/transformer_d8").keys() | unpack([1.0] * 17, experts=6, tokens=4).keys()
    assert [key for key in logged if not explained(key)] == []
