"""Trackers: whatever one of them does, the run goes on; and its curve has every step once, however
often the run was killed. The real libraries are fed by a process that is killed with -9, and
what they wrote is read back with their own readers."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minimind import track
from minimind.log import MetricsLog, read_metrics
from minimind.plugins import PLUGINS, Plugin, load_plugin
from minimind.track import SwanLab, Tracker, Trackers, WeightsAndBiases, new_note, tracked_line

root = Path(__file__).resolve().parents[1]
LONG = 60  # seconds; a machine may be busy


def installed(*modules):
    return all(importlib.util.find_spec(m) for m in modules)


@pytest.fixture(autouse=True)
def no_word_from_the_user(monkeypatch):
    for variable in [v for v in os.environ if v.startswith(("SWANLAB_", "WANDB_"))]:
        monkeypatch.delenv(variable)


class Disk(Tracker):
    """A tracker that keeps what it is given in `stored`: as certain as a file, which is lost to no
    kill."""

    folder, certain, look = "disk", True, "look at {}"
    stored, begun, ended = [], [], []

    def __init__(self, folder, name, desc, settings, note):
        self.note = note
        self.begun.append((name, desc, settings, dict(note)))

    def log(self, step, numbers):
        self.stored.append((self.note["id"], step, numbers))

    def finish(self, error):
        self.ended.append(error)


class Memory(Disk):
    "A tracker that writes only at its end."

    certain, folder = False, "memory"
    stored, begun, ended = [], [], []

    def __init__(self, *args):
        super().__init__(*args)
        self.held = []

    def log(self, step, numbers):
        self.held.append((self.note["id"], step, numbers))

    def finish(self, error):
        self.stored.extend(self.held)
        self.ended.append(error)


@pytest.fixture
def trackers(monkeypatch, capsys):
    "Registers tracker classes for a test; `Disk` and `Memory` are empty at its start."
    for kind in (Disk, Memory):
        for store in (kind.stored, kind.begun, kind.ended):
            store.clear()

    def register(**kinds):
        for name, kind in kinds.items():
            monkeypatch.setitem(PLUGINS["tracker"], name, Plugin(kind, "for a test"))

    register(disk=Disk, memory=Memory)
    return register


def session(
    run,
    first,
    last,
    names=("disk", "memory"),
    end=True,
    fresh=False,
    every=10,
    evaluate=20,
    save=20,
    skip=(),
    error=None,
):
    """What `fit` does, from a checkpoint to a step. With `end=False` the process is gone after the
    last line was taken."""
    tracker, log = (
        Trackers(names, run, {"lr": 0.1}, fresh, "pretrain"),
        MetricsLog(run / "metrics.jsonl", first),
    )
    feeds = list(tracker.feeds)

    def both(**numbers):
        log(**numbers)
        tracker(**numbers)

    for step in range(first + 1, last + 1):
        if step % every == 0 and (step, 0) not in skip:
            both(step=step, loss=1 / step, lr=0.1, reward=None)
        if step % save == 0:
            (run / "trainer" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
        if step % evaluate == 0 and (step, 1) not in skip:
            both(step=step, bpb=2 / step)
    if end:
        tracker.finish(error)
    else:
        wait_for(lambda: all(f.lines.empty() and f.since is None for f in feeds))
        if "disk" in names:
            given = list(tracked_line(**read_metrics(run)[-1])[0])
            wait_for(
                lambda: (
                    json.loads((run / "trainer" / "trackers.json").read_text())["disk"]["last"]
                    == given
                )
            )
    return tracker


def wait_for(condition):
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
    time.sleep(0.05)


def expected(run):
    return [
        (step, numbers)
        for (step, _), numbers in (tracked_line(**line) for line in read_metrics(run))
    ]


def once(kind, run):
    return [(step, numbers) for _, step, numbers in kind.stored] == expected(run)


# ---- one line ------------------------------------------------------------------------------------
def test_a_line_is_told_by_its_learning_rate():
    when, numbers = tracked_line(
        40, loss=2.5, lr=0.1, reward=None, kl=float("nan"), norm=float("inf"), name="x", tokens=7
    )
    assert when == (40, 0) and numbers == {"train/loss": 2.5, "train/lr": 0.1, "train/tokens": 7.0}
    assert tracked_line(step=40, bpb_en=1.5) == ((40, 1), {"eval/bpb_en": 1.5})
    # the order of the log
    assert tracked_line(40, lr=0.1)[0] < tracked_line(40, bpb=1)[0] < tracked_line(41, lr=0.1)[0]


# ---- names ---------------------------------------------------------------------------------------
def test_an_unknown_name_stops(tmp_path):
    with pytest.raises(ValueError, match="track='wandbb': choose from swanlab, wandb, tensorboard"):
        Trackers(("tensorboard", "wandbb"), tmp_path, {})
    assert not list(tmp_path.iterdir()) and not [
        t for t in threading.enumerate() if t.name.startswith("track-tensorboard")
    ]


def test_a_lone_name_is_a_name_too(tmp_path):
    with pytest.raises(ValueError, match="track='nosuch': choose from swanlab"):
        Trackers("nosuch", tmp_path, {})


def test_without_names_nothing_is_made(tmp_path):
    tracker = Trackers((), tmp_path, {})
    tracker(10, loss=1.0, lr=0.1)
    tracker.finish()
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_one_line(tmp_path, trackers, capsys):
    class Absent(Disk):
        package = "surely[not]"

        @classmethod
        def modules(cls):
            return ("surely_not_there",)

    trackers(absent=Absent)
    session(tmp_path, 0, 40, ("absent", "disk"))
    out = [line for line in capsys.readouterr().out.splitlines() if "absent" in line]
    assert len(out) == 1 and "surely_not_there" in out[0] and "pip install 'surely[not]'" in out[0]
    assert once(Disk, tmp_path)


def test_a_board_that_is_missing_counts_as_missing(monkeypatch):
    # what was logged without the board can't be opened later
    assert SwanLab.modules() == ("swanlab", "swanboard")
    monkeypatch.setenv("SWANLAB_MODE", "cloud")
    assert SwanLab.modules() == ("swanlab",) and SwanLab.mode() == "online"


def test_no_library_is_imported_before_it_is_used():
    code = "import sys, minimind.track; print([m for m in ('swanlab', 'swanboard', 'wandb', 'tensorboard') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
        ).stdout
        == "[]\n"
    )


# ---- harm ----------------------------------------------------------------------------------------
PLACES = ("start", "log", "finish")


def bad(place, action):
    "A tracker that does `action` at one place; and the event that says it was there."
    reached = threading.Event()

    def act():
        reached.set()
        action()

    class Bad(Disk):
        folder, stored, begun, ended = "bad", [], [], []

        def __init__(self, *args):
            super().__init__(*args)
            if place == "start":
                act()

        def log(self, step, numbers):
            if place == "log" and step == 20:
                act()
            super().log(step, numbers)

        def finish(self, error):
            if place == "finish":
                act()
            super().finish(error)

    return Bad, reached


def about(capsys, name):
    return [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(f"tracker {name}:") and "look at" not in line
    ]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "error",
    [RuntimeError("no such project\nand more"), SystemExit(3), KeyboardInterrupt(), OSError()],
    ids=lambda e: type(e).__name__,
)
def test_a_tracker_that_raises_is_dropped(tmp_path, trackers, capsys, place, error):
    def fail():
        raise error

    trackers(bad=bad(place, fail)[0])
    session(tmp_path, 0, 60, ("bad", "disk"))
    said = about(capsys, "bad")
    assert (
        len(said) == 1
        and f"failed at its {place}" in said[0]
        and type(error).__name__ in said[0]
        and "the run goes on without it" in said[0]
    )
    if isinstance(error, RuntimeError):
        assert "no such project)" in said[0]
    assert once(Disk, tmp_path) and Disk.ended == [None]


@pytest.mark.parametrize("place", PLACES)
def test_a_tracker_that_hangs_holds_up_nobody(tmp_path, trackers, capsys, monkeypatch, place):
    release = threading.Event()
    hanging, reached = bad(place, lambda: release.wait(10 * LONG))
    trackers(bad=hanging)
    monkeypatch.setattr(Trackers, "patience", 1.0)
    tracker = Trackers(("bad",), tmp_path, {})
    started = time.monotonic()
    for step in range(10, 200, 10):
        tracker(step, loss=1.0, lr=0.1)
    given = time.monotonic() - started
    if place != "finish":
        assert reached.wait(LONG)
    started = time.monotonic()
    tracker.finish()
    took = time.monotonic() - started
    release.set()
    said = about(capsys, "bad")
    assert (
        len(said) == 1
        and f"has not come back from its {place}; the run goes on without it" in said[0]
    )
    # of the 600 s that it would have taken; a machine may be busy
    assert given < 10 and took < 30


def test_the_neighbour_of_a_hanging_tracker_gets_everything(tmp_path, trackers, monkeypatch):
    release = threading.Event()
    trackers(bad=bad("log", lambda: release.wait(10 * LONG))[0])
    monkeypatch.setattr(Trackers, "patience", 1.0)
    session(tmp_path, 0, 200, ("bad", "disk"))
    wait_for(lambda: Disk.ended)
    release.set()
    assert once(Disk, tmp_path)


def test_a_call_that_hangs_is_told_while_the_run_goes_on_and_may_come_back(
    tmp_path, trackers, capsys, monkeypatch
):
    release = threading.Event()
    slow, reached = bad("log", lambda: release.wait(10 * LONG))
    trackers(bad=slow)
    monkeypatch.setattr(Trackers, "patience", 0.2)
    tracker = Trackers(("bad",), tmp_path, {})
    for step in (10, 20, 30):
        tracker(step, loss=1.0, lr=0.1)
    assert reached.wait(LONG)
    time.sleep(0.3)
    for step in (40, 50):
        tracker(step, loss=1.0, lr=0.1)
    said = about(capsys, "bad")
    assert (
        len(said) == 1
        and "has not come back from its log for" in said[0]
        and "the numbers wait" in said[0]
    )
    release.set()
    monkeypatch.setattr(Trackers, "patience", float(LONG))
    tracker.finish()
    # nothing is lost by waiting
    assert [step for _, step, _ in slow.stored] == [10, 20, 30, 40, 50]


def test_lines_wait_for_a_hanging_tracker_up_to_a_limit(tmp_path, trackers, capsys, monkeypatch):
    release = threading.Event()
    hanging, reached = bad("start", lambda: release.wait(10 * LONG))
    trackers(bad=hanging)
    monkeypatch.setattr(track.Feed, "room", 50)
    tracker = Trackers(("bad",), tmp_path, {})
    feed = tracker.feeds[0]
    tracker(0, loss=1.0, lr=0.1)
    assert reached.wait(LONG)
    for step in range(1, 1000):
        tracker(step, loss=1.0, lr=0.1)
    assert feed.lines.qsize() == 50
    said = about(capsys, "bad")
    assert len(said) == 1 and "has taken none of the last 50 lines" in said[0]
    release.set()
    tracker.finish()
    assert about(capsys, "bad") == []  # it was said once


def test_notes_that_cannot_be_written_cost_the_tracker_only(tmp_path, trackers, capsys):
    (tmp_path / "trainer").write_text("a file where a folder should be")
    tracker = Trackers(("disk",), tmp_path, {})
    for step in (10, 20):
        tracker(step, loss=1.0, lr=0.1)
    tracker.finish()
    assert "failed at its start" in about(capsys, "disk")[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"disk": 3}',
        '{"disk": {"last": [20, 1]}, "memory": null}',
        '{"disk": {"id": "a", "last": "b"}}',
    ],
)
def test_damaged_notes_do_not_stop_a_run(tmp_path, trackers, text):
    session(tmp_path, 0, 40)
    (tmp_path / "trainer" / "trackers.json").write_text(text)
    session(tmp_path, 40, 80)
    assert [line["step"] for line in read_metrics(tmp_path)][-1] == 80


def test_the_end_can_be_told_twice_and_late_lines_are_ignored(tmp_path, trackers):
    tracker = session(tmp_path, 0, 40, ("disk",))
    tracker.finish()
    tracker(50, loss=1.0, lr=0.1)
    assert Disk.ended == [None] and len(Disk.stored) == 6


def test_an_error_reaches_the_tracker(tmp_path, trackers):
    error = ValueError("NaN")
    session(tmp_path, 0, 40, error=error)
    assert Disk.ended == Memory.ended == [error]


# ---- the same curve, after a kill ----------------------------------------------------------------
def test_what_a_tracker_is_told(tmp_path, trackers):
    session(tmp_path / "english", 0, 40, ("disk",))
    [(name, desc, settings, note)] = Disk.begun
    assert (name, desc, settings, note["last"]) == ("english", "pretrain", {"lr": 0.1}, [-1, 0])
    assert once(Disk, tmp_path / "english") and [step for _, step, _ in Disk.stored] == [
        10,
        20,
        20,
        30,
        40,
        40,
    ]
    saved = json.loads((tmp_path / "english" / "trainer" / "trackers.json").read_text())["disk"]
    assert saved == {
        "id": note["id"],
        "last": [40, 1],
        "first": {"train/loss": 0.1, "train/lr": 0.1},
    }


def test_a_resumed_run_goes_on_with_its_id_and_repeats_nothing(tmp_path, trackers):
    # ended after step 70, its last checkpoint at 60
    session(tmp_path, 0, 70)
    session(tmp_path, 60, 100)
    for kind in (Disk, Memory):
        assert once(kind, tmp_path) and len({i for i, _, _ in kind.stored}) == 1


def test_a_killed_run_gives_again_what_was_not_certain(tmp_path, trackers):
    session(tmp_path, 0, 70, end=False)
    assert len(Disk.stored) == 10 and not Memory.stored
    session(tmp_path, 60, 130, end=False)
    session(tmp_path, 120, 150)
    for kind in (Disk, Memory):
        assert once(kind, tmp_path) and len({i for i, _, _ in kind.stored}) == 1


def test_the_evaluation_of_the_last_step_is_not_taken_for_its_training_line(tmp_path, trackers):
    # killed between checkpoint and evaluation
    session(tmp_path, 0, 60, ("disk",), end=False, skip={(60, 1)})
    tracker, log = Trackers(("disk",), tmp_path, {}), MetricsLog(tmp_path / "metrics.jsonl", 60)
    assert not log.evaluated
    for write in (log, tracker):
        write(step=60, bpb=2 / 60)
    tracker.finish()
    assert once(Disk, tmp_path)


def test_a_tracker_that_is_switched_on_later_gets_the_whole_curve(tmp_path, trackers):
    session(tmp_path, 0, 60, ("disk",))
    session(tmp_path, 60, 100, ("disk", "memory"))
    assert once(Disk, tmp_path) and once(Memory, tmp_path)


def test_and_also_when_the_run_is_over(tmp_path, trackers):
    session(tmp_path, 0, 60, ("disk",))
    session(tmp_path, 60, 60, ("disk", "memory"))
    # the other has nothing new to show, and does not begin
    assert once(Memory, tmp_path) and len(Disk.begun) == 1


def test_lines_after_the_checkpoint_are_given_when_they_are_made_again(tmp_path, trackers):
    # metrics.jsonl has step 70, the checkpoint does not
    session(tmp_path, 0, 70, ("disk",), end=False)
    tracker = Trackers(("memory",), tmp_path, {})
    tracker.finish()
    assert max(step for _, step, _ in Memory.stored) == 60


@pytest.mark.parametrize("how", ["fresh", "without a checkpoint"])
def test_a_run_that_begins_again_is_another_run(tmp_path, trackers, how):
    save = 1000 if how == "without a checkpoint" else 20
    session(tmp_path, 0, 50, save=save)
    session(tmp_path, 0, 50, save=save, fresh=how == "fresh")
    for kind in (Disk, Memory):
        ids = [i for i, _, _ in kind.stored]
        assert len(set(ids)) == 2 and [
            (s, n) for i, s, n in kind.stored if i == ids[-1]
        ] == expected(tmp_path)


def test_notes_of_a_run_that_was_here_before_are_not_taken_up(tmp_path, trackers):
    session(tmp_path, 0, 60)
    # begun again, and nobody tracked it at first
    (tmp_path / "metrics.jsonl").unlink()
    for folder in (tmp_path / "trainer").glob("step-*"):
        folder.rmdir()
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (10, 20):
        log(step=step, loss=7.0, lr=0.1)
    (tmp_path / "trainer" / "step-00000020").mkdir()
    session(tmp_path, 20, 60)
    for kind in (Disk, Memory):
        ids = [i for i, _, _ in kind.stored]
        assert len(set(ids)) == 2 and [
            (s, n) for i, s, n in kind.stored if i == ids[-1]
        ] == expected(tmp_path)


def test_a_tracker_that_can_go_on_with_nothing_gets_everything_again(tmp_path, trackers):
    class Whole(Memory):
        "As SwanLab's local board: each process makes a curve of its own."

        stored, begun, ended = [], [], []

        def __init__(self, *args):
            super().__init__(*args)
            self.note["last"] = [-1, 0]
            self.stored.clear()

    trackers(whole=Whole)
    # ended after its checkpoint: lines 61 to 70 come again, and belong to the curve
    session(tmp_path, 0, 70, ("whole",), error=ValueError())
    session(tmp_path, 60, 100, ("whole",))
    assert once(Whole, tmp_path)


def test_another_mode_is_another_run():
    note = new_note() | {"last": [40, 1], "whole": ["run-1"]}
    before = dict(note)
    assert track._in_mode(note, "offline") == "offline" and note == before | {"mode": "offline"}
    track._in_mode(note, "online")
    assert note["id"] != before["id"] or note["last"] == [-1, 0]
    assert note["mode"] == "online" and note["last"] == [-1, 0] and "whole" not in note


# ---- in training ---------------------------------------------------------------------------------
def small(tmp_path, **changes):
    from minimind.hub import to_hf_config
    from minimind.model import ModelConfig
    from minimind.pretrain import PretrainConfig

    (tmp_path / "shape").mkdir(exist_ok=True)
    (tmp_path / "shape" / "config.json").write_text(
        json.dumps(
            to_hf_config(
                ModelConfig(
                    hidden_size=32,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    intermediate_size=64,
                )
            )
        )
    )
    (tmp_path / "text.jsonl").write_text(
        "".join(
            json.dumps(
                {"text": f"The number after {i} is {i + 1}, and before it comes {i - 1}. " * 3}
            )
            + "\n"
            for i in range(300)
        )
    )
    return PretrainConfig(
        **{
            **dict(
                out=str(tmp_path / "run"),
                data=str(tmp_path / "text.jsonl"),
                model=str(tmp_path / "shape"),
                vocab_size=300,
                seq_len=32,
                batch_size=2,
                micro_batch_size=2,
                steps=8,
                log_every=2,
                eval_every=4,
                eval_bytes=300,
                save_every=4,
                device="cpu",
                track=("tensorboard",),
            ),
            **changes,
        }
    )


def test_training_gives_every_line_of_its_log(tmp_path, trackers):
    from minimind import pretrain

    trackers(tensorboard=Disk)
    pretrain.run(small(tmp_path))
    assert (
        once(Disk, tmp_path / "run")
        and {step for _, step, _ in Disk.stored} == {2, 4, 6, 8}
        and Disk.ended == [None]
    )
    [(name, desc, settings, _)] = Disk.begun
    assert (name, desc, settings["steps"]) == ("run", "pretrain", 8) and json.dumps(settings)
    pretrain.run(small(tmp_path))  # all is done
    assert len(Disk.begun) == 1 and once(Disk, tmp_path / "run")


def test_what_ends_training_is_told_to_its_trackers(tmp_path, trackers, monkeypatch):
    from minimind import pretrain

    trackers(tensorboard=Disk)
    original, calls = pretrain.bits_per_byte, []

    def fail(*args):
        calls.append(1)
        if len(calls) > 1:
            raise OSError("the held-out text is gone")
        return original(*args)

    monkeypatch.setattr(pretrain, "bits_per_byte", fail)
    with pytest.raises(OSError, match="held-out"):
        pretrain.run(small(tmp_path))
    assert [str(e) for e in Disk.ended] == ["the held-out text is gone"]
    monkeypatch.setattr(pretrain, "bits_per_byte", original)
    # the evaluation that was missed comes now, once
    pretrain.run(small(tmp_path))
    assert once(Disk, tmp_path / "run") and len({i for i, _, _ in Disk.stored}) == 1


def test_a_hanging_tracker_does_not_stop_training(tmp_path, trackers, capsys, monkeypatch):
    from minimind import pretrain

    release = threading.Event()
    trackers(
        tensorboard=bad("log", lambda: release.wait(10 * LONG))[0],
        swanlab=bad("start", lambda: 1 / 0)[0],
    )
    monkeypatch.setattr(Trackers, "patience", 1.0)

    class Early(load_plugin("tracker", "tensorboard")):
        def log(self, step, numbers):
            super().log(20, numbers)

    trackers(tensorboard=Early)
    assert pretrain.run(small(tmp_path, track=("tensorboard", "swanlab")))["step"] == 8
    release.set()
    said = capsys.readouterr().out
    assert (
        "tracker tensorboard: has not come back from its log" in said
        and "tracker swanlab: failed at its start (ZeroDivisionError" in said
    )


# ---- the libraries themselves --------------------------------------------------------------------
DRIVER = """
import json, os, shutil, sys, time
from pathlib import Path
from minimind.checkpoint import checkpoints
from minimind.log import MetricsLog
from minimind.track import Trackers

