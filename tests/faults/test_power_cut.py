"""What was logged up to a checkpoint is on the disk when that gets its name: a power cut forgets all that is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from killed_run import OPTIONS
from tiny_run import run

LOGS = {"metrics.jsonl": '"metric/train_loss"', "samples.jsonl": '"prompt"'}


class Disk:
    """What of each file would be there after a power cut: os.fsync is followed, by inode, and os.replace by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.contents: dict[int, bytes] = {}
        self.published: dict[str, dict[str, list[int]]] = {}  # checkpoint -> log -> steps that are on the disk
        self.real = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "replace", self.replace)

    def fsync(self, handle: int) -> None:
        self.real[0](handle)
        path = Path(f"/proc/self/fd/{handle}")
        if path.is_file():
            self.contents[path.stat().st_ino] = path.read_bytes()

    def replace(self, source: Any, target: Any) -> None:
        place = Path(target)
        if place.name in LOGS:
            assert Path(source).stat().st_ino in self.contents, f"{place} would be empty"
        if place.name.startswith("step-"):
            self.published[place.name] = {name: self.steps(place.parents[1] / name) for name in LOGS}
        self.real[1](source, target)

    def steps(self, log: Path) -> list[int]:
        lines = self.contents.get(log.stat().st_ino, b"").decode().splitlines() if log.exists() else []
        return [json.loads(line)["step"] for line in lines if LOGS[log.name] in line]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="files are known by their handles in /proc")
def test_a_checkpoint_has_its_log_on_the_disk(data, tmp_path, monkeypatch):
    """In a start, and in one that goes on, where the log is written anew."""
    (prompts := tmp_path / "prompts.txt").write_text("The width\n")
    options = {**OPTIONS, "max_tokens": 256, "val_data_dir": data, "eval_step": 1, "eval_sequences": 1}
    options |= {"sample_prompts": prompts, "sample_tokens": 1, "resume": "auto", "loggers": "csv"}
    disk = Disk(monkeypatch)
    assert run(data, tmp_path / "out", **options, stop_after=2) == 75
    assert run(data, tmp_path / "out", **options) == 0
    assert list(disk.published) == [f"step-{n:06d}" for n in (1, 2, 3, 4)]
    for step, logs in enumerate(disk.published.values(), 1):
        assert all(steps[:step] == list(range(1, step + 1)) for steps in logs.values()), f"{step}: {logs}"
