"""Phonebook and Proof-Pile against a scorer that asks one question at a time; results beside the run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from script_module import script_module, tool
from spawn import run_distributed
from tiny_run import make_text

from lit_gpt.config.command import exit_code
from lit_gpt.evals.judged import Judged
from lit_gpt.evals.results import Metric, Result, Subject, read_results, save
from lit_gpt.evals.tasks import TASKS
from lit_gpt.evals.tasks.phonebook import NEW_TOKENS, Options, question
from lit_gpt.evals.tasks.proofpile import apart, parts
from lit_gpt.tools import results

ROOT = Path(__file__).parents[2]


def run(task: str, trained: Path, *words: object) -> int:
    module = script_module(f"eval_{task}.py")
    return exit_code(lambda argv: module.judge(task, argv), ["--checkpoint_path", str(trained), *map(str, words)])


def figures(path: Path, task: str) -> dict[str, float]:
    (found,) = [r for r in read_results(path) if r.task == task]
    return {name: metric.value for name, metric in found.metrics.items()}


def test_the_commands_of_archscale_are_evaluations():
    """An evaluation is one file; those that ArchScale has are commands of its names, too."""
    assert {path.stem.removeprefix("eval_") for path in ROOT.glob("eval_*.py")} == {"phonebook", "proofpile"}
    assert {"phonebook", "proofpile", "cloze"} <= set(TASKS.names())


def test_a_question_has_one_answer():
    prompt, number = question(20, "seed")
    book, examples, asked = prompt.split("\n\n")
    lines = dict(line.split(": ") for line in book.splitlines())
    assert len(lines) == 20 and lines[asked.removesuffix(":")] == number
    assert all(len(n) == 10 and n[0] in "6789" for n in lines.values())
    shown = dict(line.split(": ") for line in examples.splitlines())
    assert len(shown) == 2 and shown.items() <= lines.items() and asked.removesuffix(":") not in shown
    assert question(20, "seed") == (prompt, number) != question(20, "another")


@pytest.mark.parametrize(
    "low, high, count, lengths",
    [(3, 6, 2, [3, 6]), (3, 5, 9, [3, 4, 5]), (3, 6, 1, [6]), (480, 480, 48, [480]), (40, 480, 5, range(40, 481, 110))],
)
def test_as_many_lengths_as_were_asked_for(low, high, count, lengths):
    """With both ends. Of 3 to 6 in two, three were asked."""
    assert Options(min_eval_len=low, max_eval_len=high, num_eval=count).lengths == list(lengths)


def test_phonebook_by_brute_force(trained, tmp_path, monkeypatch):
    """Every question alone, without a cache; of a model that is right now and then, since it is told how."""
    judged = Judged.load(trained, max_length=400)
    asked = {n: [question(n, f"42-{n}-{i}") for i in range(4)] for n in (3, 4, 5)}
    told: list[str] = []

    def continue_texts(self: Judged, prompts: list[str], limit: int, until: list[str]) -> list[str]:
        told.extend(prompts)
        numbers = [number for _, number in asked[len(prompts[0].split("\n\n")[0].splitlines())]]
        return [f" {number}" if i != 1 else f" {number}0" for i, number in enumerate(numbers)]

    prompt = asked[5][0][0]
    (answer,) = judged.continue_texts([prompt], NEW_TOKENS, until=["\n"])
    ids, new = judged.encode(prompt), []
    with torch.no_grad():
        while len(new) < NEW_TOKENS and "\n" not in judged.tokenizer.decode(new):
            new.append(int(judged.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == judged.eos_id:
                new.pop()
                break
    assert answer == judged.tokenizer.decode(new).partition("\n")[0]
    monkeypatch.setattr(Judged, "continue_texts", continue_texts)
    line = [
        "--min_eval_len",
        "3",
        "--max_eval_len",
        "5",
        "--eval_num_batches",
        "2",
        "--eval_batch_size",
        "2",
        "--max_length",
        "400",
    ]
    assert run("phonebook", trained, *line, "--output_dir", tmp_path / "kept") == 0
    assert [prompt for pairs in asked.values() for prompt, _ in pairs] == told
    assert len(list((tmp_path / "kept").glob("phonebook-step-000020-*.json"))) == 1


def test_proofpile_by_brute_force(trained, tmp_path, capsys):
    judged = Judged.load(trained)
    tokens = np.random.default_rng(0).integers(0, judged.model.config.vocab_size, 100)
    tokens.astype("<u2").tofile(tmp_path / "long.bin")
    line = ["--data_path", tmp_path / "long.bin", "--seq_length", 40, "--sliding_window", 15, "--batch_size", 3]
    assert run("proofpile", trained, *line) == 0
    found = figures(trained, "proofpile")
    Task = TASKS.load("proofpile")
    options = Task.Options(tmp_path / "long.bin", 90, 5)
    assert Task.evaluate(judged, options).examples == 2 and judged.max_length == 64, "what is asked next is not changed"
    losses, hits = [], []
    for start in (0, 15, 30, 45):
        window = torch.tensor(tokens[start : start + 41])
        with torch.no_grad():
            log_p = judged.model(window[None, :-1]).logits[0].double().log_softmax(-1)
        losses.append(-log_p.gather(1, window[1:, None])[:, 0].numpy())
        hits.append((log_p.argmax(1) == window[1:]).double().mean().item())
    assert math.isclose(found["loss"], np.mean(losses), rel_tol=1e-5)
    assert math.isclose(found["ppl"], math.exp(np.mean(losses)), rel_tol=1e-5)
    assert math.isclose(found["acc"], np.mean(hits), abs_tol=1e-9)
    for first, last in [(0, 16), (16, 32), (32, 40)]:
        assert math.isclose(found[f"loss@{last}"], np.mean([row[first:last] for row in losses]), rel_tol=1e-5)
    assert parts(16) == [(0, 16)] and parts(9) == [(0, 9)] and parts(33) == [(0, 16), (16, 32), (32, 33)]
    assert "note: windows" not in capsys.readouterr().err
    assert run("proofpile", trained, *line[:4], "--output_dir", tmp_path) == 0
    assert "start every 4,096, and what lies between them is not read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "task, line, message",
    [
        ("phonebook", "--min_eval_len 2", "min_eval_len is 2; it must be from 3 to 26,624"),
        ("phonebook", "--min_eval_len 5 --max_eval_len 4", "is more than --max_eval_len 4. Swap them"),
        ("phonebook", "--min_eval_len 50", "do not fit into max_length 64"),
        ("phonebook", "--config sambay_d16", "config is sambay_d16, but"),
        ("phonebook", "--lenght 5", "lenght"),
        ("phonebook", "--yarn_scale nan", "--yarn_scale cannot be 'nan'; give a number."),
        ("phonebook", "--yarn_scale .inf", "yarn_scale is inf; it must be from 1 to 10,000."),
        ("phonebook", "--window 0", "window is 0; it must be from 1"),
        ("phonebook", "--max_length -4", "max_length is -4; it must be from 2"),
        ("phonebook", "--config=", "--config is empty."),
        ("phonebook", "--output_dir pyproject.toml", "--output_dir pyproject.toml is a file. Give a folder."),
        ("proofpile", "--data_path .", "is a folder and not a file. Give --data_path a file"),
        ("proofpile", "--data_path nothing.bin", "nothing.bin is not there. Give --data_path"),
        ("proofpile", "--seq_length 1", "seq_length is 1; it must be"),
    ],
)
def test_what_means_nothing(task, line, message, trained, capsys):
    assert run(task, trained, *line.split()) == 2
    assert message in capsys.readouterr().err


def test_a_list_that_is_too_long_is_said_before_shorter_ones_are_asked(trained, capsys, monkeypatch):
    """Hours of shorter lists were asked first, and lost."""
    monkeypatch.setattr(Judged, "continue_texts", lambda *_: pytest.fail("shorter lists were asked"))
    line = ["--min_eval_len", 3, "--max_eval_len", 50, "--num_eval", 2, "--max_length", 400]
    assert run("phonebook", trained, *line) == 2
    assert "error: 50 entries are" in capsys.readouterr().err


def test_the_line_of_the_guide(trained, tmp_path, capsys):
    """ArchScale's guide types this word where a name belongs."""
    line = "--config model_config --min_eval_len 3 --max_eval_len 3 --eval_num_batches 1 --max_length 400"
    assert run("phonebook", trained, *line.split(), "--output_dir", tmp_path) == 0
    assert "note: config model_config is no name of a model" in capsys.readouterr().err


