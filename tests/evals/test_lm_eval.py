"""eval.py gives the numbers of lm-eval's own `hf` model on the exported copy, and keeps them beside the run."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval_runs import TASKS, answers, check_equal, evaluate, ours
from script_module import script_module
from spawn import run_distributed
from tiny_run import folder_of, make_corpus, pretrain, rows, run, words

from lit_gpt.config.command import exit_code
from lit_gpt.errors import NotWritten, UserError
from lit_gpt.evals.results import read_results
from lit_gpt.evals.soft import soft_metrics
from lit_gpt.tools import convert

CHOICE = {"train_model": "transformer_gqa4_h2_moe", "depth": 4, "ar": 8, "base_hps__d0": 4}
CHOICE |= {"expert_routing": "expert_choice"}
lm_eval = pytest.importorskip("lm_eval", reason="pip install -e '.[eval]'")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def by_hf(trained, tasks, tmp_path_factory) -> dict[str, Any]:
    """What lm-eval says about the exported model."""
    pytest.importorskip("accelerate", reason="pip install -e '.[eval]'")
    copy = tmp_path_factory.mktemp("hf") / "model"
    assert convert.main([str(trained), str(copy), "--to", "hf"]) == 0
    arguments = {"pretrained": str(copy), "dtype": "float32", "max_length": 64}
    return evaluate(tasks, "hf", model_args=arguments, device="cpu", batch_size=1)


def test_the_numbers_of_hf(trained, tasks, by_hf):
    """The log-likelihood of every request, and every generated text."""
    check_equal(answers(evaluate(tasks, ours(trained, batch_size=16))), answers(by_hf), 1e-4)


def test_the_command_keeps_results(trained, tasks, by_hf, monkeypatch, capsys):
    """ArchScale's command; accuracy and soft metrics are those of the exported model."""
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    line = f'--model ArchScale --model_args pretrained={trained},config="transformer_d2" --tasks {",".join(TASKS)} '
    line += f"--include_path {tasks} --device cpu --batch_size 16 --trust_remote_code"
    assert exit_code(script_module("eval.py").main, line.replace('"', "").split()) == 0
    assert "|local_choices " in capsys.readouterr().out
    results = {result.task: result for result in read_results(trained)}
    assert set(results) == set(TASKS)
    choices = results[TASKS[0]]
    assert choices.examples == 12 and choices.subject.step == 20 and choices.subject.tokens == 5120
    assert choices.metrics["acc"].value == by_hf["results"][TASKS[0]]["acc,none"]
    for name, metric in soft_metrics(by_hf["samples"][TASKS[0]]).items():
        assert math.isclose(choices.metrics[name].value, metric.value, rel_tol=1e-4), name


def test_texts_that_cannot_be_generated_are_said_as_tasks_load(trained, tasks):
    """lm-eval asks for texts last, and everything that it had scored before was lost."""
    from lm_eval.tasks import TaskManager

    from lit_gpt.evals.lm_eval_cli import _check_as_they_load

    for given in (None, {"max_gen_toks": 64}):
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        _check_as_they_load(manager, ours(trained), given)
        if given is None:
            assert set(manager.load(TASKS)["tasks"]) == set(TASKS)
        else:
            with pytest.raises(UserError, match="64 new tokens leave no room for a prompt in max_length 64"):
                manager.load(TASKS)


