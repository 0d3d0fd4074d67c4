"""lm-eval's requests to a trained model, one by one: with lm-eval, or with a stand-in of its interface."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, cast

import lm_eval_stand_in
import pytest
from lm_eval_runs import ours

from lit_gpt.errors import UserError

INSTALLED = importlib.util.find_spec("lm_eval") is not None
OURS = "lit_gpt.evals.lm_eval_model"


@pytest.fixture(autouse=True, scope="module", params=["lm_eval", "stand_in"] if INSTALLED else ["stand_in"])
def interface(request):
    """Both, where both are there, so that the stand-in is held to what lm-eval does."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand_in":
            for name, module in lm_eval_stand_in.modules().items():
                patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, OURS, raising=False)
        yield
        sys.modules.pop(OURS, None)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"config": "sambay_d16"}, "config is sambay_d16, but .* is transformer_d2"),
        ({"tokenizer": "nowhere"}, "No tokenizer at 'nowhere'"),
        ({"dtype": "int4"}, "dtype is int4; give one of auto"),
        ({"speed": 11}, "--model_args speed is unknown"),
        ({"batch_size": "many"}, "--batch_size is many; give a number"),
        ({"batch_size": 0}, "--batch_size is 0; give a number"),
        ({"max_length": 0}, "max_length is 0; it must be from 2"),
        ({"max_length": 12.5}, "max_length is 12.5; give a whole number"),
        ({"max_gen_toks": -1}, "max_gen_toks is -1; give 1 or more"),
        ({"yarn_scale": "nan"}, "yarn_scale is 'nan'; give a number"),
        ({"tokenizer": 5}, "No tokenizer at '5'"),
        ({"weights": 3}, "has no average '3'"),
        ({"dtype": 16}, "dtype is 16; give one of auto"),
        ({"plugins": 4}, "4 cannot be read: No such file"),
    ],
)
def test_what_means_nothing(options, message, trained):
    with pytest.raises(UserError, match=message):
        ours(trained, **options)


def test_a_folder_whose_name_is_a_number(trained):
    """lm-eval reads the words of --model_args: 7 came as a number, and ended in a trace."""
    from lit_gpt.evals.lm_eval_model import TrainedModel

    with pytest.raises(UserError, match=r"^7 does not exist"):
        TrainedModel.load(cast(Any, 7), device="cpu")


def asked(kind: str, *pairs: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, 0, ("task", i, 1)) for i, args in enumerate(pairs)]


def test_a_context_of_spaces(trained):
    """lm-eval moves them to the answer, and then nothing is left before it; its own model fails there."""
    model = ours(trained)
    spaces, nothing = (asked("loglikelihood", pair) for pair in ((" ", "loss"), ("", " loss")))
    assert model.loglikelihood(spaces) == model.loglikelihood(nothing)


@pytest.mark.parametrize("context", ["", "the"])
def test_answers_without_a_token(context, trained):
    with pytest.raises(UserError, match=f"how likely '' is after {context!r}, and it adds no token"):
        ours(trained).loglikelihood(asked("loglikelihood", (context, "")))


def test_an_answer_that_melts_into_the_context(trained):
    """`token` is a token of its own here, as `tok` is."""
    model = ours(trained)
    pairs = (
        (a, b) for a in model.judged.tokenizer._vocab for b in "aeionrst" if (a + b) in model.judged.tokenizer._vocab
    )
    pair = next(p for p in pairs if p[0].isalpha() and len(model.tok_encode("".join(p))) == 1)
    with pytest.raises(UserError, match=f"how likely {pair[1]!r} is after {pair[0]!r}, and it adds no token"):
        model.loglikelihood(asked("loglikelihood", pair))


def test_how_texts_are_generated(trained):
    """Tasks that say nothing of sampling are greedy; what cannot be followed is not left out in silence."""
    model = ours(trained)
    plain, greedy, beam = (
        model.generate_until(asked("generate_until", ("the width", {"until": ["\n"], "max_gen_toks": 6} | more)))
        for more in ({}, {"do_sample": False, "temperature": 0.0}, {"num_beams": 1, "do_sample": None})
    )
    assert plain == greedy == beam
    with pytest.raises(UserError, match=r"generation with repetition_penalty = 1.5, which is not done here"):
        model.generate_until(asked("generate_until", ("the", {"max_gen_toks": 6, "repetition_penalty": 1.5})))


def test_what_stops_a_text(trained):
    """lm-eval gives a task without `until` a null, which is no text to stop at; one text may stand without a list."""
    model = ours(trained)
    for until, stops in ((None, []), ("\n", ["\n"]), (["a", "b"], ["a", "b"])):
        assert [stop for stop in model.way_of_generating({"until": until, "max_gen_toks": 6})[1] if stop] == stops
    texts = [
        model.generate_until(asked("generate_until", ("the width", {"until": until, "max_gen_toks": 6})))
        for until in (None, [])
    ]
    assert texts[0] == texts[1] != [""]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"do_sample": True}, "do_sample at temperature 0, which draws nothing"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample at temperature 0, which draws nothing"),
        ({"max_new_tokens": 64}, "64 new tokens leave no room for a prompt in max_length 64"),
        ({}, "256 new tokens leave no room for a prompt"),
    ],
)
def test_generation_that_cannot_be(given, message, trained):
    """It was greedy in silence where lm-eval's own model fails, or said after all the scores."""
    with pytest.raises(UserError, match=message):
        ours(trained).way_of_generating({"until": ["\n"], **given})