def test_bits_per_byte_of_a_text(trained, tmp_path):
    """Nats of each part over the bytes of its text, decoded; the windows are equal, so that there is no spread."""
    judged = Judged.load(trained)
    window = judged.encode(make_text(1))[:41]
    np.save(tmp_path / "text.npy", np.array(window * 3))
    line = ["--data_path", tmp_path / "text.npy", "--seq_length", 40, "--sliding_window", 41]
    assert run("proofpile", trained, *line, "--output_dir", tmp_path / "m" / "evals") == 0
    (result,) = read_results(tmp_path / "m")
    assert result.examples == 3
    for first, last in parts(40):
        size = len(judged.tokenizer.decode(window[1 + first : 1 + last]).encode())
        bits = result.metrics[f"loss@{last}"].value * (last - first) / math.log(2)
        assert math.isclose(result.metrics[f"bpb@{last}"].value, bits / size, rel_tol=1e-6)
        assert math.isclose(result.metrics[f"bpb@{last}"].stderr or 0, 0, abs_tol=1e-6)


def test_error_of_a_ratio():
    """Of 1/1 and 3/2 the ratio is 4/3; the residuals are -1/3 and 1/3, and the mean of the lower is 3/2."""
    found = Metric.ratio([1, 3], [1, 2])
    assert math.isclose(found.value, 4 / 3)
    assert math.isclose(found.stderr or 0, math.sqrt(2 / 9) / math.sqrt(2) / 1.5)


