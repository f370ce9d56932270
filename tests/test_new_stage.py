"""What a new stage must add, tried: a package with a config, batches, a loss and one registration
(tests/toy/) gets its command, its flags, its table in a recipe, its resume and its equality on two
processes, with no line changed elsewhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minimind.hub import load_model, read_tensors
from minimind.log import read_metrics

root = Path(__file__).resolve().parents[1]
ENV = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "toy")]),
    "OMP_NUM_THREADS": "1",
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SMALL = ["--device", "cpu", "--log-every", "1", "--lr", "1e-3", "--muon-lr", "2e-3"]


def minimind(*argv, cwd, launcher=(), code=0):
    "Run the command in a fresh process that knows of the package; returns what was said."
    command = [sys.executable, *launcher, "-m", "minimind", *map(str, argv)]
    done = subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout + done.stderr


def losses(run):
    return [line["loss"] for line in read_metrics(run)]


def test_command_and_flags(tmp_path):
    assert "toy" in minimind("--help", cwd=tmp_path)
    said = minimind("toy", "--help", cwd=tmp_path)
    assert "--letters" in said and "letters of the alphabet that is learned" in said
    assert "--seq-len" in said and "folder of the run (default: runs/toy)" in said
    said = minimind("toy", "--letters", "0", cwd=tmp_path, code=2)
    assert "letters=0: must be at least 1" in said
    assert "did you mean toy?" in minimind("tooy", cwd=tmp_path, code=2)


def test_it_learns_and_leaves_a_model(tmp_path):
    assert "12 steps" in minimind("toy", "--dry-run", *SMALL, cwd=tmp_path)
    assert not (tmp_path / "runs").exists()
    said = minimind("toy", *SMALL, "--steps", "40", "--lr", "1e-2", cwd=tmp_path)
    assert "The model is in runs/toy.  Next:\n  minimind chat runs/toy\n" in said
    curve = losses(tmp_path / "runs" / "toy")
    assert len(curve) == 40 and curve[-1] < curve[0] - 2
    assert load_model(tmp_path / "runs" / "toy").config.hidden_size == 32


def test_it_has_a_table_in_recipes(tmp_path):
    (tmp_path / "toy.toml").write_text(
        'title = "a toy"\nsource = "nobody"\n[hardware]\ngpu = ""\n[toy]\nletters = 5\nsteps = 3\n'
        'out = "runs/of_the_recipe"\ndevice = "cpu"\n'
    )
    said = minimind("recipe", "toy.toml", "--dry-run", cwd=tmp_path)
    assert "-m minimind toy" in said and "--letters 5" in said
    assert "toy has no" not in said and "3 steps of 8 rows" in said
    minimind("recipe", "toy.toml", cwd=tmp_path)
    assert len(read_metrics(tmp_path / "runs" / "of_the_recipe")) >= 1
    (tmp_path / "toy.toml").write_text((tmp_path / "toy.toml").read_text() + "leters = 5\n")
    said = minimind("recipe", "toy.toml", "--dry-run", cwd=tmp_path, code=1)
    assert "leters" in said and "did you mean letters?" in said


def test_it_is_a_rung_of_the_ladder(tmp_path):
    assert "--toy-steps" in minimind("run", "--help", cwd=tmp_path)


def test_a_killed_run_goes_on_exactly(tmp_path):
    argv = ["toy", *SMALL, "--steps", "300", "--save-every", "5"]
    minimind(*argv, "--out", "whole", cwd=tmp_path)
    command = [sys.executable, "-m", "minimind", *argv, "--out", "killed"]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (tmp_path / "killed/trainer/step-00000015").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    minimind(*argv, "--out", "killed", cwd=tmp_path)
    whole, killed = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "killed"))
    assert whole == killed and losses(tmp_path / "whole") == losses(tmp_path / "killed")
    said = minimind(*argv, "--out", "killed", "--letters", "9", cwd=tmp_path, code=1)
    assert "letters was 8, is 9" in said and "alphabet was 8, is 9" not in said


@pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32",
    reason="needs gloo and torchrun",
)
def test_two_processes_train_as_one(tmp_path):
    argv = ["toy", *SMALL, "--steps", "6", "--batch-size", "5"]
    minimind(*argv, "--out", "one", cwd=tmp_path)
    minimind(*argv, "--out", "two", cwd=tmp_path, launcher=TORCHRUN)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6 and two == pytest.approx(one, abs=1e-5, rel=1e-5)
    a, b = (read_tensors(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "two/config.json").read_text())["hidden_size"] == 32
