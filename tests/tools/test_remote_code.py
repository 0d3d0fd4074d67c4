"""A model with its own code: transformers gives our logits and our texts where this package is not installed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from remote_reader import NEW, START
from small_models import MULTIPLIERS, VARIED, model_of, optioned, small, tokens
from torch.nn import functional as F

from lit_gpt.checkpoint import load_exported
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.evals.generation import generate
from lit_gpt.model import GPT
from lit_gpt.plugins import load_plugins
from lit_gpt.tools import convert
from lit_gpt.tools._hf_remote import code_of, write_remote

pytest.importorskip("transformers")
LEARNED = "option_gpt2"
SEVERAL = ["transformer", "sambay", "sambayda", "gdny", "sambay_gqa4_moe", "swayoco", LEARNED]
OPTIONED = [
    *("tied", "window_sink", "biases", "skip_gain", "shared_block", "yarn", "yarn_rounded", "yarn_no_windows"),
    *("reordered", "reordered_sum", "joint_qk_norm", "qkv_biases", "gelu"),
    *("softcap", "value_embeddings", "smear", "backout", "baseline"),
]
READER = Path(__file__).with_name("remote_reader.py")


def bias_moved(config: ModelConfig) -> ModelConfig:
    """With a buffer beside the parameters, which a selection bias of experts is."""
    return config.replace(experts=replace(config.experts or Experts(), bias_rate=0.1))


def configs() -> dict[str, tuple[ModelConfig, str]]:
    """Name -> model, and how much is asked of it; see remote_reader."""
    found = {name: (small(name), "more" if name in SEVERAL else "basics") for name in VARIED}
    found |= {f"option_{name}": (optioned(name), "basics") for name in OPTIONED}
    found["option_bias"] = (bias_moved(small("transformer_gqa4_moe")), "basics")
    found[LEARNED] = (optioned("gpt2").replace(doc_positions="continue"), "more")
    choice = Experts(2, 2, routing="expert_choice", aux_gamma=0.0)
    found["option_choice"] = (small("transformer_gqa4_moe").replace(experts=choice), "forward")
    return found


CONFIGS = configs()


def weights_of(name: str) -> GPT:
    """In fp32; buffers away from zero too."""
    model = model_of(CONFIGS[name][0], dtype=torch.float32)
    for i, buffer in enumerate(model.buffers()):
        buffer.copy_(0.3 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(i)))
    return model


def read_elsewhere(root: Path, models: Mapping[str, tuple[GPT, str]]) -> Path:
    """Models written into a folder, and read in another process that cannot import lit_gpt; see remote_reader.

    Every folder with a model is called "model", so transformers imports the same code once, and may not take code for
    that of another model.
    """
    for name, (model, kind) in models.items():
        write_remote(model.state_dict(), model.config, model.multipliers, root / name / "model")
        torch.save(tokens(), root / name / "tokens.pt")
        (root / name / "kind").write_text(kind)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = kept | {"HF_MODULES_CACHE": str(root.parent / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(READER), str(root)]
    done = subprocess.run(command, cwd=root.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


PLUGIN = """
from lit_gpt.nn.mixers.gla import Options, build as built

{line}

def build(config, layer_index, multipliers):
    return built(config, layer_index, multipliers)
