"""The order of samples: permutation, mixture, corpus, cursor, loader."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from lit_gpt.data import Corpus, Cursor, Loader, check_vocab, open_corpus
from lit_gpt.data.mixture import Interleave, load_mixture
from lit_gpt.data.permutation import Permutation
from lit_gpt.data.stream import ArrayStream, StreamInfo
from lit_gpt.errors import UserError
from lit_gpt.ops.loss import IGNORE


def stream(n, first=0, **known):
    return ArrayStream(np.arange(first, first + n), StreamInfo(**known))


def corpus(n=1003, block=8, seed=0, **options):
    return Corpus([("a", stream(n), 1.0)], block, seed, **options)


# permutation


@pytest.mark.parametrize("n", [*range(1, 40), 100, 1000, 4097])
def test_permutation_is_a_bijection_with_its_inverse(n):
    p = Permutation(n, f"key{n}")
    image = [p(i) for i in range(n)]
    assert sorted(image) == list(range(n))
    assert [p.inverse(j) for j in image] == list(range(n))


def test_permutation_is_spread_out():
    """Where element 0 of 5 goes over many keys: chi-squared with 4 degrees of freedom, p = 0.001 at 18.5."""
    hits = Counter(Permutation(5, str(k))(0) for k in range(2000))
    assert sum((hits[j] - 400) ** 2 / 400 for j in range(5)) < 18.5
    image = np.array([Permutation(10000, "k")(i) for i in range(10000)])
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10000), image)[0, 1]) < 0.05


# mixture


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.7, 0.2, 0.1], [1e-6, 1.0], [3, 1e-4, 5, 1, 1, 2, 0.3]])
def test_interleave_by_brute_force(weights):
    """Each source is consumed 0, 1, 2, ... without a gap, in proportion, and counts() agrees throughout."""
    mix, seen, n = Interleave(weights, seed=3), [0] * len(weights), 100_000
    share = np.array(weights) / sum(weights)
    for i in range(n):
        if i % 997 == 0:
            assert mix.counts(i) == seen
            assert np.abs(np.array(seen) - i * share).max() <= len(weights)
        source, k = mix.locate(i)
        assert k == seen[source]
        seen[source] += 1
    assert mix.counts(n) == seen


def test_interleave_is_exact_at_huge_indices_and_tiny_weights():
    mix = Interleave([1e-9, 1.0], 0)
    for i in (10**9, 10**12, 10**15):
        first, second = mix.counts(i), mix.counts(i + 1)
        source, k = mix.locate(i)
        assert sum(first) == i and k == first[source] and second[source] == k + 1
        assert abs(first[0] - i * 1e-9) <= 1 + i * 1e-18


def test_interleave_depends_on_the_seed():
    runs = {tuple(Interleave([0.5, 0.3, 0.2], s).locate(i)[0] for i in range(50)) for s in range(8)}
    assert len(runs) > 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": -1}', "weight -1"),
        ('{"a": "x"}', "weight 'x'"),
        ('{"a": NaN}', "weight nan"),
        ('{"a": 0}', "no source with a positive weight"),
        ("{}", "no source"),
        ("[1]", "not a JSON object"),
        ("{", "Cannot read the mixture"),
        ('{"a": 1, "a": 2}', "a is named twice"),
        ('{"a": 1' + "0" * 400 + "}", "the weight 1000"),
        ("[" * 100000, "Cannot read the mixture"),
        ('{"a": 1e999}', "weight inf"),
    ],
)
def test_bad_mixtures(tmp_path, text, message):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_mixture(tmp_path / "m.json")


def test_mixture_of_a_folder(tmp_path):
    for name, first in (("web/train_0", 0), ("web/train_1", 100), ("code/train_0", 1000), ("code/val_0", 5000)):
        path = tmp_path / f"{name}.bin"
        path.parent.mkdir(exist_ok=True)
        np.arange(first, first + 100).astype("<u2").tofile(path)
    (tmp_path / "m.json").write_text(json.dumps({"web/train": 3, "code": 1, "unused": 0}))
    c = open_corpus(str(tmp_path), "train", 9, 0, mixture=str(tmp_path / "m.json"))
    assert c.num_tokens == 300
    rows = np.stack([c.sample(i) for i in range(40)])
    assert (rows.max(1) >= 1000).sum() == 10 and rows.max() < 5000
    assert c.epochs(40) == {"web/train": 30 / 23, "code": 10 / 11}
    (tmp_path / "m.json").write_text(json.dumps({"nothing": 1}))
    with pytest.raises(UserError, match=r"names 'nothing'.*holds: code/, m.json, web/"):
        open_corpus(str(tmp_path), "train", 9, 0, mixture=str(tmp_path / "m.json"))


# corpus


@pytest.mark.parametrize("n", [9, 10, 16, 17, 18, 1003])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_token_is_a_target_exactly_once_per_epoch(n, shuffle):
    c = corpus(n, shuffle=shuffle)
    for epoch in range(3):
        batch = c.batch(epoch * c.num_samples, c.num_samples)
        kept = batch.targets != IGNORE
        assert sorted(batch.targets[kept]) == list(range(1, n))
        np.testing.assert_array_equal(batch.tokens[kept] + 1, batch.targets[kept])


def test_epochs_differ_and_validation_is_in_order():
    c = corpus()
    a, b = c.batch(0, c.num_samples), c.batch(c.num_samples, c.num_samples)
    assert not np.array_equal(a.tokens, b.tokens)
    v = corpus(1003, shuffle=False, repeat=False)
    batch = v.batch(0, v.num_samples + 5)
    np.testing.assert_array_equal(batch.targets[batch.targets != IGNORE], np.arange(1, 1003))
    assert (batch.targets[-5:] == IGNORE).all() and batch.tokens.min() >= 0


@pytest.mark.parametrize("repeat", [False, True])
def test_num_valid_without_reading_equals_counting(repeat):
    sources = [("a", stream(203), 0.7), ("b", stream(101), 0.25), ("c", stream(33), 0.05)]
    c = Corpus(sources, 8, 1, repeat=repeat)
    counts = (c.batch(0, 400).targets != IGNORE).sum(1)
    for start, count in [(0, 400), (0, 1), (17, 5), (100, 300), (399, 1), (50, 0)]:
        assert c.num_valid(start, count) == counts[start : start + count].sum()


def test_mixed_sources_follow_their_own_permutations():
    sources = [("a", stream(203), 0.7), ("b", stream(101, 1000), 0.3)]
    c, alone = Corpus(sources, 8, 1), Corpus(sources[1:], 8, 1)
    from_b = [s for s in (c.sample(i) for i in range(100)) if s[0] >= 1000]
    np.testing.assert_array_equal(from_b, [alone.sample(i) for i in range(len(from_b))])


def test_padding_is_eos_and_what_is_known_is_passed_on():
    c = Corpus([("a", stream(11, eos_id=7, vocab_size=50), 1.0)], 8, 0, shuffle=False)
    assert c.batch(1, 1).tokens.tolist() == [[8, 9, 10, 7, 7, 7, 7, 7]]
    assert c.batch(1, 1).targets.tolist() == [[9, 10] + [IGNORE] * 6]
    assert (c.eos_id, c.vocab_size) == (7, 50)


def test_sources_must_agree():
    with pytest.raises(UserError, match="disagree on the EOS id"):
        Corpus([("a", stream(50, eos_id=1), 1.0), ("b", stream(50, eos_id=2), 1.0)], 8, 0)


def test_too_small_source():
    with pytest.raises(UserError, match="8 tokens found, one sample needs 9"):
        corpus(8)


def test_check_vocab():
    check_vocab(corpus(100), 100)
    with pytest.raises(UserError, match="token id 99"):
        check_vocab(corpus(100), 99)
    with pytest.raises(UserError, match="token id 499"):
        check_vocab(Corpus([("a", stream(100, vocab_size=500), 1.0)], 8, 0), 257)


# cursor and loader


def run(c, steps, ranks=1, micro=1, workers=0, state=None):
    """The rows of every step in global order, and the loaders' final state."""
    loaders = [Loader(c, r, ranks, micro, workers, state) for r in range(ranks)]
    out = []
    for size in steps:
        data = [loader.next_step(size) for loader in loaders]
        assert len({(d.num_valid_global, d.samples_seen) for d in data}) == 1
        batches = [list(d.micro_batches) for d in data]
        assert all(len(b) == d.num_micro_batches for b, d in zip(batches, data))
        targets = np.concatenate([b.targets for rank in batches for b in rank])
        assert data[0].num_valid_global == (targets != IGNORE).sum()
        out.append(targets)
    states = [loader.state() for loader in loaders]
    for loader in loaders:
        loader.close()
    assert all(s == states[0] for s in states)
    return np.concatenate(out), states[0]


