"""Turn a checkpoint into one file or a Hugging Face model, or a Hugging Face model into one file."""

from __future__ import annotations

import sys
from pathlib import Path

from lit_gpt.config.command import answer_early, run_command
from lit_gpt.config.parsers import Parser
from lit_gpt.config.words import FLOATS
from lit_gpt.errors import UserError
from lit_gpt.evals.model_tokenizer import find_tokenizer, validation_data_of, with_tokenizer
from lit_gpt.tools._cli import QUANTIZED, check_given, local_path, parser_for
from lit_gpt.tools._model_cli import add_plugins, add_trained_with, add_weights
from lit_gpt.utils.files import read_object

EXAMPLES = (
    ("out/my_run model.safetensors", "the newest checkpoint as one file"),
    ("out/my_run average.safetensors --weights ema_1B", "an average of its weights"),
    ("out/my_run hf_model --to hf --dtype bf16", "a folder for transformers; --hf_class chooses the class"),
    ("out/my_run small_model --to hf --quantize int8", "the same in 8 bits"),
    ("hf_model model.safetensors", "a Hugging Face model as one file"),
    ("iter-000100-ckpt.pth model.pth --config sambay_d16 --trained_with train_name=scaling_mup", "ArchScale's file"),
)


def build_parser() -> Parser:
    """The parser of this tool's command line."""
    parser = parser_for(
        "convert", "Turn a checkpoint into one file or a Hugging Face model, or the latter into one file.", EXAMPLES
    )
    parser.add_argument(
        "path",
        type=local_path,
        help="run folder (its newest checkpoint), step-* folder, exported file, .pth checkpoint of ArchScale, or "
        "Hugging Face folder",
    )
    parser.add_argument("output", type=local_path, help="file to write, .pth or .safetensors; with --to hf a folder")
    parser.add_argument(
        "--to",
        choices=["file", "hf"],
        default="file",
        help="one file, or a Hugging Face model",
    )
    parser.add_argument(
        "--dtype",
        choices=list(FLOATS),
        default=None,
        help="precision of the written weights; default: that of the checkpoint",
    )
    parser.add_argument(
        "--tokenizer", type=str, default=None, help="tokenizer to write with --to hf; default: the model's own"
    )
    parser.add_argument(
        "--hf_class",
        type=str,
        default=None,
        help="class to write with --to hf, such as qwen3 or Qwen3ForCausalLM, or remote: a model with its own code; "
        "default: the first class that fits, else remote",
    )
    parser.add_argument(
        "--quantize",
        choices=list(QUANTIZED),
        default=None,
        help="with --to hf: linear maps in so many bits, by torchao, and what that costs; default: not quantised",
    )
    parser.add_argument(
        "--val_data_dir",
        type=str,
        default=None,
        help="data on which the cost of --quantize is measured; default: the validation data of the run",
    )
    add_trained_with(parser)
    add_weights(parser)
    add_plugins(parser)
    return parser


answer_early(__name__, lambda words: build_parser().parse_args(words))

import torch

from lit_gpt.checkpoint import DTYPES, cast, check_suffix, write_exported
from lit_gpt.evals.archscale_file import UNSAID, TrainedWith
from lit_gpt.evals.trained_model import check_weights, describe_model, load_weights_and_meta
from lit_gpt.tools._hf import is_hf_folder, read_hf, write_hf
from lit_gpt.tools._hf_choice import why_remote
from lit_gpt.tools._hf_folder import check_new
from lit_gpt.tools._hf_remote import write_remote
from lit_gpt.tools._model_values import trained_with, use_plugins
from lit_gpt.tools._quantize import check_installed, quantized

TRUST = (
    "Load it with AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True), which runs the Python files of "
    "that folder: nobody should do so with a folder of people they do not trust."
)


