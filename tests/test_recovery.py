"""Kill and resume: `kill -9` at random moments, at every operation on the disk that a checkpoint is
made of, and a polite SIGTERM. Whatever happens, the final weights are those of a run that was
never stopped, to the last bit.

A driver process imports the library once and forks a child for each run, so that twenty kills do
not cost twenty imports."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
root = Path(__file__).resolve().parents[1]

DRIVER = """
import json, os, signal, sys, time
import torch, torch._dynamo           # torch's optimizers load it at their first use: once here, not in each child
from minimind import checkpoint, hub, model, pretrain
from minimind.model import ModelConfig

model.PRESETS["tiny"] = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64)

def die_at(n):
    "Let the n-th operation on the disk be the last: the process kills itself just before it."
    count = [0]
    def counted(f):
        def call(*args, **kw):
            count[0] += 1
            if count[0] == n: os.kill(os.getpid(), signal.SIGKILL)
            return f(*args, **kw)
        return call
    for module, name in ((os, "replace"), (os, "link"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (hub, "save_file")): setattr(module, name, counted(getattr(module, name)))

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1); os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job.get("die_at"): die_at(job["die_at"])
    if job.get("slow"):
        write = checkpoint.write_tensors
        checkpoint.write_tensors = lambda *args: (time.sleep(job["slow"]), write(*args))
    code = 1
    try: pretrain.run(pretrain.PretrainConfig(**job["settings"])); code = 0
    except SystemExit as e: code = e.code
    except KeyboardInterrupt: code = 130
    except BaseException:
        import traceback; traceback.print_exc()
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(code)
"""


class Driver:
    def __init__(self, folder):
        self.folder = folder
        (folder / "driver.py").write_text(DRIVER)
        self.process = subprocess.Popen(
            [sys.executable, folder / "driver.py"],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(root),
                "TOKENIZERS_PARALLELISM": "false",
            },
        )

    def start(self, out, die_at=None, slow=None, **changes):
        "Start a run in a child; returns its process id."
        settings = (
            dict(
                out=str(out),
                data=[str(self.folder / "text.jsonl")],
                heldout=[str(self.folder / "heldout.jsonl")],
                tokenizer=str(self.folder / "tokenizer.json"),
                model="tiny",
                seq_len=32,
                batch_size=4,
                micro_batch_size=2,
                steps=10,
                warmup=2,
                save_every=1,
                keep=2,
                log_every=4,
                eval_every=4,
                eval_bytes=300,
                device="cpu",
            )
            | changes
        )
        print(
            json.dumps(
                dict(settings=settings, log=str(self.folder / "log.txt"), die_at=die_at, slow=slow)
            ),
            file=self.process.stdin,
            flush=True,
        )
        return int(self.process.stdout.readline())

    def wait(self):
        "The exit code of the child; a signal is negative."
        return int(self.process.stdout.readline())

    def run(self, out, **changes):
        self.start(out, **changes)
        return self.wait()

    def log(self):
        return (self.folder / "log.txt").read_text()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from minimind.core import sample
    from minimind.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("recovery")
    lines = sample("pretrain_en.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    (folder / "text.jsonl").write_text("\n".join(lines[:10]) + "\n", encoding="utf-8")
    (folder / "heldout.jsonl").write_text("\n".join(lines[10:]) + "\n", encoding="utf-8")
    Tokenizer.train((json.loads(l)["text"] for l in lines), 320).save(folder / "tokenizer.json")
    driver = Driver(folder)
    yield driver
    driver.process.stdin.close()
    driver.process.wait(timeout=20)


def result(out):
    """What must be the same: the model's bytes, the last checkpoint's, and the log but for the
    clock."""
    out = Path(out)
    lines = [
        {
            k: v
            for k, v in json.loads(l).items()
            if k not in ("seconds", "tokens_per_second", "data_seconds")
        }
        for l in (out / "metrics.jsonl").read_text().splitlines()
    ]
    newest = max((out / "trainer").glob("step-*"))
    return (
        lines,
        (out / "model.safetensors").read_bytes(),
        newest.name,
        *((newest / f"{n}.safetensors").read_bytes() for n in ("model", "optimizer", "random")),
    )


@pytest.fixture(scope="module")
def whole(driver):
    "The run that nobody disturbs."
    assert driver.run(driver.folder / "whole") == 0, driver.log()
    lines, *rest = result(driver.folder / "whole")
    assert [l["step"] for l in lines] == [4, 4, 8, 8, 10, 10]
    return lines, *rest


def phase(out):
    "Where a killed run was: told by what it left."
    trainer = Path(out) / "trainer"
    if any(f.name.startswith(".") for f in trainer.glob("*")) or any(
        f.name.endswith(".tmp") for f in Path(out).glob(".*")
    ):
        return "writing"
    steps = sorted(trainer.glob("step-*"))
    if not steps:
        return "before the first checkpoint"
    published = Path(out) / "model.safetensors"
    return (
        "between"
        if published.exists() and os.path.samefile(published, steps[-1] / "model.safetensors")
        else "writing"
    )


def complete(out):
    "Each folder that bears a checkpoint's name is a whole checkpoint."
    for step in (Path(out) / "trainer").glob("step-*"):
        assert sorted(f.name for f in step.iterdir()) == [
            "model.safetensors",
            "optimizer.safetensors",
            "random.safetensors",
            "state.json",
        ]
        assert json.loads((step / "state.json").read_text())["step"] == int(step.name[5:])


@pytest.mark.parametrize("beside", [False, True])
def test_twenty_kills(driver, whole, beside):
    """One run after another is killed until it has happened twenty times; a run that is killed goes
    on in the next child. `beside`: its checkpoints are written by a thread."""
    rng, out, kills, phases, finished = (
        random.Random(0),
        driver.folder / f"killed{beside}",
        0,
        Counter(),
        0,
    )
    started = time.monotonic()
    while kills < 20:
        shutil.rmtree(out, ignore_errors=True)
        while kills < 20:
            before = max((int(f.name[5:]) for f in (out / "trainer").glob("step-*")), default=0)
            child = driver.start(out, async_checkpoint=beside)
            # the marker: it has saved, or is about to, or is done
            deadline = time.monotonic() + 30
            while (
                time.monotonic() < deadline
                and not any(int(f.name[5:]) > before for f in (out / "trainer").glob("step-*"))
                and not (out / "trainer" / "step-00000010").exists()
            ):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
            # it was quicker
            if driver.wait() == 0:
                break
            kills += 1
            complete(out)
            phases[phase(out)] += 1
        assert driver.run(out) == 0, driver.log()
        assert result(out) == whole
        finished += 1
    assert kills == 20 and set(phases) >= {"writing", *([] if beside else ["between"])}, phases
    print(f"{kills} kills over {finished} runs, {dict(phases)}, {time.monotonic() - started:.0f} s")


def test_a_kill_before_the_first_checkpoint(driver, whole):
    out = driver.folder / "early"
    child = driver.start(out)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (out / "store").exists():
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL and phase(out) in (
        "before the first checkpoint",
        "writing",
        "between",
    )
    assert driver.run(out) == 0 and result(out) == whole


@pytest.mark.parametrize("beside", [False, True])
def test_a_kill_at_every_operation_on_the_disk(driver, whole, beside):
    """From the first step's checkpoint until the second has taken its place: killed before every
    other rename, link, sync, deletion or write in turn."""
    out, n, seen, points = driver.folder / f"points{beside}", 0, Counter(), 0
    while True:
        n += 2
        shutil.rmtree(out, ignore_errors=True)
        # the same tokens: those are another test's subject
        shutil.copytree(driver.folder / "whole" / "store", out / "store")
        code = driver.run(out, die_at=n, keep=1, async_checkpoint=beside)
        if (out / "trainer" / "step-00000003").exists():
            break
        assert code == -signal.SIGKILL
        complete(out)
        seen[phase(out)] += 1
        points += 1
        # to the end, from some of them
        if n % 10 == 0:
            assert driver.run(out) == 0, driver.log()
            assert result(out) == whole
        # a model folder is a whole model folder
        elif (out / "config.json").exists():
            from minimind.hub import load_pretrained

            load_pretrained(out)
    assert points > 30 and set(seen) >= {"writing", *([] if beside else ["between"])}, seen


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_stop(driver, whole, number, code):
    out = driver.folder / number.name
    # on a busy machine the run may be over before the signal comes
    for _ in range(8):
        shutil.rmtree(out, ignore_errors=True)
        child = driver.start(out, log_every=1, save_every=1000, eval_every=0)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (
            (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size
        ):
            time.sleep(0.001)
        os.kill(child, number)
        if ended := driver.wait():
            break
    assert ended == code, driver.log()
    stopped_at = json.loads((max((out / "trainer").glob("step-*")) / "state.json").read_text())[
        "step"
    ]
    assert (
        f"{number.name} after step {stopped_at} of 10: saved in {out}; the same command goes on "
        "from here"
        in driver.log()
        and "Traceback" not in driver.log()
    )
    assert driver.run(out) == 0
    assert result(out)[1:] == whole[1:]


def test_a_signal_while_the_last_checkpoint_is_written_beside(driver, whole):
    "All steps are done and a thread writes: it may finish, whoever asks for the end."
    out = driver.folder / "last"
    # seconds before each file
    child = driver.start(
        out, save_every=1000, eval_every=0, eval_bytes=0, async_checkpoint=True, slow=1.0
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not list((out / "trainer").glob(".step-*.tmp")):
        time.sleep(0.001)
    time.sleep(0.3)
    os.kill(child, signal.SIGTERM)
    assert driver.wait() == 0, driver.log()
    assert (out / "trainer" / "step-00000010").is_dir() and (
        out / "model.safetensors"
    ).read_bytes() == whole[1]


def test_a_fresh_process_goes_on(driver, whole):
    """Once without the driver's fork: another interpreter, another hash seed, another place in
    memory."""
    out = driver.folder / "fresh-process"
    child = driver.start(out)
    while not (out / "trainer" / "step-00000003").exists():
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    driver.wait()
    other = Driver(driver.folder)
    try:
        assert other.run(out) == 0, other.log()
    finally:
        other.process.stdin.close()
        other.process.wait(timeout=20)
    assert result(out) == whole


def test_a_finished_run_is_left_alone(driver, whole):
    out = driver.folder / "whole"
    before = (out / "metrics.jsonl").read_text()
    assert (
        driver.run(out) == 0
        and "all 10 steps are done" in driver.log()
        and (out / "metrics.jsonl").read_text() == before
        and result(out) == whole
    )


def test_other_settings_are_refused(driver, whole):
    assert driver.run(driver.folder / "whole", lr=1e-5) == 1
    assert (
        "SettingsChanged" in driver.log()
        and "lr was" in driver.log()
        and driver.log().count("Traceback") == 1
    )
