"The switches: size, device, precision, seed; where the data lies, and how folders are made."

import os
import random
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from minimind import core
from minimind.plugins import load_plugin


@pytest.fixture
def cards(
    monkeypatch,
):  # pretend that a machine has so many CUDA cards, and Apple's graphics or not
    def pretend(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def test_size(monkeypatch):
    monkeypatch.delenv("MINIMIND_SIZE", raising=False)
    assert core.size() == "ci" and core.pick(1, 2) == 1 == core.pick(ci=1, full=2)
    monkeypatch.setenv("MINIMIND_SIZE", "full")
    assert core.size() == "full" and core.pick(1, 2) == 2
    monkeypatch.setenv("MINIMIND_SIZE", "Full")
    for f in (core.size, lambda: core.pick(1, 2)):
        with pytest.raises(ValueError, match="'Full'.*ci, full"):
            f()


def test_auto_takes_the_fastest_device(cards, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    cards()
    assert core.get_device() == torch.device("cpu")
    cards(mps=True)
    assert core.get_device() == torch.device("mps")
    cards(cuda=2, mps=True)
    assert core.get_device() == torch.device("cuda", 0) == core.get_device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert core.get_device() == torch.device("cuda", 1) == core.get_device(
        "cuda"
    ) and core.get_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert core.get_device("cuda:1") == core.get_device("cuda")
    with pytest.raises(
        ValueError, match="'cuda:0': torchrun has started 2 processes here.*use --device cuda$"
    ):
        core.get_device("cuda:0")


def test_a_device_that_is_not_there_is_refused(cards, monkeypatch):
    cards(cuda=2)
    assert core.get_device("cuda:1") == torch.device("cuda", 1) and core.get_device(
        "cpu"
    ) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"cuda:2.*cuda × 2"):
        core.get_device("cuda:2")
    with pytest.raises(ValueError, match="mps.*not available"):
        core.get_device("mps")
    with pytest.raises(ValueError, match="'gpu'.*unknown"):
        core.get_device("gpu")
    monkeypatch.setenv("LOCAL_RANK", "5")
    with pytest.raises(ValueError, match="cuda:5"):
        core.get_device()
    cards()
    with pytest.raises(ValueError, match="not available here, where torch finds cpu"):
        core.get_device("cuda")


cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    "capability, dtype",
    [
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4, 2080
        ((8, 0), torch.bfloat16),
        ((8, 6), torch.bfloat16),  # 3090
        ((9, 0), torch.bfloat16),
    ],
)
def test_dtype(monkeypatch, capability, dtype):
    monkeypatch.delenv("MINIMIND_DTYPE")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert core.get_dtype(cuda) == dtype == core.fastest_dtype(cuda)
    assert core.has_bfloat16(cuda) == (dtype == torch.bfloat16)
    assert core.get_dtype(cpu) == core.get_dtype(mps) == torch.float32 == core.fastest_dtype(mps)
    for name, named in core.DTYPES.items():
        assert core.get_dtype(cpu, name) == core.get_dtype(cuda, name) == named
    with pytest.raises(ValueError, match="'float8'.*auto or one of float32, bfloat16, float16"):
        core.get_dtype(cpu, "float8")


def test_the_default_dtype_can_be_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert core.get_dtype(cuda) == torch.float32  # of all tests, see conftest.py
    monkeypatch.setenv("MINIMIND_DTYPE", "bfloat16")
    never = pytest.fail
    for device in (cpu, cuda, mps):
        assert core.get_dtype(device) == core.fastest_dtype(device, never) == torch.bfloat16
    assert core.get_dtype(cpu, "float32") == torch.float32
    monkeypatch.setenv("MINIMIND_DTYPE", "auto")
    assert core.get_dtype(cpu) == torch.float32
    monkeypatch.setenv("MINIMIND_DTYPE", "bf16")
    for ask in (core.get_dtype, core.fastest_dtype):
        with pytest.raises(ValueError, match="'bf16': choose auto or one of"):
            ask(cpu)


