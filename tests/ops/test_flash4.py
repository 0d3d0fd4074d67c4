"""FlashAttention 4's operations around a stand-in of plain torch, and on a GPU around its kernels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import flash4_stand_in
import pytest
import torch
from small_models import model_of, optioned, tokens
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.ops import attention as ops
from lit_gpt.ops import flash, flash4
from lit_gpt.ops.boundaries import document_offsets
from lit_gpt.parallel import offload
from lit_gpt.parallel.recompute import is_kept, recompute_in_backward, tell_compiler

CPU = torch.device("cpu")
HEADS, GROUPS = 4, 2
CASES = [(None, False), (6, False), (None, True), (6, True)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> flash4_stand_in.Interface:
    return flash4_stand_in.install(monkeypatch)


def documents(tokens: int, device: str = "cpu") -> Tensor:
    """Of two rows; the first two begin in the same place of either."""
    t = torch.arange(tokens, device=device)
    ends = (tokens // 7, tokens // 3), (tokens // 7, tokens - 1)
    return torch.stack([sum((t >= end).int() for end in row) for row in ends])  # type: ignore[misc]


def drawn(
    tokens: int, dim: int, dtype: torch.dtype, width: int = 0, groups: int = GROUPS, device: str = "cpu"
) -> list[Tensor]:
    """Parts of one product, as in a mixer: q, k and v."""
    g, width = torch.Generator().manual_seed(0), width or dim
    parts = [HEADS * dim, groups * dim, groups * width]
    joint = torch.randn(2, tokens, sum(parts), generator=g).to(device, dtype)
    heads = (HEADS, groups, groups)
    return [x.unflatten(2, (n, -1)).detach().requires_grad_() for x, n in zip(joint.split(parts, 2), heads)]


def run(
    tensors: list[Tensor], window: int | None, ids: Tensor | None, backend: str, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    offsets = None if ids is None else document_offsets(ids)
    y = ops.attention(*leaves, scale=0.2, window=window, doc_ids=ids, cu_seqlens=offsets, backend=backend)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device, tensors[0].dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("width", [16, 24, 32])
@pytest.mark.parametrize(("window", "packed"), CASES)
def test_it_agrees_with_plain_attention(stand_in, window, packed, width, groups):
    """And reads parts of a joint product as they are. Divisors are kept in fp32, also of float64."""
    tensors, ids = drawn(21, 16, torch.float64, width, groups), documents(21) if packed else None
    for ours, plain in zip(run(tensors, window, ids, "fa4"), run(tensors, window, ids, "plain")):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    pieces = 1 if width == 16 else 2
    assert sorted(name for name, _ in stand_in.calls) == ["backward"] * pieces + ["forward"] * pieces


def test_fewer_queries_than_keys(stand_in):
    q, k, v = drawn(21, 16, torch.float64)
    for window in (None, 6):
        both = [ops.attention(q[:, -4:], k, v, window=window, backend=backend) for backend in ("fa4", "plain")]
        torch.testing.assert_close(*both)


def test_the_order_of_sums_is_fixed_where_that_is_asked_for(stand_in):
    tensors = drawn(9, 16, torch.float64)
    run(tensors, None, None, "fa4")
    torch.use_deterministic_algorithms(True)
    try:
        run(tensors, None, None, "fa4")
    finally:
        torch.use_deterministic_algorithms(False)
    assert [fixed for name, fixed in stand_in.calls if name == "backward"] == [False, True]


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("packed", [False, True])
def test_operations_are_what_they_say(stand_in, packed, window):
    q, k, v = drawn(21, 16, torch.float64)
    options = document_offsets(documents(21)) if packed else None, window, 0.2, False
    torch.library.opcheck(flash4.attention_forward, (q, k, v, *options))
    q, k, v = q.detach(), k.detach(), v.detach()
    y, lse = flash4.forward(q, k, v, *options)
    torch.library.opcheck(flash4.attention_backward, (torch.ones_like(y), q, k, v, y, lse, *options))


def test_a_compiled_block_stays_whole(stand_in):
    """Also where the number of documents changes, for which nothing is compiled twice."""
    torch._dynamo.reset()
    (q, k, v), graphs = drawn(21, 16, torch.float64), []

    def counting(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda q, k, v, mask: ops.attention(q * 1, k, v, scale=0.2, mask=mask) * 2, backend=counting, fullgraph=True
    )
    for last in (20, 15, 8):
        ids = documents(21).clamp(max=1) if last == 20 else documents(21) + (torch.arange(21) > last).int()
        request = ops.describe(CPU, 21, 21, 6, True, False, torch.float64, True)
        mask = ops.prepare_mask(request, ids, CPU, "fa4", document_offsets(ids))
        expected = 2 * ops.attention(q, k, v, scale=0.2, window=6, doc_ids=ids, backend="plain")
        torch.testing.assert_close(compiled(q, k, v, mask), expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_gradients(stand_in, packed):
    torch._dynamo.reset()
    tensors, ids = drawn(21, 16, torch.float64), documents(21) if packed else None
    offsets = None if ids is None else document_offsets(ids)
    compiled = torch.compile(ops.attention, backend="aot_eager_decomp_partition", fullgraph=True)
    results = []
    for function, backend in ((compiled, "fa4"), (ops.attention, "plain")):
        y = function(*tensors, scale=0.2, window=6, doc_ids=ids, cu_seqlens=offsets, backend=backend)
        results.append(torch.autograd.grad(y.square().sum(), tensors))
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_what_it_keeps_can_wait_on_the_host(stand_in, monkeypatch):
    """Output and divisors are memory of their own; and checkpoints keep them."""
    monkeypatch.setattr(offload, "SMALLEST", 1)
    copies = offload._Copies(CPU, distance=1)
    for packed in (False, True):
        tensors = (t.detach().clone(memory_format=torch.contiguous_format) for t in drawn(21, 16, torch.float64))
        q, k, v = leaves = [t.requires_grad_() for t in tensors]
        offsets = document_offsets(documents(21)) if packed else None
        layer = copies.new_layer(set())
        with torch.autograd.graph.saved_tensors_hooks(layer.pack, layer.unpack):
            y = flash4.attend(q, k, v, offsets, 6, 0.2)
        shapes = [item.form[2] for item in layer.items]
        of_divisors = (HEADS, 2 * 21) if packed else (2, HEADS, 21)
        assert [tuple(s) for s in shapes[:5]] == [*(tuple(t.shape) for t in leaves), tuple(y.shape), of_divisors]
        expected = torch.autograd.grad(flash4.attend(q, k, v, offsets, 6, 0.2).sum(), leaves)
        assert all(map(torch.equal, torch.autograd.grad(y.sum(), leaves), expected))
    assert is_kept(torch.ops.lit_gpt.flash_attention_4.default)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recompute", ["off", "cheap", "selective", "full"])
def test_blocks_of_a_model(stand_in, recompute, compiled):
    """With all and with a window of keys, as torch's attention; no graph breaks, and forward runs twice under full."""
    torch._dynamo.reset()
    model, x = model_of(optioned("window")), tokens()
    results = []
    for backend in ("sdpa", "fa4"):
        model.backends = model.backends._replace(attention=backend)
        if backend == "fa4":
            tell_compiler(recompute)
            for block in model.blocks:
                recompute_in_backward(block, recompute, compiled)
                if compiled:
                    block.forward = torch.compile(block.forward, backend="aot_eager_decomp_partition", fullgraph=True)
        model.zero_grad()
        model(x, x.roll(-1, 1)).loss.backward()
        results.append([p.grad for p in model.parameters()])
    tell_compiler("off")
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ran = [name for name, _ in stand_in.calls]
    assert (ran.count("forward"), ran.count("backward")) == (4 if recompute == "full" else 2, 2)


