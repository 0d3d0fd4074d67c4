"""What was generated for questions: JSON lines, or LightEval's details."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.utils.files import json_lines, regular


@dataclass(frozen=True)
class Question:
    """A question's right answer, and what was generated for it."""

    id: str
    answer: str
    generations: list[str]


def read_questions(path: Path) -> list[Question]:
    """The questions of a file. Raises UserError, with the number of the line, for whatever is none."""
    seen, questions = dict[str, str](), list[Question]()
    for where, found in _from_details(path) if path.suffix == ".parquet" else json_lines(path):
        question = _question(found, where)
        if seen.setdefault(question.id, where) != where:
            raise UserError(f"{where}: the id {question.id!r} is that of {seen[question.id]}, too. Name it once.")
        questions.append(question)
    if not questions:
        raise UserError(f"{path} has no questions. Write one JSON object on each line: id, answer, generations.")
    return questions


def _question(found: Any, where: str) -> Question:
    if not isinstance(found, dict):
        raise UserError(f"{where}: a {type(found).__name__} is no question. Write an object: id, answer, generations.")
    if missing := [name for name in ("id", "answer", "generations") if name not in found]:
        raise UserError(f"{where}: {' and '.join(missing)} missing. A question has id, answer, and generations.")
    generations = found["generations"]
    if not isinstance(generations, list) or not generations or not all(isinstance(text, str) for text in generations):
        raise UserError(f"{where}: generations must be a list of one text or more. Write the line again.")
    for name in ("id", "answer"):
        if isinstance(found[name], bool) or not isinstance(found[name], str | int | float) or found[name] == "":
            raise UserError(f"{where}: {name} must be a text or a number, and is {found[name]!r}. Write it.")
    return Question(str(found["id"]), str(found["answer"]), generations)


def _from_details(path: Path) -> list[tuple[str, Any]]:
    """(where, question) of each row of details as LightEval 0.13 writes them with --save-details."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError('Details of LightEval need pyarrow: type pip install -e ".[data]"') from error
    try:
        rows = parquet.read_table(
            regular(path, "Give a file of details."), columns=["doc", "model_response"]
        ).to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as LightEval's details ({error}). Give another file.") from error
    found = []
    for number, row in enumerate(rows, 1):
        document, gold = row["doc"], row["doc"]["gold_index"]
        answer = document["choices"][gold[0] if isinstance(gold, list) else gold]
        name = document.get("id") or str(number)
        found.append(
            (f"{path}, row {number}", {"id": name, "answer": answer, "generations": row["model_response"]["text"]})
        )
    return found
