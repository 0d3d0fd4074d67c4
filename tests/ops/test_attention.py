"""Every attention backend against sums written out in float64 Python."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from lit_gpt.errors import UserError
from lit_gpt.ops import attention as ops
from lit_gpt.ops import backends, flash, flash4
from lit_gpt.ops.masks import block_mask, dense_mask

CPU = torch.device("cpu")
SHAPES = [(9, 9), (1, 9), (4, 9)]
WINDOWS = [None, 1, 3, 50]
HEADS, GROUPS, DIM = 4, 2, 8


def qkv(q_len: int, k_len: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(q_len + 100 * k_len)
    shapes = [(2, q_len, HEADS, DIM), (2, k_len, GROUPS, DIM), (2, k_len, GROUPS, DIM)]
    return [torch.randn(s, generator=g, dtype=dtype) for s in shapes]


def documents(length: int) -> Tensor:
    return torch.stack([torch.arange(length) // 3, (torch.arange(length) > 4).long()])


def naive(q, k, v, scale, window=None, doc_ids=None, sink=None) -> Tensor:
    """The definition, one query and one head at a time."""
    y = torch.zeros_like(q)
    offset = k.shape[1] - q.shape[1]
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            for h in range(q.shape[2]):
                position, total = i + offset, 0.0
                for j in range(position + 1):
                    old = window is not None and position - j >= window
                    foreign = doc_ids is not None and doc_ids[b, position] != doc_ids[b, j]
                    if old or foreign:
                        continue
                    g = h // (q.shape[2] // k.shape[2])
                    weight = math.exp(scale * float(q[b, i, h] @ k[b, j, g]))
                    y[b, i, h] += weight * v[b, j, g]
                    total += weight
                y[b, i, h] /= total + (0 if sink is None else math.exp(sink[h]))
    return y


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("q_len", "k_len"), SHAPES)
@pytest.mark.parametrize("backend", ["auto", "plain", "sdpa"])
def test_backends_agree_with_the_definition(backend, q_len, k_len, window, packed):
    q, k, v = qkv(q_len, k_len)
    doc_ids = documents(k_len) if packed else None
    y = ops.attention(q, k, v, scale=0.3, window=window, doc_ids=doc_ids, backend=backend)
    torch.testing.assert_close(y, naive(q, k, v, 0.3, window, doc_ids), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("q_len", "k_len"), SHAPES)
def test_sinks_agree_with_the_definition(q_len, k_len, window):
    q, k, v = qkv(q_len, k_len)
    sink = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    y = ops.attention(q, k, v, window=window, sink=sink)
    torch.testing.assert_close(y, naive(q, k, v, DIM**-0.5, window, None, sink), rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # as it is on a CPU
@pytest.mark.parametrize("width", [3, 12, 16])
@pytest.mark.parametrize("backend", ["flex", "sdpa", "plain"])
def test_values_may_have_a_width_of_their_own(backend, width):
    """One column of the output depends on one column of the values."""
    q, k, _ = qkv(9, 9, torch.float32)
    v = torch.randn(2, 9, GROUPS, width)
    mask = block_mask(9, 3, None, CPU) if backend == "flex" else dense_mask(9, 9, 3, None, CPU)
    y = ops.BACKENDS[backend].run(q, k, v, mask, 0.3, None)
    columns = [naive(q, k, v[..., [i]].expand(q.shape[:2] + (GROUPS, DIM)), 0.3, 3)[..., :1] for i in range(width)]
    torch.testing.assert_close(y, torch.cat(columns, -1), rtol=1e-4, atol=1e-5)


class FakeFlash:
    """The interface that the FlashAttention packages share, with the masks they document."""

    @staticmethod
    def flash_attn_func(q, k, v, *, softmax_scale, causal, window_size, deterministic):
        assert causal and window_size[1] in (-1, 0)
        window = None if window_size == (-1, -1) else window_size[0] + 1
        return naive(q, k, v, softmax_scale, window), "log-sum"

    @staticmethod
    def flash_attn_varlen_func(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options):
        assert q.ndim == k.ndim == v.ndim == 3 and cu_seqlens_q is cu_seqlens_k
        assert max_seqlen_q == max_seqlen_k >= cu_seqlens_q.diff().max()
        documents = zip(*(x.split(cu_seqlens_q.diff().tolist()) for x in (q, k, v)))
        return torch.cat([FakeFlash.flash_attn_func(*(x[None] for x in d), **options)[0][0] for d in documents])


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(("q_len", "packed"), [(9, False), (9, True), (2, False)])
def test_what_flash_attention_packages_are_given(q_len, window, packed, monkeypatch):
    monkeypatch.setattr(flash, "optional", lambda module: FakeFlash)
    q, k, v = qkv(q_len, 9)
    starts = torch.tensor([0, 3, 6, 9, 9 + 5, 18], dtype=torch.int32)
    y = ops.BACKENDS["fa3"].run(q, k, v, flash.Visible(window, starts if packed else None), 0.3, None)
    torch.testing.assert_close(y, naive(q, k, v, 0.3, window, documents(9) if packed else None))


def test_when_flash_attention_is_refused(monkeypatch):
    monkeypatch.setattr(flash, "missing", lambda module: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    request = ops.describe(torch.device("cuda"), 64, 64, 8, True, False, torch.bfloat16, True)
    assert ops.pick(request) == "fa3" and flash.refuses("fa2", request) == ""
    assert "cu_seqlens" in flash.refuses("fa3", request._replace(offsets=False))
    assert "bf16" in flash.refuses("fa3", request._replace(dtype=torch.float32))
    assert "cached" in flash.refuses("fa3", request._replace(q_len=1))
    assert "sinks" in flash.refuses("fa3", request._replace(sink=True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    monkeypatch.setattr(flash4, "lacks", lambda: "")
    assert ops.pick(request) == "flex" and flash.refuses("fa3", request) and not flash.refuses("fa4", request)


def test_flash_attention_4_alone_is_not_taken_for_2(tmp_path, monkeypatch):
    """Both packages are folders of `flash_attn`; the fourth has nothing beside its own."""
    folder = tmp_path / "flash_attn" / "cute"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(backends, "_load", backends._load.__wrapped__)
    monkeypatch.setattr(flash4, "lacks", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    request = ops.describe(torch.device("cuda"), 64, 64, 8, False, False, torch.bfloat16)
    reasons = [flash.refuses(name, request) for name in ("fa4", "fa2")]
    for name in ("flash_attn.cute", "flash_attn"):
        del sys.modules[name]
    assert reasons == ["", "flash_attn.flash_attn_interface is not installed (pip install flash-attn)"]


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 130, 300])
def test_flex_agrees_with_plain_torch(window, packed, sinks):
    """FlexAttention's eager form, over more than one block and a ragged last one."""
    length = 300
    q, k, v = qkv(length, length, torch.float32)
    doc_ids = torch.stack([torch.arange(length) // 140, torch.zeros(length).long()]) if packed else None
    sink = torch.linspace(-1, 1, HEADS) if sinks else None
    mask = block_mask(length, window, doc_ids, CPU)
    y = ops._flex(q, k, v, mask, 0.3, sink)
    expected = ops.attention(q, k, v, scale=0.3, window=window, doc_ids=doc_ids, sink=sink, backend="plain")
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("window", "length"), [(1, 256), (50, 300), (64, 320), (70, 512)])
def test_bands_agree_with_plain_torch(window, length, packed):
    """Over several blocks and a ragged last one, with its gradients."""
    tensors = [x.requires_grad_() for x in qkv(length, length)]
    doc_ids = torch.stack([torch.arange(length) // 140, torch.arange(length) % 7]) if packed else None
    results = []
    for backend in ("banded", "plain"):
        y = ops.attention(*tensors, scale=0.3, window=window, doc_ids=doc_ids, backend=backend)
        results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rows", ["none", "packed", "unordered"])
@pytest.mark.parametrize("window", [None, 1, 128, 129, 200, 257])
def test_block_mask_skips_exactly_what_torch_skips(window, rows):
    length = 520
    generator = torch.Generator().manual_seed(0)
    doc_ids = {
        "none": None,
        "packed": torch.arange(4).repeat_interleave(torch.tensor([200, 56, 1, 263]))[None],
        "unordered": torch.randint(0, 3, (1, length), generator=generator),
    }[rows]
    ours = block_mask(length, window, doc_ids, CPU)
    theirs = create_block_mask(ours.mask_mod, 1, None, length, length, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    positions = torch.arange(length)
    zero = torch.zeros((), dtype=torch.long)
    dense = ours.mask_mod(zero, zero, positions[:, None], positions)
    assert torch.equal(dense, dense_mask(length, length, window, doc_ids, CPU)[0, 0])


def test_sink_and_inputs_get_the_right_gradients():
    q, k, v = (x.requires_grad_() for x in qkv(5, 5))
    sink = torch.zeros(HEADS, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, sink):
        return ops.attention(q, k, v, window=3, sink=sink)

    assert torch.autograd.gradcheck(run, (q, k, v, sink))


@pytest.mark.filterwarnings("ignore:attention uses the slow")
def test_choice_of_backend():
    plain = ops.describe(torch.device("cuda"), 64, 64, None, False, False)
    assert ops.pick(plain) == "sdpa"
    assert ops.pick(plain._replace(window=8)) == "flex"
    assert ops.pick(plain._replace(documents=True)) == "flex"
    assert ops.pick(plain._replace(sink=True)) == "flex"
    assert ops.pick(plain._replace(sink=True, q_len=1)) == "plain"
    assert ops.pick(plain._replace(window=8, q_len=1)) == "sdpa"
    assert ops.pick(plain._replace(device="cpu", window=8)) == "sdpa"
    assert ops.pick(plain._replace(device="cpu", window=8, q_len=256, k_len=256)) == "banded"
    assert ops.describe(CPU, 64, 64, 64, False, False).window is None
    with pytest.raises(UserError, match="Did you mean 'sdpa'"):
        ops.pick(plain, "spda")
    with pytest.raises(UserError, match="no sinks"):
        ops.pick(plain._replace(sink=True), "sdpa")
    assert [row[0] for row in ops.explain(CPU) if row[1]] == ["banded", "sdpa", "plain"]


def test_compiled_where_lengths_vary():
    """Symbolic lengths: what is passed on to torch has to be a plain bool all the same."""
    torch._dynamo.reset()
    compiled = torch.compile(ops.attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for q_len, k_len in [(9, 9), (12, 12), (4, 9), (1, 9)]:
        q, k, v = qkv(q_len, k_len)
        torch.testing.assert_close(compiled(q, k, v), naive(q, k, v, 1 / math.sqrt(DIM)))
