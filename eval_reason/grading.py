"""Whether the answer at the end of a generated text is the right one.

A letter answers a multiple-choice question. Everything else is mathematics, which math-verify reads and compares
(https://github.com/huggingface/Math-Verify): 1/2, 0.5 and \\frac12 are the same.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from typing import Any

from lit_gpt.errors import UserError

LETTER = re.compile(r"[A-J]")
END_OF_THOUGHT = "</think>"  # as DeepSeek-R1 and those after it write it; what is before it is no answer
# The letter in a box, in any of the usual wrappings: \boxed{B}, \boxed{\text{(B)}}, \boxed{B) 3 cm}.
IN_BOX = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|mathrm|mathbf|textbf)\s*\{\s*)?\(?([A-J])(?![A-Za-z])")
# After "answer" in words, as the prompts of GPQA's authors ask: "ANSWER: B", "the correct answer is (B)".
IN_WORDS = re.compile(r"(?i:\banswer\b)[\s*:]*(?i:is\b|=)?[\s*:]*\(?([A-J])(?![A-Za-z'])")

# What math-verify reads as something else: \boxed{204.} as a text, and 12\,000 (with TeX's thin space) as 12 x 0.
FULL_STOP = re.compile(r"\.(?=\s*\})")
THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))")


def is_right(answer: str, generation: str) -> bool:
    """Whether the text ends in that answer; one that math-verify reads or compares for longer than 5 seconds does not.

    Raises UserError where math-verify is needed and missing.
    """
    said = generation.rpartition(END_OF_THOUGHT)[2]
    said = said[max(0, said.rfind("\\boxed")) :]  # the last box; math-verify would make one set of neighbours
    if LETTER.fullmatch(answer.strip()):
        return letter_of(said) == answer.strip()
    library = math_verify()
    targets = [library.LatexExtractionConfig(boxed_match_priority=0), library.ExprExtractionConfig()]
    given = library.parse(THOUSANDS.sub("", FULL_STOP.sub("", said)), extraction_config=targets)
    return bool(given) and any(library.verify(gold, given) for gold in golds(THOUSANDS.sub("", answer)))


def letter_of(text: str) -> str | None:
    """The last letter in a box, else the last one after the word "answer"; None where there is neither."""
    for pattern in (IN_BOX, IN_WORDS):
        if found := pattern.findall(text):
            return found[-1]
    return None


@cache
def golds(answer: str) -> list[Any]:
    """The right answer as math-verify reads it, as LaTeX and as plain text. Raises UserError where it reads neither."""
    library = math_verify()
    latex = library.parse(f"\\boxed{{{answer}}}", extraction_config=[library.LatexExtractionConfig()])
    plain = library.parse(answer, extraction_config=[library.ExprExtractionConfig()])
    if found := [gold for gold in (latex, plain) if gold]:
        return found
    raise UserError(f"The answer {answer!r} is neither a letter nor mathematics that math-verify reads. Correct it.")


def math_verify() -> Any:
    """The library. Raises UserError where it is missing."""
    try:
        import math_verify as library
    except ImportError as error:
        raise UserError('Answers in mathematics need math-verify: type pip install -e ".[reason]"') from error
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it prints all of a text that takes it too long
    return library
