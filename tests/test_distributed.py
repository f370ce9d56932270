"Several processes train as one: the same losses and weights for every stage, a run that goes on with another number of processes, and no hanging when one dies. Real processes, gloo."
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_stages import ADAPTERS, TINY, config, flags, world  # noqa: F401  (a fixture)

from minimind.checkpoint import read_tensors
from minimind.cli import STAGES
from minimind.train import read_metrics

pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or sys.platform == "win32", reason="needs gloo and torchrun")

# What each process runs: commands, one after another. `stop` sends rank 0 the system's request to end in that step; `seen` is where the rows that were trained on are written.
DRIVER = '''
import hashlib, json, os, signal, sys
import minimind.sft      # before its imports are watched
import minimind.train as train
from minimind.cli import main
rank = int(os.environ["RANK"])
for job in json.load(open(sys.argv[1])):
    steps, rows, split, gradients = [], [], train.split_rows, train.compute_gradients
    def counted(*args, **kw):
        steps.append(1)
        if rank == 0 and len(steps) == job.get("stop"): os.kill(os.getpid(), signal.SIGTERM)
        return gradients(*args, **kw)
    def recorded(batch, size):
        for micro in split(batch, size):
            rows.extend(hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in micro["input_ids"])
            yield micro
    train.compute_gradients, train.split_rows = counted, recorded
    code = 0
    try: code = main(job["argv"])
    except SystemExit as e: code = e.code
    train.compute_gradients, train.split_rows = gradients, split
    if "seen" in job:
        with open(f"{job['seen']}.{rank}", "w") as f: json.dump(rows, f)
    assert code == (143 if "stop" in job else 0), (job, code)
'''


def start(folder, size, jobs):
    "Start processes that run the commands; returns the launcher, which ends when they do."
    (folder/"driver.py").write_text(DRIVER)
    (folder/f"jobs{size}.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), str(folder/"driver.py"), str(folder/f"jobs{size}.json")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def torchrun(folder, size, jobs):
    process = start(folder, size, jobs)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out[-3000:]
    return out


def losses(run): return [line["loss"] for line in read_metrics(run) if "lr" in line]


def weights(run, name="sft"): return read_tensors(run/ADAPTERS.get(name, "model.safetensors"))


OPTIONS = dict(steps=6, log_every=1, batch_size=5, lr=1e-3, muon_lr=2e-3)      # five rows for two processes: three and two. Large steps of Adam would blow rounding up
RUNS = {name: (name, {}) for name in STAGES} | {"ppo that stops early": ("ppo", {"target_kl": 1e-9})}


def options(name, changes, world):  # noqa: F811
    "`OPTIONS`, without what the stage has no setting for."
    return {k: v for k, v in OPTIONS.items() if TINY[name](world).get(k, 0) is not None} | changes


@pytest.fixture(scope="module")
def both(world, tmp_path_factory):  # noqa: F811
    "Every stage, by one process and by two."
    folder = tmp_path_factory.mktemp("both")
    for run, (name, changes) in RUNS.items():
        module, cfg = config(name, world, folder/"one"/run, **options(name, changes, world))
        module.run(cfg)
    return folder, torchrun(folder, 2, [{"argv": flags(name, world, folder/"two"/run, **options(name, changes, world))} for run, (name, changes) in RUNS.items()])


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_as_one(both, run):
    folder, _ = both
    one, two = losses(folder/"one"/run), losses(folder/"two"/run)
    assert len(one) == 6 and two == pytest.approx(one, abs=1e-5, rel=1e-5)
    a, b = (weights(folder/n/run, RUNS[run][0]) for n in ("one", "two"))
    assert a.keys() == b.keys()
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-3, atol=1e-4)
    clocks = {"seconds", "tokens_per_second", "rollout_tokens_per_second"}
    for ours, line in zip(read_metrics(folder/"two"/run), read_metrics(folder/"one"/run), strict=True):
        assert ours.keys() == line.keys() and {k: v for k, v in ours.items() if k not in clocks} == pytest.approx({k: v for k, v in line.items() if k not in clocks}, abs=1e-3, rel=1e-3)
    if "early" in run: assert [line["stopped"] for line in read_metrics(folder/"two"/run) if "lr" in line] == [0, 0, 1, 1, 0, 0]


def test_only_one_speaks(both):
    _, out = both
    for name in STAGES: assert out.count(f"{name} step 6/6") == [n for n, _ in RUNS.values()].count(name), name


def test_any_number_of_processes_goes_on(world, tmp_path):  # noqa: F811
    "Two processes are stopped, one goes on and is stopped, three finish: every row of the epoch is trained on exactly once."
    options = dict(steps=0, epochs=1., batch_size=5, log_every=1, save_every=100, lr=1e-3, muon_lr=2e-3)
    module, cfg = config("sft", world, tmp_path/"whole", **options)
    module.run(cfg)
    argv = flags("sft", world, tmp_path/"cut", **options)
    total = len(losses(tmp_path/"whole"))
    for turn, (size, stop) in enumerate(((2, 3), (1, 2), (3, None))):
        out = torchrun(tmp_path, size, [{"argv": argv, "seen": str(tmp_path/f"seen{turn}")} | ({"stop": stop} if stop else {})])
        if stop: assert f"SIGTERM after step {(3, 5)[turn]} of {total}" in out
    assert losses(tmp_path/"cut") == pytest.approx(losses(tmp_path/"whole"), abs=1e-4)
    seen = [json.loads(f.read_text()) for f in sorted(tmp_path.glob("seen*"))]
    assert len(seen) == 2 + 1 + 3 and all(seen)
    from minimind.sft import chat_batches
    from minimind.tokenizer import Tokenizer
    batches = chat_batches(cfg, cfg.files(None)[0], Tokenizer.from_file(cfg.init), tmp_path/"store")
    rows = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for step in range(total) for row in batches.at(step)["input_ids"]]
    assert sorted(rows) == sorted(row for rows in seen for row in rows)


def test_nobody_waits_for_a_dead_process(world, tmp_path):  # noqa: F811
    argv = flags("sft", world, tmp_path/"run", steps=100_000, save_every=20)
    launcher = start(tmp_path, 2, [{"argv": argv}])
    try:
        deadline = time.time() + 120
        while not list(tmp_path.glob("run/trainer/step-*")): assert time.time() < deadline and launcher.poll() is None; time.sleep(.2)
        children = subprocess.run(["pgrep", "-P", str(launcher.pid), "-f", "driver.py"], capture_output=True, text=True).stdout.split()
        assert len(children) == 2
        os.kill(int(children[1]), signal.SIGKILL)
        killed = time.time()
        out = launcher.communicate(timeout=60)[0]
    finally: launcher.kill()
    assert launcher.returncode and time.time() - killed < 60 and "Signal 9" in out
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    torchrun(tmp_path, 2, [{"argv": flags("sft", world, tmp_path/"run", steps=100_000, save_every=20), "stop": 2}])      # and the run goes on
