"""launch_scripts/optimizers.csv and SCALES, cell by cell, against the published values, typed here once more.

The two benchmarks are OpenRaiser/scaling-for-scaling, stages 1 (350m, 1b) and 2 (s2_340m, s2_1b), and arXiv:2509.01440
(124m, 210m, 720m, 520m).
"""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest
from script_module import script_module

from lit_gpt.errors import UserError

scales = script_module("launch_scripts/optimizer_scales.py")
runs = script_module("launch_scripts/optimizer_options.py")

SOURCES = {"350m": "S1 350M", "1b": "S1 1B", "124m": "E 124M", "210m": "E 210M", "720m": "E 720M"}
SOURCES |= {"520m": "E 520M", "s2_340m": "S2 340M", "s2_1b": "S2 1B"}
USUAL = {
    "weight_lr_scale": 1.0,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "muon_beta": 0.95,
    "args": {},
    "warmup_steps": None,
    "options": {},
}


def adam(rate: float, beta1: float, beta2: float, eps: float = 1e-8, **more: Any) -> dict[str, Any]:
    return {"eta0": rate, "beta1": beta1, "beta2": beta2, "eps": eps, **more}


def args(**values: Any) -> dict[str, Any]:
    return {"args": values}


# optimizer -> size -> what was published: rate, betas, eps, and what else is not USUAL.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "adabelief": {
        "350m": adam(1e-3, 0.9, 0.999, **args(eps=1e-16)),
        "1b": adam(1e-3, 0.9, 0.999, **args(eps=1e-12)),
    },
    "adafactor": {"350m": adam(1e-3, 0.9, 0.999), "1b": adam(5e-4, 0.9, 0.999)},
    "adam_mini": {"350m": adam(5e-4, 0.9, 0.99), "1b": adam(3e-4, 0.9, 0.99)},
    "adamp": {"350m": adam(1e-3, 0.9, 0.98), "1b": adam(5e-4, 0.9, 0.98)},
    "adamw": {
        "350m": adam(1e-3, 0.9, 0.99),
        "1b": adam(5e-4, 0.9, 0.99),
        "124m": adam(1e-3, 0.8, 0.999),
        "210m": adam(1e-3, 0.9, 0.999),
        "720m": adam(1e-3, 0.9, 0.999),
    },
    "adamw8bit": {"350m": adam(5e-4, 0.9, 0.99), "1b": adam(5e-4, 0.9, 0.99)},
    "adan": {
        "350m": {"eta0": 3e-3, **args(betas=[0.9, 0.92, 0.99])},
        "1b": {"eta0": 1e-3, **args(betas=[0.9, 0.92, 0.99])},
    },
    # Both warm-ups are as long as the run, which is their default here. So is the third beta, 0.999.
    "ademamix": dict.fromkeys(("124m", "210m", "720m"), adam(1e-3, 0.9, 0.999, **args(alpha=8.0))),
    "adopt": {
        "124m": adam(1e-3, 0.9, 0.999, 1e-6),
        "210m": adam(1e-3, 0.9, 0.999, 1e-6),
        "720m": adam(1e-3, 0.95, 0.999, 1e-6),
    },
    "apollo": dict.fromkeys(("350m", "1b"), adam(1e-2, 0.9, 0.99, 1e-6, **args(rank=256, gap=200))),
    "came": {
        "350m": adam(5e-4, 0.9, 0.999, **args(eps2=1e-6)),
        "1b": adam(3e-4, 0.9, 0.999, **args(eps2=1e-6)),
    },
    "conda": {
        "350m": adam(1e-2, 0.9, 0.99, **args(update_proj_gap=2000, scale=0.25)),
        "1b": adam(5e-4, 0.9, 0.99, **args(update_proj_gap=200, scale=1.0)),
    },
    "dmuon": {
        "124m": adam(1e-3, 0.8, 0.999),
        "210m": adam(1e-3, 0.8, 0.999),
        "720m": adam(1e-3, 0.9, 0.99),
    },
    "galore": {
        "350m": adam(1e-2, 0.9, 0.98, 1e-6, **args(rank=256, update_proj_gap=500, scale=0.25)),
        "1b": adam(1e-2, 0.9, 0.98, 1e-6, **args(rank=1024, update_proj_gap=200, scale=0.25)),
    },
    "lion": {
        "350m": adam(2e-4, 0.9, 0.98),
        "1b": adam(1e-4, 0.9, 0.98),
        "124m": adam(1e-3, 0.9, 0.99),
        "210m": adam(5e-4, 0.9, 0.99),
        "720m": adam(2e-4, 0.9, 0.99, options={"grad_clip": 1.0}),
    },
    "mars_adamw": {
        "350m": adam(5e-3, 0.95, 0.99, **args(gamma=0.025)),
        "1b": adam(1e-3, 0.95, 0.99, **args(gamma=0.025)),
        # 3e-3 on all matrices, tables among them, and 1e-3 on vectors, with AdamW's betas
        **dict.fromkeys(
            ("124m", "210m", "720m"),
            adam(3e-3, 0.95, 0.99, **args(betas_1d=[0.8, 0.999]), options={"base_hps.vector_lr_scale": 1e-3 / 3e-3}),
        ),
    },
    "mars_lion": {"350m": adam(2e-4, 0.9, 0.98), "1b": adam(2e-4, 0.9, 0.98)},
    "mars_shampoo": {"350m": adam(2e-2, 0.95, 0.99), "1b": adam(1e-2, 0.95, 0.99)},
    "muon": {
        "350m": adam(6e-3, 0.9, 0.95, **args(adjust="clip")),
        "1b": adam(6e-3, 0.9, 0.95, **args(adjust="clip")),
        # 1e-2 on matrices, which do not decay
        **dict.fromkeys(
            ("124m", "210m", "720m"),
            adam(
                1e-3,
                0.8,
                0.999,
                weight_lr_scale=10.0,
                **args(adjust="clip"),
                options={"base_hps.weight_decay": 0.0},
            ),
        ),
    },
    "nadam": {"350m": adam(1e-3, 0.9, 0.99), "1b": adam(5e-4, 0.9, 0.99)},
    "prodigy": {
        "350m": adam(2.0, 0.9, 0.95),
        "1b": adam(2.0, 0.9, 0.95),
        "124m": adam(1.0, 0.9, 0.999, **args(bias_correction=True)),
        "210m": adam(1.0, 0.9, 0.999, **args(bias_correction=True)),
        "720m": adam(1.0, 0.95, 0.99, **args(bias_correction=True)),
    },
    "radam": {"350m": adam(1e-3, 0.9, 0.99), "1b": adam(5e-4, 0.9, 0.99)},
    "rmnp": {"350m": adam(1e-2, 0.9, 0.999, muon_beta=0.9), "1b": adam(1e-2, 0.9, 0.99)},
    "schedulefree_adamw": {
        "124m": adam(1e-3, 0.9, 0.9999),
        "210m": adam(1e-3, 0.9, 0.9999, warmup_steps=8000),
        "720m": adam(1e-3, 0.9, 0.9999, warmup_steps=8000),
    },
    "signum": {
        "124m": {"eta0": 1e-3, **args(momentum=0.9)},
        "210m": {"eta0": 5e-4, **args(momentum=0.95, nesterov=True)},
        "720m": {"eta0": 2e-4, **args(momentum=0.95, nesterov=True)},
    },
    "soap": {
        "350m": adam(1e-3, 0.9, 0.95),
        "1b": adam(5e-4, 0.9, 0.95),
        "124m": adam(1e-3, 0.9, 0.999),
        "210m": adam(1e-3, 0.9, 0.999),
        "720m": adam(1e-3, 0.95, 0.95),
    },
    "sophia": {
        "124m": adam(1e-3, 0.9, 0.999, **args(rho=0.04)),
        "210m": adam(1e-3, 0.9, 0.999, **args(rho=0.04)),
        "720m": adam(5e-4, 0.95, 0.999, **args(rho=0.04)),
    },
}
MIXTURE: dict[str, dict[str, Any]] = {
    "adamw": adam(1e-3, 0.9, 0.999),
    "adopt": adam(1e-3, 0.9, 0.999, 1e-6),
    "ademamix": adam(1e-3, 0.9, 0.999, **args(alpha=8.0)),
    "dmuon": adam(1e-3, 0.8, 0.999),
    "lion": adam(5e-4, 0.9, 0.99),
    "mars_adamw": PUBLISHED["mars_adamw"]["210m"],
    "muon": PUBLISHED["muon"]["210m"],
    "prodigy": adam(1.0, 0.9, 0.999, **args(bias_correction=True)),
    "schedulefree_adamw": adam(1e-3, 0.9, 0.9999, warmup_steps=8000),
    "signum": {"eta0": 5e-4, **args(momentum=0.95, nesterov=True)},
    "soap": adam(1e-3, 0.9, 0.999),
    "sophia": adam(5e-4, 0.9, 0.999, **args(rho=0.04)),
}
# Of s2_340m, and what is another value at s2_1b. The scripts give RMNP's matrices a rate of their own.
STAGE2: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adamw": (adam(1e-3, 0.9, 0.99, 1e-15), {}),
    "adamp": (adam(1e-3, 0.9, 0.98, 1e-15), {}),
    "adan": ({"eta0": 1e-3, **args(betas=[0.9, 0.92, 0.99])}, {"eta0": 3e-3}),
    "lion": (adam(3e-4, 0.9, 0.99), {}),
    "mars_adamw": (adam(1e-3, 0.95, 0.99), {"eta0": 3e-3}),
    "mars_lion": (adam(2e-4, 0.9, 0.98, 1e-12), {"eps": 1e-8}),
    "mars_shampoo": (adam(1e-2, 0.95, 0.99, 1e-12), {"eps": 1e-8}),
    "muon": (adam(3e-3, 0.9, 0.95, 1e-15, **args(adjust="clip")), {"eta0": 5e-3}),
    "rmnp": (adam(1e-3, 0.9, 0.99, 1e-15, weight_lr_scale=3.0), {"weight_lr_scale": 5.0}),
    "soap": (adam(3e-3, 0.9, 0.95, 1e-15), {}),
    "apollo": (adam(3e-3, 0.9, 0.99, 1e-12, **args(rank=512, scale=2.0, gap=200)), {}),
    "conda": (
        adam(1e-2, 0.9, 0.99, 1e-12, **args(update_proj_gap=2000, scale=0.25)),
        {"eta0": 5e-4, "eps": 1e-8, **args(update_proj_gap=200, scale=1.0)},
    ),
}
for name, values in MIXTURE.items():
    PUBLISHED[name]["520m"] = values