def test_derivatives_that_it_does_not_have(stand_in):
    q, k, v = drawn(9, 16, torch.float32)
    with pytest.raises(UserError, match=r"FlashAttention 4 have no .* attention_backend='plain'"):
        torch.func.grad(lambda q: ops.attention(q, k.detach(), v.detach(), backend="fa4").sum())(q.detach())


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> ops.Request:
    """A request on a Hopper GPU that has FlashAttention 4 alone."""
    interface = flash4_stand_in.Interface()
    for module in (flash, flash4):
        monkeypatch.setattr(module, "missing", lambda name: "" if name == flash4.MODULE else "not here")
    monkeypatch.setattr(flash4, "optional", lambda module: SimpleNamespace(interface=interface))
    monkeypatch.setattr(flash4, "_version", lambda: flash4.TESTED)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return ops.describe(torch.device("cuda"), 64, 64, None, False, False, torch.bfloat16, dim=128)


def test_what_auto_takes_it_for(hopper, monkeypatch):
    """Training, with heads and a version that somebody has timed; all else is left as it is without the package."""
    packed = hopper._replace(documents=True, offsets=True)
    for request in (hopper, hopper._replace(window=8), packed, packed._replace(window=8)):
        assert ops.pick(request) == "fa4"
        with torch.no_grad():
            assert ops.pick(request) == ("flex" if request.masked else "sdpa")
    others = {"dim": 64, "q_len": 1, "dtype": torch.float32}
    for name, value in others.items():
        assert ops.pick(hopper._replace(**{name: value})) == "sdpa"
    assert ops.pick(packed._replace(offsets=False)) == ops.pick(hopper._replace(sink=True)) == "flex"
    assert ops.pick(hopper._replace(dim=64, q_len=1), "fa4") == "fa4", "but by its name"
    with monkeypatch.context() as other:
        other.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert ops.pick(hopper) == "sdpa"
    with monkeypatch.context() as other:
        other.setattr(torch.cuda, "get_device_capability", lambda *_: (10, 0))
        assert ops.pick(hopper) == "sdpa" and ops.pick(hopper, "fa4") == "fa4"
    monkeypatch.setattr(flash4, "_version", lambda: "4.0.0b30")
    assert ops.pick(hopper) == "sdpa" and ops.pick(hopper, "fa4") == "fa4"


