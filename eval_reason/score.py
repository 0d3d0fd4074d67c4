"""Grade generated answers: pass@1 and pass@k with intervals over questions. Works without a network, a GPU, or torch.

    python eval_reason/score.py out/aime24.jsonl
    python eval_reason/score.py out/aime24.jsonl --output out/aime24.score.json
    python eval_reason/score.py out/owner/model/details/.../details_reason_aime24|0_....parquet

Every line is a question: {"id": "aime24-1", "answer": "204", "generations": ["\\\\boxed{204}", "\\\\boxed{21}"]}.
A parquet file is one of LightEval's details, which eval_reason.sh keeps.
eval_reason/passes.py says which intervals these are, and eval_reason/grading.py what a right answer is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "eval_reason")]  # a script finds only its own folder

from grading import is_right  # noqa: E402
from passes import CONFIDENCE, Estimate, mean_pass_at_k, sizes  # noqa: E402
from questions import Question, read_questions  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lit_gpt.config.command import command_of, run_command  # noqa: E402
from lit_gpt.utils.files import write_text  # noqa: E402


def graded(questions: list[Question]) -> Iterator[tuple[Question, int]]:
    """Each question, and how many of its generations are right."""
    for question in tqdm(questions, desc="grading", unit="question"):
        yield question, sum(is_right(question.answer, text) for text in question.generations)


def summary(rows: list[tuple[Question, int]]) -> dict[str, Any]:
    """The figures of graded questions, ready for JSON."""
    counts = [(len(question.generations), right) for question, right in rows]
    fewest = min(n for n, _ in counts)
    scores = {f"pass@{k}": mean_pass_at_k(counts, k) for k in sizes(fewest)}
    return {
        "questions": len(rows),
        "generations": sum(n for n, _ in counts),
        "confidence": CONFIDENCE,
        "scores": {name: asdict(estimate) for name, estimate in scores.items()},
        "by_question": [{"id": q.id, "generations": len(q.generations), "right": right} for q, right in rows],
    }


def table(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [f"{found['questions']} questions, {found['generations']} generations", "score      value  95% interval"]
    for name, values in found["scores"].items():
        estimate = Estimate(**values)
        lines.append(f"{name:10} {estimate.value:.3f}  {estimate.low:.3f} to {estimate.high:.3f}")
    return "\n".join(lines)


def main(path: Path, output: Path | None = None) -> None:
    """Grade a file of generations.

    Args:
        path: JSON lines with id, answer, generations.
        output: where the figures go as JSON; by default beside the file.
    """
    found = summary(list(graded(read_questions(path))))
    target = output or path.with_suffix(".score.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(found, indent=1) + "\n")
    print(table(found))
    print(f"kept: {target}")


if __name__ == "__main__":
    words = ["--path", *sys.argv[1:]] if sys.argv[1:] and not sys.argv[1].startswith("-") else sys.argv[1:]
    run_command(lambda _: command_of(main)(words))