"""


@contextmanager
def plugin(folder: Path, line: str) -> Iterator[ModelConfig]:
    """A model with a mixer of a plugin, which has a line more."""
    (folder / "my_mixer.py").write_text(PLUGIN.format(line=line))
    load_plugins([str(folder / "my_mixer.py")])
    sizes = {"n_embd": 32, "n_head": 4, "head_dim": 8, "n_kv_head": 2, "intermediate_size": 48}
    options = {"my_mixer": {"heads": 2, "gate_rank": 4}}
    layers = (LayerSpec("my_mixer"), LayerSpec())
    try:
        yield ModelConfig("mine", 2, layers=layers, vocab_size=61, block_size=24, mixer_options=options, **sizes)
    finally:
        load_plugins([])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("remote")
    models = {name: (weights_of(name), CONFIGS[name][1]) for name in [*SEVERAL, "option_choice"]}
    with plugin(root, "") as config:
        models["plugin"] = (model_of(config, dtype=torch.float32), "basics")
        return read_elsewhere(root / "models", models)


def theirs(folders: Path, name: str) -> dict[str, Any]:
    return torch.load(folders / name / "theirs.pt", weights_only=False)


@torch.no_grad()
def check_basics(found: dict[str, Any], model: GPT, name: str) -> None:
    """Our logits, and our text of two prompts."""
    rows = tokens()
    torch.testing.assert_close(found["logits"], model(rows).logits, rtol=0, atol=1e-4, msg=lambda m: f"{name}: {m}")
    if "error" not in found:
        assert found["generated"] == generate(model, rows[:, :START].tolist(), NEW), name


@pytest.mark.parametrize("name", [*SEVERAL, "option_choice"])
def test_our_logits_and_texts(folders, name):
    check_basics(theirs(folders, name), weights_of(name), name)


@pytest.mark.slow
def test_every_family_gives_our_logits_and_texts(tmp_path):
    """In one test, because one process reads them all."""
    models = {name: (weights_of(name), kind) for name, (_, kind) in CONFIGS.items() if kind == "basics"}
    root = read_elsewhere(tmp_path / "models", models)
    for name, (model, _) in models.items():
        check_basics(theirs(root, name), model, name)


def test_expert_choice_is_for_whole_rows(folders):
    assert "such a model cannot generate" in theirs(folders, "option_choice")["error"]


@pytest.fixture(params=SEVERAL)
def several(request, folders) -> tuple[dict[str, Any], GPT, torch.Tensor]:
    return theirs(folders, request.param), weights_of(request.param), tokens()


@torch.no_grad()
def test_padding_on_the_left_changes_nothing(several):
    found, model, rows = several
    short = rows[0, :3].tolist()
    torch.testing.assert_close(found["padded"][0, -3:], model(rows[:1, :3]).logits[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["padded"][1:], model(rows[1:, :START]).logits, rtol=0, atol=1e-4)
    alone = [generate(model, [prompt], NEW)[0] for prompt in (short, rows[1, :START].tolist())]
    assert found["padded_generated"].tolist() == alone


@torch.no_grad()
def test_the_cache_in_pieces_grows_and_is_copied(several):
    """Calls of one, seven and eleven tokens after the first one."""
    found, model, rows = several
    whole = model(rows).logits
    torch.testing.assert_close(found["in_pieces"], whole[:, 4:], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["copied"], whole[:, 5:9], rtol=0, atol=1e-4)
    assert found["length"] == rows.shape[1]


def test_beams_and_samples_are_those_without_a_cache(several):
    found, _, rows = several
    assert found["beams_True"] == found["beams_False"] and found["sampled_True"] == found["sampled_False"]
    assert found["sampled_True"] != found["beams_True"], "something was drawn"
    assert [row[:START] for row in found["beams_True"]] == rows[:, :START].tolist()


@torch.no_grad()
def test_the_loss_is_of_the_next_tokens(several):
    found, model, rows = several
    logits, labels = model(rows).logits[:, :-1].flatten(0, 1), found["labels"][:, 1:].flatten()
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, labels), rtol=1e-5, atol=1e-5)
    assert found["tuple"] == [torch.Size([]), torch.Size([*rows.shape, logits.shape[-1]])]


def test_what_is_saved_again_can_be_loaded_again(several):
    found, model, _ = several
    assert torch.equal(found["again"], found["logits"])
    assert found["again_names"] == sorted(f"model.{name}" for name in model.state_dict())


@torch.no_grad()
def test_half_precision_is_ours(several):
    """The dtype that is asked for, or that `to` gives, is what branches compute in; the stream stays in fp32."""
    found, model, rows = several
    half = GPT(model.config, model.multipliers, compute_dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    expected = half.bfloat16()(rows).logits
    assert torch.equal(found["half"], found["moved"])
    scale = expected.std()
    assert (found["half"] - expected).abs().max() <= 0.02 * scale


def test_a_model_can_be_made_untrained(several):
    found, model, _ = several
    assert abs(found["untrained"].item() - torch.tensor(float(model.config.vocab_size)).log().item()) < 0.5


def test_masks_that_are_not_understood_are_refused(several):
    hole, right, short, assisted = several[0]["errors"]
    assert "zeros on one side" in hole and "left" in right
    assert "attention_mask is (2, 7); it must be (2, 8)" in short
    assert "assisted generation is not supported" in assisted


@pytest.mark.parametrize("name", SEVERAL)
def test_the_code_stands_alone(name):
    """It imports torch, transformers, the standard library and its siblings, and executes no strings."""
    files = code_of(CONFIGS[name][0])
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for file, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file
            if isinstance(node, ast.ImportFrom):
                source = node.module or ""
                assert source.split(".")[0] in allowed if node.level == 0 else not source or f"{source}.py" in files
            if isinstance(node, ast.Name):
                assert node.id not in ("exec", "eval"), file


def test_only_the_mixers_of_the_model_are_there():
    mixers = {file for file in code_of(small("transformer")) if file.startswith("nn_mixers_")}
    assert mixers == {"nn_mixers_attention.py"}
    assert "nn_mixers_mamba.py" in code_of(small("sambay"))


def test_a_plugins_mixer_is_part_of_the_code(folders, tmp_path):
    """What the plugin only hands on is there too: the options of its mixer are those of another one."""
    with plugin(tmp_path, "") as config:
        check_basics(theirs(folders, "plugin"), model_of(config, dtype=torch.float32), "plugin")


def test_a_plugin_that_cannot_be_followed_is_refused(tmp_path):
    said = "my_mixer has the line 'import lit_gpt.ops.conv'"
    with plugin(tmp_path, "import lit_gpt.ops.conv") as config, pytest.raises(UserError, match=said):
        code_of(config)


def test_convert_writes_it_and_reads_it_back(run_folder, tmp_path, capsys):
    """transformerls has windows in some layers only; its weights come back bit by bit."""
    command = [str(run_folder), str(tmp_path / "hf"), "--to", "hf", "--hf_class", "remote"]
    assert convert.main(command) == 0
    said = capsys.readouterr().err
    assert "--hf_class remote asks for it" in said and "trust_remote_code=True" in said
    described = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert described["auto_map"]["AutoModelForCausalLM"] == "modeling_scalelab.ScaleLabForCausalLM"
    assert described["eos_token_id"] == 256 and (tmp_path / "hf" / "tokenizer.json").is_file()
    assert convert.main([str(tmp_path / "hf"), str(tmp_path / "back.safetensors")]) == 0
    convert.to_file(run_folder, tmp_path / "direct.safetensors")
    (weights, meta), (direct, before) = (load_exported(tmp_path / f"{n}.safetensors") for n in ("back", "direct"))
    assert weights.keys() == direct.keys() and all(torch.equal(weights[n], direct[n]) for n in direct)
    assert meta["model"] == before["model"] and meta["multipliers"] == before["plan"]["multipliers"]


def test_a_model_that_no_class_expresses_is_written_so(tmp_path, capsys):
    model = weights_of("sambay")
    meta = {"version": 1, "step": 0, "tokens": 0, "model": model.config.to_dict()}
    meta |= {"multipliers": {**vars(MULTIPLIERS)}, "tokenizer": None}
    torch.save({"model": model.state_dict(), "meta": meta}, tmp_path / "model.pth")
    assert convert.main([str(tmp_path / "model.pth"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert "no class of transformers is this model" in capsys.readouterr().err
    assert (tmp_path / "hf" / "nn_mixers_gmu.py").is_file()
    with pytest.raises(UserError, match=r"sambay cannot be written as LlamaForCausalLM.*--hf_class remote"):
        convert.to_hf(tmp_path / "model.pth", tmp_path / "llama", hf_class="llama")


def test_tables_of_another_precision_want_a_choice(tmp_path):
    """What --table_precision bf16 trains; that sentence did not say what may be given."""
    model = weights_of("option_value_embeddings")
    weights = {name: p.bfloat16() if name.endswith("table") else p for name, p in model.state_dict().items()}
    with pytest.raises(UserError, match="bfloat16 and float32, and a folder has one kind: give --dtype fp32, bf16 or"):
        write_remote(weights, model.config, model.multipliers, tmp_path / "hf")
    assert not list(tmp_path.iterdir()), "nothing is half-written"


def test_a_damaged_description_is_one_sentence(tmp_path):
    model = weights_of("option_tied")
    write_remote(model.state_dict(), model.config, model.multipliers, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": {"depth": 2}}))
    with pytest.raises(UserError, match="does not describe a model of this version"):
        convert.to_file(tmp_path / "hf", tmp_path / "back.pth")
