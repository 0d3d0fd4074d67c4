"""What is measured while a run trains changes nothing of the run: sets, positions, all of the data, samples."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
from spawn import run_distributed
from tiny_model import same
from tiny_run import OPTIONS, folder_of, make_corpus, make_text, pretrain, rows, run, words

from lit_gpt.checkpoint import load_full, read_meta
from lit_gpt.checkpoint.retention import VALIDATION
from lit_gpt.data.prepare import prepare
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import generate as generate_tokens
from lit_gpt.evals.model_tokenizer import prompt_ids, tokenizer_of
from lit_gpt.evals.trained_model import load_model
from lit_gpt.metrics.summary import read_rows
from lit_gpt.tools import evaluate, generate

SHORT = {**OPTIONS, "eval_step": 2, "eval_sequences": 6, "num_extrp": 2, "max_tokens": 4 * 512, "micro_bsz": 4}
LOSS, T = "metric/val_loss@1x", "metric/train_loss"


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Another text than that of `data`, for the same tokenizer."""
    texts = tmp_path_factory.mktemp("other") / "texts"
    texts.mkdir()
    for i in range(20):
        (texts / f"{i:03d}.txt").write_text(make_text(1000 + i).upper(), encoding="utf-8", newline="\n")
    prepare(str(texts), str(texts.parent / "data"), validation_fraction=0.1, num_workers=1, progress=False)
    return texts.parent / "data"


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory) -> Path:
    """A run with one validation set and nothing else."""
    out = tmp_path_factory.mktemp("plain")
    assert run(data, out, val_data_dir=data, ema="1k", **SHORT) == 0
    return out


def numbers(out: Path) -> list[dict[str, float]]:
    """What was logged, but for clocks and the machine."""
    kept = ("step", "metric/", "total_tokens", "samples")
    return [{k: v for k, v in row.items() if k.startswith(kept)} for row in read_rows(folder_of(out) / "metrics.jsonl")]


def test_sets_have_the_numbers_of_runs_of_their_own(data, other, plain, tmp_path):
    assert run(data, tmp_path / "alone", val_data_dir=other, ema="1k", **SHORT) == 0
    assert run(data, tmp_path / "both", val_data_dir=f"mine={data},other={other}", ema="1k", **SHORT) == 0
    for row, mine, alone in zip(*map(numbers, (tmp_path / "both", plain, tmp_path / "alone")), strict=True):
        named = {key: value for key, value in row.items() if key not in mine}
        assert {key: row[key] for key in mine} == mine
        for name, values in (("mine", mine), ("other", alone)):
            for key in [key for key in values if key.startswith("metric/val_")]:
                stem, _, rest = key.partition("@")
                stem, _, average = stem.partition("_ema_")
                label = f"{stem}_{name}" + (f"_ema_{average}" if average else "")
                assert named.pop(f"{label}@{rest}") == values[key]
        assert not named
    assert set(rows(tmp_path / "both", "metric/val_bpb_other_ema_1k@2x")) == {2, 4}


def test_the_best_is_that_of_the_first_set(data, other, plain, tmp_path):
    """And a run goes on with other sets, as it does with another folder."""
    first = {**SHORT, "val_data_dir": data, "ema": "1k"}
    assert run(data, tmp_path, **first, stop_after=2) != 0
    sets = f"b={other},a={data}"
    assert run(data, tmp_path, **{**first, "val_data_dir": sets}, resume="auto", keep_best=True) == 0
    assert rows(tmp_path, "metric/train_loss") == rows(plain, "metric/train_loss")
    loss = read_meta(folder_of(tmp_path) / "checkpoints" / "step-000004")[VALIDATION][LOSS]
    assert loss == rows(tmp_path, LOSS)[4] == rows(tmp_path, "metric/val_loss_b@1x")[4] != rows(plain, LOSS)[4]
    assert rows(tmp_path, "metric/val_loss_a@1x")[4] == rows(plain, LOSS)[4]


def test_sets_of_weights_alone(data, other, plain, capsys, tmp_path):
    options = {**SHORT, "train_name": "mup_validation", "init_from": folder_of(plain)}
    assert run(data, tmp_path, val_data_dir=f"a={data},b={other}", **options) == 0
    found = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("metric/"))
    assert float(found[LOSS]) == float(found["metric/val_loss_a@1x"]) == pytest.approx(rows(plain, LOSS)[4], abs=1e-6)
    assert math.isfinite(float(found["metric/val_bpb_b@2x"]))


