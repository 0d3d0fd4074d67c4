"""Launch scripts: the sweep runner with a stand-in for pretrain.py, the shell scripts with stand-ins for Slurm."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from script_module import script_module

from lit_gpt.config.command import exit_code

sweep = script_module("launch_scripts/sweep.py")
ROOT = Path(__file__).parents[2]
# Called as: fake.py .../pretrain.py OPTIONS. Its loss is (log10(lr) + 2)^2, so that lr 1e-2 is best.
FAKE = """
import json, math, os, sys, time
from pathlib import Path
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
run = Path(options["--out_dir"]) / "a_run"
run.mkdir(parents=True, exist_ok=True)
with open(run / "calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
loss = (math.log10(float(options["--base_hps.eta0"])) + 2) ** 2
ended = os.environ.get("ENDS", "finished")
values = {"finished": ended == "finished", "step": 7, "metric/val_loss@1x": loss}
if ended != "failed":
    (run / "summary.json").write_text(json.dumps(values))
sys.exit({"finished": 0, "failed": 1, "interrupted": 75}[ended])
"""

# In front of it: notes its GPU, and goes on only when another row has done so too.
MEET = """
import os, sys, time
from pathlib import Path
row = Path(dict(zip(sys.argv[2::2], sys.argv[3::2]))["--out_dir"])
(row / "gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
while len(list(row.parent.glob("*/gpu"))) < 2:
    time.sleep(0.01)
print("both run", flush=True)
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Of a sweep over three learning rates."""
    (tmp_path / "fake.py").write_text(FAKE)
    table = tmp_path / "table.csv"
    table.write_text("name,base_hps.eta0,micro_bsz\nhigh,1e-1,\ngood,1e-2,4\nlow,1e-4,\n")
    launcher = shlex.join([sys.executable, str(tmp_path / "fake.py")])
    return [str(table), "--output", str(tmp_path / "out"), "--launcher", launcher, "--", "--depth", "8"]


@pytest.fixture(autouse=True)
def signals_as_before():
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def calls(tmp_path: Path, name: str) -> list[str]:
    file = tmp_path / "out" / name / "a_run/calls"
    return file.read_text().splitlines() if file.exists() else []


def test_the_sweep_runs_each_row_and_skips_what_is_finished(tmp_path, arguments, capsys) -> None:
    assert sweep.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["name", "good", "high", "low"]
    assert lines[-3].split() == ["good", "1e-2", "4", "0.0000", "finished"]
    pretrain, *words = calls(tmp_path, "good")[0].split()
    assert Path(pretrain) == ROOT / "pretrain.py"
    out = str(tmp_path / "out/good")
    assert words == shlex.split(f"--depth 8 --base_hps.eta0 1e-2 --micro_bsz 4 --out_dir {out} --resume auto")
    assert sweep.main(arguments) == 0
    assert len(calls(tmp_path, "good")) == 1


def test_an_interrupted_sweep_stops_and_goes_on(tmp_path, arguments, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ENDS", "interrupted")
    assert sweep.main(arguments) == 75
    assert "at step 7" in capsys.readouterr().out and not calls(tmp_path, "good")
    monkeypatch.setenv("ENDS", "finished")
    assert sweep.main(arguments) == 0
    assert [len(calls(tmp_path, name)) for name in ("high", "good", "low")] == [2, 1, 1]


def test_rows_run_side_by_side_on_gpus_of_their_own(tmp_path, arguments) -> None:
    (tmp_path / "fake.py").write_text(MEET + FAKE)
    Path(arguments[0]).write_text("name,base_hps.eta0\nhigh,1e-1\ngood,1e-2\n")
    assert sweep.main([*arguments[:5], "--gpus", "0,2", *arguments[5:]]) == 0
    assert {(tmp_path / f"out/{name}/gpu").read_text() for name in ("high", "good")} == {"0", "2"}
    assert (tmp_path / "out/good/log.txt").read_text().startswith("both run")


def test_a_failed_row_does_not_stop_the_others(arguments, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ENDS", "failed")
    assert sweep.main(arguments) == 1
    assert capsys.readouterr().out.count("no result") == 3


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("depth\n8\n", "'name'"),
        ("name,depth\na,8\na,16\n", "of their own"),
        (f"name,depth\n{'a' * 300},8\n", "usable as a folder"),
        ("name,resume\na,true\n", "sets itself"),
        ("name,depth\na,8,9\n", "2 cells"),
        ("", "'name'"),
    ],
)
def test_tables_that_cannot_be_run(arguments, capsys, table, says) -> None:
    Path(arguments[0]).write_text(table)
    assert exit_code(sweep.main, arguments) == 2
    assert says in capsys.readouterr().err


def test_a_row_that_changed_under_its_name_is_refused(arguments, capsys) -> None:
    table = Path(arguments[0])
    assert sweep.main(arguments) == 0
    table.write_text(table.read_text().replace("1e-2", "2e-2"))
    assert exit_code(sweep.main, arguments) == 2
    assert "new name" in capsys.readouterr().err


TABLES = sorted(p for p in (ROOT / "launch_scripts").glob("*.csv") if p.name != "optimizers.csv")  # another script's


@pytest.mark.parametrize("table", TABLES, ids=lambda path: path.name)
def test_the_tables_that_come_with_the_repository_have_options_of_pretrain(table: Path) -> None:
    rows = sweep.read_table(table)
    options = (ROOT / "tests/cli/options.txt").read_text().split()
    assert {key for row in rows for key in row.options} <= set(options)


def executable(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("given", "port"), [("node0", 29500), ("node0:12345", 12345)])
def test_torchrun_sh_passes_arguments_and_settings(given: str, port: int, tmp_path: Path) -> None:
    executable(tmp_path / "python", 'printf "%s\\n" "$@" "$PET_SIGNALS_TO_HANDLE"')
    settings = {"PYTHON": str(tmp_path / "python"), "GPUS_PER_NODE": "4", "NNODES": "2", "NODE_RANK": "1"}
    settings |= {"MASTER_ADDR": given, "LOGDIR": "logs"}
    words = ["bash", str(ROOT / "launch_scripts/torchrun.sh"), "--train_name", "a label"]
    printed = subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, check=True).stdout
    expected = f"{ROOT}/lit_gpt/utils/torchrun.py --nnodes 2 --nproc_per_node 4 --node_rank 1 --master_addr node0 "
    expected += f"--master_port {port} --log_dir logs --tee 3 {ROOT}/pretrain.py --train_name"
    assert printed.splitlines() == [*expected.split(), "a label", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]


def start_job(tmp_path: Path, body_of_srun: str) -> subprocess.Popen:
    """slurm.sbatch among stand-ins; scancel and scontrol write what they were told to a file."""
    executable(tmp_path / "srun", f'echo "$@" > {tmp_path}/srun.txt\n{body_of_srun}')
    executable(tmp_path / "scancel", f'echo "$@" >> {tmp_path}/told.txt; touch {tmp_path}/stop')
    executable(tmp_path / "scontrol", f'[ "$1" = show ] && echo node0 || echo "$@" >> {tmp_path}/told.txt')
    slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    slurm |= {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_ID": "42"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(ROOT / "launch_scripts/slurm.sbatch"), "--depth", "8"], env=environment)


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.01)


def test_a_slurm_job_that_ends_by_itself_keeps_its_exit_code(tmp_path: Path) -> None:
    assert start_job(tmp_path, "exit 3").wait(timeout=30) == 3
    srun = "--kill-on-bad-exit=0 --wait=120 bash launch_scripts/torchrun.sh --depth 8 --resume auto"
    assert (tmp_path / "srun.txt").read_text().split() == srun.split()
    assert not (tmp_path / "told.txt").exists()


@pytest.mark.parametrize(("code", "told"), [(1, ["--signal=TERM 42", "requeue 42"]), (0, ["--signal=TERM 42"])])
def test_a_slurm_job_whose_time_is_up_stops_its_run_and_queues_again(tmp_path: Path, code: int, told: list) -> None:
    job = start_job(tmp_path, f"while [ ! -e {tmp_path}/stop ]; do sleep 0.02; done; exit {code}")
    wait_for(tmp_path / "srun.txt")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == code
    assert (tmp_path / "told.txt").read_text().splitlines() == told


def test_sigterm_to_a_sweep_reaches_the_run(tmp_path: Path, arguments: list[str]) -> None:
    """The run saves and exits with 75; so does the sweep."""
    (tmp_path / "fake.py").write_text(
        "import signal, sys, time\nfrom pathlib import Path\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"Path({str(tmp_path / 'started')!r}).touch()\ntime.sleep(60)\n"
    )
    job = subprocess.Popen([sys.executable, str(ROOT / "launch_scripts/sweep.py"), *arguments])
    wait_for(tmp_path / "started")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 75
    row = json.loads((tmp_path / "out/high/row.json").read_text())
    assert row == {"name": "high", "base_hps.eta0": "1e-1"}
