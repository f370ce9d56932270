"The switches: size, device, precision, seed, and where the data lies."

import random
from pathlib import Path

import pytest
import torch

from minimind import core


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