def to_file(
    path: Path,
    output: Path,
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    typed: TrainedWith = UNSAID,
) -> Path:
    """Weights, model and Plan in one .pth or .safetensors file.

    path: run folder (its newest checkpoint), step folder, exported file of either kind, checkpoint of ArchScale, or
    Hugging Face folder. weights: which average; typed: of a checkpoint of ArchScale; see load_weights_and_meta.
    Raises UserError for another suffix, when nothing that can be used is at the path, and for weights that are not
    those of their model.
    """
    check_suffix(output)
    if is_hf_folder(path):
        if weights is not None:
            raise UserError(f"{path} is a Hugging Face model, which has no averages. Drop --weights {weights}.")
        tensors, meta = read_hf(path)
    else:
        tensors, meta = load_weights_and_meta(path, weights, typed)
        check_weights(tensors, describe_model(meta, path)[0], path)
        meta = with_tokenizer(meta, path)
    return write_exported(cast(tensors, dtype), meta, output)


def to_hf(
    path: Path,
    output: Path,
    dtype: torch.dtype | None = None,
    tokenizer: str | None = None,
    weights: str | None = None,
    hf_class: str | None = None,
    typed: TrainedWith = UNSAID,
    *,
    quantize: str | None = None,
    val_data_dir: str | None = None,
) -> Path:
    """A folder that transformers loads, with the model's tokenizer where one is known.

    weights, typed: see to_file. hf_class: a model type or class of transformers, or "remote" for a model with its own
    code; None is the first class that expresses the model, else its own code. quantize: of _quantize.KINDS; what it
    costs is measured on val_data_dir, by default the run's own. Raises UserError when the class that was named does not
    express the model, and without the libraries or data that quantize needs.
    """
    if is_hf_folder(path):
        raise UserError(f"{path} is a Hugging Face model already. Copy it, or give --to file.")
    check_new(output)
    data = _validation_data(path, quantize, val_data_dir) if quantize else None
    tensors, meta = load_weights_and_meta(path, weights, typed)
    config, multipliers = describe_model(meta, path)
    kept = find_tokenizer(path, meta, tokenizer)
    if kept is None or not kept.present:
        why = "no tokenizer of this model is known" if kept is None else f"its tokenizer is no longer at {kept.source}"
        print(f"note: {why}, so none is written; --tokenizer gives one", file=sys.stderr)
        kept = None
    if why := why_remote(config, multipliers, hf_class):
        if quantize:
            raise UserError(f"--quantize writes models of transformers' own classes only, and here {why}. Drop it.")
        print(f"note: the model is written with its own code ({why}). {TRUST}", file=sys.stderr)
        return write_remote(tensors, config, multipliers, output, kept, dtype)

    def write(folder: Path) -> Path:
        return write_hf(tensors, config, multipliers, folder, kept, dtype, hf_class)

    return write(output) if not quantize else quantized(write, output, quantize, str(data), config.block_size)


def _validation_data(path: Path, quantize: str, given: str | None) -> str:
    """Where what --quantize costs is measured. Raises UserError where nothing says it, and without the libraries."""
    check_installed()
    data = given or validation_data_of(path)
    if data is None:
        raise UserError(
            f"--quantize {quantize} measures what it costs on validation data, and {path} does not say where there is "
            "some. Give --val_data_dir FOLDER."
        )
    return data


def main(argv: list[str]) -> int:
    """Convert and say where the result is."""
    values = build_parser().parse_args(argv)
    check_given(values)
    use_plugins(values.plugins)
    dtype, typed = DTYPES.get(values.dtype), trained_with(values)
    if values.val_data_dir and not values.quantize:
        raise UserError("--val_data_dir is the data that --quantize is measured on. Add --quantize, or drop it.")
    if values.to == "hf":
        options = {"quantize": values.quantize, "val_data_dir": values.val_data_dir, "typed": typed}
        chosen = values.tokenizer, values.weights, values.hf_class
        written = to_hf(values.path, values.output, dtype, *chosen, **options)
    elif given := [name for name in ("tokenizer", "hf_class", "quantize") if getattr(values, name)]:
        raise UserError(f"--{given[0]} acts with --to hf only. Add --to hf, or drop it.")
    else:
        written = to_file(values.path, values.output, dtype, values.weights, typed)
    kind = f", a {read_object(written / 'config.json')['architectures'][0]}" if values.to == "hf" else ""
    print(f"wrote {written}{kind}")
    return 0


if __name__ == "__main__":
    run_command(main)