def test_phonebook_nats(trained, tmp_path):
    """What a token of the right number costs, one question at a time."""
    line = "--min_eval_len 4 --max_eval_len 4 --eval_num_batches 1 --eval_batch_size 3 --max_length 400"
    assert run("phonebook", trained, *line.split(), "--output_dir", tmp_path / "m" / "evals") == 0
    judged, costs = Judged.load(trained), []
    for i in range(3):
        prompt, number = question(4, f"42-4-{i}")
        before, answer = judged.encode(prompt), judged.encode(f" {number}", start=False)
        with torch.no_grad():
            log_p = judged.model(torch.tensor([before + answer[:-1]])).logits[0, len(before) - 1 :].log_softmax(-1)
        costs.append(-float(log_p.gather(1, torch.tensor(answer)[:, None]).mean()))
    assert math.isclose(figures(tmp_path / "m", "phonebook")["nats@4"], np.mean(costs), rel_tol=1e-4)


def test_proofpile_of_another_tokenizer(trained, tmp_path, capsys):
    np.full(90, 65_000, "<u2").tofile(tmp_path / "other.bin")
    assert run("proofpile", trained, "--data_path", tmp_path / "other.bin", "--seq_length", 40) == 2
    assert "has token 65000, and the model knows 300 tokens: it was made with another" in capsys.readouterr().err
    np.full(9, 1, "<u2").tofile(tmp_path / "short.bin")
    assert run("proofpile", trained, "--data_path", tmp_path / "short.bin", "--seq_length", 40) == 2
    assert "has 9 tokens, too few for a window of 40" in capsys.readouterr().err
    np.save(tmp_path / "none.npy", np.empty(0, np.int64))
    assert run("proofpile", trained, "--data_path", tmp_path / "none.npy", "--seq_length", 40) == 2
    assert "of shape (0,); one row of whole numbers is needed" in capsys.readouterr().err


