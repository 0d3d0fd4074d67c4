"""Curricula, and the places in the data that a fork goes on from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_gpt.config.model import IGNORE
from lit_gpt.data import Corpus, Cursor, Loader, open_corpus
from lit_gpt.data.cursor import offsets_from
from lit_gpt.data.mixture import Curriculum, Interleave, first_sample, load_mixture, source_names
from lit_gpt.data.stream import ArrayStream, StreamInfo
from lit_gpt.errors import UserError

BLOCK = 8
# (tokens from which a phase is on, weight of every source in it)
CURRICULA: dict[str, list[tuple[int, list[float]]]] = {
    "one phase": [(0, [0.7, 0.3])],
    "a source leaves, another comes": [(0, [1, 0]), (1001, [0.5, 0.5]), (20_000, [0, 1])],
    "a source pauses": [(0, [3, 1, 1e-3]), (8000, [1, 0, 1]), (8001, [0, 0, 5]), (16_384, [0.1, 2, 0.4])],
    "a phase without a sample": [(0, [1, 1, 1]), (801, [1, 0, 0]), (802, [0, 2, 1])],
    "many": [(0, [1, 2, 3, 4, 5, 6, 7]), (2500, [7, 6, 5, 4, 3, 2, 1]), (9000, [0, 0, 1, 0, 1, 0, 0])],
}


def stream(n: int, first: int = 0) -> ArrayStream:
    return ArrayStream(np.arange(first, first + n, dtype="<i8"), StreamInfo())


def streams() -> dict[str, ArrayStream]:
    """Three sources, told apart by their ids; their last windows are short."""
    return {"web": stream(203), "code": stream(101, 1000), "maths": stream(333, 2000)}


def corpus(phases: Sequence[tuple[int, Sequence[float]]], seed: int = 1, **options: Any) -> Corpus:
    weights = zip(*(weights for _, weights in phases))
    sources = [(name, tokens, w) for (name, tokens), w in zip(streams().items(), weights)]
    return Corpus(sources, BLOCK, seed, starts=[start for start, _ in phases], **options)


WHOLE = [(0, (2.0, 1.0, 0.0)), (805, (0.0, 1.0, 1.0)), (2000, (1.0, 0.0, 3.0))]  # of `streams`, over several epochs


# the order


@pytest.mark.parametrize("seed", [0, 1, 3407])
@pytest.mark.parametrize("name", CURRICULA)
def test_by_simulation(name: str, seed: int) -> None:
    """Every source counts on without a gap or a repetition, in exact proportion at every moment of every phase."""
    phases = CURRICULA[name]
    seen = [5 * s for s in range(len(phases[0][1]))]  # what was served before
    deal = Curriculum([(first_sample(start, BLOCK), weights) for start, weights in phases], seed, seen)
    now, before, begin = 0, list(seen), 0
    for i in range(3000):
        phase = max(p for p, (start, _) in enumerate(phases) if start <= i * BLOCK)
        if phase != now:
            now, before, begin = phase, list(seen), i
        assert deal.counts(i) == seen
        weights = phases[phase][1]
        for s, weight in enumerate(weights):
            assert abs(seen[s] - before[s] - (i - begin) * weight / sum(weights)) < len(weights)
        source, k = deal.locate(i)
        assert weights[source] > 0 and k == seen[source]
        seen[source] += 1
    assert now == len(phases) - 1


def test_it_is_exact_at_huge_indices() -> None:
    deal = Curriculum([(0, [1, 1e-9]), (10**12, [1e-9, 1]), (10**15, [1, 3])], 0, [0, 0])
    for i in (10**12 - 1, 10**12, 10**12 + 1, 10**15 - 1, 10**15, 10**15 + 1, 10**17):
        first, second = deal.counts(i), deal.counts(i + 1)
        source, k = deal.locate(i)
        assert sum(first) == i and k == first[source] and second[source] == k + 1
        assert sum(second) == i + 1
    assert abs(deal.counts(10**12)[1] - 1000) <= 1


def test_the_first_phase_is_that_of_the_plain_mixture() -> None:
    plain = Interleave([2, 1], 5)
    deal = Curriculum([(0, [2, 0, 1]), (300, [0, 1, 1])], 5, [0, 0, 0])
    assert [deal.locate(i) for i in range(300)] == [(2 * s, k) for s, k in (plain.locate(i) for i in range(300))]


def test_plain_mixtures_are_what_they_were() -> None:
    """Fingerprints and samples of the version before there were curricula, and old data states."""
    plain = Corpus([("web", stream(203), 7), ("code", stream(101, 1000), 0.3)], 8, 1)
    assert plain.fingerprint == "dc90b25bd0116af214cac8c4"
    assert [plain.sample(i)[0] for i in range(12)] == [96, 56, 8, 112, 80, 160, 72, 128, 0, 168, 184, 152]
    validation = Corpus([("v", stream(203), 1.0)], 8, 0, shuffle=False, repeat=False)
    assert validation.fingerprint == "15277b9fd9d0c2e186758f1a"
    old = {"samples_seen": 40, "fingerprint": plain.fingerprint, "content": plain.content, "version": 1}
    state = Loader(plain, 0, 1, 1, 0, old).state()
    assert {key: state[key] for key in old} == old
    assert Cursor.restore(state, plain.fingerprint, plain.content).samples_seen == 40


def test_sources_follow_their_own_order_through_the_phases() -> None:
    whole, rows = corpus(WHOLE), [corpus(WHOLE).sample(i) for i in range(600)]
    for n, (name, tokens) in enumerate(streams().items()):
        alone = Corpus([(name, tokens, 1.0)], BLOCK, 1)
        own = [row for row in rows if 1000 * n <= row[0] < 1000 * (n + 1)]
        assert len(own) > alone.num_samples, "more than an epoch"
        np.testing.assert_array_equal(own, [alone.sample(i) for i in range(len(own))])
        assert whole.epochs(600)[name] == len(own) / alone.num_samples
    assert whole.epochs(100)["maths"] == 0.0, "it comes later"


@pytest.mark.parametrize("options", [{}, {"repeat": False}, {"offsets": {"web": 17, "maths": 41}}])
def test_num_valid_without_reading_equals_counting(options: dict[str, Any]) -> None:
    whole = corpus(WHOLE, **options)
    counts = (whole.batch(0, 400).targets != IGNORE).sum(1)
    for start, count in [(0, 400), (0, 1), (95, 10), (100, 151), (249, 2), (399, 1), (50, 0)]:
        assert whole.num_valid(start, count) == counts[start : start + count].sum()


def test_the_fingerprint_is_of_the_whole_curriculum() -> None:
    later, other = [(0, WHOLE[0][1]), (806, WHOLE[1][1]), WHOLE[2]], [*WHOLE[:2], (2000, (1.0, 0.0, 2.0))]
    prints = {corpus(phases).fingerprint for phases in (WHOLE, WHOLE[:1], WHOLE[:2], later, other)}
    assert len(prints) == 5
    state = Loader(corpus(WHOLE), 0, 1, 1, 0).state()
    with pytest.raises(UserError, match="not what the checkpoint was trained on"):
        Loader(corpus(other), 0, 1, 1, 0, state)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_stopped_inside_a_phase_and_across_a_boundary(ranks: int) -> None:
    expected, sizes, state, got = corpus(WHOLE).batch(0, 320).targets, [64, 32, 8, 40, 72, 40, 64], None, []
    for size in sizes:
        loaders = [Loader(corpus(WHOLE), rank, ranks, 2, rank, state) for rank in range(ranks)]
        got += [batch.targets for loader in loaders for batch in loader.next_step(size).micro_batches]
        states = [json.loads(json.dumps(loader.state())) for loader in loaders]
        assert all(each == states[0] for each in states)
        state = states[0]
        for loader in loaders:
            loader.close()
    np.testing.assert_array_equal(np.concatenate(got), expected)


# forks


def test_offsets_that_are_zero_are_none() -> None:
    plain = corpus(WHOLE)
    for offsets in ({}, {"web": 0}, {"gone": 3}):  # a chain of forks may have left a source behind
        assert corpus(WHOLE, offsets=offsets).fingerprint == plain.fingerprint
    cases = ({}, {"web": 1}, {"code": 1}, {"web": 2})
    assert len({corpus(WHOLE, offsets=offsets).fingerprint for offsets in cases}) == len(cases)


def test_a_source_goes_on_behind_its_offset() -> None:
    offsets = {"web": 20, "maths": 100}  # 26 and 42 windows an epoch
    moved = corpus(WHOLE, offsets=offsets)
    rows = np.stack([moved.sample(i) for i in range(600)])
    for n, (name, tokens) in enumerate(streams().items()):
        alone, first = Corpus([(name, tokens, 1.0)], BLOCK, 1), offsets.get(name, 0)
        own = rows[rows[:, 0] // 1000 == n]
        np.testing.assert_array_equal(own, [alone.sample(first + i) for i in range(len(own))])
        assert moved.epochs(600)[name] == (first + len(own)) / alone.num_samples
    assert moved.epochs(0) == {"web": 20 / 26, "code": 0.0, "maths": 100 / 42}
    assert all(moved.where(i) == f"token {rows[i, 0] % 1000:,}" for i in range(600))


def test_a_fork_reads_nothing_twice() -> None:
    """A trunk on two sources, a fork that brings a third, and a fork of it: no window of the first epoch twice."""
    given = streams()
    trunk = Corpus([("web", given["web"], 2.0), ("code", given["code"], 1.0)], BLOCK, 1)
    first = Loader(trunk, 0, 1, 1, 0)
    rows = [first.next_step(12).micro_batches]
    weights = [(0, (1.0, 0.5, 1.0))]
    offsets = offsets_from(json.loads(json.dumps(first.state())), corpus(weights))
    assert offsets == {"web": 8, "code": 4, "maths": 0}
    second = Loader(corpus(weights, offsets=offsets), 0, 1, 1, 0)
    rows.append(second.next_step(15).micro_batches)
    weights = [(0, (1.0, 1.0, 1.0))]
    offsets = offsets_from(second.state(), corpus(weights))
    assert offsets == {"web": 14, "code": 7, "maths": 6}
    third = Loader(corpus(weights, offsets=offsets), 0, 1, 1, 0)
    rows.append(third.next_step(15).micro_batches)
    seen = [int(batch.tokens[0, 0]) for part in rows for batch in part]
    assert len(seen) == len(set(seen)) == 42
    assert third.state()["sources"]["web"]["windows"] == 14 + 5


def test_what_an_offset_is_for() -> None:
    """The same name, files, context and seed; nothing else can be gone on with."""
    loader = Loader(corpus(WHOLE), 0, 1, 1, 0)
    for _ in range(5):
        loader.next_step(60)
    there = loader.state()
    seen = {name: source["windows"] for name, source in there["sources"].items()}
    assert sum(seen.values()) == 300 and min(seen.values()) > 0
    none = dict.fromkeys(seen, 0)
    assert offsets_from(there, corpus(WHOLE[:1])) == seen
    assert offsets_from(there, corpus(WHOLE, seed=2)) == none
    given = streams()
    assert offsets_from(there, Corpus([(n, s, 1.0) for n, s in given.items()], BLOCK + 1, 1)) == none
    changed = {"web": given["code"], "code": given["code"], "other": given["maths"]}
    found = offsets_from(there, Corpus([(n, s, 1.0) for n, s in changed.items()], BLOCK, 1))
    assert found == {"web": 0, "code": seen["code"], "other": 0}


def test_checkpoints_that_do_not_say_it_of_sources() -> None:
    """Theirs is known where the corpus is the same."""
    whole = corpus(WHOLE)
    old = Cursor(whole.fingerprint, whole.content, 300).state()
    assert sum(offsets_from(old, whole).values()) == 300
    assert set(offsets_from(old, corpus(WHOLE[:1])).values()) == {0}


def test_a_state_with_odd_counts_is_refused() -> None:
    whole = corpus(WHOLE)
    for windows in (-1, 1.5, True, "3", None, 1 << 63):
        state = whole.place(300)
        state["sources"]["code"]["windows"] = windows
        with pytest.raises(UserError, match="data state is none"):
            offsets_from(state, whole)


# files


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_a_file_of_phases(tmp_path: Path) -> None:
    for name, first in (("web/train_0", 0), ("code/train_0", 1000)):
        (tmp_path / name).parent.mkdir()
        np.arange(first, first + 1000).astype("<u2").tofile(tmp_path / f"{name}.bin")
    first = [{"until": "0.5k", "weights": {"web": 1, "code": 0}}, {"until": 1e3, "weights": {"code": 3, "web": 1}}]
    path = write(tmp_path / "m.json", [*first, {"weights": {"code": 2}}])
    phases = load_mixture(path)
    assert phases == [
        {"from_tokens": 0, "weights": {"web": 1.0}},
        {"from_tokens": 500, "weights": {"code": 3.0, "web": 1.0}},
        {"from_tokens": 1000, "weights": {"code": 2.0}},
    ]
    assert source_names(phases) == ["web", "code"]
    whole, given = (open_corpus(str(tmp_path), "train", 10, 0, mixture=m) for m in (path, phases))
    assert whole.fingerprint == given.fingerprint and [s.name for s in whole.sources] == ["web", "code"]
    rows = np.stack([whole.sample(i) for i in range(200)])[:, 0] >= 1000
    assert (rows[:50].sum(), rows[100:].sum()) == (0, 100) and abs(rows[50:100].sum() - 37.5) <= 1
    moved = open_corpus(str(tmp_path), "train", 10, 0, mixture=path, offsets={"web": 7})
    assert moved.fingerprint != whole.fingerprint and moved.epochs(0) == {"web": 0.07, "code": 0.0}
    plain = write(tmp_path / "plain.json", {"web": 1, "code": 2})
    one = write(tmp_path / "one.json", [{"weights": {"web": 1, "code": 2}}])
    prints = {open_corpus(str(tmp_path), "train", 10, 0, mixture=m).fingerprint for m in (plain, one)}
    assert len(prints) == 1, "one phase is a plain mixture"


GOOD = {"until": 100, "weights": {"a": 1}}


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "neither a JSON object nor a list of phases"),
        (3, "neither a JSON object nor a list of phases"),
        ([GOOD, 1], "Phase 2 of the mixture .* is not a JSON object"),
        ([GOOD, {"weights": [1]}], "Phase 2 of the mixture .* is not a JSON object with an object of weights"),
        ([GOOD], "Phase 1 .* has the keys until,weights; it must have weights, since every phase but the last"),
        ([{"weights": {"a": 1}}, {"weights": {"a": 1}}], "Phase 1 .* has the keys weights; it must have until and"),
        ([{**GOOD, "unitl": 3}, {"weights": {"a": 1}}], "has the keys unitl,until,weights"),
        ([GOOD, {"until": 200}], "Phase 2 .* has the keys until; it must have weights"),
        ([{**GOOD, "until": "10Q"}, {"weights": {"a": 1}}], "Phase 1 .* begins at 0 tokens and has the end '10Q'"),
        ([{**GOOD, "until": 0}, {"weights": {"a": 1}}], "has the end 0; an end is a number of tokens, such as 500M"),
        ([{**GOOD, "until": -5}, {"weights": {"a": 1}}], "has the end -5"),
        ([{**GOOD, "until": True}, {"weights": {"a": 1}}], "has the end True"),
        ([{**GOOD, "until": None}, {"weights": {"a": 1}}], "has the end None"),
        ([{**GOOD, "until": [1, 2]}, {"weights": {"a": 1}}], "has the end 1,2"),
        ([{**GOOD, "until": float("nan")}, {"weights": {"a": 1}}], "has the end nan"),
        ([{**GOOD, "until": float("inf")}, {"weights": {"a": 1}}], "has the end inf"),
        ([{**GOOD, "until": 10**400}, {"weights": {"a": 1}}], r"has the end 1000.*\(401 characters\)"),
        ([{**GOOD, "until": "1e999"}, {"weights": {"a": 1}}], "has the end '1e999'"),
        ([GOOD, GOOD, {"weights": {"a": 1}}], "Phase 2 .* begins at 100 tokens and has the end 100"),
        ([GOOD, {**GOOD, "until": "0.05k"}, {"weights": {"a": 1}}], "Phase 2 .* begins at 100 tokens and has the end"),
        ([GOOD, {"weights": {"a": -1}}], "Phase 2 .* gives 'a' the weight -1"),
        ([GOOD, {"weights": {"a": [1]}}], "Phase 2 .* gives 'a' the weight 1"),
        ([GOOD, {"weights": {"a": 0}}], "Phase 2 .* has no source with a positive weight"),
        ('[{"weights": {"a": 1, "a": 2}}]', "a is named twice"),
        ('[{"until": 1, "until": 2, "weights": {"a": 1}}]', "until is named twice"),
    ],
)
def test_bad_files(tmp_path: Path, phases: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load_mixture(write(tmp_path / "m.json", phases))
    assert "\n" not in str(raised.value) and str(tmp_path / "m.json") in str(raised.value)


def test_a_weight_that_is_a_list(tmp_path: Path) -> None:
    """It was a TypeError."""
    with pytest.raises(UserError, match="gives 'a' the weight 1,2; a weight is a number"):
        load_mixture(write(tmp_path / "m.json", {"a": [1, 2]}))
