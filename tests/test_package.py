"""The package as a stranger gets it: a wheel in an environment of its own, outside the clone, with
its samples, its recipes, its types and its front door."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from hashlib import sha256
from pathlib import Path

import pytest

import minimind
from minimind.chat import encode_chat
from minimind.library import LanguageModel, find_models, load
from minimind.lora import apply_lora, save_lora
from minimind.model import PRESETS, MiniMind, ModelConfig, num_parameters
from minimind.tokenizer import Tokenizer
from shared import SHAPE

root = Path(__file__).resolve().parents[1]
modules = sorted(p.stem for p in (root / "minimind").glob("[!_]*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "What `pip wheel .` makes of a copy of the clone: the working tree stays as it is."
    copy = tmp_path_factory.mktemp("copy")
    for f in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy2(root / f, copy)
    for folder in ("minimind", "data_samples", "recipes"):
        ignore = shutil.ignore_patterns("__pycache__", "builders")
        shutil.copytree(root / folder, copy / folder, ignore=ignore)
    out = tmp_path_factory.mktemp("wheel")
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    pip("wheel", copy, *offline, "-q", "-w", out)
    [file] = out.glob("*.whl")
    return file


def pip(*args):
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, args)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Stranger:
    "An environment with the wheel, and a folder outside of any clone."

    def __init__(self, place, wheel, others=True):
        environment = place / "env"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.bin, self.cwd = environment / scripts, place / "elsewhere"
        self.python = self.bin / ("python.exe" if os.name == "nt" else "python")
        self.cwd.mkdir()
        hidden = ("PYTHONPATH", "MINIMIND_DATA", "VIRTUAL_ENV")
        self.env = {k: v for k, v in os.environ.items() if k not in hidden}
        pip("--python", self.python, "install", "-q", "--no-deps", "--no-index", wheel)
        if not others:
            return
        # torch and the others come from here; our own editable installation does not
        asked = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        packages = Path(self.run(self.python, "-c", asked).stdout.strip())
        (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")

    def run(self, *command, code=0):
        done = subprocess.run(
            [*map(str, command)], cwd=self.cwd, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def minimind(self, *args, code=0):
        return self.run(self.bin / "minimind", *args, code=code)


@pytest.fixture(scope="module")
def stranger(wheel, tmp_path_factory):
    return Stranger(tmp_path_factory.mktemp("stranger"), wheel)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    "A chat model that has learned nothing."
    from minimind.hub import save_pretrained

    folder = tmp_path_factory.mktemp("runs") / "sft"
    tokenizer = Tokenizer.train(["Hello, hello! What is it? It is a hat."] * 3, 300)
    model = MiniMind(ModelConfig(**SHAPE | {"vocab_size": len(tokenizer)}))
    save_pretrained(model, tokenizer, folder)
    return folder


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        [name] = [n for n in z.namelist() if n.endswith("/METADATA")]
        meta = Parser().parsestr(z.read(name).decode())
        names = z.namelist()
    # `minimind` on PyPI is a stranger's project
    assert meta["Name"] == "minimind-course" and meta["Version"] == minimind.__version__
    assert meta["Requires-Python"] == ">=3.10" and meta["License"] == "Apache-2.0"
    assert {"LICENSE", "data_samples/NOTICE.md"} <= set(meta.get_all("License-File"))
    classifiers = meta.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    assert "Programming Language :: Python :: 3.13" in classifiers
    assert {"course", "dev", "deepspeed"} <= set(meta.get_all("Provides-Extra"))
    assert "minimind/py.typed" in names
    foreign = [n for n in names if not n.startswith(("minimind/", "minimind_course-"))]
    assert not foreign, f"the wheel would put {foreign} beside the package"


def test_addresses_are_those_of_the_repository(monkeypatch, tmp_path):
    "Before it has one, none is given; OWNER would lead nowhere."
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **kw: given.update(kw))
    for f in ("settings.ini", "setup.py", "README.md"):
        shutil.copy2(root / f, tmp_path)
    settings = (tmp_path / "settings.ini").read_text(encoding="utf-8")
    for user in ("OWNER", "somebody"):
        text = "".join(
            f"user = {user}\n" if line.startswith("user = ") else line
            for line in settings.splitlines(keepends=True)
        )
        (tmp_path / "settings.ini").write_text(text, encoding="utf-8")
        runpy.run_path(str(tmp_path / "setup.py"))
        if user == "OWNER":
            assert not given["project_urls"]
    urls = given["project_urls"]
    assert urls["Source"] == "https://github.com/somebody/minimind"
    assert {"Homepage", "Documentation", "Issues", "Changelog"} <= urls.keys()


def test_the_wheel_carries_samples_and_recipes(wheel):
    listed = json.loads((root / "data_samples/MANIFEST.json").read_text(encoding="utf-8"))["files"]
    with zipfile.ZipFile(wheel) as z:
        inside = {n.removeprefix("minimind/_shipped/") for n in z.namelist() if "_shipped" in n}
        for name in listed:
            data = z.read(f"minimind/_shipped/data_samples/{name}")
            assert (
                sha256(data).hexdigest()
                == sha256((root / "data_samples" / name).read_bytes()).hexdigest()
            ), name
    recipes = {f"recipes/{p.name}" for p in (root / "recipes").iterdir() if p.is_file()}
    assert recipes <= inside and "data_samples/NOTICE.md" in inside
    # the builders are the repository's
    assert not any("builders" in n or n.endswith(".py") for n in inside)
    assert wheel.stat().st_size < 8e6


def test_a_stranger_has_the_commands(stranger):
    where = (
        "import minimind; from minimind.core import data_dir; print(minimind.__file__, data_dir())"
    )
    module, data = stranger.run(stranger.python, "-c", where).stdout.split()
    assert str(root) not in module and data.startswith(str(Path(module).parent))
    assert "files are as MANIFEST.json says" in stranger.minimind("data", "verify").stdout
    assert "pretrain: " in stranger.minimind("recipe", "ci", "--dry-run").stdout
    refused = stranger.minimind("data", "rebuild", code=1)
    assert "part of the repository, not of the package" in refused.stderr


def test_a_stranger_can_begin_the_ladder(stranger):
    "All of it takes a quarter of an hour; when the first model is made, all data have been read."
    with subprocess.Popen(
        [stranger.bin / "minimind", "run", "--out", "runs", "--pretrain-steps", "1"],
        cwd=stranger.cwd,
        env=stranger.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if " parameters on " in line:
                break
        process.kill()
    assert said and " parameters on " in said[-1], "".join(said)


def test_a_stranger_can_chat(stranger, model_folder):
    program = (
        "import minimind\n"
        f"lm = minimind.load({str(model_folder)!r}, device='cpu')\n"
        "first = lm.chat('Hello!', temperature=0, max_new_tokens=4)\n"
        "lm.chat('What is it?', temperature=0, max_new_tokens=4)\n"
        "print([m['role'] for m in lm.messages])\n"
    )
    said = stranger.run(stranger.python, "-c", program).stdout
    assert said.strip() == str(["user", "assistant"] * 2)


USER = """
import minimind
from minimind.grpo import grpo_loss
from minimind.model import PRESETS, MiniMind

