"""docs/from_archscale.md has every option and token of ArchScale, and its verdicts are true of this parser."""

from __future__ import annotations

import re

import pytest
from pages import ROOT

import pretrain
from lit_gpt.config.cli import build_parser, parse
from lit_gpt.config.names import TOKENS, read_train_name
from lit_gpt.config.resolve import resolve
from lit_gpt.errors import UserError
from lit_gpt.tools._evaluate_cli import parser_of

PAGE = (ROOT / "docs/from_archscale.md").read_text(encoding="utf-8")
# The parameters of `setup` in its pretrain.py (lines 172 to 216), and the fields of its BaseHyperparameters.
OPTIONS = """
train_data_dir val_data_dir load_dir resume train_model train_name depth max_tokens ctx_len swa_len data_mixture
fsdp_save_mem use_mlflow save_step base_hps micro_bsz total_bsz yarn_scale sparsity top_k use_flce norm_class fp8 fp4
post_norm bramp_ratio aux_style aux_gamma fsdp2 num_extrp offloading ortho_init diag_init maxfan_init act_ckpt
share_expert global_aux sqrt_gate head_init_std logging_multiprocessing ar wandb_project
base_hps.d0 base_hps.eta0 base_hps.b0 base_hps.t0 base_hps.hd0 base_hps.w_init_scale base_hps.n0_mult
base_hps.weight_decay base_hps.eps base_hps.min_lr_mult base_hps.warmup_tokens base_hps.beta1 base_hps.beta2
base_hps.muon_beta base_hps.weight_lr_scale
"""
SCRIPTS = {
    "eval_phonebook.py": "checkpoint_path config output_dir min_eval_len max_eval_len eval_num_batches eval_batch_size "
    "num_eval verbose dtype tokenizer_name seed",
    "eval_proofpile.py": "checkpoint_path config output_dir batch_size seq_length sliding_window data_path dtype "
    "tokenizer_name",
    "eval.py": "model model_args tasks device batch_size metadata trust_remote_code",
}
ROWS = {cells[0]: cells[1] for cells in re.findall(r"^\| `--([\w.]+)` \| (\w+) \|", PAGE, re.MULTILINE)}
TOKEN_ROWS = {cells[0]: cells[1:] for cells in re.findall(r"^\| `(\w+)` \| (.*?) \| (\w+) \|", PAGE, re.MULTILINE)}


def test_every_option_has_a_verdict() -> None:
    assert set(ROWS) == set(OPTIONS.split())
    assert set(ROWS.values()) == {"same", "better", "different"}


def test_what_is_not_absent_is_an_option_and_what_is_absent_is_refused() -> None:
    known = {key for key, _ in build_parser().get_defaults().items()}
    known |= {key.split(".")[0] for key in known}
    assert {option for option, verdict in ROWS.items() if verdict != "absent"} <= known
    for option in (option for option, verdict in ROWS.items() if verdict == "absent"):
        with pytest.raises(UserError, match=f"--{option}"):
            resolve(parse([f"--{option}", "true"]))


def test_every_token_has_a_verdict_and_sets_what_the_page_says() -> None:
    assert set(TOKEN_ROWS) == set(TOKENS)
    for token, (option, verdict) in TOKEN_ROWS.items():
        assert read_train_name(f"x_{token}_y").tokens == (token,)
        if verdict == "absent":
            with pytest.raises(UserError, match=f"token {token}"):
                resolve(parse(["--train_name", token]))
            continue
        typed = [word for flag in re.findall(r"`(.*?)`", option) for word in flag.split()]
        alone = parse(typed)
        assert TOKENS[token] == {key: getattr(alone, key) for key in TOKENS[token]}
        assert {word.removeprefix("--") for word in typed[::2]} == set(TOKENS[token])


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_of_an_evaluation_script_is_listed_and_accepted(script: str) -> None:
    (row,) = re.findall(rf"^\| `{re.escape(script)}` \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`--(\w+)`", row)) == set(SCRIPTS[script].split())
    assert (ROOT / script).exists()
    if script != "eval.py":  # whose options are lm-eval's
        known = {key for key, _ in parser_of(script.removeprefix("eval_").removesuffix(".py")).get_defaults().items()}
        assert set(SCRIPTS[script].split()) <= known


def test_numbers_of_departures_exist() -> None:
    known = re.findall(r"^- \*\*(D\d+)\*\*", (ROOT / "docs/departures.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"\bD\d+", PAGE)) <= set(known)
    assert pretrain.main(["--train_name", "tie", "--train_data_dir", "D", "--dry_run", "true"]) == 0
