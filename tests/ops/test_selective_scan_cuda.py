"""This project's own CUDA kernels of the selective scan against plain torch in float64: on a GPU, and on a CPU that
stands in for one.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from cuda_on_cpu import COMPILER, install
from torch import Tensor
from torch.autograd import forward_ad

from lit_gpt.errors import UserError
from lit_gpt.ops import nvrtc
from lit_gpt.ops import selective_scan as ops
from lit_gpt.ops import selective_scan_cuda as ours

# Relative errors: half a step of the format; in fp32 those of exponentials and of sums over thousands of tokens.
ROUNDING = {torch.float32: 2e-5, torch.float16: 6e-4, torch.bfloat16: 4e-3}
ON_GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")])
ON_CPU = pytest.param("cpu", marks=pytest.mark.skipif(not COMPILER, reason="needs g++"))


@pytest.fixture(params=[ON_CPU, ON_GPU])
def device(request, monkeypatch) -> str:
    if request.param == "cpu":
        install(monkeypatch)
    return request.param


def draw(rows: int, tokens: int, channels: int, states: int, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """B and C are parts of a wider product, as in a mixer, and begin anywhere."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g).to(device)

    wide, (x, dt) = normal(rows, tokens, 29 + 2 * states).to(dtype), (normal(rows, tokens, channels) for _ in range(2))
    _, B, C = wide.split((29, states, states), dim=2)
    rest = {"A": -normal(channels, states).exp(), "D": normal(channels), "dt_bias": normal(channels) - 3}
    return {"x": x.to(dtype), "dt": dt.to(dtype), "B": B, "C": C, **rest, "state": normal(rows, channels, states)}


def documents(rows: int, tokens: int, device: str) -> Tensor:
    """Of one to many tokens, at the edges of tiles of 32 too; none in the first row."""
    t = torch.arange(tokens, device=device)
    one = sum((t >= start).long() for start in (3, 4, 32, 63, 64, 90))
    return torch.stack([torch.full_like(t, 5), *[one + row for row in range(rows - 1)]])