@pytest.mark.parametrize("sets, said", {"a=MINE,a=MINE": "two sets", "a=MINE,b=none": "'none' does not exist"}.items())
def test_refused_before_training(data, tmp_path, capsys, sets, said):
    assert run(data, tmp_path, val_data_dir=sets.replace("MINE", str(data)), **SHORT) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.glob("*/metrics.jsonl"))


def test_positions_change_no_other_number(data, other, plain, tmp_path):
    key = "metric/val_loss_by_position"
    assert run(data, tmp_path, val_data_dir=f"a={data},b={other}", ema="1k", eval_positions=True, **SHORT) == 0
    assert rows(tmp_path, "metric/train_loss") == rows(plain, "metric/train_loss")
    assert rows(tmp_path, LOSS) == pytest.approx(rows(plain, LOSS), rel=1e-6)
    for name in ("", "_a", "_b", "_ema_1k", "_b_ema_1k"):
        assert rows(tmp_path, f"{key}{name}@128").keys() == {2, 4}
        loss = rows(tmp_path, f"metric/val_loss{name}@2x")[4]
        assert rows(tmp_path, f"{key}{name}@128")[4] == pytest.approx(loss, rel=1e-6)  # two contexts of 64 are one band


def test_all_of_the_data_at_chosen_steps(data, other, plain, tmp_path, capsys):
    """Step 3 has no other validation. The first set is smaller than that of `plain`, for all of it is read often."""
    few = make_corpus(tmp_path / "few", 10)
    sets = f"a={few},b={other}"
    at = {"full_eval_at": "3,last", "eval_positions": True, "ema": "1k"}
    assert run(data, tmp_path / "some", val_data_dir=sets, **at, **SHORT) == 0
    assert "validation loss on all data: a 1x " in capsys.readouterr().err
    every = {**SHORT, "eval_step": 1, "eval_sequences": 10**6, "eval_positions": True, "ema": "1k"}
    assert run(data, tmp_path / "every", val_data_dir=sets, **every) == 0
    some, all_of_it, alone = (numbers(out) for out in (tmp_path / "some", tmp_path / "every", plain))
    whole = [{k: v for k, v in row.items() if k.startswith("metric/full_val_")} for row in some]
    assert [row["step"] for row, found in zip(some, whole) if found] == [3, 4]
    for row, found in zip(some, whole):
        expected = next(r for r in all_of_it if r["step"] == row["step"] and LOSS in r) if found else {}
        named = {k.replace("/val_", "/full_val_"): v for k, v in expected.items() if k.startswith("metric/val_")}
        assert found == named
    assert rows(tmp_path / "some", LOSS).keys() == rows(plain, LOSS).keys()
    assert rows(tmp_path / "some", "metric/train_loss") == {r["step"]: r[T] for r in alone if T in r}
    summary = json.loads((folder_of(tmp_path / "some") / "summary.json").read_text())
    assert summary["metric/full_val_loss_b@1x"] == whole[-1]["metric/full_val_loss_b@1x"] != summary[LOSS]


@pytest.mark.parametrize("steps, said", {"0": "or last, joined", "1,soon": "or last, joined", "5": "step 4"}.items())
def test_steps_that_no_run_has(data, tmp_path, capsys, steps, said):
    assert run(data, tmp_path, val_data_dir=data, full_eval_at=steps, **SHORT) == 2
    assert said in capsys.readouterr().err
    assert run(data, tmp_path, full_eval_at="last", **SHORT) == 2
    assert "--full_eval_at needs --val_data_dir" in capsys.readouterr().err


PROMPTS = ["The width of", "depth", "A norm is a"]