def test_a_part_of_the_examples_does_not_replace_the_result_of_all(trained, tasks, tmp_path):
    """Examples that --samples names, and the length of texts, are settings."""
    from lit_gpt.evals.lm_eval_cli import keep

    model = ours(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evals")), max_gen_toks=12)
    for some in ({"local_choices": [0, 5]}, None):
        keep(model, evaluate(tasks, model, samples=some), {"samples": some, "model_args": {"pretrained": "run"}})
    found = [(r.task, r.examples, r.settings.get("samples")) for r in read_results(tmp_path / "run")]
    assert sorted(found, key=lambda row: row[:2])[:2] == [("local_choices", 2, [0, 5]), ("local_choices", 12, None)]
    assert len(found) == 4
    assert all(r.settings["max_gen_toks"] == 12 for r in read_results(tmp_path / "run"))


def half(trained: Path, tasks: Path) -> dict[str, Any] | None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    found = evaluate(tasks, ours(trained))
    return found and answers(found)


def test_two_processes_equal_one(trained, tasks):
    """Each takes a half of the examples; the first has all of them in the end."""
    one = evaluate(tasks, ours(trained))
    two, nothing = run_distributed(half, 2, trained, tasks)
    assert nothing is None
    check_equal(two, answers(one), 1e-5)


def test_tasks_that_make_texts_have_the_models_tokenizer(trained, tmp_path):
    """RULER sizes its prompts with a tokenizer of transformers, which it loads by name."""
    from transformers import AutoTokenizer

    from lit_gpt.evals.lm_eval_cli import _lend_tokenizer

    model, metadata = ours(trained), {"max_seq_lengths": [512], "pretrained": str(trained)}
    _lend_tokenizer(model, metadata, tmp_path)
    theirs, text = AutoTokenizer.from_pretrained(metadata["tokenizer"]), "the quick brown fox, 12 times"
    assert theirs(text)["input_ids"] == model.tok_encode(text)


def test_a_tokenizer_that_cannot_be_lent_is_a_note(trained, tmp_path, capsys):
    """Its ids reach into the rows of padding, with which the model itself has no trouble."""
    from lit_gpt.evals.lm_eval_cli import _lend_tokenizer

    model, metadata = ours(trained), {"pretrained": str(trained)}
    config = model.judged.model.config
    model.judged.model.config = config.replace(vocab_size=config.vocab_size - 1)
    _lend_tokenizer(model, metadata, tmp_path)
    assert "tokenizer" not in metadata and "note: tasks that make their own texts" in capsys.readouterr().err


def test_lengths_that_nobody_asked_for_are_no_figures():
    from lit_gpt.evals.lm_eval_tasks import metrics_of

    found = metrics_of({"4096,none": -1, "bypass,none": 999, "512,none": 0.25, "512_stderr,none": 0.1}, {})
    assert {name: (m.value, m.stderr) for name, m in found.items()} == {"512": (0.25, 0.1)}


@pytest.mark.parametrize(
    "error, message",
    [
        (StopIteration(), "A task has no examples. Look at its data, and at --limit."),
        (ValueError("task.build_requests() did not find any docs!"), "A task has no examples"),
        (ValueError("No tasks specified, or no tasks found."), "no tasks found. Give --tasks NAME,NAME"),
        (NotImplementedError("To use this model with chat templates, please"), "leave --apply_chat_template out"),
        (AssertionError("Elements of --samples should be in the interval [0,k-1]."), r"k-1\]. Correct --samples"),
        (ValueError("If --samples is not None, then --limit must be None."), "--limit or --samples, and not"),
        (ValueError("Sample larger than population or is negative"), "Give a --num_fewshot below"),
        (ValueError("Expected YAML dict from a.yaml, got NoneType"), "got NoneType. Write a task into that file"),
        (yaml.scanner.ScannerError(problem="mapping values are not allowed"), "A task's file is no YAML"),
        (ValueError("Attempted to load model 'Archscale', but"), "this project is --model ArchScale"),
    ],
)
def test_errors_of_lm_eval_in_a_sentence(error, message):
    from lit_gpt.evals.lm_eval_tasks import understood_tasks

    with pytest.raises(UserError, match=message), understood_tasks("--include_path"):
        raise error


WRONG = {
    "doc_to_target: answer": ("doc_to_target: 7", "IndexError: list index out of range"),
    "{{question}}": ("{{kuestion}}", "UndefinedError: 'kuestion' is undefined"),
    "test_split: test": ("test_split: exam", "KeyError: 'exam'"),
    "output_type: multiple_choice": ("output_type: multi", "Got invalid output_type 'multi'"),
    "choices.jsonl": ("no.jsonl", "FileNotFoundError: Unable to find"),
    "metadata: {": ("colour: red\nmetadata: {", "unexpected keyword argument 'colour'"),
}


@pytest.mark.parametrize("right", [*WRONG, "half"])
def test_a_task_whose_file_or_data_is_wrong(right, tasks, tmp_path):
    """Each ended in a trace of lm-eval, datasets or jinja, which did not always say which task it was."""
    from lm_eval.tasks import TaskManager

    from lit_gpt.evals.lm_eval_tasks import loaded_tasks, understood_tasks

    text = (tasks / "choices.yaml").read_text()
    (tmp_path / "good.yaml").write_text(text.replace("local_choices", "good"))
    wrong, said = WRONG.get(right, ("half.jsonl", "ArrowInvalid: JSON parse error"))
    right = "choices.jsonl" if right == "half" else right
    wrong = str(tmp_path / "half.jsonl") if wrong == "half.jsonl" else wrong
    (tmp_path / "half.jsonl").write_text((tasks / "choices.jsonl").read_text()[:300])
    whole = str(tasks / right) if wrong.endswith("half.jsonl") else right
    assert text.count(whole) == 1
    (tmp_path / "bad.yaml").write_text(text.replace("local_choices", "bad").replace(whole, wrong))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    message = f"The task bad cannot be loaded .*{said}.*Correct its file, or its data"
    with pytest.raises(UserError, match=message), understood_tasks("--include_path"):
        loaded_tasks(manager.load, ["bad", "good"])
    assert set(loaded_tasks(manager.load, ["good"])["tasks"]) == {"good"}


def test_the_task_of_a_group_and_the_line_of_its_function_are_named(tasks, tmp_path, monkeypatch):
    """Of a group the group was named, and each task before it was made once more to find that."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._factory import TaskFactory

    from lit_gpt.evals.lm_eval_tasks import loaded_tasks

    text = (tasks / "choices.yaml").read_text()
    for name in "abc":
        (tmp_path / f"{name}.yaml").write_text(text.replace("local_choices", name))
    wrong = text.replace("local_choices", "b").replace("doc_to_target: answer", "doc_to_target: !function own.target")
    (tmp_path / "b.yaml").write_text(wrong)
    (tmp_path / "own.py").write_text("def target(doc):\n    return missing[doc]\n")
    (tmp_path / "all.yaml").write_text("group: all\ntask: [a, b, c]\n")
    made, make = [], TaskFactory._build_task
    monkeypatch.setattr(TaskFactory, "_build_task", lambda *given: made.append(given[1].name) or make(*given))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    for asked in (["c", "all"], ["all", "c"], "all"):
        made.clear()
        with pytest.raises(UserError, match=r"^The task b cannot .*'missing' is not defined, in .*own\.py, line 2\)"):
            loaded_tasks(manager.load, asked)
        assert made == (["c"] if asked[0] == "c" else []) + ["a", "b"]
    with pytest.raises(UserError, match=r"^One of the tasks a, b cannot be loaded \(RuntimeError: together"):
        loaded_tasks(lambda _: exec("raise RuntimeError('together')"), ["a", "b"])


def test_a_task_that_is_not_found_where_files_cannot_be_read(tmp_path):
    """lm-eval leaves such files out in silence, and then says that there is no such task."""
    from lit_gpt.evals.lm_eval_tasks import understood_tasks

    (tmp_path / "a.yaml").write_text("task: a\n")
    for folder, said in ((tmp_path / "none", "There is no folder .*none"), (tmp_path, "found: b. Type")):
        with pytest.raises(UserError, match=said), understood_tasks("--include_path", str(folder)):
            raise ValueError("Tasks not found: b")
    (tmp_path / "b.yaml").write_text("task: b\n  c: [\n")
    unread = pytest.raises(UserError, match=r"b\.yaml cannot be read \(mapping values")
    with unread, understood_tasks("--include_path", str(tmp_path)):
        raise ValueError("Tasks not found: b")


def test_samples_of_a_task_that_is_not_asked(trained, tasks):
    """All examples were asked in silence."""
    from lm_eval.tasks import TaskManager

    from lit_gpt.evals.lm_eval_cli import _check_as_they_load

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    _check_as_they_load(manager, ours(trained), None, {"local_choises": [0]})
    with pytest.raises(UserError, match="--samples names the task local_choises, which is not asked; give examples of"):
        manager.load(["local_choices"])


def test_a_cache_of_answers_is_one_models(trained):
    """lm-eval finds an answer by its question, so that a second model had the figures of the first."""
    from lit_gpt.evals.lm_eval_cli import cache_of

    names = [cache_of(ours(trained, **o), "c") for o in ({}, {"max_length": 32}, {"dtype": "bfloat16"}, {})]
    assert names[0] == names[3] and len(set(names)) == 3 and all(name.startswith("c-") for name in names)


def test_an_output_path_that_takes_no_file_is_said_before_the_work(tmp_path):
    from types import SimpleNamespace

    from lit_gpt.evals.lm_eval_cli import _check_output

    (tmp_path / "file").write_text("")
    for good in (None, str(tmp_path / "new"), str(tmp_path / "other/x.json")):
        _check_output(SimpleNamespace(output_path=good))
    with pytest.raises(NotWritten, match="file could not be written"):
        _check_output(SimpleNamespace(output_path=str(tmp_path / "file")))


def test_figures_that_cannot_be_kept_are_printed_first(trained, tasks, tmp_path, monkeypatch, capsys):
    """A run of somebody else takes no file; the figures of hours were lost."""
    run = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evals"))
    (run / "evals").write_text("")
    monkeypatch.setattr(sys, "argv", ["eval.py"])
    line = f"--model scalelab --model_args pretrained={run} --tasks local_choices --include_path {tasks} --device cpu"
    assert exit_code(script_module("eval.py").main, line.split()) == 3
    said = capsys.readouterr()
    assert "|local_choices" in said.out and "could not be written" in said.err


@pytest.mark.parametrize(
    "words, message",
    [
        ("--tasks a --log_samples", "or --predict_only. Type --output_path FOLDER"),
        ("--tasks a --limit 2 --samples {}", "Give --limit or --samples, and not both"),
        ("--tasks a --fewshot_as_multiturn true", "Leave --fewshot_as_multiturn out"),
    ],
)
def test_words_that_lm_eval_refuses(words, message, monkeypatch):
    """What its command line says, without its trace."""
    from lit_gpt.evals import lm_eval_cli

    monkeypatch.setattr(sys, "argv", ["eval.py"])
    with pytest.raises(UserError, match=message):
        lm_eval_cli.main(["--model", "scalelab", *words.format('{"a":[0]}').split()])


def test_fewer_examples_than_processes(monkeypatch):
    from lit_gpt.evals.lm_eval_tasks import understood_tasks

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"processes \(3\). Start fewer"), understood_tasks("--include_path"):
        raise ValueError("task.build_requests() did not find any docs!")


def train(argv: list[str]) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pretrain.main(argv)


def test_tasks_of_a_model_that_two_processes_train(tasks, tmp_path):
    """They share the questions, and the scores are those of the checkpoint; one of them was left without figures."""
    options = {"eval_tasks": "local_choices,local_generate", "eval_tasks_path": tasks, "eval_tasks_step": 8}
    line = words(make_corpus(tmp_path / "corpus"), tmp_path / "out", micro_bsz=2, **options)
    assert run_distributed(train, 2, line) == [0, 0]
    folder = folder_of(tmp_path / "out")
    alone = evaluate(tasks, ours(folder), limit=200)["results"]
    for task, name in (("local_choices", "acc"), ("local_choices", "acc_norm"), ("local_generate", "exact_match")):
        assert rows(tmp_path / "out", f"eval/{task}/{name}")[8] == pytest.approx(alone[task][f"{name},none"])
    assert len(rows(tmp_path / "out", "eval/local_choices/soft/choice_p")) == 1


def test_a_task_of_a_group_that_is_named_too(trained, tasks, tmp_path):
    """It ended in a trace of lm-eval."""
    from lit_gpt.evals.lm_eval_tasks import check_tasks

    judged = ours(trained).judged
    for path in tasks.glob("choices.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "group.yaml").write_text("group: local_group\ntask: [local_choices]\n")
    with pytest.raises(UserError, match=r"Duplicate task 'local_choices'.* Say each task once"):
        check_tasks(judged, ["local_group", "local_choices"], str(tmp_path))


def test_tasks_of_a_model_that_trains(tasks, tmp_path, capsys):
    """--eval_tasks gives the figures that eval.py gives for the checkpoint of that step."""
    data = make_corpus(tmp_path / "corpus")
    options = {"eval_tasks": "local_choices,local_generate", "eval_tasks_path": tasks, "eval_tasks_step": 8}
    assert run(data, tmp_path / "out", **options) == 0
    assert run(data, tmp_path / "plain") == 0
    assert rows(tmp_path / "out", "metric/train_loss") == rows(tmp_path / "plain", "metric/train_loss")
    line = f"--model scalelab --model_args pretrained={folder_of(tmp_path / 'out')} --tasks {options['eval_tasks']} "
    line += f"--include_path {tasks} --device cpu"
    assert exit_code(script_module("eval.py").main, line.split()) == 0
    for result in read_results(folder_of(tmp_path / "out")):
        for name, metric in result.metrics.items():
            assert rows(tmp_path / "out", f"eval/{result.task}/{name}")[8] == pytest.approx(metric.value, rel=1e-5)
    assert run(data, tmp_path / "wrong", **{**options, "eval_tasks": "no_such_task"}) == 2
    assert "Tasks not found: no_such_task" in capsys.readouterr().err


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


GROUPED = """
group: local_long_group
task: [local_choices, {task: local_generate, generation_kwargs: {until: ["x"], max_gen_toks: 64}}]
"""
INLINE = """
group: local_inline
task:
  - {task: local_new, output_type: generate_until, generation_kwargs: {max_gen_toks: 63}}
  - group: local_sub
    task: [{task: local_generate, generation_kwargs: {max_gen_toks: many}}]
"""
CANNOT = {
    "inline": ({"eval_tasks": "local_inline", "ctx_len": 128}, "local_generate cannot be asked for texts (ValueError:"),
    "circle": ({"eval_tasks": "local_circle"}, "The task local_circle cannot be loaded (RecursionError"),
    "no_data": ({"eval_tasks": "no_such_task", "train_data_dir": "nowhere"}, "Tasks not found: no_such_task"),
    "length": ({"eval_tasks": "local_long"}, "local_long: 256 new tokens leave no room for a prompt in max_length 64"),
    "group": ({"eval_tasks": "local_long_group"}, "local_generate: 64 new tokens leave no room"),
    "tag": ({"eval_tasks": "local_tag"}, "local_long: 256 new tokens leave no room"),
    "model": ({"eval_tasks": "local_generate", **CHOICE}, "local_generate: With expert_choice, experts choose"),
    "name": ({"eval_tasks": "no_such_task"}, "Tasks not found: no_such_task"),
}


@pytest.mark.parametrize("name, dry", [*((name, True) for name in CANNOT), ("length", False), ("group", False)])
def test_texts_that_a_training_model_cannot_give_are_said_at_the_start(corpus, tasks, tmp_path, capsys, name, dry):
    """It was a note at the first evaluation, hours into a run. A dry run reads no data, and here there are none."""
    for path in tasks.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    text = (tasks / "generate.yaml").read_text().replace("max_gen_toks: 12, ", "")
    text = text.replace("local_generate", "local_long").replace(f"{tasks}/", "/no_such_folder/" if dry else f"{tasks}/")
    (tmp_path / "long.yaml").write_text(text + "tag: local_tag\n")
    (tmp_path / "group.yaml").write_text(GROUPED)
    (tmp_path / "inline.yaml").write_text(INLINE)
    (tmp_path / "circle.yaml").write_text("group: local_circle\ntask: [local_circle]\n")
    options, said = CANNOT[name]
    dried = {"dry_run": True} if dry else {}
    data = options.get("train_data_dir", corpus)
    options = {name: value for name, value in options.items() if name != "train_data_dir"}
    assert run(data, tmp_path / "out", eval_tasks_path=tmp_path, **options, **dried) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.glob("out/*/metrics.jsonl"))