def run(tensors: dict[str, Tensor], ids: Tensor | None, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The output, the last state and every gradient, of weights for both."""
    leaves = {k: t.to(dtype or t.dtype).detach().requires_grad_() for k, t in tensors.items()}
    x, dt, B, C, A, D, dt_bias, *state = leaves.values()
    carried = state[0] if state else None
    y, last = ops.selective_scan(x, dt, A, B, C, D, dt_bias, doc_ids=ids, state=carried, backend=backend)
    g = torch.Generator().manual_seed(1)
    dy, dlast = (torch.randn(t.shape, generator=g).to(x.device) for t in (y, last))
    loss = (y * dy.to(tensors["x"].dtype).to(y.dtype)).sum() + (last * dlast).sum()
    return [y.detach(), last.detach(), *torch.autograd.grad(loss, list(leaves.values()))]


def check(tensors: dict[str, Tensor], ids: Tensor | None) -> list[Tensor]:
    found, exact = run(tensors, ids, "cuda"), run(tensors, ids, "plain", torch.float64)
    for name, near, true in zip(("y", "last", *tensors), found, exact):
        error = (near.double() - true).norm() / true.norm().clamp(min=1e-30)
        assert error < ROUNDING[near.dtype], f"{name} is off by {error:.1e}"
    return found


@pytest.mark.parametrize(
    ("dtype", "states", "rows", "tokens", "channels"),
    [  # tiles are 32 tokens by 64 channels; 37 channels cannot be read 16 bytes at once
        (torch.float32, 16, 2, 1, 64),
        (torch.float32, 16, 1, 7, 8),
        (torch.float32, 16, 2, 33, 37),
        (torch.float32, 16, 2, 100, 136),
        (torch.bfloat16, 16, 2, 65, 72),
        (torch.bfloat16, 32, 2, 40, 72),
        (torch.float16, 8, 2, 70, 72),
    ],
)
def test_against_float64(device, dtype, states, rows, tokens, channels):
    tensors = draw(rows, tokens, channels, states, dtype, device)
    check(tensors, documents(rows, tokens, device))
    del tensors["state"]
    check(tensors, None)


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (0, 40)])
def test_one_token_and_no_row(rows, tokens, device):
    check(draw(rows, tokens, 8, 16, torch.float32, device), None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA")
@pytest.mark.parametrize(("rows", "tokens", "channels"), [(2, 4096, 1024), (16, 512, 1024), (3, 1000, 1100)])
def test_at_the_sizes_of_models(rows, tokens, channels):
    """The first in segments."""
    tensors = draw(rows, tokens, channels, 16, torch.bfloat16, "cuda")
    first = check(tensors, documents(rows, tokens, "cuda"))
    assert all(map(torch.equal, first, run(tensors, documents(rows, tokens, "cuda"), "cuda")))


@pytest.mark.parametrize(("channels", "aligned"), [(72, True), (37, False)])
def test_all_is_read_16_bytes_at_once_where_rows_allow_it(channels, aligned):
    tensors = draw(2, 5, channels, 16, torch.bfloat16, "cpu")
    given = {name: ours._readable(name, tensors[name]) for name in ("x", "dt", "B", "C")}
    assert ours._arguments(given, 5, channels, 1).aligned == aligned
    assert all(torch.equal(t, tensors[name]) for name, t in given.items())


def test_segments_of_a_row(device, monkeypatch):
    """Few rows that are long are cut; a document may start where a segment does."""
    monkeypatch.setattr(ours, "_segments", lambda x: 4)
    tensors = draw(2, 160, 40, 16, torch.float32, device)
    ids = (torch.arange(160, device=device) >= torch.tensor([[80], [200]], device=device)).long()
    check(tensors, ids)
    del tensors["state"]
    check(tensors, None)


@pytest.mark.parametrize("blocks_at_once", [16, 17, 63])
def test_how_many_segments(blocks_at_once, monkeypatch):
    monkeypatch.setattr(ours, "processors", lambda device: blocks_at_once / ours.BLOCKS_PER_PROCESSOR)
    assert ours._segments(torch.empty(1, 8192, 64, device="meta")) == 16
    assert ours._segments(torch.empty(1, 8192 + 4, 64, device="meta")) == 4  # segments are of one length
    assert ours._segments(torch.empty(4, 8192, 192, device="meta")) == (4 if blocks_at_once == 63 else 1)
    assert ours._segments(torch.empty(1, 1024, 64, device="meta")) == 1


def test_no_thread_reads_what_another_has_yet_to_write(monkeypatch):
    """Whichever thread goes first, the bits are the same."""
    if not COMPILER:
        pytest.skip("needs g++")
    found = []
    for backwards in (False, True):
        install(monkeypatch, backwards)
        found.append(run(draw(1, 70, 72, 16, torch.float32, "cpu"), None, "cuda"))
    assert all(map(torch.equal, *found))


def test_bits_repeat_and_compile(device):
    tensors = draw(2, 100, 72, 16, torch.float32, device)
    first = check(tensors, documents(2, 100, device))

    def compiled(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, D, dt_bias, ids, state = inputs
        return ops.selective_scan(x, dt, A, B, C, D, dt_bias, doc_ids=ids, state=state, backend="cuda")

    again = run(tensors, documents(2, 100, device), "cuda")
    assert all(map(torch.equal, first, again))
    names = ("x", "dt", "A", "B", "C", "D", "dt_bias")
    inputs = (*(tensors[k] for k in names), documents(2, 100, device), tensors["state"])
    y, last = torch.compile(compiled, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(y, first[0]) and torch.equal(last, first[1])


def test_it_compiles_for_sizes_that_are_symbols(device, monkeypatch):
    """Whether it can run is asked while a graph is traced, where no number of states was known."""
    row = ops.BACKENDS["cuda"]._replace(refuses=lambda request: ours.refuses(request.dtype, request.states))
    monkeypatch.setitem(ops.BACKENDS, "cuda", row)
    tensors = draw(2, 70, 40, 16, torch.float32, device)
    inputs = [tensors[k] for k in ("x", "dt", "A", "B", "C", "D", "dt_bias")]
    compiled = torch.compile(ops.selective_scan, fullgraph=True, backend="aot_eager", dynamic=True)
    for found, expected in zip(compiled(*inputs, backend="cuda"), ops.selective_scan(*inputs, backend="cuda")):
        assert torch.equal(found, expected)


def test_operations_are_what_torch_expects(device):
    tensors = draw(2, 8, 40, 16, torch.float32, device)
    leaves = [tensors[k].detach().requires_grad_() for k in ("x", "dt", "A", "B", "C", "D", "dt_bias")]
    starts = ops.document_starts(documents(2, 8, device))
    given = (*leaves, starts, tensors["state"].requires_grad_(), True, 1)
    torch.library.opcheck(ours.scan_forward, given)
    with torch.no_grad():
        y, last, saved = ours.scan_forward(*given)
    kept = [t.detach() for t in leaves]
    torch.library.opcheck(ours.scan_backward, (torch.ones_like(y), torch.ones_like(last), *kept, starts, saved, 1))


def test_forward_mode_derivatives_are_no_zeros(device):
    """torch takes a custom operation for one whose derivatives are zeros."""
    inputs = [draw(1, 4, 8, 16, torch.float32, device)[k] for k in ("x", "dt", "A", "B", "C", "D", "dt_bias")]

    def of(i: int, scan=ops.selective_scan):
        return lambda t: scan(*inputs[:i], t, *inputs[i + 1 :], backend="cuda")[0]

    for i, t in enumerate(inputs):
        with pytest.raises(UserError, match="forward-mode derivatives"):
            torch.func.jvp(of(i), (t,), (torch.ones_like(t),))
        with pytest.raises(
            UserError, match=r"no derivatives by torch\.func, as torch\.func\.grad and its relatives ask"
        ):
            torch.func.grad(lambda t, i=i: of(i)(t).sum())(t)
    with forward_ad.dual_level():
        x, compiled = inputs[0], torch.compile(ops.selective_scan, backend="eager")
        for scan in (ops.selective_scan, compiled):
            with pytest.raises(UserError, match="forward-mode derivatives"):
                of(0, scan)(forward_ad.make_dual(x, x))
            assert of(0, scan)(x).isfinite().all(), "nothing asks for derivatives"


@pytest.mark.parametrize(("name", "part"), [("dt", (..., slice(1))), ("B", (slice(1),)), ("A", (slice(3),))])
def test_other_shapes_are_no_reads_beside_a_tensor(name, part, device):
    """Plain torch makes the first two as large as the others, or says why it cannot."""
    tensors = draw(2, 9, 40, 16, torch.float32, device)
    tensors[name] = tensors[name][part]
    with pytest.raises(AssertionError, match=f"{name} is"):
        run(tensors, None, "cuda")


def test_what_it_refuses(monkeypatch):
    assert "float64" in ours.refuses(torch.float64, 16)
    assert "not 12" in ours.refuses(torch.float32, 12)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert ours.refuses(torch.float32, 16) == "it needs an NVIDIA GPU"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "7.5" in ours.refuses(torch.float32, 16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    room = SimpleNamespace(shared_memory_per_block_optin=101376)  # of an RTX 4090
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: room)
    assert "this GPU has 101376" in ours.refuses(torch.bfloat16, 16)
    room.shared_memory_per_block_optin = 232448  # of an H200
    monkeypatch.setattr(nvrtc, "binary_of", lambda *_: (_ for _ in ()).throw(RuntimeError("no\nmore")))
    monkeypatch.setattr(ours, "_compiler_refuses", ours._compiler_refuses.__wrapped__)
    assert ours.refuses(torch.float32, 16) == "it cannot be compiled: no"
