"""The memory estimate of a Plan: against measurements, how it grows, what it is made of, where it is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lit_gpt import architectures
from lit_gpt.architectures import FAMILIES, experts_of
from lit_gpt.config.cli import parse
from lit_gpt.config.model import Experts, ModelConfig
from lit_gpt.data.corpus import Batch
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.nn.mixers.attention import Attention
from lit_gpt.ops import attention, selective_scan_cuda
from lit_gpt.ops.loss import even_chunk
from lit_gpt.parallel import start_runtime
from lit_gpt.preflight import memory
from lit_gpt.preflight.activations import kept_by_layers, of_loss
from lit_gpt.preflight.resolved_run import ResolvedRun, dry_run_text, resolve_run
from lit_gpt.scaling.plan import difference
from lit_gpt.train import run_folder
from lit_gpt.train.build import build_model, build_optimizer
from lit_gpt.train.step import train_step

GIB = 2**30
DOCS = Path(__file__).parents[2] / "docs/benchmarks"
MEASURED = [
    row
    for name in ("train_step_h200.json", "families_h200.json")
    for row in json.loads((DOCS / name).read_text())["rows"]
    if "peak_memory_gib" in row
]
WITH_OUR_SCAN = json.loads((DOCS / "sambay_scan_h200.json").read_text())
SMALL = "--depth 8 --ar 32 --ctx_len 512 --vocab_size 1000 --train_name x --max_tokens 1e9"


def resolved(line: str, ranks: int = 1, train_model: str = "transformer") -> ResolvedRun:
    words = f"--train_model {train_model} --base_hps.warmup_tokens 0 --dry_run true {line}"
    return resolve_run(parse(words.split()), ranks)


def on_meta(family: str) -> GPT:
    experts = Experts(4, 2) if experts_of(family) else None
    with torch.device("meta"):
        return GPT(architectures.build(family, 8, block_size=512, experts=experts), compute_dtype=torch.bfloat16)


def total(memory: dict[str, int]) -> float:
    return sum(memory.values()) / GIB


def of_row(row: dict[str, Any]) -> float:
    """The estimate of a measured run, in GiB; one micro-batch per step."""
    tokens = row["micro_bsz"] * row["context"]
    line = f"--depth {row['depth']} --micro_bsz {row['micro_bsz']} --ctx_len {row['context']} --train_name x"
    return total(resolved(f"{line} --total_bsz {tokens} --vocab_size 32000", train_model=row["family"]).plan.memory)


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """When these peaks were measured, before values were copied out of the product of queries, keys and values, before
    Mamba's scan had a kernel of this project, and before `freed`.
    """
    monkeypatch.setattr(Attention, "_apart", lambda self, v, context: v)
    monkeypatch.setattr(selective_scan_cuda, "refuses", lambda dtype, states: "it is not written yet")


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """When these peaks were measured, before the logits of a chunk were freed for those of the next one."""

    def with_both(config: ModelConfig, tokens: int, *more: Any) -> float:
        at_once = even_chunk(tokens, config.padded_vocab_size)
        return of_loss(config, tokens, *more) + (at_once < tokens) * 2 * at_once * config.padded_vocab_size

    monkeypatch.setattr(memory, "of_loss", with_both)


@pytest.mark.usefixtures("as_it_was", "freed")
@pytest.mark.parametrize("row", MEASURED, ids=lambda r: f"{r['family']}-d{r['depth']}-{r['context']}")
def test_measured_peaks(row: dict[str, Any]) -> None:
    rel = 0.03 if row["family"] == "transformer" and row["depth"] < 24 else 0.04
    assert of_row(row) == pytest.approx(row["peak_memory_gib"], rel=rel)


@pytest.mark.usefixtures("freed")
@pytest.mark.parametrize("row", WITH_OUR_SCAN, ids=lambda r: f"d{r['depth']}")
def test_measured_peaks_with_our_scan(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan_cuda, "refuses", lambda dtype, states: "")
    assert of_row(row) == pytest.approx(row["peak_memory_gib"], rel=0.02)


@pytest.mark.usefixtures("as_it_was", "freed")
def test_measured_peaks_of_several_micro_batches() -> None:
    """system/gpu_memory_peak_gib of the runs in docs/benchmarks/two_gpus_h200.json."""
    line = "--depth 8 --micro_bsz 16 --total_bsz 262144 --train_name mup"
    assert total(resolved(line).plan.memory) == pytest.approx(28.42, rel=0.03)
    assert total(resolved(line, ranks=2).plan.memory) == pytest.approx(27.57, rel=0.03)


def test_the_measured_peak_of_experts() -> None:
    """138.9 GiB on an H200, when backward had the rows of x beside those of the output's gradient."""
    size = "--depth 16 --ctx_len 4096 --micro_bsz 8 --total_bsz 131072 --act_ckpt cheap --vocab_size 32000"
    found = resolved(f"{size} --train_name x --sparsity 8 --top_k 8", train_model="transformer_gqa4_h2_moe")
    rows_of_x = 8 * 8 * 4096 * found.model.n_embd * 2 / GIB
    assert 138.9 < total(found.plan.memory) + rows_of_x < 1.01 * 138.9


