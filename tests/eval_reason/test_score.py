"""Answers written by hand are graded as a person would; files of generations become a table and a JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from script_module import script_module

ROOT = Path(__file__).parents[2]
grading, score = script_module("eval_reason/grading.py"), script_module("eval_reason/score.py")
LETTERS = [
    ("B", r"so \boxed{B}", True),
    ("B", r"\boxed{\text{B}}", True),
    ("B", r"\boxed{\text{(B)}}", True),
    ("B", r"\boxed{B) 3 cm}", True),
    ("B", "The answer is (B).", True),
    ("B", "A is wrong, so **Answer: B**", True),
    ("B", "ANSWER: B", True),
    ("B", "B looks right at first. Answer: C", False),
    ("B", r"\boxed{A} no, wait: \boxed{B}", True),
    ("A", "A nice thought, without an end", False),
    ("A", "The answer is A.", True),
    ("A", "The answer is Argon.", False),
    ("C", r"<think>\boxed{C}</think>It is \boxed{D}", False),
    ("C", "", False),
]
MATHS = [
    ("1/2", r"so \boxed{0.5}", True),
    (r"\frac{1}{2}", r"It is $\frac12$.", True),
    ("1/3", r"\boxed{0.333}", False),
    ("25", r"\boxed{025}", True),
    ("204", r"at first \boxed{3}, then \boxed{204}", True),
    ("204", "The final answer is 204.", True),
    ("204", "The final answer is 205.", False),
    ("1000", r"\boxed{1,000}", True),
    ("70,000", r"\boxed{70000}", True),
    ("12000", r"\boxed{12\,000}", True),
    (r"1\,234\,567", r"\boxed{1{,}234{,}567}", True),
    ("12000", r"\boxed{12\,001}", False),
    ("204", r"\boxed{204.}", True),
    ("1/2", r"\boxed{\frac{1}{2}.}", True),
    ("204", r"\boxed{205.}", False),
    ("2.5", r"\boxed{2.5}", True),
    ("18", r"<think>\boxed{7}</think>So it is \boxed{18}", True),
    ("18", "", False),
    ("5", r"\boxed{5 \text{ cm}}", True),
    ("5", r"\boxed{5.0}", True),
    ("3.14", r"\boxed{\pi}", False),
    ("-3", r"\boxed{-3}", True),
    ("-3", r"\boxed{3}", False),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", True),
    (r"\frac{\pi}{4}", r"$\pi/4$", True),
    (r"x^2+2x+1", r"\boxed{(x+1)^2}", True),
    (r"(1,2)", r"\boxed{(1,2)}", True),
    (r"(1,2)", r"\boxed{(2,1)}", False),
    (r"\{1,2\}", r"\boxed{\{2,1\}}", True),
    (r"[0,1)", r"\boxed{[0,1]}", False),
    (r"10\%", r"\boxed{10\%}", True),
    (r"90^\circ", r"\boxed{90}", True),
    (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", True),
]


@pytest.mark.parametrize(("answer", "generation", "right"), LETTERS)
def test_letters(answer, generation, right):
    assert grading.is_right(answer, generation) == right


@pytest.mark.parametrize(("answer", "generation", "right"), MATHS)
def test_mathematics(answer, generation, right):
    pytest.importorskip("math_verify")
    assert grading.is_right(answer, generation) == right


def test_without_math_verify_one_sentence_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(grading.UserError, match=r'pip install -e "\.\[reason\]"'):
        grading.is_right("204", r"\boxed{204}")
    assert grading.is_right("B", r"\boxed{B}")


def row(name: object, answer: object, *generations: str) -> str:
    return json.dumps({"id": name, "answer": answer, "generations": generations})


def run(path: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """As a person types it, from another folder, and without torch."""
    start = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    line = [sys.executable, "-c", start, str(ROOT / "eval_reason/score.py"), str(path), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=path.parent)


def test_a_file_becomes_a_table_and_a_json(tmp_path):
    right, wrong = r"\boxed{B}", r"\boxed{C}"
    path = tmp_path / "gpqa.jsonl"
    path.write_text("\n".join([row(1, "B", right, right, wrong, wrong), "", row(2, "B", wrong, wrong, wrong, wrong)]))
    done = run(path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpqa.score.json").read_text())
    assert {name: s["value"] for name, s in found["scores"].items()} == pytest.approx(
        {"pass@1": 1 / 4, "pass@2": 5 / 12, "pass@4": 1 / 2}
    )
    assert found["questions"] == 2 and found["generations"] == 8 and found["by_question"][0]["right"] == 2
    assert "pass@4     0.500" in done.stdout and "gpqa.score.json" in done.stdout
    assert run(path, "--output", tmp_path / "new/there.json").returncode == 0
    assert json.loads((tmp_path / "new/there.json").read_text()) == found


def test_questions_with_fewer_generations_bound_k():
    questions = [score.Question("a", "B", ["x"] * 5), score.Question("b", "B", ["x"] * 3)]
    assert list(score.summary(list(score.graded(questions)))["scores"]) == ["pass@1", "pass@2", "pass@3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no questions"),
        ("\n\n", "has no questions"),
        (row("a", "B", "x") + "\n{", "line 2: this is no JSON"),
        ("[1]", "line 1: a list is no question"),
        ('{"id": 1}', "line 1: answer and generations missing"),
        (row("a", "B"), "line 1: generations must be a list of one text or more"),
        ('{"id": 1, "answer": "B", "generations": "x"}', "line 1: generations must be a list"),
        ('{"id": 1, "answer": "B", "generations": [1]}', "line 1: generations must be a list"),
        (row("a", None, "x"), "line 1: answer must be a text or a number"),
        (row("a", "", "x"), "line 1: answer must be a text or a number"),
        (row("a", "B", "x") + "\n" + row("a", "B", "y"), "line 2: the id 'a' is that of"),
    ],
)
def test_bad_files_are_one_sentence_with_the_line(tmp_path, text, said):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(grading.UserError) as caught:
        score.read_questions(tmp_path / "bad.jsonl")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, said in {"bytes.jsonl": "is not UTF-8", "none.jsonl": "No such file"}.items():
        done = run(tmp_path / name)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_an_answer_that_is_no_mathematics():
    pytest.importorskip("math_verify")
    with pytest.raises(grading.UserError, match="neither a letter nor mathematics"):
        grading.is_right("", "5")


def test_lightevals_details(tmp_path):
    """The columns that LightEval 0.13 writes: its dataclasses Doc and ModelResponse, as structs."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {
            "doc": {"id": str(i), "query": "?", "choices": ["A", "B", "C", "D"], "gold_index": 1},
            "model_response": {"input": "?", "text": [r"\boxed{B}", r"\boxed{A}"]},
            "metric": {"gpqa_pass@k:k=1&n=2": 0.5},
        }
        for i in range(3)
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "details.parquet")
    found = score.read_questions(tmp_path / "details.parquet")
    assert [(q.id, q.answer, len(q.generations)) for q in found] == [(str(i), "B", 2) for i in range(3)]
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(grading.UserError, match="cannot be read as LightEval's details"):
        score.read_questions(tmp_path / "damaged.parquet")
