"""Turn a checkpoint into one file, or into a Hugging Face model.

python -m lit_gpt.tools.convert out/my_run model.safetensors
python -m lit_gpt.tools.convert out/my_run hf_model --to hf
"""

from __future__ import annotations

from pathlib import Path

from lit_gpt.checkpoint import export, write_exported
from lit_gpt.evals.load import describe_model, load_weights_and_meta, step_folder
from lit_gpt.tools._cli import parser_for, run_tool
from lit_gpt.tools._llama import write_llama


def to_file(path: Path, output: Path) -> Path:
    """Weights, model and Plan in one .pth or .safetensors file.

    path: run folder (its newest checkpoint), step folder, or an exported file of either kind.
    """
    if path.is_file():
        return write_exported(*load_weights_and_meta(path), output)
    return export(step_folder(path), output)


def to_hf(path: Path, output: Path) -> Path:
    """A folder that transformers loads as LlamaForCausalLM. Raises UserError when the model is not Llama's."""
    weights, meta = load_weights_and_meta(path)
    config, plan = describe_model(meta, path)
    return write_llama(weights, config, plan.multipliers, output)


def main(argv: list[str]) -> int:
    """Convert and say where the result is."""
    parser = parser_for("convert", "Turn a checkpoint into one file, or into a Hugging Face model.")
    parser.add_argument("path", type=Path, help="run folder (its newest checkpoint), step-* folder, or exported file")
    parser.add_argument("output", type=Path, help="file to write, .pth or .safetensors; with --to hf a folder")
    parser.add_argument("--to", choices=["file", "hf"], default="file", help="hf: LlamaForCausalLM, where the model is")
    values = parser.parse_args(argv)
    written = to_hf(values.path, values.output) if values.to == "hf" else to_file(values.path, values.output)
    print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    run_tool(main)