@pytest.mark.parametrize("family", ["transformer", "samba", "transformer_gqa4_moe"])
def test_activations_grow_with_the_micro_batch_and_fall_with_recomputation(family: str) -> None:
    def activations(options: str) -> int:
        return resolved(f"{SMALL} {options}", train_model=family).plan.memory["activations"]

    one, two, four = (activations(f"--micro_bsz {b}") for b in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=1e-6) and two > one
    assert activations("--micro_bsz 1 --ctx_len 1024") == two, "tokens count, not how they are arranged"
    words = ("off", "cheap", "selective", "full")
    off, cheap, selective, full = (activations(f"--micro_bsz 4 --act_ckpt {x}") for x in words)
    assert full < selective <= cheap < off and (selective < cheap) == (family != "transformer")
    assert activations("--micro_bsz 4 --use_flce false") > off
    half, most = (activations(f"--micro_bsz 4 --act_offload {share}") for share in (0.5, 1))
    assert most < half < off
    assert activations("--micro_bsz 4 --residual_precision bf16") < off


def test_weights_and_gradients_are_exact() -> None:
    one, four = (resolved(f"{SMALL} --total_bsz 65536", ranks).plan for ranks in (1, 4))
    count = 4 * one.counts["total"]
    assert one.memory["weights"] == one.memory["gradients"] == count
    assert one.memory["optimizer"] == 2 * count
    assert one.memory["copies"] == 2 * one.counts["matrix"]
    vectors = 4 * four.counts["vector"]
    assert four.memory["weights"] == (count - vectors) // 4 + vectors
    whole = count - vectors  # several micro-batches: gradients are kept whole until they are reduced
    assert four.memory["gradients"] == four.memory["weights"] + whole


def test_shard_groups_and_gradients_that_travel_at_once() -> None:
    """Copies of the weights cost what they are; shards of gradients take the place of whole ones."""
    line = f"{SMALL} --total_bsz 65536"
    two, alike = (resolved(f"{line} {options}", 4).plan.memory for options in ("--shard_group 2", "--shard_group 4"))
    four, counts = resolved(line, 4).plan.memory, resolved(line, 4).plan.counts
    vectors = 4 * counts["vector"]
    assert alike == four and two["weights"] - vectors == 2 * (four["weights"] - vectors)
    block = 4 * counts["matrix"] // 8
    assert resolved(f"{line} --reduce_precision bf16", 4).plan.memory["gradients"] == four["weights"] + block
    with pytest.raises(UserError, match="--shard_group 3 does not divide the 4 processes"):
        resolved(f"{line} --shard_group 3", 4)


def test_offloading_leaves_only_what_is_not_sharded() -> None:
    plan = resolved(f"{SMALL} --offloading true").plan
    assert plan.memory["weights"] == 4 * plan.counts["vector"]
    assert plan.memory["optimizer"] == 8 * plan.counts["vector"]


@pytest.mark.parametrize("family", FAMILIES.names())
def test_every_family_is_told(family: str) -> None:
    """Between 8 and 150 times the n bf16 numbers of a token per layer; networks 32 n wide keep 100.

    Backward makes as many more at most: of 6 heads of 256 keys and 512 values, at a width of 384, 100.
    """
    model = on_meta(family)
    layers = kept_by_layers(model)
    assert len(layers) == 8
    for layer in layers:
        made = layer.pop("made", 0)
        assert 8 < sum(layer.values()) / (2 * model.config.n_embd) < 150
        assert made / (2 * model.config.n_embd) < 150


