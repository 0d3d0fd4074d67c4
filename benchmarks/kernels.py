"""Every library kernel against the plain backend in float64, and its time beside that backend's.

    python benchmarks/kernels.py --output docs/benchmarks/kernels_h200.json

Inputs are bf16 at the sizes of a model of the given depth. The error of an output or a gradient
is |kernel - exact| / |exact| (Frobenius norms), where exact is the plain backend on the same rounded
inputs in float64; the row "plain" is that backend in bf16, which shows how much of an error is
the format's. Times are of forward and backward: the median of 10, until the device is done, and on a GPU what its
kernels take of one. Where they differ, the first is the time of Python, which a step with other work hides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.config.command import answer_early, command_of, reader_of, run_command


def main(depth: int = 8, batch: int = 2, length: int = 4096, only: str = "", output: str | None = None) -> None:
    """Compare every kernel that is installed with the plain backend.

    Args:
        depth: sizes are those of a model of width 128 * depth.
        batch: rows.
        length: tokens per row.
        only: comma-separated names of operations; default all.
        output: JSON file for the rows, written after each operation.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    ids = (torch.rand(batch, length, device=device) < 4 / length).int().cumsum(1, dtype=torch.int32)
    documents = {"doc_ids": ids, "cu_seqlens": document_offsets(ids)}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    facts = {"device": name, "torch": torch.__version__, "depth": depth, "batch": batch, "length": length}
    rows: list[dict[str, Any]] = []
    wanted = [each for each in only.split(",") if each]
    print(HEADER)
    for case in cases(Sizes(batch, length, 128 * depth, device)):
        if wanted and case.name not in wanted:
            continue
        found = compare(case, {}, device) + compare(case, documents, device)
        print("\n".join(map(line, found)), flush=True)
        rows += found
        if output:
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


answer_early(__name__, reader_of(main))

import torch
from timing import milliseconds, where
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops import attention, conv, delta_rule, flash, linear_attention, selective_scan, ssd
from lit_gpt.ops.backends import Backend
from lit_gpt.ops.boundaries import document_offsets

Tensors = dict[str, Tensor]
ALL = 1000  # kernels of one operation, at most


class Case(NamedTuple):
    """One operation at one size. run(tensors, documents, backend) is its output."""

    name: str
    table: Mapping[str, Backend]
    tensors: Tensors
    run: Callable[[Tensors, dict[str, Tensor], str], Tensor]


class Sizes(NamedTuple):
    """B rows of T tokens of a model of width n."""

    B: int
    T: int
    n: int
    device: torch.device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.B, self.T, *shape, device=self.device).bfloat16()

    def vector(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device) * 0.1


def conv_case(s: Sizes) -> Case:
    tensors = {"x": s.normal(2 * s.n), "weight": s.vector(2 * s.n, 1, 4), "bias": s.vector(2 * s.n)}

    def run(t: Tensors, docs: dict[str, Tensor], backend: str) -> Tensor:
        ids = docs.get("doc_ids")
        return conv.causal_conv(t["x"], t["weight"], t["bias"], activation="silu", doc_ids=ids, backend=backend)[0]

    return Case("causal_conv", conv.BACKENDS, tensors, run)


def scan_case(s: Sizes) -> Case:
    inner, states = 2 * s.n, 16
    A = -torch.arange(1.0, states + 1, device=s.device).repeat(inner, 1)
    tensors = {"x": s.normal(inner), "dt": s.normal(inner), "A": A, "B": s.normal(states), "C": s.normal(states)}
    tensors |= {"D": s.vector(inner) + 1, "dt_bias": s.vector(inner) - 4}

    def run(t: Tensors, docs: dict[str, Tensor], backend: str) -> Tensor:
        return selective_scan.selective_scan(**t, doc_ids=docs.get("doc_ids"), backend=backend)[0]  # type: ignore[arg-type]

    tensors = {SCAN_NAMES.get(k, k): v for k, v in tensors.items()}
    return Case("selective_scan", selective_scan.BACKENDS, tensors, run)


