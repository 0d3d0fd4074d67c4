"""Judge a trained model with lm-eval's tasks: its command line, with a model of ours.

    python eval.py --model ArchScale --model_args pretrained=out/my_run --tasks lambada_openai,hellaswag
    accelerate launch eval.py --model ArchScale --model_args pretrained=out/my_run,config=sambay_d16 --tasks piqa

Results are printed, and kept beside the run (docs/evaluation.md). Every other option is lm-eval's: see --help.
"""

from lit_gpt.config.command import run_command
from lit_gpt.evals.lm_eval_cli import main

if __name__ == "__main__":
    run_command(main)
