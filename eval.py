"""Judge a trained model with lm-eval's tasks: its command line, with a model of ours.

    python eval.py --model ArchScale --model_args pretrained=out/my_run --tasks lambada_openai,hellaswag
    accelerate launch eval.py --model ArchScale --model_args pretrained=out/my_run,config=sambay_d16 --tasks piqa

Results are printed, and kept beside the run (docs/evaluation.md). Every other option is lm-eval's: eval.py run --help.
"""

from __future__ import annotations

import importlib.util

from lit_gpt.config.command import run_command
from lit_gpt.errors import UserError


def main(words: list[str]) -> int:
    """Run lm-eval. Raises UserError where it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('eval.py needs lm-eval. Type: pip install -e ".[eval]"')
    return importlib.import_module("lit_gpt.evals.lm_eval_cli").main(words)


if __name__ == "__main__":
    run_command(main)