@pytest.mark.parametrize(("major", "dims"), [(9, (64, 192, 256)), (10, (64, 128, 256))])
def test_heads_that_it_has(hopper, monkeypatch, major, dims):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    asked = {dim: flash.refuses("fa4", hopper._replace(dim=dim)) for dim in (64, 128, 192, 256, 264)}
    assert not any(asked[dim] for dim in dims)
    assert "264" in asked[264] and bool(asked[192]) == (192 not in dims)
    with pytest.raises(UserError, match="no heads of 264"):
        ops.pick(hopper._replace(dim=264), "fa4")


def test_a_version_without_its_functions_is_refused(hopper, monkeypatch):
    monkeypatch.setattr(flash4_stand_in.Interface, "_flash_attn_bwd", lambda self, q, k, v, softmax_scale: None)
    with pytest.raises(UserError, match=f"_flash_attn_bwd has no causal, .*{flash4.TESTED}"):
        ops.pick(hopper, "fa4")
    assert ops.pick(hopper) == "sdpa"


def test_the_version_that_is_installed_is_the_one_that_was_tested():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert f'"{flash4.PACKAGE}=={flash4.TESTED};' in project.read_text()


def skip_where_refused() -> None:
    if reason := flash.refuses("fa4", ops.describe(torch.device("cuda"), 8, 8, None, False, False, torch.bfloat16)):
        pytest.skip(reason)


def on_gpu(tokens: int, dim: int) -> list[Tensor]:
    """In bf16, with four queries for a key as in tests/ops/test_attention_cuda.py: each kind of mask and of heads has
    kernels of its own, which are compiled for seconds.
    """
    return drawn(tokens, dim, torch.bfloat16, groups=1, device="cuda")


MASKS = [(None, False, False), (130, False, False), (None, True, False), (130, True, False)]
MASKS += [(None, False, True), (130, True, True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("window", "packed", "fixed"), MASKS)
def test_kernels_agree_with_float64(window, packed, fixed):
    """Rounding the result alone costs 1.7 thousandths. In a fixed order of sums bits repeat."""
    skip_where_refused()
    tensors, ids = on_gpu(1000, 128), documents(1000, "cuda") if packed else None
    torch.use_deterministic_algorithms(fixed)
    try:
        found, again = (run(tensors, window, ids, "fa4") for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, exact in zip(found, run(tensors, window, ids, "plain", torch.float64)):
        assert (ours.double() - exact).norm() < 6e-3 * exact.norm()
    assert not fixed or all(map(torch.equal, found, again))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_compiled_call_gives_the_same_bits():
    skip_where_refused()
    torch._dynamo.reset()
    (q, k, v), ids = on_gpu(1000, 128), documents(1000, "cuda")
    request = ops.describe(q.device, 1000, 1000, 130, True, False, q.dtype, True)
    mask = ops.prepare_mask(request, ids, q.device, "fa4", document_offsets(ids))
    compiled = torch.compile(ops.attention, fullgraph=True)
    y, expected = (attention(q, k, v, scale=0.2, mask=mask) for attention in (compiled, ops.attention))
    assert torch.equal(y, expected)
    for ours, theirs in zip(*(torch.autograd.grad(x.float().square().sum(), (q, k, v)) for x in (y, expected))):
        assert (ours - theirs).norm() < 1e-3 * theirs.norm()  # sums of fp32 in another order


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dim", [64, 96, 192, 256])
def test_kernels_of_other_heads(dim):
    skip_where_refused()
    tensors, ids = on_gpu(700, dim), documents(700, "cuda")
    exact = run(tensors, 130, ids, "plain", torch.float64)
    for ours, true in zip(run(tensors, 130, ids, "fa4"), exact):
        assert (ours.double() - true).norm() < 6e-3 * true.norm()
