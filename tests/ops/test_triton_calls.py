"""What the files that launch our own Triton kernels share."""

from __future__ import annotations

import pytest
import torch

from lit_gpt.ops import triton_calls as ours
from lit_gpt.ops.selective_scan import document_starts


def test_first_tokens_of_documents():
    ids = torch.tensor([[4, 4, 4, 4, 4], [0, 0, 1, 1, 2]])
    expected = torch.tensor([[-1, -1, -1, -1, -1], [-1, -1, 2, 2, 4]], dtype=torch.int32)
    assert torch.equal(ours.first_tokens(document_starts(ids)), expected)


def test_only_what_needs_it_is_copied():
    wide = torch.zeros(2, 5, 4 * 16 + 16, dtype=torch.bfloat16)
    x = wide[..., :64].unflatten(2, (4, 16))
    assert ours.readable(x) is x
    assert ours.readable(wide[..., 8:72].unflatten(2, (4, 16))).data_ptr() % 16 == 0
    odd = torch.zeros(2, 5, 65, dtype=torch.bfloat16)[..., 1:].unflatten(2, (4, 16))
    assert ours.readable(odd).stride() == (5 * 64, 64, 16, 1)


def test_which_gpus_it_refuses(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ours.gpu_refuses("kernels") == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert ours.gpu_refuses("kernels") == "it needs an NVIDIA GPU"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "this GPU has 8.0" in ours.gpu_refuses("kernels")
    assert "compute capability 8.6 or later, and this GPU has 8.0" in ours.gpu_refuses("kernels", (8, 6))
    monkeypatch.setattr(ours, "missing", lambda module: f"{module} needs triton")
    assert ours.gpu_refuses("kernels", (8, 0)) == ours.gpu_refuses("kernels", (7, 5)) == "kernels needs triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert ours.gpu_refuses("kernels") == "kernels needs triton"


@pytest.mark.parametrize(
    ("compiler", "header", "said"),
    [("", True, "needs a C compiler"), ("clang", False, "needs Python.h"), ("gcc", True, "")],
)
def test_where_triton_cannot_build_torch_is_left(compiler, header, said, monkeypatch, tmp_path):
    """As with --compile false before there were kernels for every GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(ours, "missing", lambda module: "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(ours.shutil, "which", lambda name: name if name == compiler else None)
    monkeypatch.setattr(ours.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    (tmp_path / ("Python.h" if header else "other.h")).touch()
    ours._without_compiler.cache_clear()
    found = ours.gpu_refuses("kernels")
    ours._without_compiler.cache_clear()
    assert said in found and bool(said) is bool(found)
