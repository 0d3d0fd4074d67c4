"""Questions made of held-out passages: which continuation is the true one, and which name comes back.

Everything follows from the passages, the tokenizer and a seed, so that models with one tokenizer are asked the same. A
continuation takes the white space before it along, as lm-eval's does, so that both find the same tokens.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from lit_gpt.evals.held_out import Passage
from lit_gpt.utils.files import told, write_text

CHOICES = 4
NAME = re.compile(r"\b[^\W\d]\w{4,}")  # shorter words are often parts of the grammar
COMMON = 0.05  # a name that more of the documents have can be guessed without having read it here

TASK = """task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{context}}}}"
target_delimiter: ""
metadata: {{version: 1.0}}
"""
CHOICE_TASK = """output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
NAME_TASK = """output_type: loglikelihood
doc_to_target: "{{choices[0]}}"
metric_list: [{metric: acc}, {metric: perplexity}]
"""
NEAR = 300  # characters; tokens do not depend on text as far away as that
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Question:
    """What comes after `context`?

    choices: continuations, of which number `answer` is the true one; a question for a name has that name alone.
    distance: tokens since the name was last there. changed: the context with another name in its place.
    """

    context: str
    choices: tuple[str, ...]
    answer: int = 0
    distance: int = 0
    changed: str = ""


def split(encode: Encode, context: str, continuation: str) -> tuple[list[int], list[int]] | None:
    """The tokens of both, of a long context those near its end; None where they do not meet at a token's border."""
    near = context[-NEAR:]
    before, whole = encode(near), encode(near + continuation)
    return (before, whole[len(before) :]) if whole[: len(before)] == before and len(whole) > len(before) else None