def test_drawn_texts_do_not_depend_on_who_else_asks(trained):
    """A process that had half of the questions drew other texts; one question asked twice is drawn twice."""
    from lm_eval.api.instance import Instance

    given = {"temperature": 2.0, "do_sample": True, "max_gen_toks": 6, "until": ["\n\n"]}
    asked = [Instance("generate_until", {}, ("the width", given), 0, ("task", doc, 2)) for doc in (0, 0, 1, 1, 2, 2)]
    model = ours(trained)
    whole = model.generate_until(asked, disable_tqdm=True)
    assert whole == model.generate_until(asked[:4], disable_tqdm=True) + model.generate_until(asked[4:])
    assert len(set(whole)) == 6


class Hook:
    """What lm-eval gives a model with --use_cache: answers by what was asked."""

    def __init__(self) -> None:
        self.dbdict: dict[Any, Any] = {}

    def add_partial(self, kind: str, words: Any, answer: Any) -> None:
        self.dbdict[kind, str(words)] = answer


GREEDY = {"until": ["\n"], "max_gen_toks": 6}
QUESTIONS = {
    "loglikelihood": [("the", " loss"), ("the", " width"), ("a model", " of"), ("", "the loss"), ("the loss", " is")],
    "loglikelihood_rolling": [("the loss " * n,) for n in (1, 40, 2, 0, 3)],
    "generate_until": [("the " * n, GREEDY) for n in (3, 1, 2, 5, 4)],
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_what_an_interrupted_run_had_answered_is_in_the_cache(kind, trained, monkeypatch):
    """Ctrl-C lost all answers of a kind; the answers are those without a cache."""
    model = ours(trained)
    plain = getattr(model, kind)(asked(kind, *QUESTIONS[kind]))
    monkeypatch.setattr(sys.modules[OURS], "LOT", 2)
    model.cache_hook = Hook()
    found = getattr(model, kind)(asked(kind, *QUESTIONS[kind]))
    assert model.cache_hook.dbdict == {(kind, str(words)): one for words, one in zip(QUESTIONS[kind], found)}
    numbers = [a[0] if isinstance(a, tuple) else a for a in plain], [a[0] if isinstance(a, tuple) else a for a in found]
    assert numbers[1] == (numbers[0] if kind == "generate_until" else pytest.approx(numbers[0], rel=1e-5))
    work, calls = ("continue_texts" if kind == "generate_until" else "score"), []
    real = getattr(model.judged, work)

    def interrupted(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(model.judged, work, interrupted)
    model.cache_hook = Hook()
    with pytest.raises(KeyboardInterrupt):
        getattr(model, kind)(asked(kind, *QUESTIONS[kind]))
    assert len(model.cache_hook.dbdict) == 4


def test_drawn_texts_are_not_kept(trained):
    """lm-eval draws them anew each time."""
    model = ours(trained)
    model.cache_hook = Hook()
    drawn = {**GREEDY, "do_sample": True, "temperature": 1.0}
    assert model.generate_until(asked("generate_until", ("the", drawn))) and not model.cache_hook.dbdict


def test_inputs_that_lose_tokens_are_said(trained, recwarn):
    """lm-eval's hf model says so, too; ours cut them in silence."""
    model, long = ours(trained), "the loss " * 80
    model.loglikelihood(asked("loglikelihood", ("the", " loss")))
    model.loglikelihood_rolling(asked("loglikelihood_rolling", (long,)))
    model.generate_until(asked("generate_until", ("the", GREEDY)))
    assert not [w for w in recwarn if "lose" in str(w.message)], "windows of a long text lose nothing"
    with pytest.warns(UserWarning, match="1 of 2 inputs have more than 64 tokens, and lose their first ones"):
        model.loglikelihood(asked("loglikelihood", (long, " loss"), ("the", " loss")))
    with pytest.warns(UserWarning, match="2 of 3 inputs have more than 58 tokens"):
        model.generate_until(asked("generate_until", (long, GREEDY), ("the", GREEDY), (long, GREEDY)))


def test_inputs_that_lose_tokens_are_said_once_beside_a_cache(trained, monkeypatch, recwarn):
    """It was said of every lot of answers, each time with other numbers."""
    model, long = ours(trained), "the loss " * 80
    monkeypatch.setattr(sys.modules[OURS], "LOT", 2)
    model.cache_hook = Hook()
    model.loglikelihood(asked("loglikelihood", *[(long + " the" * n, " loss") for n in range(5)]))
    model.generate_until(asked("generate_until", *[(long + " the" * n, GREEDY) for n in range(5)]))
    said = [str(w.message) for w in recwarn if "lose" in str(w.message)]
    assert [words.partition(" have")[0] for words in said] == ["5 of 5 inputs"] * 2