def test_error_of_a_share():
    """Of 0 in 16: 2 of 20 after two more of each kind, sqrt(0.1 x 0.9 / 20)."""
    assert Metric.share(0, 16).value == 0
    assert math.isclose(Metric.share(0, 16).stderr or 0, math.sqrt(0.1 * 0.9 / 20))


def test_the_table_of_results(trained, tmp_path, capsys):
    np.zeros(60, "<u2").tofile(tmp_path / "zeros.bin")
    line = ["--data_path", tmp_path / "zeros.bin", "--seq_length", 40, "--sliding_window", 10]
    assert run("proofpile", trained, *line, "--output_dir", tmp_path / "model" / "evals") == 0
    capsys.readouterr()
    assert tool(results.main, tmp_path / "model", "--metric", "loss", "--plot", tmp_path / "figure.png") == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[5] for line in out[1:-1]] == ["loss", "loss@16", "loss@32", "loss@40"]
    assert (tmp_path / "figure.png").stat().st_size > 1000
    for name in (".", "figure.svg"):
        assert tool(results.main, tmp_path / "model", "--plot", name) == 2
        assert "Give a file that ends in .png" in capsys.readouterr().err
    assert tool(results.main, tmp_path / "model", "--task", "none") == 2
    assert "there are: --task proofpile --metric acc" in capsys.readouterr().err
    (other,) = (tmp_path / "model" / "evals").glob("*.json")
    (tmp_path / "model" / "evals" / "broken.json").write_text("{}")
    (tmp_path / "model" / "evals" / "words.json").write_text(
        other.read_text().replace('"value": ', '"value": "x", "_": ')
    )
    assert tool(results.main, tmp_path / "model", tmp_path / "model", "--metric", "loss") == 2
    said = capsys.readouterr()
    assert "broken.json is no result" in said.err and "words.json describes its run in a way" in said.err
    assert said.out.splitlines() == out[:-1], "the others are shown, each once"


@pytest.mark.parametrize("length, stride, count", [(64, 16, 60), (60, 25, 40), (16, 16, 30), (16, 40, 20)])
def test_errors_of_windows_that_overlap(length, stride, count):
    """400 texts of independent tokens: the mean square of the error is that of the mean of all windows."""
    rng, errors, means = np.random.default_rng(length), [], []
    for _ in range(400):
        text = rng.standard_normal(stride * (count - 1) + length)
        windows = [float(text[i * stride : i * stride + length].mean()) for i in range(count)]
        metric = apart(Metric.mean(windows), count, length / stride)
        errors.append(metric.stderr)
        means.append(metric.value)
    assert math.isclose(np.sqrt(np.mean(np.square(errors))), np.std(means), rel_tol=0.12)
    assert apart(Metric(1.0, 0.1), 8, 8.0).stderr is None, "eight windows of nearly the same text"


def test_lengths_stand_on_the_axis(monkeypatch):
    """Of lists of 3 to 5 entries it said 2^2 and nothing else."""
    drawn: list = []
    monkeypatch.setattr(results, "save", lambda figure, path: drawn.append(figure))
    found = Result("phonebook", 4, {}, Subject("run", "step-000001", "", "trained", 1, 2))
    rows = [results.Row(model, found, f"acc@{n}", Metric(0.5)) for model in "ab" for n in (3, 5, 1200)]
    results.plot(rows, Path("figure.png"))
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["3", "5", "1,200"]
    assert drawn[0].legends and not drawn[0].axes[0].get_legend(), "names stand below the panels, where no point is"