@pytest.fixture
def prompts(tmp_path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    return tmp_path / "prompts.txt"


def samples(out: Path) -> list[dict]:
    return [json.loads(line) for line in (folder_of(out) / "samples.jsonl").read_text("utf-8").splitlines()]


def test_samples_change_no_number(data, plain, prompts, tmp_path, capsys):
    """All weights are those of the run without, to the bit; the text is that of lit_gpt.tools.generate."""
    options = {"val_data_dir": data, "ema": "1k", "sample_prompts": prompts, "sample_tokens": 12, **SHORT}
    assert run(data, tmp_path / "out", **options) == 0
    assert numbers(tmp_path / "out") == numbers(plain)
    mine, theirs = (load_full(folder_of(out) / "checkpoints/step-000004")[0] for out in (tmp_path / "out", plain))
    assert same(mine, theirs)
    found = samples(tmp_path / "out")
    assert [(row["step"], row["tokens"], row["prompt"]) for row in found] == [
        (step, step * 512, prompt) for step in (2, 4) for prompt in PROMPTS
    ]
    capsys.readouterr()
    for row in found[3:]:
        typed = ["--prompt", row["prompt"], "--max_new_tokens", "12", "--temperature", "0", "--device", "cpu"]
        assert generate.main([str(folder_of(tmp_path / "out")), *typed]) == 0
        assert capsys.readouterr().out == row["text"] + "\n"


def test_samples_of_a_run_that_goes_on(data, prompts, tmp_path):
    """What was said of steps that are trained again is said once."""
    options = {**SHORT, "val_data_dir": data, "sample_prompts": prompts, "sample_tokens": 4, "save_step": 1}
    assert run(data, tmp_path / "a", **options) == 0
    assert run(data, tmp_path / "b", **options, stop_after=3) != 0
    late = {"step": 4, "tokens": 1, "prompt": "of a process that was killed", "text": ""}
    with (folder_of(tmp_path / "b") / "samples.jsonl").open("a") as file:
        file.write(json.dumps(late) + "\n")
    assert run(data, tmp_path / "b", **options, resume="auto") == 0
    assert samples(tmp_path / "a") == samples(tmp_path / "b")


def test_samples_that_cannot_be_written_are_said_each_time(data, prompts, tmp_path):
    """Python drops a warning whose text it has shown, so only the first was said."""
    options = {**SHORT, "val_data_dir": data, "sample_prompts": prompts, "sample_tokens": 4, "eval_step": 1}
    assert run(data, tmp_path, **options, stop_after=1) != 0
    path = folder_of(tmp_path) / "samples.jsonl"
    path.unlink()
    path.mkdir()  # nobody can write there, root neither
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert run(data, tmp_path, **options, resume="auto") == 0
    said = [str(warning.message) for warning in caught if "samples.jsonl cannot be written" in str(warning.message)]
    assert [text.partition("at step ")[2].split()[0] for text in said] == ["2", "3", "4"]


@pytest.mark.filterwarnings("ignore:.*had lines that are no samples")
def test_damaged_samples_hold_nothing_up(data, prompts, tmp_path):
    options = {**SHORT, "val_data_dir": data, "sample_prompts": prompts, "sample_tokens": 4, "save_step": 1}
    assert run(data, tmp_path, **options, stop_after=3) != 0
    (folder_of(tmp_path) / "samples.jsonl").write_bytes(b"\xff{}\nno JSON\n")
    assert run(data, tmp_path, **options, resume="auto") == 0
    assert [row["step"] for row in samples(tmp_path)] == [4] * len(PROMPTS)
    assert (folder_of(tmp_path) / "samples.jsonl.corrupt").read_bytes().startswith(b"\xff")


def test_samples_that_cannot_be(data, prompts, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    refused = {"a.txt": "a.txt cannot be read", empty: "holds no prompt"}
    refused[tmp_path] = "is a folder and not a file. Give --sample_prompts a text file"
    for file, said in refused.items():
        assert run(data, tmp_path / "out", val_data_dir=data, sample_prompts=file, **SHORT) == 2
        assert said in capsys.readouterr().err
    assert run(data, tmp_path / "out", sample_prompts=prompts, **SHORT) == 2
    assert "--sample_prompts needs --val_data_dir" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*/metrics.jsonl"))


PHONEBOOK = {"min_eval_len": 3, "max_eval_len": 4, "num_eval": 2, "eval_num_batches": 1, "eval_batch_size": 3}
TASKS = {"eval_tasks": "phonebook", "eval_task_options": json.dumps({"phonebook": PHONEBOOK})}
LONG = {**SHORT, "ctx_len": 512, "micro_bsz": 1}  # phonebook's shortest lists have 350 tokens


def flags() -> list[str]:
    return [word for name, value in PHONEBOOK.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("weights, prefix", [(None, "eval"), ("ema_1k", "eval_ema_1k")])
def test_scores_are_those_of_the_checkpoint(data, tmp_path, weights, prefix):
    assert run(data, tmp_path, **LONG, **TASKS, ema="1k", eval_tasks_step=3) == 0
    chosen = ["--weights", weights] if weights else []
    typed = ["--checkpoint_path", str(folder_of(tmp_path)), "--device", "cpu", *chosen, *flags()]
    assert evaluate.judge("phonebook", typed) == 0
    found = json.loads(next((folder_of(tmp_path) / "evals").glob("phonebook-*.json")).read_text())["metrics"]
    for name, metric in found.items():
        logged = rows(tmp_path, f"{prefix}/phonebook/{name}")
        assert logged.keys() == {3, 4} and logged[4] == metric["value"]
    assert rows(tmp_path, f"{prefix}/phonebook/acc@3_stderr")[4] == found["acc@3"]["stderr"]


def test_scores_change_no_number(data, tmp_path):
    assert run(data, tmp_path / "with", **LONG, **TASKS, eval_tasks_step=1) == 0
    assert run(data, tmp_path / "without", **LONG) == 0
    with_, without = (load_full(folder_of(tmp_path / n) / "checkpoints/step-000004")[0] for n in ("with", "without"))
    assert same(with_, without)
    assert rows(tmp_path / "with", T) == rows(tmp_path / "without", T)


def test_an_evaluation_that_fails_is_a_note(data, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise UserError("no numbers")

    monkeypatch.setattr("lit_gpt.evals.tasks.phonebook.evaluate", fails)
    assert run(data, tmp_path, **LONG, **TASKS) == 0
    assert "warning: no score: no numbers" in capsys.readouterr().err
    assert rows(tmp_path, T).keys() >= {4}


CHOICE = {
    "train_model": "transformer_gqa4_h2_moe",
    "depth": 4,
    "ar": 8,
    "base_hps__d0": 4,
    "expert_routing": "expert_choice",
}
CANNOT = {
    "context": (SHORT, "--eval_tasks phonebook: 4 entries are"),
    "generation": ({**LONG, **CHOICE}, "--eval_tasks phonebook: With expert_choice, experts choose"),
}


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("name", CANNOT)
def test_what_the_model_cannot_do_is_said_at_the_start(data, tmp_path, capsys, name, dry):
    """It was a note at the first evaluation, hours into a run."""
    options, said = CANNOT[name]
    assert run(data, tmp_path, **{**options, **TASKS}, **({"dry_run": True} if dry else {})) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.glob("*/metrics.jsonl"))


REFUSED = {
    "no_task": ({"eval_tasks": "nothing_of_that_name"}, "nothing_of_that_name"),
    "option": ({**TASKS, "eval_task_options": '{"phonebook": {"entries": 3}}'}, "has no option 'entries'"),
    "value": ({**TASKS, "eval_task_options": '{"phonebook": {"num_eval": 0}}'}, "num_eval"),
    "stranger": ({**TASKS, "eval_task_options": '{"proofpile": {}}'}, "names proofpile; of --eval_tasks"),
    "missing": ({"eval_tasks": "cloze"}, '--eval_task_options \'{"cloze": {"data_dir": "..."}}\''),
    "theirs": (
        {**LONG, **TASKS, "eval_tasks_limit": 50},
        "--eval_tasks_limit is for tasks of lm-eval, and --eval_tasks names",
    ),
    "alone": ({"eval_tasks_step": 3}, "--eval_tasks_step acts on --eval_tasks only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_evaluations_that_cannot_be(data, tmp_path, capsys, name):
    options, said = REFUSED[name]
    assert run(data, tmp_path, **{**SHORT, **options}) == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.glob("*/metrics.jsonl"))


def test_two_processes_ask_what_one_asks(data, prompts, tmp_path):
    """Each has all weights for a while, and answers a part of the questions: the scores are those of the checkpoint."""
    options = {"val_data_dir": data, "sample_prompts": prompts, "sample_tokens": 6, "eval_tasks_step": 2}
    options |= {**LONG, **TASKS, "total_bsz": 1024, "max_tokens": 4 * 1024}
    assert run(data, tmp_path / "one", **options) == 0
    assert run_distributed(pretrain.main, 2, words(data, tmp_path / "two", **options)) == [0, 0]
    assert [row["prompt"] for row in samples(tmp_path / "two")] == 2 * PROMPTS
    name = "eval/phonebook/tokens@4"
    assert rows(tmp_path / "two", name) == rows(tmp_path / "one", name) and rows(tmp_path / "two", name).keys() == {
        2,
        4,
    }
    two = folder_of(tmp_path / "two")
    assert evaluate.judge("phonebook", ["--checkpoint_path", str(two), "--device", "cpu", *flags()]) == 0
    found = json.loads(next((two / "evals").glob("phonebook-*.json")).read_text())["metrics"]
    for name, metric in found.items():
        assert rows(tmp_path / "two", f"eval/phonebook/{name}")[4] == pytest.approx(metric["value"], rel=1e-5)
    model, meta = load_model(two)
    tokenizer, bos_id = tokenizer_of(two, None, meta)
    for row in samples(tmp_path / "two")[3:]:
        ids = prompt_ids(model.config.vocab_size, tokenizer, row["prompt"], bos_id)
        assert row["text"] == tokenizer.decode(generate_tokens(model, [ids], 6, stop=tokenizer.eos_id)[0])