for name, (narrow, wide) in STAGE2.items():
    PUBLISHED[name] |= {"s2_340m": narrow, "s2_1b": narrow | wide}
# depth, tokens per step, steps, warm-up steps, last rate, decay, clipping
PROTOCOL = {
    "60m": (8, 131_072, 10_000, 1_000, 0.1, 0.0, 1.0),
    "130m": (12, 131_072, 20_000, 2_000, 0.1, 0.0, 1.0),
    "350m": (24, 131_072, 60_000, 6_000, 0.1, 0.0, 1.0),
    "1b": (24, 131_072, 100_000, 10_000, 0.1, 0.0, 1.0),
    "124m": (12, 131_072, 128_000, 2_000, 0.01, 0.1, 0.5),
    "210m": (24, 131_072, 128_000, 2_000, 0.01, 0.1, 0.5),
    "720m": (12, 1_015_808, 48_000, 2_000, 0.01, 0.1, 0.1),
    "520m_moe": (12, 131_072, 336_000, 2_000, 0.01, 0.1, 0.5),
}
PROTOCOL |= {f"gpt_{size}": PROTOCOL[size] for size in ("124m", "210m", "720m")}
for size in ("340m", "1b"):
    for mixer, depth in (("transformer", 24), ("gla", 24), ("deltanet", 24), ("gdn", 21)):
        PROTOCOL[f"{mixer}_{size}"] = (depth, 524_288, 30_720, 1_024, 0.1, 0.1, 1.0)
