"""Several processes train as one: the same losses and weights for every stage, a run that goes on
with another number of processes, and no hanging when one dies. Real processes, gloo."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_stages import ADAPTERS, TINY, config, flags, world  # noqa: F401  (a fixture)

from minimind.hub import read_tensors
from minimind.log import read_metrics
from minimind.plugins import plugin_names

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32",
    reason="needs gloo and torchrun",
)

# What each process runs: commands, one after another. `spoil` makes the loss of that step NaN.
# `stop` sends rank 0 the system's request to end in that step; `seen` is where the rows that were
# trained on are written.
DRIVER = """
import hashlib, json, os, signal, sys
import minimind.sft      # before its imports are watched
import minimind.stage, minimind.train as train
from minimind.cli import main
from minimind.dist import leave
rank = int(os.environ["RANK"])
# it tries a step of its own, which would be counted
minimind.stage.few_steps = lambda *args: ""
for job in json.load(open(sys.argv[1])):
    steps, rows, add_up = [], [], train.add_up
    def counted(portion, *args, **kw):
        steps.append(1)
        if rank == 0 and len(steps) == job.get("stop"): os.kill(os.getpid(), signal.SIGTERM)
        for micro, idle in portion.micros:
            if not idle:
                rows.extend(hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in micro["input_ids"])
        return add_up(portion, *args, **kw)
    train.add_up = counted
    def spoiled(model, batch):
        loss, weight, metrics = loss_fn(model, batch)
        return loss*float("nan") if len(steps) == job.get("spoil") else loss, weight, metrics
    loss_fn, minimind.sft.causal_lm_loss = minimind.sft.causal_lm_loss, spoiled
    code = 0
    try: code = main(job["argv"])
    except SystemExit as e: code = e.code
    train.add_up, minimind.sft.causal_lm_loss = add_up, loss_fn
    if "seen" in job:
        with open(f"{job['seen']}.{rank}", "w") as f: json.dump(rows, f)
    assert code == (143 if "stop" in job else 0), (job, code)
