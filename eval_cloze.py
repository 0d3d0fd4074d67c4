"""Cloze questions from held-out documents: the true one of four continuations, and names that come back.

    python eval_cloze.py --checkpoint_path out/my_run --data_dir data/mine

lit_gpt/evals/tasks/cloze.py says what is measured; docs/evaluation.md, how to read it.
"""

from lit_gpt.config.command import run_command
from lit_gpt.tools.evaluate import judge

if __name__ == "__main__":
    run_command(lambda words: judge("cloze", words))