def test_points_of_a_figure_are_of_one_model_and_setting(tmp_path, monkeypatch, capsys):
    """Runs of one name were joined by a zigzag, other settings as well; unknown compute was drawn at one FLOP."""
    drawn: list = []
    monkeypatch.setattr(results, "save", lambda figure, path: drawn.append(figure))
    for row, shots, flops in (("a", 0, 1e18), ("a", 5, 1e18), ("b", 0, 2e18), ("c", 0, None)):
        subject = Subject("mup_run", "step-000001", "", "trained", 1, 2, None, flops)
        metrics = {"acc": Metric(0.5), "acc@4": Metric(0.5, 0.1), "acc@8": Metric(0.4, 0.1)}
        place = tmp_path / row / "mup_run"
        save(Result("mine", 1, metrics, subject, {"num_fewshot": shots}), place, place / "evals")
    folders = [tmp_path / row / "mup_run" for row in "abc"]
    assert tool(results.main, *folders, "--plot", "figure.png") == 0
    said = capsys.readouterr().out
    assert "do not say their compute: c/mup_run" in said and "b/mup_run" in said
    compute, length = drawn[0].axes
    labels = compute.get_legend_handles_labels()[1]
    assert labels == ["a/mup_run, num_fewshot 0", "a/mup_run, num_fewshot 5", "b/mup_run, num_fewshot 0"]
    assert len(length.get_legend_handles_labels()[1]) == 4
    assert all(len(line[0].get_xdata()) == 2 for line in length.containers)
    assert tool(results.main, folders[2], "--metric", "acc", "--plot", "figure.png") == 0
    (only,) = drawn[1].axes
    assert list(only.containers[0][0].get_xdata()) == [4, 8]


def test_the_subject_is_the_checkpoint_that_was_loaded(trained, tmp_path, capsys):
    """Of a run whose newest checkpoint is damaged, a result named that one, with its checksum."""
    shutil.copytree(trained, tmp_path / "run")
    steps = tmp_path / "run" / "checkpoints"
    shutil.copytree(steps / "step-000020", steps / "step-000021")
    (steps / "step-000021" / "__0_0.distcp").write_bytes(b"")
    subject = Judged.load(tmp_path / "run").subject()
    assert "step-000021" in capsys.readouterr().err, "which is left out"
    assert (subject.checkpoint, subject.step) == ("step-000020", 20)
    assert subject == Judged.load(steps / "step-000020").subject()