leave(0)
"""


def start(folder, size, jobs):
    "Start processes that run the commands; returns the launcher, which ends when they do."
    (folder / "driver.py").write_text(DRIVER)
    (folder / f"jobs{size}.json").write_text(json.dumps(jobs))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(size),
        str(folder / "driver.py"),
        str(folder / f"jobs{size}.json"),
    ]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
    }
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def torchrun(folder, size, jobs):
    process = start(folder, size, jobs)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out[-20000:]
    return out


def losses(run):
    return [line["loss"] for line in read_metrics(run) if "lr" in line]


def weights(run, name="sft"):
    return read_tensors(run / ADAPTERS.get(name, "model.safetensors"))


def settings(stage):
    return {"zero_optimization": {"stage": stage}}


# How processes share the work: the flags that say so. Every stage is compared under those in
# `EVERYWHERE`, one stage under the others too.
WAYS = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    **{f"zero{n}": {"deepspeed": settings(n), "optimizer": "adamw"} for n in (1, 2, 3)},
}
EVERYWHERE = ("ddp", "fsdp", "zero2")


def sharing(way, folder):
    "The flags of a way, its settings written to a file."
    flags = dict(WAYS[way])
    if "deepspeed" in flags:
        (folder / f"{way}.json").write_text(json.dumps(flags["deepspeed"]))
        flags["deepspeed"] = str(folder / f"{way}.json")
    return flags


# five rows for two processes: three and two. Large steps of Adam would blow rounding up
OPTIONS = dict(steps=6, log_every=1, batch_size=5, lr=1e-3, muon_lr=2e-3)
STAGES = plugin_names("stage")
RUNS = {name: (name, {}) for name in STAGES} | {
    "ppo that stops early": ("ppo", {"target_kl": 1e-9})
}


def options(name, changes, world):  # noqa: F811
    "`OPTIONS`, without what the stage has no setting for."
    return {k: v for k, v in OPTIONS.items() if TINY[name](world).get(k, 0) is not None} | changes


def alone(world, folder, run, optimizer):  # noqa: F811
    "A run in one process, made once."
    name, changes = RUNS[run]
    out = folder / "one" / optimizer / run
    if not out.exists():
        module, cfg = config(
            name,
            world,
            out,
            **options(
                name, changes | ({} if optimizer == "own" else {"optimizer": optimizer}), world
            ),
        )
        module.run(cfg)
    return out


@pytest.fixture(scope="module")
def both(world, tmp_path_factory):  # noqa: F811
    "`(way) -> folder, what was said`: every stage that this way can train, by two processes."
    folder, said = tmp_path_factory.mktemp("both"), {}

    def by_two(way):
        if way not in said:
            more = sharing(way, folder)
            said[way] = torchrun(
                folder,
                2,
                [
                    {
                        "argv": flags(
                            name,
                            world,
                            folder / way / run,
                            **options(
                                name,
                                changes
                                | more
                                | (
                                    {"target_kl": 0}
                                    if way.startswith("zero") and name == "ppo"
                                    else {}
                                ),
                                world,
                            ),
                        )
                    }
                    for run, (name, changes) in RUNS.items()
                    if (way, run) in PAIRS
                ],
            )
        return folder, said[way]

    return by_two


PAIRS = [
    (way, run) for way in EVERYWHERE for run in RUNS if not ("zero" in way and "early" in run)
] + [("zero1", "sft"), ("zero3", "sft"), ("zero3", "lora"), ("zero3", "grpo")]


@pytest.mark.parametrize("way,run", PAIRS)
def test_two_processes_train_as_one(both, world, way, run):  # noqa: F811
    folder, _ = both(way)
    alone_in = alone(world, folder, run, WAYS[way].get("optimizer", "own"))
    one, two = losses(alone_in), losses(folder / way / run)
    assert len(one) == 6 and two == pytest.approx(one, abs=1e-5, rel=1e-5)
    a, b = (weights(out, RUNS[run][0]) for out in (alone_in, folder / way / run))
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-3, atol=1e-4)
    clocks = {
        "seconds",
        "tokens_per_second",
        "data_seconds",
        "rollout_tokens_per_second",
        "update_tokens_per_second",
    }
    for ours, line in zip(read_metrics(folder / way / run), read_metrics(alone_in), strict=True):
        assert ours.keys() == line.keys() and {
            k: v for k, v in ours.items() if k not in clocks
        } == pytest.approx({k: v for k, v in line.items() if k not in clocks}, abs=1e-3, rel=1e-3)
    if "early" in run:
        assert [line["stopped"] for line in read_metrics(folder / way / run) if "lr" in line] == [
            0,
            0,
            1,
            1,
            0,
            0,
        ]


@pytest.mark.parametrize("way", EVERYWHERE)
def test_only_one_speaks(both, way):
    _, out = both(way)
    for name in STAGES:
        assert out.count(f"{name} step 6/6") == [
            RUNS[run][0] for w, run in PAIRS if w == way
        ].count(name), name


@pytest.mark.parametrize("way", ["ddp", "fsdp", "zero2", "zero3"])
def test_a_step_that_is_not_finite_is_left_out(world, tmp_path, way):  # noqa: F811
    options = OPTIONS | {"on_nan": "skip", "optimizer": "adamw"}
    jobs = {
        size: [
            {
                "argv": flags(
                    "sft",
                    world,
                    tmp_path / str(size),
                    **options | (sharing(way, tmp_path) if size == 2 else {}),
                ),
                "spoil": 3,
            }
        ]
        for size in (1, 2)
    }
    for size in jobs:
        assert "skipped step 3" in torchrun(tmp_path, size, jobs[size])
    one, two = (read_metrics(tmp_path / str(size)) for size in (1, 2))
    assert [line.get("skipped", 0) for line in two] == [0, 0, 1, 0, 0, 0, 0] and one[2][
        "loss"
    ] is two[2]["loss"] is None
    assert [line["loss"] for line in two if line.get("loss")] == pytest.approx(
        [line["loss"] for line in one if line.get("loss")], abs=1e-5
    )
    a, b = (weights(tmp_path / str(size)) for size in (1, 2))
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "ways",
    [("ddp",) * 3, ("fsdp",) * 3, ("zero2",) * 3, ("zero3",) * 3, ("zero2", "fsdp", "zero3")],
    ids="-".join,
)
def test_any_number_of_processes_goes_on(world, tmp_path, ways):  # noqa: F811
    """Two processes are stopped, one goes on and is stopped, three finish, in the same way or
    another: every row of the epoch is trained on exactly once."""
    options = dict(
        steps=0, epochs=1.0, batch_size=5, log_every=1, save_every=100, lr=1e-3, muon_lr=2e-3
    ) | ({} if ways[0] in ("ddp", "fsdp") else {"optimizer": "adamw"})
    module, cfg = config("sft", world, tmp_path / "whole", **options)
    module.run(cfg)
    total = len(losses(tmp_path / "whole"))
    for turn, (size, stop) in enumerate(((2, 3), (1, 2), (3, None))):
        argv = flags("sft", world, tmp_path / "cut", **options | sharing(ways[turn], tmp_path))
        out = torchrun(
            tmp_path,
            size,
            [
                {"argv": argv, "seen": str(tmp_path / f"seen{turn}")}
                | ({"stop": stop} if stop else {})
            ],
        )
        if stop:
            assert f"SIGTERM after step {(3, 5)[turn]} of {total}" in out
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)
    seen = [json.loads(f.read_text()) for f in sorted(tmp_path.glob("seen*"))]
    assert len(seen) == 2 + 1 + 3 and all(seen)
    from minimind.sft import chat_batches
    from minimind.tokenizer import Tokenizer

    batches = chat_batches(
        cfg, cfg.files(None)[0], Tokenizer.from_file(cfg.init), tmp_path / "store"
    )
    rows = [
        hashlib.sha256(row.numpy().tobytes()).hexdigest()
        for step in range(total)
        for row in batches.at(step)["input_ids"]
    ]
    assert sorted(rows) == sorted(row for rows in seen for row in rows)


def ranks(launcher):
    return [
        int(p)
        for p in subprocess.run(
            ["pgrep", "-P", str(launcher.pid), "-f", "driver.py"], capture_output=True, text=True
        ).stdout.split()
    ]


def kill_one(launcher, number):
    """Kill a rank; the other one must end too, within a minute, and with an error. Returns what was
    said."""
    children = ranks(launcher)
    os.kill(children[number], signal.SIGKILL)
    killed = time.time()
    out = launcher.communicate(timeout=60)[0]
    assert launcher.returncode and time.time() - killed < 60
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    return out


@pytest.mark.parametrize("way", ["ddp", "fsdp", "zero2"])
def test_nobody_waits_for_a_dead_process(world, tmp_path, way):  # noqa: F811
    argv = flags(
        "sft", world, tmp_path / "run", steps=100_000, save_every=20, **sharing(way, tmp_path)
    )
    launcher = start(tmp_path, 2, [{"argv": argv}])
    try:
        deadline = time.time() + 120
        while not list(tmp_path.glob("run/trainer/step-*")):
            assert time.time() < deadline and launcher.poll() is None
            time.sleep(0.2)
        assert len(ranks(launcher)) == 2
        said = kill_one(launcher, 1)
        assert (
            "Signal 9" in said
            and "another process of this run has ended; its own message says why" in said
        )
    finally:
        launcher.kill()
    torchrun(tmp_path, 2, [{"argv": argv, "stop": 2}])  # and the run goes on


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("way,kills", [("ddp", 100), ("fsdp", 20), ("zero2", 20)])
def test_kills_at_random_moments(world, tmp_path, way, kills):  # noqa: F811
    """Of one rank or of all, some while a checkpoint is written: every resume works, at most the
    steps since the last checkpoint are done again, and the weights at the end are those of a run
    that nobody killed."""
    options = dict(
        steps=20 + 10 * kills, save_every=4, log_every=1, lr=1e-3, muon_lr=2e-3, eval_rows=0
    ) | sharing(way, tmp_path)
    torchrun(tmp_path, 2, [{"argv": flags("sft", world, tmp_path / "whole", **options)}])
    chance, run, done, died = (
        random.Random(0),
        tmp_path / "cut",
        0,
        {"one rank": 0, "all": 0, "while a checkpoint was written": 0},
    )

    def newest():
        return max([int(f.name[5:]) for f in run.glob("trainer/step-????????")], default=0)

    for kill in range(kills):
        launcher = start(tmp_path, 2, [{"argv": flags("sft", world, run, **options)}])
        try:
            target, deadline = done + chance.choice((0, 0, 1, 4)), time.time() + 120
            while newest() < target or len(ranks(launcher)) < 2:
                assert time.time() < deadline and launcher.poll() is None, launcher.communicate()[
                    0
                ][-3000:]
                time.sleep(0.02)
            if chance.random() < 0.3:
                # in the middle of a write
                while not list(run.glob("trainer/.step-*.tmp")) and launcher.poll() is None:
                    pass
            else:
                time.sleep(chance.random() * chance.choice((0.05, 0.05, 3.0)))
            if chance.random() < 0.5:
                kill_one(launcher, chance.randrange(2))
                died["one rank"] += 1
            else:
                for pid in (launcher.pid, *ranks(launcher)):
                    os.kill(pid, signal.SIGKILL)
                launcher.communicate()
                died["all"] += 1
        finally:
            launcher.kill()
        died["while a checkpoint was written"] += bool(list(run.glob("trainer/.step-*.tmp")))
        logged = (
            max([line["step"] for line in read_metrics(run)], default=0)
            if (run / "metrics.jsonl").exists()
            else 0
        )
        assert newest() >= done and logged - newest() <= options["save_every"]
        done = newest()
        if done >= options["steps"] - 16:
            break
    torchrun(tmp_path, 2, [{"argv": flags("sft", world, run, **options)}])
    print(kill + 1, "kills:", died)
    a, b = weights(tmp_path / "whole"), weights(run)
    assert all(torch.equal(a[k], b[k]) for k in a) and losses(run) == losses(tmp_path / "whole")
