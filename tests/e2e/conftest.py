"""Shared by the tests that run pretrain.py: a prepared corpus, one thread, a clean environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import make_corpus

from lit_gpt.train import reporter

LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LIGHTNING_ARTIFACTS_DIR")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True, scope="module")
def quick(one_thread):
    """No launcher's variables, and no figures: drawing one takes longer than ten steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name in LAUNCHER:
            patch.delenv(name, raising=False)
        patch.setattr(reporter, "draw_loss_curve", lambda *_: None)
        yield