PAIRS = [(name, size) for name, sizes in PUBLISHED.items() for size in sizes]
# The ranks that the presets of that benchmark have at its small sizes.
RANKS = {("apollo", "60m"): 128, ("apollo", "130m"): 192, ("galore", "60m"): 128, ("galore", "130m"): 256}


def table() -> dict[tuple[str, str], dict[str, Any]]:
    """(optimizer, size) -> the cells of its row as values."""
    with scales.TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["optimizer"], size): cells(row) for row in rows for size in row["sizes"].split()}


def cells(row: dict[str, str]) -> dict[str, Any]:
    numbers = {key: float(row[key]) for key in ("eta0", "weight_lr_scale", "beta1", "beta2", "eps", "muon_beta")}
    given = {key: json.loads(row[key] or "{}") for key in ("args", "options")}
    warmup = int(row["warmup_steps"]) if row["warmup_steps"] else None
    return numbers | given | {"warmup_steps": warmup, "source": row["source"]}


TABLE = table()


@pytest.mark.parametrize(("name", "size"), PAIRS)
def test_every_cell_is_the_published_one(name: str, size: str) -> None:
    assert TABLE[name, size] == {**USUAL, **PUBLISHED[name][size], "source": SOURCES[size]}


def test_no_other_row_says_that_it_was_published_at_its_size() -> None:
    own = {pair for pair, row in TABLE.items() if row["source"] == SOURCES.get(pair[1])}
    assert own == set(PAIRS)


