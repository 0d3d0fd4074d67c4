"""Judge a trained model with lm-eval's tasks: its command line, with a model of ours.

    python eval.py --model ArchScale --model_args pretrained=out/my_run --tasks lambada_openai,hellaswag
    accelerate launch eval.py --model ArchScale --model_args pretrained=out/my_run,config=sambay_d16 --tasks piqa

--model_args, joined by commas:
    pretrained=PATH         run folder, step folder, exported .pth or .safetensors file, or .pth of ArchScale (needed)
    config=sambay_d16       compared with what the checkpoint says
    max_length=32768        longest input in tokens; by default the training context
    tokenizer=NAME          bytes, a tokenizer.json or its folder; by default that of the training data
    weights=ema_1B          an average that --ema kept
    dtype=float32           or bfloat16; by default bf16 on a GPU and fp32 elsewhere
    yarn_scale=4            stretches rotary positions; window=8192 is what windowed layers see; by default as trained
    max_gen_toks=256        longest generated text, where a task does not say
    train_name=scaling_mup  how an ArchScale .pth was trained, where it does not say it
    plugins=a.py+b.py       files with mixers of your own that the model has

Results are printed, and kept beside the run (docs/evaluation.md). Every other option is lm-eval's: eval.py run --help.
"""

from __future__ import annotations

import importlib.util

from lit_gpt.config.command import run_command
from lit_gpt.errors import UserError


def main(words: list[str]) -> int:
    """Run lm-eval. Raises UserError where it is not installed."""
    if words[:1] in ([], ["--help"], ["-h"]):
        print(__doc__)
        return 0
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('eval.py needs lm-eval. Type: pip install -e ".[eval]"')
    return importlib.import_module("lit_gpt.evals.lm_eval_cli").main(words)


if __name__ == "__main__":
    run_command(main)