SCAN_NAMES = {"x": "x_BTC", "dt": "dt_BTC", "A": "A_CN", "B": "B_BTN", "C": "C_BTN", "D": "D_C", "dt_bias": "dt_bias_C"}


def ssd_case(s: Sizes) -> Case:
    heads, states = 2 * s.n // 64, 128
    tensors = {
        "x_BTHP": s.normal(heads, 64),
        "dt_BTH": s.normal(heads),
        "A_H": -1 - 15 * torch.rand(heads, device=s.device),
    }
    tensors |= {"B_BTGN": s.normal(1, states), "C_BTGN": s.normal(1, states)}
    tensors |= {"D_H": s.vector(heads) + 1, "dt_bias_H": s.vector(heads) - 4}

    def run(t: Tensors, docs: dict[str, Tensor], backend: str) -> Tensor:
        return ssd.ssd(**t, doc_ids=docs.get("doc_ids"), backend=backend)[0]  # type: ignore[arg-type]

    return Case("ssd", ssd.BACKENDS, tensors, run)


def delta_case(s: Sizes, name: str, heads: int, keys: int, values: int, decay: str) -> Case:
    """Delta rule with a decay per "head", per "channel", or "none"."""
    tensors = {"q": s.normal(heads, keys), "k": s.normal(heads, keys), "v": s.normal(heads, values)}
    tensors["beta"] = torch.rand(s.B, s.T, heads, device=s.device).bfloat16()
    shape = {"head": (heads,), "channel": (heads, keys)}.get(decay)
    if shape:
        tensors["g"] = F.logsigmoid(torch.randn(s.B, s.T, *shape, device=s.device) + 3)

    def run(t: Tensors, docs: dict[str, Tensor], backend: str) -> Tensor:
        inputs = (t["q"], t["k"], t["v"], t["beta"], t.get("g"))
        return delta_rule.delta_rule(*inputs, normalize=True, **docs, backend=backend)[0]  # type: ignore[arg-type]

    return Case(name, delta_rule.BACKENDS, tensors, run)


def linear_case(s: Sizes, name: str, heads: int, keys: int, values: int, decay: str) -> Case:
    """Linear attention with a "constant" decay per head, or one per "channel" and token."""
    tensors = {"q": s.normal(heads, keys), "k": s.normal(heads, keys) * keys**-0.5, "v": s.normal(heads, values)}
    constant = torch.log1p(-(2.0 ** -(5.0 + torch.arange(heads, device=s.device)))) if decay == "constant" else None
    if constant is None:
        tensors["g"] = F.logsigmoid(torch.randn(s.B, s.T, heads, keys, device=s.device)) / 16

    def run(t: Tensors, docs: dict[str, Tensor], backend: str) -> Tensor:
        g = t["g"] if constant is None else constant.to(torch.promote_types(torch.float32, t["q"].dtype))
        inputs = (t["q"], t["k"], t["v"], g)
        return linear_attention.linear_attention(*inputs, **docs, backend=backend)[0]  # type: ignore[arg-type]

    return Case(name, linear_attention.BACKENDS, tensors, run)


