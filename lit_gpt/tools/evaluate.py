"""Judge a trained model with an evaluation of this project's own, one file of lit_gpt/evals/tasks.

python -m lit_gpt.tools.evaluate phonebook --checkpoint_path out/my_run
python -m lit_gpt.tools.evaluate phonebook --help
"""

from __future__ import annotations

from lit_gpt.config.command import run_command
from lit_gpt.errors import UserError
from lit_gpt.evals.command import judge
from lit_gpt.evals.tasks import TASKS


def main(words: list[str]) -> int:
    """The first word names the evaluation; the others are its options."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(__doc__, f"\nThe evaluations are {', '.join(TASKS.names())}.", sep="")
        return 0
    if words[0].startswith("-"):
        raise UserError(f"Type the name of an evaluation first: {', '.join(TASKS.names())}.")
    return judge(words[0], words[1:])


if __name__ == "__main__":
    run_command(main)