def test_sizes_without_values_of_their_own_have_those_that_the_row_names() -> None:
    sizes = {source: size for size, source in SOURCES.items()}
    borrowed = {pair: row for pair, row in TABLE.items() if pair not in PAIRS and row["source"] in sizes}
    for (name, _), row in borrowed.items():
        own = {**USUAL, **PUBLISHED[name][sizes[row["source"]]], "source": row["source"]}
        # A warm-up in steps belongs to the length of its run.
        assert row == {**own, "warmup_steps": None}, (name, row)
    ranked = {pair: row["args"]["rank"] for pair, row in TABLE.items() if pair in RANKS}
    assert ranked == RANKS


@pytest.mark.parametrize("size", PROTOCOL)
def test_the_protocol_is_the_published_one(size: str) -> None:
    assert tuple(scales.SCALES[size])[1:8] == PROTOCOL[size] and list(PROTOCOL) == list(scales.SCALES)


@pytest.mark.parametrize(("size", "billions"), [("350m", 7.86), ("720m", 48.8), ("520m_moe", 44.0), ("gdn_1b", 16.1)])
def test_the_budget_is_the_published_one(size: str, billions: float) -> None:
    assert scales.SCALES[size].tokens / 1e9 == pytest.approx(billions, abs=0.05)


def test_published_are_the_optimizers_of_the_benchmark_of_a_scale() -> None:
    for name, scale in scales.SCALES.items():
        chosen = runs.choose(runs.read_table(scales.TABLE, scale), "published", scale.source)
        sizes = {"60m": "350m", "130m": "350m"}.get(scale.size, scale.size)
        assert chosen == sorted(n for n, of in PUBLISHED.items() if sizes in of), name
        assert scale.source == "S1" or len(chosen) == 12


def test_a_micro_batch_is_what_was_published_or_the_next_that_divides_the_batch() -> None:
    found = {name: [scales.SCALES[name].micro_batch(n) for n in (1, 4, 8)] for name in ("60m", "720m", "gla_1b")}
    assert found == {"60m": [128, 128, 64], "720m": [62, 62, 62], "gla_1b": [1, 1, 1]}
    with pytest.raises(UserError, match="A batch of gla_1b is 16 sequences, which 3 GPUs cannot share"):
        scales.SCALES["gla_1b"].micro_batch(3)


def options(name: str, size: str, tokens: int = 0) -> dict[str, str]:
    """What one optimizer's run is given."""
    scale = scales.SCALES[size]
    row = runs.read_table(scales.TABLE, scale)[name]
    return {name: str(value) for name, value in runs.options_of(row, scale, tokens).items()}


def test_runs_get_these_values() -> None:
    lion, muon, mars = (options(name, "720m") for name in ("lion", "muon", "mars_adamw"))
    assert (lion["grad_clip"], muon["grad_clip"]) == ("1.0", "0.1")
    assert (lion["base_hps.weight_decay"], muon["base_hps.weight_decay"]) == ("0.1", "0.0")
    rate, scale = float(mars["base_hps.eta0"]), float(mars["base_hps.vector_lr_scale"])
    assert (rate, rate * scale) == (3e-3, pytest.approx(1e-3))
    warmup = {name: float(options(name, "210m")["base_hps.warmup_tokens"]) for name in ("adamw", "schedulefree_adamw")}
    assert warmup == {"adamw": 2000 * 2**17, "schedulefree_adamw": 8000 * 2**17}
    half = options("adamw", "124m", tokens=64_000 * 2**17)
    assert float(half["base_hps.warmup_tokens"]) == 1000 * 2**17, "a shorter run has as large a part of it"
