"The switches: size, device, precision, seed; where the data lies, and how folders are made."

import os
import random
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


@pytest.mark.parametrize(
    "capability, dtype",
    [((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_dtype(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert core.get_dtype(torch.device("cuda")) == dtype
    assert (
        core.get_dtype(torch.device("cpu")) == core.get_dtype(torch.device("mps")) == torch.float32
    )
    assert core.get_dtype(torch.device("cpu"), "bfloat16") == torch.bfloat16
    with pytest.raises(ValueError, match="'float16'.*bfloat16"):
        core.get_dtype(torch.device("cpu"), "float16")


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
