"""Cloze questions against the text they are made of, a scorer that asks one at a time, and lm-eval."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from held_out_text import document

from lit_gpt.config.command import exit_code
from lit_gpt.data.prepare import prepare
from lit_gpt.errors import UserError
from lit_gpt.evals.cloze_questions import write_tasks
from lit_gpt.evals.held_out import passages
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.overlap import streams_of
from lit_gpt.evals.results import read_results
from lit_gpt.evals.tasks.cloze import NEAREST, Options, evaluate, make
from lit_gpt.tools.evaluate import judge

LENGTH, CONTEXT, NEAR, MIDDLE = 5, 300, 60, 120


@pytest.fixture(scope="module")
def judged(trained) -> Judged:
    return Judged.load(trained, device="cpu", max_length=CONTEXT + LENGTH + 30)


def options(held_out: str, **changes: Any) -> Options:
    given: dict[str, Any] = {"questions": 12, "context": CONTEXT, "length": LENGTH, "near": NEAR, "middle": MIDDLE}
    return Options(held_out, **(given | changes))


def test_choices_are_what_they_say(judged, held_out):
    """The true continuation is in the document, the others are in others; all have one length and one white space."""
    texts = [document(i) for i in range(40)]
    asked = make(judged, options(held_out))["choice"]
    assert len(asked) == 12 and len({q.answer for q in asked}) > 1
    for q in asked:
        own = [i for i, text in enumerate(texts) if q.context + q.choices[q.answer] in text]
        assert len(own) == 1 and len(set(q.choices)) == 4
        spaces = {text[: len(text) - len(text.lstrip())] for text in q.choices}
        assert len(spaces) == 1 and spaces.pop().startswith("\n") and not q.context[-1].isspace()
        for i, choice in enumerate(q.choices):
            assert len(judged.encode(q.context + choice)) - len(judged.encode(q.context)) == LENGTH
            assert any(choice in text for j, text in enumerate(texts) if (j in own) == (i == q.answer))


def test_a_model_that_says_nothing_is_at_chance(judged, held_out):
    """With a zero head, as before the first step, all choices are as likely, and every answer counted as right."""
    nothing = copy.copy(judged)
    nothing.model = copy.deepcopy(judged.model)
    with torch.no_grad():
        nothing.model.head_weight().zero_()
    asked = make(judged, options(held_out))["choice"]
    found = evaluate(nothing, options(held_out)).metrics
    assert found["choice_acc"].value == sum(q.answer == 0 for q in asked) / len(asked) < 0.6
    assert found["choice_p"].value == pytest.approx(0.25)


def test_names_are_what_they_say(judged, held_out):
    """Each is in the context, its distance is in its class; the changed context is the same without the name."""
    asked = make(judged, options(held_out))
    edges = [NEAREST, NEAR, MIDDLE, CONTEXT]
    for low, high in pairwise(edges):
        assert len(asked[f"name@{high}"]) >= 6
        for q in asked[f"name@{high}"]:
            (answer,), name = q.choices, q.choices[0].strip()
            assert low <= q.distance < high and len(name) == 6
            assert sum(q.context + answer + "\n" in document(i) for i in range(40)) == 1
            between = q.context[q.context.rindex(name) + len(name) :]
            assert abs(len(judged.encode(between, start=False)) - q.distance) <= 3, "tokens at both ends may differ"
            assert name in q.context and name not in q.changed
            assert len(q.changed) == len(q.context), "names of this corpus have one length"


def test_the_seed_decides(judged, held_out):
    assert make(judged, options(held_out)) == make(judged, options(held_out)) != make(judged, options(held_out, seed=1))


def brute_force(judged: Judged, context: str, continuation: str) -> tuple[float, bool, int]:
    """ln p of a continuation, whether it is what greedy decoding gives, and how many tokens it has."""
    before, whole = judged.encode(context), judged.encode(context + continuation)
    with torch.no_grad():
        log_p = judged.model(torch.tensor([whole[:-1]])).logits[0].double().log_softmax(-1)[len(before) - 1 :]
    rest = torch.tensor(whole[len(before) :])
    return float(log_p.gather(1, rest[:, None]).sum()), bool((log_p.argmax(1) == rest).all()), len(rest)


def test_by_brute_force(judged, held_out, trained, tmp_path):
    """From the questions that are written for lm-eval, one at a time and without a cache."""
    line = f"--checkpoint_path {trained} --data_dir {held_out} --questions 12 --context {CONTEXT} --length {LENGTH} "
    line += f"--near {NEAR} --middle {MIDDLE} --max_length {judged.max_length} --device cpu "
    line += (
        f"--tasks_dir {tmp_path / 'tasks'} --answers {tmp_path / 'answers.jsonl'} --output_dir {tmp_path / 'm/evals'}"
    )
    assert exit_code(lambda words: judge("cloze", words), line.split()) == 0
    (result,) = read_results(tmp_path / "m")
    asked = make(judged, options(held_out))
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert result.examples == len(answers) == sum(result.settings["asked"].values())
    assert "tasks_dir" not in result.settings, "it changes no figure"
    for name, questions in asked.items():
        lines = (tmp_path / "tasks" / f"cloze_{name.replace('@', '_')}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [(r["context"], tuple(r["choices"]), r["answer"]) for r in rows] == [
            (q.context, q.choices, q.answer) for q in questions
        ]
        found = [[brute_force(judged, row["context"], text) for text in row["choices"]] for row in rows]
        if name == "choice":
            means = [[total / count for total, _, count in scores] for scores in found]
            right = [row["answer"] == m.index(max(m)) for row, m in zip(rows, means)]
            p = [math.exp(m[row["answer"]]) / sum(map(math.exp, m)) for row, m in zip(rows, means)]
            wanted = {"acc": right, "p": p, "nats": [-m[row["answer"]] for row, m in zip(rows, means)]}
        else:
            totals = [scores[0][0] for scores in found]
            gain = [t - brute_force(judged, q.changed, q.choices[0])[0] for t, q in zip(totals, questions)]
            wanted = {"acc": [scores[0][1] for scores in found], "nats": [-t for t in totals], "gain": gain}
        kind, at, edge = name.partition("@")
        for key, values in wanted.items():
            metric = result.metrics[f"{kind}_{key}{at}{edge}"]
            assert math.isclose(metric.value, sum(values) / len(values), rel_tol=1e-4, abs_tol=1e-4), (name, key)
            kept = [answer[f"{kind}_{key}{at}{edge}"] for answer in answers if f"{kind}_{key}{at}{edge}" in answer]
            assert all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in zip(kept, values, strict=True))


def test_lm_eval_asks_the_same(judged, held_out, trained, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="pip install -e '.[eval]'")
    from lm_eval.tasks import TaskManager

    from lit_gpt.evals.lm_eval_model import TrainedModel

    write_tasks(make(judged, options(held_out)), tmp_path)
    ours = evaluate(judged, options(held_out)).metrics
    tasks = ["cloze_choice", *(f"cloze_name_{edge}" for edge in (NEAR, MIDDLE, CONTEXT))]
    found = lm_eval.simple_evaluate(
        model=TrainedModel.load(str(trained), device="cpu", max_length=judged.max_length),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    for task in tasks:
        kind, _, edge = task.removeprefix("cloze_").partition("_")
        name = f"{kind}_acc" + f"@{edge}" * bool(edge)
        assert math.isclose(found["results"][task]["acc,none"], ours[name].value, abs_tol=1e-9), task
    perplexity = found["results"][f"cloze_name_{NEAR}"]["perplexity,none"]
    assert math.isclose(math.log(perplexity), ours[f"name_nats@{NEAR}"].value, rel_tol=1e-4)


def test_passages_are_held_out(judged, held_out):
    """Half of the documents, and none is in the training data."""
    found = passages(streams_of(held_out, "validation"), judged.tokenizer, 10_000, judged.bos_id)
    texts = {passage.text for passage in found}
    seen = {p.text for p in passages(streams_of(held_out), judged.tokenizer, 10_000, judged.bos_id)}
    assert texts | seen == {document(i) for i in range(40)} and not texts & seen
    assert all(len(p.ends) == len(judged.encode(p.text, start=False)) and p.ends[-1] == len(p.text) for p in found)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"context": 400}, "do not fit into the model's 335. Give --context 330, or"),
        ({"context": 400, "middle": 350}, "Give --context 330 --near 20 --middle 82, or a larger --max_length"),
        ({"near": 120}, "must grow in this order. Give --near 18 --middle 75"),
        ({"length": 320}, "leaves 15 of the model's 335 tokens for a context, and 32 are needed"),
        ({"length": 200, "context": 130, "near": 20, "middle": 30, "questions": 1}, ""),
    ],
)
def test_what_cannot_be_asked(judged, held_out, changes, message, capsys):
    if message:
        with pytest.raises(UserError, match=message):
            make(judged, options(held_out, **changes))
    else:
        assert "choice" not in make(judged, options(held_out, **changes)), "no passage has so many tokens after it"
        assert "note: no choice question, and so none of its figures" in capsys.readouterr().err


def test_data_of_another_tokenizer(judged, tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text(document(i))
    folders: dict[str, Any] = {"source": str(tmp_path / "text"), "output": str(tmp_path / "data")}
    prepare(**folders, tokenizer="bytes", num_workers=1, progress=False, validation_fraction=0.5)
    with pytest.raises(UserError, match="has tokens of 'bytes', and the model those of"):
        make(judged, options(str(tmp_path / "data")))


def test_data_without_questions(judged, trained, tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(4):
        (tmp_path / "text" / f"{i}.txt").write_text("to be or not")
    prepare(
        str(tmp_path / "text"),
        str(tmp_path / "data"),
        tokenizer=str(trained / "tokenizer"),
        num_workers=1,
        progress=False,
        validation_fraction=0.5,
    )
    with pytest.raises(UserError, match="No question can be made of"):
        make(judged, options(str(tmp_path / "data")))
