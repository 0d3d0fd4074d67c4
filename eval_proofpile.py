"""Loss and perplexity of long texts, over the length of the context.

    python eval_proofpile.py --checkpoint_path out/my_run --data_path proofpile.bin --seq_length 32768

lit_gpt/evals/tasks/proofpile.py says what is measured; docs/evaluation.md, how to read it.
"""

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.tools._evaluate_cli import read

answer_early(__name__, lambda words: read("proofpile", words))

from lit_gpt.tools.evaluate import judge

if __name__ == "__main__":
    run_command(lambda words: judge("proofpile", words))