OPTIONS = (
    "--varlen true --doc_positions restart",
    "--share_per_layer 2",
    "--tie_embeddings true --norm_class LayerNorm --post_norm true",
    "--attn_gate true --attn_norm true --qk_norm true --attn_conv true",
    "--swa_len 64 --train_model transformerls",
)


def test_options_keep_the_estimate() -> None:
    for line in OPTIONS:
        assert {"optimizer", "activations"} <= resolved(f"{SMALL} {line}").plan.memory.keys(), line


def test_a_mixer_that_needs_values_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attention, "attend", lambda self, q, k, v, context: q * q.sum().item())
    shown = dry_run_text(resolved(SMALL))
    assert "optimizer 0.0" in shown and "+ activations, which cannot be told here" in shown


def test_the_estimate_leaves_the_operations_as_they_were() -> None:
    before = dict(attention.BACKENDS)
    resolved(SMALL)
    assert before == attention.BACKENDS


def test_it_is_printed_and_belongs_to_no_run(tmp_path: Path) -> None:
    """It is in plan.json, but a run goes on with other GPUs and other ways to save memory."""
    here, there = (resolved(f"{SMALL} --out_dir {tmp_path} --act_ckpt {x}") for x in ("off", "full"))
    assert "\nmemory       about " in dry_run_text(here) and "(estimated)" in dry_run_text(here)
    assert here.plan == there.plan and here.plan.memory != there.plan.memory
    assert difference(run_folder.identity(here), run_folder.identity(there)) == []
    run_folder.write_archive(here)
    assert json.loads((here.folder / "plan.json").read_text())["memory"] == here.plan.memory
    run_folder.check_folder(there, None)


@pytest.mark.parametrize(("gpu_gib", "warned"), [(0.01, True), (80, False)])
def test_a_gpu_that_is_too_small(gpu_gib: float, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="Small GPU", total_memory=int(gpu_gib * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    shown = dry_run_text(resolved(f"{SMALL} --micro_bsz 8 --act_ckpt selective"))
    assert ("Small GPU" in shown) == warned
    if warned:
        assert "--micro_bsz 4" in shown and "--act_ckpt true" in shown and "--act_ckpt selective" not in shown


def test_rows_that_travel_to_experts_are_kept() -> None:
    """8 layers, 3 routed experts per token, a row each way; tests/moe counts that it is so.

    Each of two processes has half of the experts, and so of the gradients of a layer's.
    """
    line = f"{SMALL} --micro_bsz 4 --sparsity 2 --top_k 4 --share_expert true"

    def activations(options: str, ranks: int = 2) -> int:
        return resolved(f"{line} {options}", ranks, "transformer_gqa4_moe").plan.memory["activations"]

    n, tokens = resolved(line, 2, "transformer_gqa4_moe").model.n_embd, 4 * 512
    layer = 2 * 3 * n * 2 * tokens
    half = resolved(line, 2, "transformer_gqa4_moe").plan.counts["expert"] // 8
    assert activations("--expert_parallel true") - activations("") == 8 * layer - half
    again = activations("--expert_parallel true --act_ckpt full") - activations("--act_ckpt full")
    assert again == layer - half, "computed again, for one layer at a time"
    assert activations("--expert_parallel true", ranks=1) == activations("", ranks=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", ["", "--act_ckpt full"])
def test_within_a_third_of_the_measured_peak(options: str) -> None:
    """Two steps of two micro-batches on a GPU."""
    s = resolved(f"--depth 8 --ctx_len 2048 --micro_bsz 16 --total_bsz 65536 --train_name x {options}")
    runtime = start_runtime()
    model = build_model(s, runtime)
    optimizer = build_optimizer(model, s.plan)
    tokens = np.random.default_rng(0).integers(0, s.model.vocab_size, (16, 2048))
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        batch = Batch(tokens, tokens)
        train_step(model, optimizer, [batch] * 2, 2, 2 * tokens.size, runtime, grad_clip=1.0)
    peak = torch.cuda.max_memory_allocated()
    assert sum(s.plan.memory.values()) == pytest.approx(peak, rel=0.35)