lm = minimind.load("runs/ci/sft", device="cpu")
reply: str = lm.chat("Hi", temperature=0, max_new_tokens=8)
shouted: list[str] = [piece.upper() for piece in lm.stream("And now?")]
ids: list[int] = lm.tokenizer.encode(reply)
weights: int = sum(p.numel() for p in MiniMind("ci").parameters())
names: list[str] = sorted(PRESETS)
layers: int = minimind.model.PRESETS["ci"].num_hidden_layers
print(lm.generate("Once", max_new_tokens=4), grpo_loss, weights, names, layers, shouted, ids)
"""
WRONG = {
    "lm.chat(3)": "arg-type",
    "lm.chta('Hi')": "attr-defined",
    "minimind.grppo": "attr-defined",
    "lm.chat('Hi', temprature=1)": "call-arg",
    "number: int = lm.chat('Hi')": "assignment",
}


# ---- how the program begins and ends
WATCHED = """
import os, runpy, sys

class Watch:
    "Says what stands in the environment when PyTorch is looked for."
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            print("torch:", *(os.environ.get(k, "-") for k in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")))

sys.meta_path.insert(0, Watch())
sys.argv = ["minimind", "data", "list"]
"""
BEGINNINGS = {
    "module": "runpy.run_module('minimind', run_name='__main__')",
    # what an installed script does
    "script": "from minimind.__main__ import main; sys.exit(main())",
}


def begin(how, **environment):
    "The program begun in one of two ways: what it prints, in lines."
    ours = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    env = {k: v for k, v in os.environ.items() if k not in ours} | environment
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + BEGINNINGS[how]],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", BEGINNINGS)
def test_waiting_threads_are_told_to_sleep_before_torch_is_loaded(how):
    "libgomp reads its settings as it is loaded, and PyTorch loads it."
    from minimind.__main__ import SPINS

    assert begin(how)[0] == f"torch: {SPINS} -"


@pytest.mark.parametrize("how", BEGINNINGS)
def test_what_the_user_said_of_threads_stands(how):
    assert begin(how, GOMP_SPINCOUNT="7")[0] == "torch: 7 -"
    assert begin(how, OMP_WAIT_POLICY="active")[0] == "torch: - active"


def test_the_installed_script_begins_there_too(wheel):
    with zipfile.ZipFile(wheel) as z:
        [name] = [n for n in z.namelist() if n.endswith("/entry_points.txt")]
        scripts = z.read(name).decode()
    assert "minimind = minimind.__main__:main" in scripts


@pytest.mark.parametrize("processes", [1, 2])  # of torchrun, of which this is one
@pytest.mark.parametrize(
    "given, code, said",
    [("0", 0, ""), ("None", 0, ""), ("3", 3, ""), ("'too hot'", 1, "too hot\n")],
)
def test_the_exit_code(processes, given, code, said):
    "Whatever `SystemExit` carries."
    program = (
        "import sys, minimind.cli\n"
        f"def stop(): raise SystemExit({given})\n"
        "minimind.cli.main = stop\n"
        "from minimind.__main__ import main\n"
        "main()"
    )
    env = os.environ | {"WORLD_SIZE": str(processes)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, said)


def test_types_are_seen_from_outside(wheel, tmp_path):
    """A script that is right passes `mypy --strict`; one with five mistakes has five errors. Torch
    and the others are not there: to read their types takes minutes, and test_types does it."""
    pytest.importorskip("mypy")
    stranger = Stranger(tmp_path, wheel, others=False)
    (stranger.cwd / "right.py").write_text(USER)
    (stranger.cwd / "wrong.py").write_text(USER + "\n".join(WRONG) + "\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache"]
    files = ["right.py", "wrong.py"]
    done = stranger.run(*mypy, "--python-executable", stranger.python, *files, code=1)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert not [e for e in errors if e.startswith("right.py")], done.stdout
    line = USER.count("\n")
    for n, (source, code) in enumerate(WRONG.items(), 1):
        found = [e for e in errors if e.startswith(f"wrong.py:{line + n}:")]
        assert any(f"[{code}]" in e for e in found), f"{source}: {done.stdout}"


def test_the_front_door_names_every_module():
    assert set(modules) | {"load", "LanguageModel", "MiniMind", "Tokenizer"} <= set(dir(minimind))
    # what type checkers read is written by hand
    source = (root / "minimind/__init__.py").read_text(encoding="utf-8")
    listed = [line.split()[-1] for line in source.splitlines() if "from . import" in line]
    odd = set(listed) ^ set(modules)
    assert not odd, f"minimind/__init__.py: its imports for type checkers and the modules: {odd}"
    lacking = [m for m in modules if not re.search(rf"\b{m}\b", minimind.__doc__)]
    assert not lacking, f"minimind/__init__.py: its docstring does not mention {lacking}"


def test_the_front_door_opens_when_it_is_asked():
    assert minimind.grpo.grpo_loss.__module__ == "minimind.grpo"
    assert minimind.load is load and minimind.MiniMind is MiniMind
    with pytest.raises(AttributeError, match="no attribute 'grppo'; did you mean grpo"):
        minimind.grppo
    assert not hasattr(minimind, "__wrapped__")
    with pytest.raises(ImportError):
        exec("from minimind import nothing_of_the_kind")


def test_a_model_is_made_by_its_presets_name():
    model = MiniMind("ci")
    assert model.config == PRESETS["ci"]
    assert sum(p.numel() for p in model.parameters()) == num_parameters(PRESETS["ci"])
    with pytest.raises(ValueError, match="did you mean minimind-3.*there are ci, minimind2-small"):
        MiniMind("minimind3")
    with pytest.raises(TypeError, match="ModelConfig.from_dict"):
        MiniMind({"hidden_size": 64})


@pytest.mark.parametrize(
    "ids, error, words",
    [
        ("hello", TypeError, "input_ids is a str; wanted a tensor of token ids"),
        ([1, 2], TypeError, "input_ids is a list"),
        ([[0.5]], TypeError, "token ids are whole numbers"),
        ([1, 2], ValueError, "wanted \\(batch, tokens\\)"),
        ([[1, 320]], ValueError, "token id 320 is not in 0…319"),
        ([[-1, 3]], ValueError, "token id -1 is not in 0…319"),
    ],
    ids=["text", "list", "floats", "one row", "too large", "negative"],
)
def test_what_is_no_token_is_refused_in_words(ids, error, words):
    import torch

    model = MiniMind(ModelConfig(**SHAPE | {"vocab_size": 320}))
    given = ids if error is TypeError and ids in ("hello", [1, 2]) else torch.tensor(ids)
    with pytest.raises(error, match=words):
        model(given)


@pytest.mark.parametrize("name, value", [("rope_theta", "1e6"), ("hidden_size", 64.5)])
def test_a_shape_of_the_wrong_type_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r} must be a"):
        ModelConfig(**SHAPE | {name: value})


@pytest.fixture
def lm(model_folder):
    return load(model_folder, device="cpu")


def test_a_conversation_goes_on(lm):
    short = dict(max_new_tokens=5, seed=1)
    first = lm.chat("Hello!", **short)
    assert [m["content"] for m in lm.messages] == ["Hello!", first]
    second = lm.chat("What is it?", **short)
    assert [m["role"] for m in lm.messages] == ["user", "assistant"] * 2
    lm.reset()
    assert lm.messages == [] and "".join(lm.stream("Hello!", **short)) == first
    # a conversation that somebody else keeps
    asked = [*lm.messages, {"role": "user", "content": "What is it?"}]
    lm.reset()
    assert lm.chat(asked, **short) == second and lm.messages[:-1] == asked
    assert isinstance(lm, LanguageModel) and "parameters on cpu" in repr(lm)


def test_a_system_message_opens_every_conversation(lm, model_folder):
    lm.chat("Hello!", system="Be brief.", max_new_tokens=2)
    assert lm.messages[0] == {"role": "system", "content": "Be brief."}
    lm.reset()
    assert [m["role"] for m in lm.messages] == ["system"]
    lm.reset(system="")
    assert lm.messages == []
    told = load(model_folder, device="cpu", system="Be brief.")
    assert told.messages == lm.opening or told.messages[0]["content"] == "Be brief."


def test_what_was_said_is_kept_and_what_was_refused_is_not(lm):
    for piece in lm.stream("Hello!", max_new_tokens=50, temperature=0):
        break
    assert lm.messages[-1]["content"] == piece
    before = list(lm.messages)
    with pytest.raises(ValueError, match="leaves no room"):
        lm.chat("Hello " * 600)
    with pytest.raises(ValueError, match="messages must be a list, got int"):
        lm.chat(3)
    assert lm.messages == before


def test_a_thought_is_a_field_of_the_message(lm, monkeypatch):
    pieces = ["<think>\nhats", "\n</think>\n\nA h", "at."]
    monkeypatch.setattr(lm, "write", lambda ids, **options: iter(pieces))
    assert lm.chat("What is it?") == "A hat."
    said = {"role": "assistant", "content": "A hat.", "reasoning_content": "hats"}
    assert lm.messages[-1] == said
    encode_chat(lm.tokenizer, lm.messages)


def test_the_folder_says_how_to_sample(model_folder, tmp_path):
    folder = tmp_path / "sft"
    shutil.copytree(model_folder, folder)
    said = folder / "generation_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"temperature": 0.25, "top_k": 3}))
    lm = load(folder, device="cpu")
    assert lm.defaults["temperature"] == 0.25 and lm.defaults["top_k"] == 3
    said.write_text(json.dumps(json.loads(said.read_text()) | {"do_sample": False}))
    lm = load(folder, device="cpu")
    texts = {lm.generate("Hello", max_new_tokens=6) for _ in range(3)}
    assert len(texts) == 1 and lm.generate("Hello", max_new_tokens=6, temperature=0) in texts


def test_an_adapter_is_opened_on_its_model(model_folder, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(model_folder, runs / "sft")
    tuned = load(runs / "sft", device="cpu").model
    save_lora(apply_lora(tuned, r=2), runs / "lora", base_model=runs / "sft")
    said = load(runs / "sft", device="cpu").generate("Hello", max_new_tokens=5, temperature=0)
    assert load(runs / "lora", "cpu").generate("Hello", max_new_tokens=5, temperature=0) == said
    # both moved together: beside the adapter lies a folder of that name
    runs.rename(tmp_path / "moved")
    moved = load(tmp_path / "moved/lora", "cpu")
    assert moved.generate("Hello", max_new_tokens=5, temperature=0) == said
    (tmp_path / "moved/sft").rename(tmp_path / "base")
    with pytest.raises(ValueError, match="is an adapter, and the model that it belongs to"):
        load(tmp_path / "moved/lora", "cpu")
    named = load(tmp_path / "base", "cpu", adapter=tmp_path / "moved/lora")
    assert named.generate("Hello", max_new_tokens=5, temperature=0) == said


def test_without_a_path_the_newest_chat_model_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no chat model in runs/ yet.*makes one"):
        load()
    monkeypatch.setattr("minimind.library.newest_run", lambda: tmp_path / "found")
    with pytest.raises(FileNotFoundError, match="found is not a model folder"):
        load()


def test_a_base_model_is_not_taken_for_one_that_answers(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "base")
    (tmp_path / "base/store").mkdir()
    (tmp_path / "base/store/meta.json").write_text('{"kind": "pretrain"}')
    lm = load(tmp_path / "base", "cpu")
    assert lm.kind == "base" and isinstance(lm.generate("Hello", max_new_tokens=2), str)
    with pytest.warns(UserWarning, match="this is a base model"):
        lm.chat("Hello!", max_new_tokens=2)


def test_a_wrong_path_names_the_right_ones(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="`minimind run` makes some"):
        load("runs/ci/sft")
    shutil.copytree(model_folder, tmp_path / "runs/ci/sft")
    shutil.copytree(model_folder, tmp_path / "runs/ci/.sft.tmp")
    assert find_models() == [Path("runs/ci/sft")]
    there = "no such folder; did you mean runs/ci/sft\\? There is runs/ci/sft"
    with pytest.raises(FileNotFoundError, match=there):
        load("runs/ci/stf")
    with pytest.raises(FileNotFoundError, match="runs/ci is not a model folder: it has no config"):
        load("runs/ci")