STEPS = [8, 8, 16, 16, 8]  # a batch ramp, so that the read-ahead guesses wrong twice


@pytest.mark.parametrize(("ranks", "micro", "workers"), [(1, 8, 0), (2, 2, 2), (4, 1, 1), (4, 2, 3)])
def test_order_does_not_depend_on_ranks_micro_batches_or_workers(ranks, micro, workers):
    expected = corpus(503).batch(0, sum(STEPS)).targets
    got, state = run(corpus(503), STEPS, ranks, micro, workers)
    np.testing.assert_array_equal(got, expected)
    assert state["samples_seen"] == sum(STEPS)


def test_resume_equals_uninterrupted_even_with_other_ranks():
    whole, _ = run(corpus(503), STEPS)
    first, state = run(corpus(503), STEPS[:2], 2, 2, 2)
    rest, _ = run(corpus(503), STEPS[2:], 4, 1, 1, json.loads(json.dumps(state)))
    np.testing.assert_array_equal(np.concatenate([first, rest]), whole)


def test_state_of_other_data_is_refused():
    state = Cursor(corpus().fingerprint, corpus().content, 40).state()
    assert set(state) == {"samples_seen", "fingerprint", "content", "version"}
    for other in (corpus(1004), corpus(seed=1), corpus(block=9), corpus(shuffle=False)):
        with pytest.raises(UserError, match="not what the checkpoint was trained on"):
            Loader(other, 0, 1, 1, 0, state)
    with pytest.raises(UserError, match="version 2"):
        Loader(corpus(), 0, 1, 1, 0, {**state, "version": 2})


def test_step_larger_than_the_data():
    with pytest.raises(UserError, match="1,003 tokens found, one step needs 1,025"):
        Loader(corpus(), 0, 1, 1, 0).next_step(128)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_checked_against_the_vocabulary(workers):
    loader = Loader(corpus(), 0, 1, 4, workers, vocab_size=1002)
    with pytest.raises(UserError, match="below the vocabulary size 1002"):
        for _ in range(20):
            list(loader.next_step(8).micro_batches)
    loader.close()


# discovery


def test_missing_things_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_corpus(str(tmp_path / "no"), "train", 8, 0)
    with pytest.raises(UserError, match="is empty"):
        open_corpus(str(tmp_path), "train", 8, 0)
    (tmp_path / "test.bin").write_bytes(bytes(100))
    with pytest.raises(UserError, match=r"no file train\*.bin.*holds: test.bin"):
        open_corpus(str(tmp_path), "train", 8, 0)
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(UserError, match="too small: 0 tokens found"):
        open_corpus(str(tmp_path), "train", 8, 0)