def attention_case(s: Sizes, window: int | None) -> Case:
    heads = s.n // 128
    tensors = {
        "q": s.normal(heads, 128),
        "k": s.normal(max(heads // 4, 1), 128),
        "v": s.normal(max(heads // 4, 1), 128),
    }

    masks: dict[tuple[Any, ...], attention.Mask] = {}  # a model makes one for all its layers

    def run(t: Tensors, docs: dict[str, Tensor], backend: str) -> Tensor:
        q, key = t["q"], (bool(docs), backend, t["q"].dtype)
        if key not in masks:
            offsets = docs.get("cu_seqlens") if backend in flash.LIBRARIES else None
            asked = attention.describe(q.device, s.T, s.T, window, bool(docs), False, q.dtype, offsets is not None)
            masks[key] = attention.prepare_mask(asked, docs.get("doc_ids"), q.device, backend, offsets)
        return attention.attention(q, t["k"], t["v"], window=window, mask=masks[key])

    return Case("attention" if window is None else f"attention (window {window})", attention.BACKENDS, tensors, run)


def cases(s: Sizes) -> list[Case]:
    """Every operation with the head sizes of its mixer (docs/architectures.md)."""
    return [
        attention_case(s, None),
        attention_case(s, 128),
        conv_case(s),
        scan_case(s),
        ssd_case(s),
        delta_case(s, "gated delta rule", -(-3 * s.n // 4 // 256), 256, 512, "head"),
        delta_case(s, "delta rule", s.n // 128, 128, 128, "none"),
        delta_case(s, "kimi delta rule", s.n // 128, 128, 128, "channel"),
        linear_case(s, "retention", s.n // 256, 256, 512, "constant"),
        linear_case(s, "gated linear attention", max(s.n // 384, 1), 192, 384, "channel"),
    ]


def evaluate(case: Case, docs: dict[str, Tensor], backend: str, dtype: torch.dtype | None = None) -> Tensors:
    """The output and the gradient of every input, for one fixed gradient of the output."""
    leaves = {k: (v if dtype is None else v.to(dtype)).detach().requires_grad_() for k, v in case.tensors.items()}
    y = case.run(leaves, docs, backend)
    weights = torch.randn(y.shape, generator=torch.Generator(y.device).manual_seed(1), device=y.device)
    y.backward(weights.bfloat16().to(y.dtype))
    return {"output": y.detach(), **{k: v.grad for k, v in leaves.items() if v.grad is not None}}


def error(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def compare(case: Case, docs: dict[str, Tensor], device: torch.device) -> list[dict[str, Any]]:
    """A row for each backend of an operation that runs here; an empty error says why one does not."""
    exact = evaluate(case, docs, "plain", torch.float64)
    rows = []
    for name in case.table:
        row: dict[str, Any] = {"operation": case.name, "documents": bool(docs), "backend": name}
        try:
            found = evaluate(case, docs, name)
        except Exception as failure:  # one kernel that fails must not lose the other rows
            reason = str(failure).split("cannot be used here: ")[-1].split("\n")[0][:200]
            rows.append({**row, "failed": f"{type(failure).__name__}: {reason}"})
            continue
        row["output_error"] = error(found["output"], exact["output"])
        errors = {k: error(found[k], exact[k]) for k in exact if k != "output"}
        row["worst_gradient"] = max(errors, key=lambda k: errors[k])
        row["gradient_error"] = errors[row["worst_gradient"]]
        rows.append(row | times(case, docs, name, device))
    return rows


def times(case: Case, docs: dict[str, Tensor], backend: str, device: torch.device) -> dict[str, float]:
    """ms of forward and backward, and on a GPU kernel_ms, the sum over its kernels."""
    leaves = {k: v.detach().requires_grad_() for k, v in case.tensors.items()}
    upstream = torch.ones_like(case.run(leaves, docs, backend))

    def run() -> None:
        torch.autograd.grad(case.run(leaves, docs, backend), list(leaves.values()), upstream, allow_unused=True)

    found = {"ms": milliseconds(run, device)}
    return found | ({"kernel_ms": sum(row["ms"] for row in where(run, ALL))} if device.type == "cuda" else {})


HEADER = f"{'operation':<24}{'docs':<6}{'backend':<16}{'output':>10}{'gradient':>10}{'ms':>9}{'kernels':>9}"
HEADER += "  worst gradient"


def line(r: dict[str, Any]) -> str:
    """One row as text."""
    start = f"{r['operation']:<24}{'yes' if r['documents'] else 'no':<6}{r['backend']:<16}"
    if "failed" in r:
        return start + "  " + r["failed"][:90]
    kernels = f"{r['kernel_ms']:.2f}" if "kernel_ms" in r else "-"
    numbers = f"{r['output_error']:>10.1e}{r['gradient_error']:>10.1e}{r['ms']:>9.2f}{kernels:>9}"
    return f"{start}{numbers}  {r['worst_gradient']}"


if __name__ == "__main__":
    run_command(command_of(main))
