"""Continue text with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.parsers import Parser
from lit_gpt.data.tokenizer import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.model_tokenizer import prompt_ids, tokenizer_of
from lit_gpt.tools._cli import check_given, local_path, parser_for
from lit_gpt.tools._model_cli import add_plugins, add_trained_with, add_weights

EXAMPLES = (
    ('out/my_run --prompt "Once upon a time" --temperature 0.8', "continue a text with the newest checkpoint of a run"),
    ("model.safetensors --tokenizer tokenizer.json", "continue each line of the standard input"),
)


def build_parser() -> Parser:
    """The parser of this tool's command line."""
    parser = parser_for("generate", "Continue text with a trained model.", EXAMPLES)
    parser.add_argument(
        "path",
        type=local_path,
        help="run folder, step-* folder, exported .pth or .safetensors file, or .pth checkpoint of ArchScale",
    )
    parser.add_argument(
        "--prompt", type=str, default=None, help="text to continue; default: each line of the standard input"
    )
    parser.add_argument(
        "--tokenizer",
        type=str,
        default=None,
        help="bytes, a tokenizer.json, or its folder; default: that of the run's data",
    )
    parser.add_argument("--max_new_tokens", type=int, default=200, help="length of the continuation in tokens, at most")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="how daring the choice of a token is; 0 always takes the likeliest",
    )
    parser.add_argument(
        "--top_k", type=int | None, default=None, help="choose among so many likeliest tokens; default: among all"
    )
    parser.add_argument(
        "--top_p",
        type=float | None,
        default=None,
        help="choose among the likeliest tokens that have this probability together; default: among all",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the draws for the first prompt; each later one adds 1"
    )
    add_trained_with(parser)
    add_weights(parser)
    add_plugins(parser)
    parser.add_argument(
        "--device",
        type=str | None,
        default=None,
        help="device to run on, such as cpu or cuda:1; default: a GPU where there is one",
    )
    return parser


answer_early(__name__, lambda words: build_parser().parse_args(words))

import torch

from lit_gpt.evals.generation import Sampling, stream
from lit_gpt.evals.trained_model import device_of, load_model
from lit_gpt.model import GPT
from lit_gpt.tools._model_values import trained_with, use_plugins

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of a character decode to before the last one is there


def pieces(
    model: GPT, tokenizer: Tokenizer, ids: Sequence[int], limit: int, sampling: Sampling, seed: int
) -> Iterator[str]:
    """The continuation of a prompt as it grows, without characters whose bytes are not all there yet."""
    prompt_BT = torch.tensor([list(ids)], device=model.head_weight().device)
    new, shown = [], ""
    for token in stream(model, prompt_BT, limit, sampling, seeds=[seed], stop=tokenizer.eos_id):
        if token.item() == tokenizer.eos_id:
            break
        new.append(int(token.item()))
        text = tokenizer.decode(new)
        if not text.endswith(UNFINISHED):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(new)[len(shown) :]


def prompts(given: str | None) -> Iterator[str]:
    """The prompt of the command line, or the lines of stdin that hold something."""
    if given is not None:
        yield given
        return
    if sys.stdin.isatty():
        print("Type a prompt and Enter; end with Ctrl-D.", file=sys.stderr)
    yield from (line.rstrip("\n") for line in sys.stdin if line.strip())


def main(argv: list[str]) -> int:
    """Print continuations as they are generated."""
    values = build_parser().parse_args(argv)
    check_given(values, "prompt")
    limit = values.max_new_tokens
    if limit < 0:
        raise UserError(f"--max_new_tokens is {limit}; give 0 or more.")
    if not -(2**63) <= values.seed < 2**63:
        raise UserError(f"--seed is {values.seed}; give a whole number of 64 bits.")
    sampling = Sampling(values.temperature, values.top_k, values.top_p)
    use_plugins(values.plugins)
    model, meta = load_model(values.path, device_of(values.device), weights=values.weights, typed=trained_with(values))
    tokenizer, bos_id = tokenizer_of(values.path, values.tokenizer, meta)
    for i, prompt in enumerate(prompts(values.prompt)):
        ids = prompt_ids(model.config.vocab_size, tokenizer, prompt, bos_id)
        model.check_length(len(ids) + limit - 1)  # of the last token nothing is asked
        if len(ids) + limit > (context := model.config.block_size):
            print(
                f"note: {len(ids)} + {limit} tokens are more than the {context} of the training context",
                file=sys.stderr,
            )
        for piece in pieces(model, tokenizer, ids, limit, sampling, values.seed + i):
            print(piece, end="", flush=True)
        print()
    return 0


if __name__ == "__main__":
    run_command(main)
