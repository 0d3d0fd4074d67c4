"""Look up numbers in lists of many lengths: accuracy over length.

    python eval_phonebook.py --checkpoint_path out/my_run --min_eval_len 40 --max_eval_len 480 --num_eval 12

lit_gpt/evals/tasks/phonebook.py says what is measured; docs/evaluation.md, how to read it.
"""

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.tools._evaluate_cli import read

answer_early(__name__, lambda words: read("phonebook", words))

from lit_gpt.tools.evaluate import judge

if __name__ == "__main__":
    run_command(lambda words: judge("phonebook", words))
