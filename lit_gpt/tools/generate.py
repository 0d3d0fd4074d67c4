"""Continue text with a trained model.

python -m lit_gpt.tools.generate out/my_run --prompt "Once upon a time" --temperature 0.8
python -m lit_gpt.tools.generate model.safetensors --tokenizer tokenizer.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser

from lit_gpt.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import Sampling, stream
from lit_gpt.evals.load import load_model
from lit_gpt.model import GPT
from lit_gpt.tools._cli import parser_for, run_tool
from lit_gpt.tools._environment import best_device
from lit_gpt.train.run_folder import CONFIG

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of a character decode to before the last one is there


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = parser_for("generate", "Continue text with a trained model.")
    parser.add_argument("path", type=Path, help="run folder, step-* folder, or exported .pth or .safetensors file")
    parser.add_argument("--prompt", type=str, default=None, help="text to continue; without it, lines of stdin are")
    parser.add_argument(
        "--tokenizer", type=str, default=None, help="'bytes', a tokenizer.json or its folder; default: the run's data"
    )
    parser.add_argument("--max_new_tokens", type=int, default=200, help="longest continuation")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--top_k", type=int | None, default=None, help="only the k likeliest tokens")
    parser.add_argument("--top_p", type=float | None, default=None, help="only the likeliest tokens that reach p")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    parser.add_argument("--device", type=str, default=str(best_device()), help="where to run")
    return parser


def tokenizer_of(path: Path, given: str | None) -> Tokenizer:
    """The tokenizer that was asked for, else that of the data of the run that the path belongs to.

    Raises UserError when neither is there.
    """
    if given is not None:
        return load_tokenizer(given)
    configs = [folder / CONFIG for folder in (path, *path.absolute().parents[:2]) if (folder / CONFIG).is_file()]
    if not configs:
        raise UserError(f"{path} is in no run folder that names its data. Give --tokenizer bytes or a tokenizer.json.")
    data = Path(yaml.safe_load(configs[0].read_text())["train_data_dir"])
    try:
        return load_tokenizer(str(data))
    except UserError:
        if data.is_dir() and not any(data.rglob("*.bin")):  # plain text is tokenised as bytes
            return ByteTokenizer()
        raise UserError(f"The run's data folder {data} holds no tokenizer. Give --tokenizer.") from None


def pieces(model: GPT, tokenizer: Tokenizer, prompt: str, limit: int, sampling: Sampling, seed: int) -> Iterator[str]:
    """The continuation of a prompt as it grows, without characters whose bytes are not all there yet.

    Raises UserError for an empty prompt and for tokens that the model does not have.
    """
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError("The prompt is empty: there is nothing to continue. Give some text.")
    if max(ids) >= model.config.vocab_size:
        raise UserError(
            f"The tokenizer {tokenizer.name!r} made token {max(ids)}, but the model knows {model.config.vocab_size} "
            "tokens. Give the --tokenizer that it was trained with."
        )
    prompt_BT = torch.tensor([ids], device=model.head_weight().device)
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
    if values.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens is {values.max_new_tokens}; give 1 or more.")
    sampling = Sampling(values.temperature, values.top_k, values.top_p)
    tokenizer = tokenizer_of(values.path, values.tokenizer)
    model, _ = load_model(values.path, values.device)
    for prompt in prompts(values.prompt):
        for piece in pieces(model, tokenizer, prompt, values.max_new_tokens, sampling, values.seed):
            print(piece, end="", flush=True)
        print()
    return 0


if __name__ == "__main__":
    run_tool(main)