@pytest.fixture
def trial(monkeypatch):
    """Pretend that a processor has bfloat16, and takes so many seconds for a pass in it; float32
    takes one. A clock of our own tells the time, and each reading is late by a little noise."""
    monkeypatch.setenv("MINIMIND_DTYPE", "")
    clock, asked, noise = [0.0], [], random.Random(0)

    def pretend(seconds, hardware="avx512_bf16"):
        def elsewhere(device, dtype):
            assert torch.get_num_threads() == 1  # several would wait for each other
            asked.append(dtype)
            clock[0] += seconds if dtype == torch.bfloat16 else 1.0
            return real(device, dtype)

        real = core.precision
        monkeypatch.setattr(core, "precision", elsewhere)
        monkeypatch.setattr(core.time, "perf_counter", lambda: clock[0] + noise.uniform(0, 0.04))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, hardware: True})
        core.bfloat16_gain.cache_clear()
        return asked

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield pretend
    torch.set_num_threads(threads)
    core.bfloat16_gain.cache_clear()


@pytest.mark.parametrize(
    "seconds, dtype",
    [(0.4, torch.bfloat16), (0.75, torch.bfloat16), (0.9, torch.float32), (2.8, torch.float32)],
)
@pytest.mark.parametrize("hardware", ["avx512_bf16", "amx_bf16", "sve_bf16"])
def test_a_processor_computes_in_what_is_clearly_faster_there(trial, seconds, dtype, hardware):
    asked = trial(seconds, hardware)
    assert core.fastest_dtype(cpu) == dtype and torch.get_num_threads() == 2
    assert core.bfloat16_gain(cpu) == pytest.approx(1 / seconds, rel=0.1)
    # in turn, the first of each to warm up, and once a process
    assert asked == [torch.float32, torch.bfloat16] * 6
    assert core.get_dtype(cpu) == torch.float32  # who does not ask for speed


def test_where_there_is_no_bfloat16_nothing_is_tried(trial):
    assert trial(0.4, "avx512_vnni") == []
    assert core.fastest_dtype(cpu) == torch.float32 and core.bfloat16_gain(cpu) == 0
    assert trial(0.4, "avx512_vnni") == []


def test_one_slow_pass_does_not_decide(trial, monkeypatch):
    "Another program took the processor for a while."
    trial(0.4)
    passes = iter([1.0, 0.4, 1.0, 9.0, 1.0, 0.4, 8.0, 0.4, 1.0, 7.0, 1.0, 0.4])
    monkeypatch.setattr(core, "pass_seconds", lambda device, dtype: next(passes))
    assert core.fastest_dtype(cpu) == torch.bfloat16


def test_processes_that_train_together_do_not_disagree(trial, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert trial(0.4) == [] and core.fastest_dtype(cpu) == torch.float32


@pytest.mark.parametrize(
    "device, hardware, given, says",
    [
        (cuda, (7, 5), "", "float16 (the card has no bfloat16)"),
        (cuda, (8, 0), "", "bfloat16 (the card has it)"),
        (mps, None, "", "float32 (bfloat16 is not in the hardware)"),
        (cpu, 0.0, "", "float32 (bfloat16 is not in the hardware)"),
        (cpu, 0.4, "", "float32 (bfloat16 is 0.4 × as fast as float32 here)"),
        (cpu, 2.3, "", "bfloat16 (bfloat16 is 2.3 × as fast as float32 here)"),
        (cpu, 2.3, "float32", "float32 (MINIMIND_DTYPE)"),
    ],
)
def test_the_doctor_says_why(monkeypatch, device, hardware, given, says):
    from minimind import doctor

    monkeypatch.setenv("MINIMIND_DTYPE", given)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: hardware)
    gain = lambda device: hardware
    monkeypatch.setattr(doctor, "bfloat16_gain", lambda device: hardware or 0.0)
    monkeypatch.setattr(doctor, "fastest_dtype", lambda device: core.fastest_dtype(device, gain))
    assert doctor.describe_dtype(device) == says


def test_the_trial_is_short(monkeypatch):
    "Where the processor has no bfloat16 too; it is slower there."
    monkeypatch.setattr(core, "has_bfloat16", lambda device: True)
    core.bfloat16_gain.cache_clear()
    start = time.process_time()
    gain = core.bfloat16_gain(cpu)
    assert gain > 0.01 and time.process_time() - start < 20
    core.bfloat16_gain.cache_clear()


