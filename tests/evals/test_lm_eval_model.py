"""lm-eval's requests to a trained model, one by one: with lm-eval, or with a stand-in of its interface."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

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
    ],
)
def test_what_means_nothing(options, message, trained):
    with pytest.raises(UserError, match=message):
        ours(trained, **options)


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