class Maker:
    """encode: of a text without BOS; decode: its inverse. The passages are drawn from in an order of the seed's own."""

    def __init__(self, passages: Sequence[Passage], encode: Encode, decode: Callable[[list[int]], str], seed: int):
        self.encode, self.decode, self.seed = encode, decode, seed
        self.passages = list(passages)
        random.Random(f"{seed}-passages").shuffle(self.passages)

    # Which of four continuations is the true one.

    def choices(self, count: int, length: int) -> list[Question]:
        """At most `count` questions, one of a passage. Each continuation has `length` tokens, and begins a line.

        The other continuations stand in other documents after the same white space.
        """
        places = [place for passage in self.passages if (place := self._place(passage, length)) is not None]
        alike: dict[str, list[_Place]] = {}
        for place in places:
            alike.setdefault(place.space, []).append(place)
        draw, found = random.Random(f"{self.seed}-choices"), []
        for place in places:
            others = [other for other in alike[place.space] if other.document != place.document]
            draw.shuffle(others)
            if (question := self._choice(place, others, length, draw)) is not None:
                found.append(question)
            if len(found) == count:
                break
        return found

    def _place(self, passage: Passage, length: int) -> _Place | None:
        """The start of some line in the second half of a passage, with text enough after it."""
        draw = random.Random(f"{self.seed}-{hash_of(passage.text)}")
        tokens = len(passage.ends)
        lines = [m.start() for m in re.finditer(r"\n\s*(?=\S)", passage.text)]
        fit = [at for at in lines if tokens // 2 <= passage.token_at(at) <= tokens - length - 2]
        if not fit:
            return None
        context = passage.text[: draw.choice(fit)].rstrip()
        after = passage.text[len(context) :]
        return _Place(passage.document, context, after, after[: len(after) - len(after.lstrip())]) if context else None

    def _choice(self, place: _Place, others: list[_Place], length: int, draw: random.Random) -> Question | None:
        if (right := self._cut(place.context, place.after, length)) is None:
            return None
        wrong: list[str] = []
        for other in others:
            text = self._cut(place.context, other.after, length)
            if text is not None and text not in (right, *wrong):
                wrong.append(text)
            if len(wrong) == CHOICES - 1:
                break
        else:
            return None
        answer = draw.randrange(CHOICES)
        return Question(place.context, (*wrong[:answer], right, *wrong[answer:]), answer)

    def _cut(self, context: str, after: str, length: int) -> str | None:
        """The first `length` tokens of what comes after a context, as text that has these tokens again."""
        near = after[: 16 * length]  # a token of text is rarely longer
        if (tokens := split(self.encode, context, near)) is None or len(tokens[1]) < length:
            return None
        text = self.decode(tokens[1][:length])
        return text if split(self.encode, context, text) == (tokens[0], tokens[1][:length]) else None

    # Which name comes back.

    def names(self, count: int, edges: Sequence[int]) -> dict[int, list[Question]]:
        """For each class of distances, [edges[i], edges[i + 1]), by its upper edge: at most `count` questions.

        The last name of a line, where it was last read so many tokens earlier. A class has one question of a passage.
        """
        seen = Counter(name for texts in self._documents().values() for name in set(NAME.findall(texts)))
        most = max(1, COMMON * len(self._documents()))
        found: dict[int, list[Question]] = {edge: [] for edge in edges[1:]}
        for passage in self.passages:
            asked = list(self._returning(passage, lambda name: seen[name] <= most))
            random.Random(f"{self.seed}-{hash_of(passage.text)}").shuffle(asked)
            for low, high in pairwise(edges):
                fit = (q for q in asked if low <= q.distance < high and split(self.encode, q.context, q.choices[0]))
                if len(found[high]) < count and (question := next(fit, None)):
                    found[high].append(question)
        return {edge: _changed(questions) for edge, questions in found.items()}

    def _documents(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for passage in self.passages:
            found[passage.document] = found.get(passage.document, "") + "\n" + passage.text
        return found

    @staticmethod
    def _returning(passage: Passage, rare: Callable[[str], bool]) -> Iterator[Question]:
        """Last names of lines, after something else, that stand earlier in the passage."""
        last: dict[str, int] = {}  # name -> where its latest occurrence ends
        text, names = passage.text, list(NAME.finditer(passage.text))
        for here, after in zip(names, [*names[1:], None]):
            name, start = here.group(), here.start()
            ends_line = "\n" in text[here.end() : after.start() if after else len(text)]
            if name in last and ends_line and rare(name):
                context = text[:start].rstrip()
                distance = passage.token_at(start) - passage.token_at(last[name] - 1) - 1
                if context and "\n" not in text[len(context) : start]:
                    yield Question(context, (text[len(context) : here.end()],), distance=distance)
            last[name] = here.end()


@dataclass(frozen=True)
class _Place:
    """context and what comes after it, which begins with the white space `space`."""

    document: int
    context: str
    after: str
    space: str


def _changed(questions: list[Question]) -> list[Question]:
    """With the next question's name in place of every earlier one: what remains is what can be guessed without it."""
    names = [q.choices[0].strip() for q in questions]
    others = [next((n for n in [*names[i + 1 :], *names[:i]] if n != name), "") for i, name in enumerate(names)]
    return [replace(q, changed=q.context.replace(n, o)) for q, n, o in zip(questions, names, others)]


def write_tasks(asked: Mapping[str, Sequence[Question]], folder: Path) -> None:
    """The questions as tasks of lm-eval, each a YAML file and a file of JSON lines; `name@128` is cloze_name_128."""
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, questions in asked.items():
            task = f"cloze_{name.replace('@', '_')}"
            rows = [{"context": q.context, "choices": q.choices, "answer": q.answer} for q in questions]
            data = folder.absolute() / f"{task}.jsonl"
            write_text(data, "".join(json.dumps(row) + "\n" for row in rows))
            kind = CHOICE_TASK if name == "choice" else NAME_TASK
            write_text(folder / f"{task}.yaml", TASK.format(task=task, data=json.dumps(str(data))) + kind)


def hash_of(text: str) -> int:
    """A number of a text that is the same in every process."""
    return zlib.crc32(text.encode())