def test_seed():
    def draws(seed):
        core.seed_everything(seed)
        return random.random(), torch.rand(2).tolist()

    assert draws(3) == draws(3) != draws(4)


def test_data_is_found(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIMIND_DATA", raising=False)
    shipped = Path(__file__).resolve().parents[1] / "data_samples"
    monkeypatch.chdir(tmp_path)
    assert core.data_dir() == shipped  # beside the package
    own = tmp_path / "data_samples"
    own.mkdir()
    (own / "MANIFEST.json").write_text("{}")
    (own / "a.jsonl").write_text("")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    assert core.data_dir() == own and core.sample("a.jsonl") == own / "a.jsonl"
    with pytest.raises(FileNotFoundError, match=r"b.jsonl is not there.*a.jsonl"):
        core.sample("b.jsonl")
    monkeypatch.setenv("MINIMIND_DATA", str(shipped))
    assert core.data_dir() == shipped
    monkeypatch.setenv("MINIMIND_DATA", str(tmp_path / "deep"))
    with pytest.raises(FileNotFoundError, match="MINIMIND_DATA=.*deep.*MANIFEST"):
        core.data_dir()


def test_no_data_anywhere(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIMIND_DATA", raising=False)
    monkeypatch.setattr(core, "__file__", str(tmp_path / "site-packages" / "minimind" / "core.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="clone"):
        core.data_dir()


# ---- folders and states
def content(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("one", "two"):
        with core.atomic_folder(tmp_path / "deep" / "made") as half:
            assert half.parent == tmp_path / "deep" and half.name.startswith(".made.")
            (half / text).write_text(text)
            assert text not in content(tmp_path / "deep" / "made")
    assert content(tmp_path) == ["deep", "deep/made", "deep/made/two"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("")
    with pytest.raises(KeyboardInterrupt):
        with core.atomic_folder(tmp_path / "made") as half:
            (half / "new").write_text("")
            raise KeyboardInterrupt
    assert content(tmp_path) == ["made", "made/old"]


def test_the_quicker_process_wins(tmp_path):
    other = tmp_path / "made"

    def make():
        other.mkdir()
        (other / "theirs").write_text("")

    with core.atomic_folder(other, unless=other.exists) as half:
        (half / "ours").write_text("")
        make()
    assert content(tmp_path) == ["made", "made/theirs"]


@pytest.mark.parametrize("same", [True, False])
def test_a_process_that_is_quicker_by_a_hair(tmp_path, monkeypatch, same):
    """The other process renames its folder between our last look and our own rename: fine if it
    made the same, an error if not."""
    asked, other = [], tmp_path / "made"

    def unless():
        asked.append(True)
        return same and len(asked) > 1

    def rename(self, target):
        other.mkdir()
        (other / "theirs").write_text("")
        raise OSError("directory not empty")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="not empty") if not same else nullcontext():
        with core.atomic_folder(other, unless=unless) as half:
            (half / "ours").write_text("")
    assert len(asked) == 2 and content(tmp_path) == ["made", "made/theirs"]


def test_only_what_nobody_writes_to_is_swept(tmp_path):
    for name in (".made.1-1.tmp", ".made.2-2.tmp", ".other.3-3.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("")
    for old in (".made.1-1.tmp", ".other.3-3.tmp"):
        for path in (tmp_path / old / "part", tmp_path / old):
            os.utime(path, (1, 1))
    assert [p.name for p in core.leftovers(tmp_path / "made")] == [".made.1-1.tmp"]
    with core.atomic_folder(tmp_path / "made"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".made.2-2.tmp",
        ".other.3-3.tmp",
        "made",
    ]


def test_a_kind_of_plugin_that_is_not_there():
    with pytest.raises(
        ValueError, match="no plug-ins of kind 'trackers'; choose of stage, strategy"
    ):
        load_plugin("trackers", "wandb")


def test_a_stateful_says_what_it_lacks():
    class Forgetful(core.Stateful):
        pass

    with pytest.raises(NotImplementedError, match="Forgetful"):
        Forgetful().state_tensors()
    with pytest.raises(NotImplementedError, match="Forgetful"):
        Forgetful().load_state_tensors({})