out, names, last, how = Path(sys.argv[1]), tuple(sys.argv[2].split(",")), int(sys.argv[3]), sys.argv[4]
Trackers.patience = 300.
if how == "fresh":
    for c in checkpoints(out): shutil.rmtree(c)
first = max((int(c.name[5:]) for c in checkpoints(out)), default=0)
tracker, log = Trackers(names, out, {"lr": .1, "data": ["a", "b"], "init": None}, how == "fresh", "pretrain"), MetricsLog(out/"metrics.jsonl", first)
feeds = list(tracker.feeds)
def both(**numbers): log(**numbers); tracker(**numbers)
for step in range(first + 1, last + 1):
    if step % 10 == 0: both(step=step, loss=1/step, lr=.1, reward=None)
    if step % 20 == 0:
        (out/"trainer"/f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
        both(step=step, bpb_en=2/step)
if how.startswith("kill"):
    until = time.monotonic() + 120
    while how != "kill at once" and time.monotonic() < until and not all(f.lines.empty() and f.since is None for f in feeds): time.sleep(.02)
    if how == "kill later": time.sleep(2)
    os.kill(os.getpid(), 9)
tracker.finish()
print("ENV", os.environ.get("SWANLAB_LOG_DIR"))
"""
LIBRARIES = {
    "swanlab": ("swanlab", "swanboard"),
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard",),
}


def drive(run, last, how, names=None, **env):
    names = names or [n for n, modules in LIBRARIES.items() if installed(*modules)]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(run), ",".join(names), str(last), how],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_ERROR_REPORTING": "false", **env},
    )
    assert done.returncode == (-9 if how.startswith("kill") else 0), done.stdout + done.stderr
    assert "failed at" not in done.stdout and "without it" not in done.stdout, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    "A run of 150 steps that was killed twice, and ended twice by itself."
    if not any(installed(*modules) for modules in LIBRARIES.values()):
        pytest.skip("no tracker is installed")
    run = tmp_path_factory.mktemp("killed") / "english"
    # at step 50, its checkpoint at 40; some libraries have written what they had
    drive(run, 50, "kill later")
    drive(run, 70, "finish")
    drive(run, 110, "kill at once")
    said = drive(run, 150, "finish")
    # what a library sets for itself is not left to the next
    assert "ENV None" in said
    return run


def need(*modules):
    if missing := [m for m in modules if not installed(m)]:
        pytest.skip(f"{missing[0]} is not installed")


def by_key(run):
    "`{key: [(step, number)]}` of the log."
    out = {}
    for line in read_metrics(run):
        (step, _), numbers = tracked_line(**line)
        for k, v in numbers.items():
            out.setdefault(k, []).append((step, v))
    return out


def read_swanlab(folder):
    "`{experiment: {key: [(step, number)]}}`, from what the local board reads."
    db = sqlite3.connect(folder / "runs.swanlab")
    out = {}
    for number, run_id, name in db.execute("select id, run_id, name from experiment"):
        tags = db.execute(
            "select name, folder from tag where experiment_id = ?", (number,)
        ).fetchall()
        lines = {
            key: [
                json.loads(line)
                for file in sorted((folder / run_id / "logs" / kid).glob("*.log"))
                for line in file.read_text().splitlines()
            ]
            for key, kid in tags
        }
        out[name] = {
            key: [(line["index"], line["data"]) for line in found] for key, found in lines.items()
        }
    db.close()
    return out


def read_wandb(folder):
    "`{id: {key: [(step, number)]}}`, over all parts, in the order of their making."
    out = {}
    for file in sorted(folder.glob("offline-run-*/*.wandb")):
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        records = [json.loads(line) for line in done.stdout.splitlines()]
        run = out.setdefault(next(r["run"]["run_id"] for r in records if r["type"] == "run"), {})
        for r in (r["history"]["item"] for r in records if r["type"] == "history"):
            for k, v in r.items():
                if not k.startswith("_"):
                    run.setdefault(k, []).append((r["_step"], v))
    return out


def read_tensorboard(folder):
    "`{id: {key: [(step, number)]}}`, as TensorBoard shows it: without what a restart hides."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = {}
    for run in sorted(folder.iterdir()):
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        out[run.name] = {
            k: [(e.step, e.value) for e in events.Scalars(k)] for k in events.Tags()["scalars"]
        }
    return out


def same_points(shown, wanted):
    assert shown.keys() == wanted.keys()
    for key, points in wanted.items():
        assert [s for s, _ in shown[key]] == [s for s, _ in points], key
        # TensorBoard keeps float32
        assert [v for _, v in shown[key]] == pytest.approx([v for _, v in points], rel=1e-6), key


def test_swanlab_shows_every_step_once(killed):
    need("swanlab", "swanboard")
    shown = read_swanlab(killed / "swanlog")
    # one curve on the board, not one for each process
    assert list(shown) == ["english"]
    same_points(shown["english"], by_key(killed))
    assert len(list((killed / "swanlog").glob("run-*"))) == 1
    charts = (
        sqlite3.connect(killed / "swanlog" / "runs.swanlab")
        .execute("select name from chart where experiment_id is null")
        .fetchall()
    )
    assert sorted(charts) == [("eval/bpb_en",), ("train/loss",), ("train/lr",)]


def test_wandb_holds_every_step_once(killed):
    need("wandb")
    [shown] = read_wandb(killed / "wandb").values()
    same_points(shown, by_key(killed))
    # two processes ended by themselves
    assert len(list((killed / "wandb").glob("offline-run-*"))) == 2


def test_tensorboard_shows_every_step_once(killed):
    need("tensorboard")
    [shown] = read_tensorboard(killed / "tensorboard").values()
    same_points(shown, by_key(killed))


def test_a_fresh_run_stands_beside_the_old_one(killed):
    before = by_key(killed)
    drive(killed, 30, "fresh")
    now = by_key(killed)
    for modules, read, folder in (
        (("swanlab", "swanboard"), read_swanlab, "swanlog"),
        (("wandb",), read_wandb, "wandb"),
        (("tensorboard",), read_tensorboard, "tensorboard"),
    ):
        if not installed(*modules):
            continue
        old, new = read(killed / folder).values()
        same_points(old, before)
        same_points(new, now)


def test_several_runs_in_one_process(tmp_path):
    need("swanlab", "swanboard")
    code = (
        DRIVER.replace("tracker.finish()\n", "").split("out, names")[0]
        + """
for name in ("a", "b"):
    tracker = Trackers(("swanlab",), Path(sys.argv[1])/name, {})
    tracker.patience = 300.
    for step in (10, 20): tracker(step, loss=float(step), lr=.1)
    tracker.finish()
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "without it" not in done.stdout, done.stdout + done.stderr
    for name in ("a", "b"):
        assert read_swanlab(tmp_path / name / "swanlog") == {
            name: {"train/loss": [(10, 10.0), (20, 20.0)], "train/lr": [(10, 0.1), (20, 0.1)]}
        }


def test_what_the_user_set_is_respected(tmp_path):
    need("swanlab", "wandb")
    drive(
        tmp_path / "off",
        40,
        "finish",
        ["swanlab", "wandb"],
        SWANLAB_MODE="disabled",
        WANDB_MODE="disabled",
        SWANLAB_LOG_DIR=str(tmp_path / "mine"),
    )
    assert not list((tmp_path / "off").glob("*/*run-*")) and not (tmp_path / "mine").exists()
    drive(tmp_path / "part", 50, "kill", ["swanlab"], SWANLAB_MODE="offline")
    drive(tmp_path / "part", 90, "finish", ["swanlab"], SWANLAB_MODE="offline")
    parts = sorted(p.name for p in (tmp_path / "part" / "swanlog").glob("run-*"))
    note = json.loads((tmp_path / "part" / "trainer" / "trackers.json").read_text())["swanlab"]
    assert (
        len(parts) == 1
        and note["whole"] == parts
        and note["mode"] == "offline"
        and note["last"] == [90, 0]
    )


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_without_network_a_run_ends_all_the_same(tmp_path, name):
    "The server takes the connection and says nothing, as a broken proxy does."
    need(*LIBRARIES[name])
    import socket

    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(100)
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        env = {
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_INIT_TIMEOUT": "5",
            "SWANLAB_MODE": "cloud",
            "SWANLAB_API_HOST": url,
            "SWANLAB_API_KEY": "0" * 40,
        }
        code = f"from minimind.track import Trackers; Trackers.patience = 2.; t = Trackers(('{name}',), {str(tmp_path)!r}, {{}}); [t(s, loss=1., lr=.1) for s in range(10, 50, 10)]; t.finish(); print('trained')"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=500,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )
    assert (
        done.returncode == 0
        and "trained" in done.stdout
        and f"tracker {name}: has not come back from its start; the run goes on without it"
        in done.stdout
    ), done.stdout + done.stderr


def test_the_interface_is_kept():
    trackers = {name: load_plugin("tracker", name) for name in PLUGINS["tracker"]}
    for kind in trackers.values():
        assert issubclass(kind, Tracker) and kind.package and "{" in kind.look and kind.modules()
    assert (
        set(trackers) == {"swanlab", "wandb", "tensorboard"}
        and trackers["wandb"] is WeightsAndBiases
    )