def test_results_that_are_no_numbers_and_settings_that_differ(trained, tmp_path, capsys):
    """NaN was written into the JSON, and rows of two settings had the same words."""
    subject = Judged.load(trained).subject()
    for size, value in ((3, 0.5), (4, float("nan"))):
        result = Result("mine", 1, {"a": Metric(value), "b": Metric(1.0)}, subject, {"size": size, "same": 1})
        if value == value:
            save(result, tmp_path / "m", tmp_path / "m" / "evals")
        else:
            with pytest.warns(UserWarning, match="mine: a is nan, and is not kept"):
                save(result, tmp_path / "m", tmp_path / "m" / "evals")
    assert tool(results.main, tmp_path / "m") == 0
    lines = [line.split()[5:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert sorted(lines) == [["a", "0.5", "size", "3"], ["b", "1", "size", "3"], ["b", "1", "size", "4"]]
    result = Result("mine", 1, {"a": Metric(0.7)}, subject, {"size": 5})
    save(result, tmp_path / "m", tmp_path / "m" / "evals")
    assert tool(results.main, tmp_path / "m", "--metric", "a", "--plot", tmp_path / "two_of_a_place.png") == 0


def test_what_a_result_depends_on(trained, tmp_path, capsys):
    """A bf16 result took the place of the fp32 one; and --answers into no folder was found after all the work."""
    np.zeros(60, "<u2").tofile(tmp_path / "zeros.bin")
    line = ["--data_path", tmp_path / "zeros.bin", "--seq_length", 40, "--output_dir", tmp_path / "m" / "evals"]
    for dtype in ("fp32", "bf16"):
        assert run("proofpile", trained, *line, "--dtype", dtype) == 0
    assert {result.settings["dtype"] for result in read_results(tmp_path / "m")} == {"float32", "bfloat16"}
    assert run("proofpile", trained, *line, "--answers", tmp_path / "none" / "answers.jsonl") == 2
    assert "Make the folder first" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["phonebook", "proofpile"])
def test_figures_are_means_of_answers(task, trained, tmp_path):
    judged = Judged.load(trained)
    np.save(tmp_path / "text.npy", np.array(judged.encode(make_text(2)[:1000])[:150]))
    lines = {
        "phonebook": "--min_eval_len 3 --max_eval_len 4 --eval_num_batches 1 --max_length 400",
        "proofpile": f"--data_path {tmp_path / 'text.npy'} --seq_length 40 --sliding_window 41",
    }
    kept = tmp_path / "answers.jsonl"
    words = [*lines[task].split(), "--output_dir", tmp_path / "m" / "evals", "--answers", kept]
    assert run(task, trained, *words) == 0
    answers = [json.loads(line) for line in kept.read_text().splitlines()]
    found, names = figures(tmp_path / "m", task), {name for answer in answers for name in answer}
    assert len(answers) == {"phonebook": 8, "proofpile": 3}[task]
    assert names == {name for name in found if name.partition("@")[0] in ("acc", "nats", "loss", "bpb") and "@" in name}
    for name in names:
        values = [answer[name] for answer in answers if name in answer]
        assert math.isclose(np.mean(values), found[name], rel_tol=1e-6), name


SHORT = "--min_eval_len 3 --max_eval_len 3 --eval_num_batches 1 --max_length 400"


def judged_by_one_of_several(trained: Path, folder: Path) -> tuple[int, bool]:
    """The exit code, and whether this process scored questions of its own that are not all of them."""
    asked: list[int] = []
    real = Judged.continue_texts

    def counted(self, prompts, *others, **options):
        work = self._continue
        self._continue = lambda mine, **more: asked.append(len(mine)) or work(mine, **more)
        return real(self, prompts, *others, **options)

    Judged.continue_texts = counted
    return run("phonebook", trained, *SHORT.split(), "--output_dir", folder), asked == [2]


def test_processes_share_the_questions(trained, tmp_path):
    """Each did all of them, and wrote the same file. Of four questions each has two now, and one file is written."""
    assert run_distributed(judged_by_one_of_several, 2, trained, tmp_path / "two") == [(0, True)] * 2
    assert run("phonebook", trained, *SHORT.split(), "--output_dir", tmp_path / "one") == 0
    one, two = (json.loads(next((tmp_path / name).iterdir()).read_text())["metrics"] for name in ("one", "two"))
    assert one.keys() == two.keys() and len(list((tmp_path / "two").iterdir())) == 1
    for name, metric in one.items():
        assert math.isclose(metric["value"], two[name]["value"], rel_tol=1e-5), name


def test_another_tokenizer_is_said(trained, tmp_path, capsys):
    given = [trained / "tokenizer", "bytes"]
    notes = []
    for tokenizer in given:
        assert run("phonebook", trained, *SHORT.split(), "--tokenizer_name", tokenizer, "--output_dir", tmp_path) == 0
        notes.append("note: bytes is not the tokenizer of the model's data" in capsys.readouterr().err)
    assert notes == [False, True]


def test_a_result_that_cannot_be_written(trained, tmp_path, capsys):
    """A full disk was a traceback after all the work."""
    (tmp_path / "file").touch()
    assert run("phonebook", trained, *SHORT.split(), "--output_dir", tmp_path / "file" / "below") != 0
    output = capsys.readouterr()
    assert "could not be written (Not a directory)" in output.err and "Traceback" not in output.err
    assert "nats@3" in output.out, "the figures are printed first"
