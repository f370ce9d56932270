"The program: what it prints, how it ends, and one small journey from a book to a chat."

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch

from minimind import cli, doctor, ladder
from minimind.log import columns
from minimind.hub import load_pretrained, to_hf_config
from minimind.library import LanguageModel
from minimind.terminal import Window
from minimind.core import data_dir, sample
from minimind.data import manifest
from minimind.model import PRESETS, ModelConfig
from minimind.plugins import plugin_names
from minimind.stage import find_stage
from minimind.train import option, options

STAGES = plugin_names("stage")
TINY = ModelConfig(
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=48,
    head_dim=16,
    max_position_embeddings=128,
)


@pytest.fixture
def say(capsys):  # the program on words: exit code, what it printed, what it complained of
    def run(*words):
        capsys.readouterr()
        try:
            code = cli.main(list(map(str, words)))
        except SystemExit as e:
            code = e.code
        return (code, *capsys.readouterr())

    return run


def process(*words, **kw):
    return subprocess.run(
        [sys.executable, "-m", "minimind", *words],
        capture_output=True,
        cwd=Path(__file__).resolve().parents[1],
        timeout=100,
        **kw,
    )


# ---- words that are not understood


def test_help(say):
    code, out, err = say("--help")
    assert (
        code == 0
        and err == ""
        and all(
            name in out
            for name in ("run", "doctor", "data", "tokenizer", "eval", "chat", "bench", *STAGES)
        )
    )
    assert say() == (0, out, "")
    assert say("--version")[0] == 0 and re.fullmatch(r"\d+\.\d+\.\d+\S*\n", say("--version")[1])


@pytest.mark.parametrize(
    "words, says",
    [
        ("pretrian", "did you mean pretrain?"),
        ("data shwo", "did you mean show?"),
        ("xyzzy", "choose one of run, doctor"),
        ("--versoin", "did you mean --version?"),
        ("pretrain --batch_size 3", "did you mean --batch-size?"),
        ("pretrain --epoch 3", "did you mean --epochs?"),
        ("sft --sede=3", "did you mean --seed?"),
        ("chat --temprature 1", "did you mean --temperature?"),
        ("data show x --row 3", "did you mean --rows?"),
        ("doctor now", "unknown argument now"),
        ("pretrain --steps ten", "--steps: invalid int value: 'ten'"),
        ("pretrain --lr fast", "--lr: invalid float value: 'fast'"),
        ("pretrain --steps", "expected one argument"),
        ("sft --data", "expected at least one"),
        ("pretrain --steps -1", "steps=-1"),
        ("sft --schedule cosign", "schedule='cosign': choose one of cosine"),
        ("pretrain --lr nan", "lr=nan"),
        ("tokenizer --data x --on-bad-line skipp", "did you mean skip?"),
        ("eval", "required: model"),
        ("tokenizer", "required: --data"),
        ("data show", "required: file"),
        ("data build", "required: FILE"),
        ("data build tests/../data_samples/sft_skills.jsonl", "conversations need --tokenizer"),
        ("chat runs/ci/sft --model x", "named without a flag, minimind chat FOLDER"),
        ("eval runs/ci/sft --model x", "named without a flag, minimind eval FOLDER"),
        ("bench data_sped", "did you mean data_speed?"),
        ("bench xyzzy", "choose from train_speed, "),
        ("recipe --dry-run", "which recipe?"),
    ],
)
def test_wrong_usage(say, words, says):
    code, out, err = say(*words.split())
    assert code == 2 and out == "" and says in err and len(err.splitlines()) == 2, err


@pytest.mark.parametrize(
    "words, says",
    [
        ("pretrain --data nowhere.txt", "nowhere.txt"),
        ("pretrain --data some.txt --device gpu", "'gpu'"),
        ("pretrain --data some.txt --dtype float64", "'float64'"),
        ("pretrain --data some.txt --model minimind9", "minimind2-small"),
        ("sft --init nowhere", "nowhere"),
        ("eval nowhere", "nowhere is not a model folder: there is no such folder"),
        ("chat nowhere -p hi", "nowhere is not a model folder: there is no such folder"),
        ("chat -p hi", "there is no chat model in runs/ yet"),
        ("pretrain --data some.txt --deepspeed zero1.json", "recipes/zero1.json"),
        ("recipe minimind2-smal-3090", "did you mean minimind2-small-3090?"),
        ("data show nowhere.jsonl", "here or among the samples (`minimind data list` names them)"),
        ("data show sft_skils.jsonl", "did you mean sft_skills.jsonl"),
        ("data build nowhere.jsonl", "nowhere.jsonl: there is no such file"),
        ("data show sft_skills.jsonl --tokenizer nowhere", "nowhere"),
        ("tokenizer --data nowhere.txt --out x", "nowhere.txt"),
        ("data show mc_poem.jsonl", "mc_poem.jsonl:1: "),
    ],
)
def test_what_cannot_be_done(say, words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.txt").write_text("Some text, for some model.\n" * 9)
    code, out, err = say(*words.split())
    lines = [line for line in err.splitlines() if "texts gave only" not in line]
    assert code == 1 and says in err and "Traceback" not in err and len(lines) == 1, err
    assert [p.name for p in tmp_path.iterdir()] == ["some.txt"], (
        "an order that can't be carried out leaves nothing behind"
    )


def fake(monkeypatch, error):
    def doctor(args):
        raise error

    monkeypatch.setattr(cli, "doctor", doctor)


def test_how_it_ends(say, monkeypatch):
    fake(monkeypatch, KeyboardInterrupt())
    assert say("doctor")[0] == 130
    for error in (
        RuntimeError("too hot"),
        ImportError("too hot"),
        OSError("too hot"),
        ValueError("too hot"),
    ):
        fake(monkeypatch, error)
        code, out, err = say("doctor")
        assert (
            code == 1 and err.startswith("minimind doctor: too hot") and len(err.splitlines()) == 1
        )
        monkeypatch.setenv("MINIMIND_DEBUG", "1")
        with pytest.raises(type(error)):
            cli.main(["doctor"])
        monkeypatch.delenv("MINIMIND_DEBUG")
    fake(monkeypatch, KeyError("a mistake of ours"))
    # keeps its traceback
    with pytest.raises(KeyError):
        cli.main(["doctor"])
    monkeypatch.setattr(cli, "doctor", lambda args: 7)
    assert say("doctor")[0] == 7


@pytest.mark.parametrize("words", [["--version"], ["data", "list"]])
def test_a_pipe_that_closes_early(words):
    pipe = subprocess.Popen(
        [sys.executable, "-m", "minimind", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    pipe.stdout.close()
    err = pipe.stderr.read()
    assert pipe.wait(100) == 141 and err == b"", err


def test_a_finished_line_is_out_at_once():
    "Also into a pipe or a file, where Python would keep it back."
    slow = (
        "import sys, time\n"
        "from minimind import cli\n"
        "cli.data_list = lambda args: (print('first'), time.sleep(60))\n"
        "cli.main(['data', 'list'])"
    )
    pipe = subprocess.Popen(
        [sys.executable, "-c", slow],
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    try:
        start = time.monotonic()
        assert pipe.stdout.readline() == "first\n" and time.monotonic() - start < 50
        assert pipe.poll() is None
    finally:
        pipe.kill()
        pipe.wait()


def test_terminals_that_know_no_unicode():
    done = process("data", "list", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and b"??" in done.stdout and b"sft_skills.jsonl" in done.stdout, (
        done.stderr
    )


# ---- flags


@pytest.mark.parametrize("name", STAGES)
def test_flags_are_the_config(name):
    cls, parser = find_stage(name).config, cli.build_parser(name)
    assert cli.config_from(parser.parse_args([name]), cls) == cls()
    words = {int: "7", float: "0.5", str: "auto", tuple: "x"}
    for f in (f for f in fields(cls) if f.init):  # the others follow from these
        flag = "--" + f.name.replace("_", "-")
        args = parser.parse_args([name, flag] if f.type is bool else [name, flag, words[f.type]])
        want = {int: 7, float: 0.5, str: "auto", tuple: ("x",), bool: True}[f.type]
        assert getattr(args, f.name) == ([*want] if f.type is tuple else want)
        try:
            wanted = replace(cls(), **{f.name: want})
        # the config knows better: a schedule is not called auto
        except ValueError:
            continue
        assert cli.config_from(args, cls) == wanted


@dataclass(frozen=True)
class Odd:
    share: float = option(0.5, "100 % is all")
    files: tuple = option((), "some files")
    packed: bool = option(True, "can be turned off")


def test_flags_of_any_dataclass(capsys):
    parser = cli.Parser(prog="odd")
    cli.add_flags(parser, Odd)

    def parse(*words):
        return cli.config_from(parser.parse_args(words), Odd)

    assert parse() == Odd() and parse("--no-packed", "--files", "a", "b", "--share=1") == Odd(
        1.0, ("a", "b"), False
    )
    with pytest.raises(SystemExit):
        parse("--help")
    assert "100 % is all (default: 0.5)" in capsys.readouterr().out


@pytest.mark.parametrize("name", STAGES)
def test_help_comes_from_the_fields(say, name):
    cls = find_stage(name).config
    docs = {field: known["help"] for field, known in options(cls).items()}
    text = " ".join(say(name, "--help")[1].split())
    assert {f.name for f in fields(cls)} == set(docs) and all(docs.values()), (
        "each field of a config needs a sentence: it is the help of its flag"
    )
    for f in (f for f in fields(cls) if f.init):
        # a switch that is on can be turned off: --flag, --no-flag
        flag = re.search(rf"--{f.name.replace('_', '-')}[ ,]", text)
        assert flag and " ".join(docs[f.name].split()) in text, f.name


def test_help_fits_a_terminal(say, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = say("--help")[1]
    for name in ("tokenizer", *STAGES):
        assert re.search(rf"^    {name} +\w", out, re.M), f"{name} stands alone in its line"
    for name in STAGES:
        assert max(map(len, say(name, "--help")[1].splitlines())) <= 80


@pytest.mark.parametrize("name", STAGES)
def test_flags_stand_in_parts(say, name):
    heads = "what to read and write|of this stage|how to train|on what|log and checkpoints|advanced"
    text = say(name, "--help")[1]
    parts = dict(
        zip(
            found := re.findall(rf"^({heads}):$", text, re.M),
            re.split(rf"(?m)^(?:{heads}):$", text)[1:],
        )
    )
    assert found == [head for head in heads.split("|") if head in found] and len(found) >= 5
    assert list(cli.flag_parts(find_stage(name).config)) == heads.split("|")
    flags = re.findall(r"^  --(\S+)", parts["what to read and write"], re.M)
    assert flags[0] == "data" and {"init", "heldout", "out"} <= set(flags)
    assert "--deepspeed FILE" in parts["advanced"] and "--optimizer {muon,adamw}" in text
    assert " STR" not in text


def test_the_presets_are_listed_with_their_sizes(say):
    text = " ".join(say("pretrain", "--help")[1].split())
    assert "ci 2.8 M, ci-moe 6.3 M, minimind2-small 25.8 M" in text


def test_the_benchmarks_are_named(say):
    assert "train_speed, packing" in " ".join(say("bench", "--help")[1].split())


# ---- the machine and the data


@pytest.fixture
def quick(monkeypatch):
    "Nothing is timed: a machine that learns so fast that even the largest preset takes an hour."
    monkeypatch.setattr(doctor, "try_layer", lambda config, device, dtype: 1e13)


def test_doctor(say, quick):
    code, out, err = say("doctor")
    assert code == 0 and torch.__version__ in out and str(data_dir()) in out
    assert all(name in out for name in PRESETS) and "minimind-3-moe-8gpu" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\nhere: minimind-3-moe, about" in out


def test_what_is_tried_is_what_there_is_time_for(monkeypatch):
    tried = []

    def try_layer(config, device, dtype):
        tried.append(config)
        return 1e9

    monkeypatch.setattr(doctor, "try_layer", try_layer)
    cpu = torch.device("cpu")
    speeds = doctor.preset_speeds(cpu, torch.float32, seconds=0.1)
    # one of each kind in any case; the others are counted
    assert tried == [PRESETS["ci"], PRESETS["ci-moe"]] and list(speeds)[0] == "ci"
    tokens = {"ci": (10_000_000, "a"), "minimind2-small": (10_000_000, "b")}
    needs = doctor.training_bytes(torch.float32)
    said = doctor.recommend(needs, speeds, tokens, None)
    assert said.startswith("here: ci") and "if the memory is there" in said
    slow = {name: speed / 1e6 for name, speed in speeds.items()}
    assert re.match(r"here: ci, about \d+ years", doctor.recommend(needs, slow, tokens, None))
    assert doctor.recommend(needs, slow, {}, None).startswith("here: ci (if")
    assert [doctor.in_words(s) for s in (90, 3 * 86400, 86400)] == ["1.5 min", "3 days", "24 h"]
    assert "does not fit" in doctor.recommend(needs, {n: 1e9 for n in needs}, tokens, 1 << 30)


def test_a_layer_is_tried_in_earnest():
    speed = doctor.try_layer(PRESETS["ci"], torch.device("cpu"), torch.float32)
    # from a very busy core to a large machine
    assert 1e7 < speed < 1e14


def test_memory_of_odd_machines(say, monkeypatch, quick):
    files = {
        "/proc/meminfo": "MemTotal: 8000 kB\nMemFree: 1 kB\nMemAvailable:   6000 kB\n",
        "/sys/fs/cgroup/memory.max": "max\n",
        "/sys/fs/cgroup/memory.current": "100\n",
    }

    def read_text(path, *args, **kw):
        if path.as_posix() not in files:
            raise FileNotFoundError(path)
        return files[path.as_posix()]

    numbers = {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": 8192}

    def sysconf(name):
        if name not in numbers:
            raise ValueError("unrecognized configuration name")
        return numbers[name]

    with monkeypatch.context() as m:
        m.setattr(Path, "read_text", read_text)
        m.setattr(os, "sysconf", sysconf)
        assert doctor.memory() == (6000 * 1024, 8_192_000)  # Linux
        files["/sys/fs/cgroup/memory.max"] = "5000\n"
        assert doctor.memory() == (4900, 5000)  # in a container
        files.clear()
        assert doctor.memory() == (None, 8_192_000)  # macOS
        numbers["SC_PHYS_PAGES"] = -1
        assert doctor.memory() == (None, None)
        del numbers["SC_PHYS_PAGES"]
        assert doctor.memory() == (None, None)
    monkeypatch.delattr(os, "sysconf")  # Windows
    code, out, err = say("doctor")
    assert (
        doctor.memory() == (None, None)
        and code == 0
        and "unknown free of unknown" in out
        and "if the memory is there" in " ".join(out.split())
    )


def test_no_preset_fits(say, monkeypatch, quick):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "memory", lambda: (1 << 20, 1 << 30))
    assert "none fits" in say("doctor")[1]
    monkeypatch.setattr(doctor, "memory", lambda: (1 << 40, 1 << 40))
    assert "here: minimind-3-moe, about" in say("doctor")[1]


@pytest.mark.parametrize("columns", [60, 80, 120, 300])
def test_data_list_at_any_width(say, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = say("data", "list")[1]
    assert max(map(len, out.splitlines())) <= columns
    files = manifest()["files"]
    assert all(name in out for name in files)
    words = set(re.findall(r"\w+", out))
    for e in files.values():
        assert set(re.findall(r"\w+", f"{e['what']} {e['licence']}")) <= words


def test_data_rebuild_needs_a_clone(say, monkeypatch, tmp_path):
    (tmp_path / "MANIFEST.json").write_text('{"files": {}}')
    monkeypatch.setenv("MINIMIND_DATA", str(tmp_path))
    code, out, err = say("data", "rebuild")
    assert code == 1 and "part of the repository" in err


def test_data(say, monkeypatch, tmp_path):
    code, out, _ = say("data", "list")
    assert code == 0 and all(name in out for name in manifest()["files"]) and say("data")[1] == out
    assert say("data", "verify")[0] == 0
    assert say("data", "get")[0] == 0
    shutil.copy(data_dir() / "MANIFEST.json", tmp_path)
    for name in manifest()["files"]:
        shutil.copy(sample(name), tmp_path)
    with open(tmp_path / "dpo.jsonl", "a") as f:
        f.write("\n")
    (tmp_path / "agent.jsonl").unlink()
    monkeypatch.setenv("MINIMIND_DATA", str(tmp_path))
    code, out, err = say("data", "verify")
    assert code == 1 and "agent.jsonl, dpo.jsonl differ" in err


def test_data_show(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(
        json.dumps(
            {
                "conversations": [
                    {"role": "user", "content": "Hi <|im_end|>"},
                    {"role": "assistant", "content": "Bye"},
                ]
            }
        )
        + "\n",
        encoding="utf-8",
    )
    code, out, _ = say("data", "show", "a.jsonl")
    plain = out.replace("·", "").replace("⏎\n", "\n")
    assert code == 0 and "a.jsonl:1: " in out and "\x1b" not in out
    # learned: the reply and its end
    assert (
        "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n[Bye<|im_end|>\n]"
        in plain
    ), plain
    tokens, learned = map(int, re.search(r"(\d+) tokens, (\d+) learned", out).groups())
    assert tokens == out.count("·") + 1 and learned == out.split("[")[1].count("·") + 1
    (tmp_path / "b.txt").write_text("Some text.\n", encoding="utf-8")
    out = say("data", "show", "b.txt")[1]
    tokens, learned = map(int, re.search(r"(\d+) tokens, (\d+) learned", out).groups())
    assert "<|im_start|>[Some text.<|im_end|>]" in out.replace("·", "") and learned == tokens - 1
    code, out, _ = say("data", "show", "dpo.jsonl", "--rows", 1)
    assert out.count("chosen: ") == 1 == out.count("rejected: ")
    for name in (
        "pretrain_zh.jsonl",
        "sft_tools.jsonl",
        "rlaif.jsonl",
        "agent.jsonl",
        "reason.jsonl",
    ):
        assert say("data", "show", name, "--rows", 1)[0] == 0


@pytest.mark.parametrize("columns", [40, 80])
def test_what_is_said_of_errors_fits_a_terminal(say, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in ("data show nope", "eval nowhere", "sft --lrr 1", "bench xyzzy"):
        monkeypatch.setattr(sys, "stderr", err := io.StringIO())
        plain = say(*words.split())[0] and err.getvalue()
        monkeypatch.setattr(sys, "stderr", err := io.StringIO())
        err.isatty = lambda: True
        say(*words.split())
        lines = err.getvalue().splitlines()
        assert max(map(len, lines)) <= columns and len(lines) > 1, err.getvalue()
        assert err.getvalue().split() == plain.split()


def test_data_show_in_colour(tmp_path, monkeypatch):
    (tmp_path / "b.txt").write_text("Some text.\n", encoding="utf-8")

    def screen():
        monkeypatch.setattr(sys, "stdout", out := io.StringIO())
        out.isatty = lambda: True
        assert cli.main(["data", "show", str(tmp_path / "b.txt")]) == 0
        return out.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m" in screen() and "[" not in re.sub(r"\x1b\[[\d;]*m", "", screen())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in screen() and "[" in screen()


# ---- from a book to a chat


@pytest.fixture(scope="module")
def journey(
    tmp_path_factory,
):  # a folder with a book, a base model and a chat model, each made by a command
    folder = tmp_path_factory.mktemp("journey")
    texts = [
        json.loads(line)["text"]
        for line in sample("pretrain_en.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    ]
    (folder / "book.txt").write_text("\n\n".join(texts), encoding="utf-8")
    for name, rows in (("chats", slice(20)), ("held", slice(20, 26))):
        (folder / f"{name}.jsonl").write_text(
            "".join(sample("sft_skills.jsonl").read_text(encoding="utf-8").splitlines(True)[rows]),
            encoding="utf-8",
        )
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text(json.dumps(to_hf_config(TINY)))
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert (
            cli.main(
                "pretrain --data book.txt --out base --model tiny --vocab-size 600 --seq-len 64 "
                "--batch-size 4 --steps 3".split()
            )
            == 0
        )
        assert (
            cli.main(
                "sft --init base --data chats.jsonl --heldout held.jsonl --out tuned --seq-len "
                "128 --batch-size 4 --steps 3".split()
            )
            == 0
        )
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def there(journey, monkeypatch):
    monkeypatch.chdir(journey)
    return journey


def test_training_leaves_a_model_folder(there):
    for name in ("base", "tuned"):
        assert {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "metrics.jsonl",
        } <= {p.name for p in (there / name).iterdir()}
        model, tokenizer = load_pretrained(there / name)
        assert model.config.vocab_size == tokenizer.vocab_size <= 600
    assert not any(
        (
            load_pretrained("base")[0].lm_head.weight == load_pretrained("tuned")[0].lm_head.weight
        ).all(-1)[40:60]
    )


def test_the_same_command_again_changes_nothing(there, say):
    before = {p: p.stat().st_mtime_ns for p in there.rglob("*.safetensors")}
    code, out, err = say(
        *"pretrain --data book.txt --out base --model tiny --vocab-size 600 --seq-len 64 "
        "--batch-size 4 --steps 3".split()
    )
    assert (
        code == 0
        and "minimind chat base" in out
        and before == {p: p.stat().st_mtime_ns for p in there.rglob("*.safetensors")}
    )
    code, out, err = say(
        *"pretrain --data book.txt --out base --model tiny --vocab-size 600 --seq-len 32 "
        "--batch-size 4 --steps 3".split()
    )
    assert code == 1 and "seq_len" in err


def test_what_was_tokenised_beforehand_is_found(there, say, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    pretrain = f"pretrain --data book.txt --out {tmp_path / 'new'} --seq-len 64 --dry-run"
    sft = f"sft --init base --data chats.jsonl --out {tmp_path / 'chat'} --seq-len 128 --dry-run"
    for build, stage, names in (
        ("data build book.txt", pretrain, ["texts"]),
        ("data build chats.jsonl --tokenizer base", sft, ["conversations", "held out"]),
    ):
        code, out, err = say(*build.split())
        assert code == 0 and all(name in out for name in names) and "was there" not in out, err
        assert max(map(len, out.splitlines()[:1])) <= 80
        assert say(*build.split())[1].count("was there") == len(names)
        out = say(*stage.split())[1]
        assert "taken from the cache" in out
    made = sorted(p.name for p in (tmp_path / "cache" / "stores").glob("[0-9a-f]*"))
    assert len(made) == 3
    held = f"{sft} --heldout held.jsonl"
    build = "data build chats.jsonl --heldout held.jsonl --tokenizer base"
    assert "was there" not in say(*build.split())[1]
    assert "taken from the cache" in say(*held.split())[1]
    assert sorted(p.name for p in there.iterdir()) == sorted(
        "base book.txt chats.jsonl held.jsonl tiny tuned".split()
    )


def test_the_stores_can_be_listed(there, say, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    code, out, _ = say("data", "stores")
    assert code == 0 and out.endswith("0.0 kB, stores: 0\n")
    say("data", "build", "chats.jsonl", "--tokenizer", "base")
    out = say("data", "stores")[1]
    assert "chats.jsonl (train)" in out and "chats.jsonl (heldout)" in out and "just now" in out
    meta = next((tmp_path / "cache" / "stores").glob("*/meta.json"))
    os.utime(meta, (1, time.time() - 3 * 86_400))
    out = say("data", "stores", "--unused-for", "2")[1]
    assert out.count("chats.jsonl") == 1 and "3 days ago" in out
    assert "stores: 1" in say("data", "stores", "--clear", "--unused-for", "2")[1]
    assert "stores: 1" in say("data", "stores", "--clear")[1] and not meta.parent.exists()


def everything(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize(
    "words",
    [
        "pretrain --data book.txt --out new --model tiny --vocab-size 600 --seq-len 64",
        "pretrain --data book.txt --out base --model tiny --vocab-size 500 --seq-len 64 --fresh",
        "sft --init base --data chats.jsonl --out new --seq-len 128",
    ],
)
def test_dry_run(there, say, words):
    before = everything(there)
    code, out, err = say(*words.split(), "--dry-run")
    assert (
        code == 0
        and all(w in out for w in ("parameters", "MiB", "steps", "epochs", "tokens", "FLOPs"))
        and re.search(r"about \d+:\d\d", out)
    ), out + err
    assert everything(there) == before


def test_eval(there, say):
    code, out, err = say(
        "eval",
        "tuned",
        "--text",
        "book.txt",
        "--questions",
        "held.jsonl",
        "--choices",
        sample("mc_poem.jsonl"),
        "--seq-len",
        64,
    )
    assert (
        code == 0
        and "bits per byte" in out
        and "of 6 (95 %" in out
        and "chance 25%" in out
        and "xz" in out
    ), err
    # counted in the text it was trained on
    assert (
        "bigram" not in out
        and "bigram" in say("eval", "base", "--text", "book.txt", "--seq-len", 64)[1]
    )
    poems = (
        say("eval", "base", "--choices", sample("mc_poem.jsonl"))[1],
        say("eval", "base", "--choices", sample("mc_poem.jsonl"), "--no-plain")[1],
    )
    assert "bits per byte" not in poems[0] and poems[0] != poems[1]
    # as continuations, for a base model has seen no conversation
    plain = say("eval", "base", "--choices", sample("mc_poem.jsonl"), "--plain")[1]
    assert poems[0] == plain
    (there / "bad.jsonl").write_text('{"question": "?", "choices": ["a"], "answer": 0}\n')
    code, out, err = say("eval", "base", "--choices", "bad.jsonl")
    assert code == 1 and "bad.jsonl:1: " in err
    (there / "bad.jsonl").write_text("")
    code, out, err = say("eval", "base", "--text", "bad.jsonl")
    assert (code, err) == (1, "minimind eval: --text bad.jsonl: the file is empty\n")
    (there / "bad.jsonl").unlink()
    code, out, err = say("eval", "base", "--questions", "bad.jsonl")
    assert (code, err) == (1, "minimind eval: --questions bad.jsonl: there is no such file\n")


def test_eval_knows_what_belongs_to_a_run(there, say, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    # trained on a book of the user's: on what was kept out of it
    code, out, err = say("eval", "base", "--seq-len", 64)
    assert code == 0 and "held-out text" in out and "bits per byte" in out, err
    assert "right" not in out and "shipped" not in out
    code, out, err = say("eval", "tuned", "--seq-len", 64)
    assert code == 0 and "held.jsonl" in out and "nats a learned token" in out, err
    assert "of 6 (95 %" in out and "bits per byte" not in out
    assert max(map(len, out.splitlines())) <= 80
    # text is measured on a chat model if somebody asks, and the number is explained
    out = say("eval", "tuned", "--text", "book.txt", "--seq-len", 64)[1]
    assert "bits per byte" in out and "unlearned" in out
    os.rename("book.txt", "gone.txt")
    try:
        code, out, err = say("eval", "base")
    finally:
        os.rename("gone.txt", "book.txt")
    assert code == 1 and "book.txt, which is gone" in err


def test_an_adapter_is_opened_on_its_model(there, say, tmp_path, monkeypatch):
    words = "lora --init tuned --data chats.jsonl --heldout held.jsonl --out worn --seq-len 128"
    assert say(*words.split(), "--steps", 2, "--batch-size", 4)[0] == 0
    code, out, err = say("chat", "worn", "-p", "Hello", "--max-new-tokens", 5, "--seed", 3)
    assert (
        code == 0
        and out
        == say(*"chat tuned --lora worn -p Hello".split(), "--max-new-tokens", 5, "--seed", 3)[1]
    )
    code, out, err = say("eval", "worn")
    assert code == 0 and "held.jsonl" in out and "nats a learned token" in out
    # moved, both of them, and one of them alone
    for name in ("tuned", "worn"):
        shutil.copytree(name, tmp_path / "there" / name)
    shutil.copytree("worn", tmp_path / "alone" / "worn")
    monkeypatch.chdir(tmp_path)
    assert say("chat", "there/worn", "-p", "Hello", "--max-new-tokens", 2)[0] == 0
    code, out, err = say("chat", "alone/worn", "-p", "Hello")
    assert code == 1 and "tuned" in err and "adapter" in err


def test_which_model_is_opened(there, say, tmp_path, monkeypatch):
    for name in ("base", "tuned"):
        shutil.copytree(name, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    code, out, err = say("chat", "-p", "Hi", "--max-new-tokens", 2)
    assert code == 0 and err.startswith("runs/tuned: 0.0 M parameters, 3 steps, temperature 0.")
    # of the whole ladder the fine-tuned one, whatever was tried on it afterwards
    shutil.copytree("runs/tuned", "runs/ci/sft")
    shutil.copytree("runs/tuned", "runs/ci/distill")
    (tmp_path / "runs/ci/results.json").write_text("{}")
    state = next((tmp_path / "runs/ci/distill").glob("trainer/*/state.json"))
    state.write_text(json.dumps(json.loads(state.read_text()) | {"saved": time.time() + 9}))
    assert "runs/ci/sft: " in say("chat", "-p", "Hi", "--max-new-tokens", 2)[2]
    # a base model goes on with a text by itself
    code, out, err = say("chat", "runs/base", "-p", "The", "--max-new-tokens", 2, "--seed", 1)
    assert code == 0 and "a base model" in err
    plain = say(*"chat runs/base -p The --max-new-tokens 2 --seed 1 --plain".split())
    assert plain[1] == out and "a base model" not in plain[2]


def test_the_folder_says_how_to_draw(there, say, tmp_path):
    shutil.copytree("tuned", tmp_path / "m")
    file = tmp_path / "m" / "generation_config.json"
    words = "chat", tmp_path / "m", "-p", "Hello", "--max-new-tokens", 20
    own = json.loads(file.read_text())
    file.write_text(json.dumps(own | {"do_sample": False}))
    assert say(*words, "--seed", 1)[1] == say(*words, "--seed", 2)[1], "greedy"
    assert say(*words, "--seed", 1, "--temperature", 5)[1] != say(*words, "--seed", 1)[1]
    file.write_text(json.dumps(own | {"temperature": 5.0, "top_p": 1.0}))
    hot = say(*words, "--seed", 1)[1]
    assert hot == say(*words, "--seed", 1, "--temperature", 5, "--top-p", 1)[1]
    assert hot != say(*words, "--seed", 2)[1]


def test_one_question(there, say):
    words = "chat tuned -p Hello --max-new-tokens 5 --seed 3".split()
    code, out, err = say(*words)
    assert code == 0 and out.endswith("\n") and out == say(*words)[1]
    assert say(*words, "--plain")[1] != out != say(*words, "--system", "Be brief.")[1]
    assert say("chat", "tuned", "-p", "Hello", "--temperature", -1)[0] == 1
    code, out, err = say("chat", "tuned", "-p", "Hello " * 300)
    assert code == 1 and "context of 128" in err


def typed(monkeypatch, *lines):  # what a user types; an exception is raised as if from the keyboard
    lines = iter(lines)

    def read(prompt=""):
        line = next(lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


def test_chat(there, say, monkeypatch):
    import minimind.library

    seen, replies = [], iter([["Hel", "lo."], ["Fine", KeyboardInterrupt()], [], ["New."], ["?"]])

    def write(model, ids, **options):
        seen.append(model.tokenizer.decode(ids))
        for piece in next(replies):
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    monkeypatch.setattr(minimind.library.TextModel, "write", write)
    typed(monkeypatch, "one", "  ", "two", "three", "/new", "four", "/quit", "never")
    code, out, err = say("chat", "tuned", "--system", "Sys.")
    assert code == 0 and err == "" and "Hello.\n" in out and "Fine …\n" in out
    turns = [re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", s, re.S) for s in seen]
    first = [("system", "Sys."), ("user", "one")]
    assert turns == [
        first,
        second := [*first, ("assistant", "Hello."), ("user", "two")],
        [*second, ("assistant", "Fine"), ("user", "three")],
        [("system", "Sys."), ("user", "four")],
    ]
    typed(monkeypatch, KeyboardInterrupt())
    assert say("chat", "tuned")[0] == 0


def test_a_chat_that_grows_too_long(there, say, monkeypatch):
    typed(monkeypatch, "short", "long " * 200, "short again", "/new", "short")
    code, out, err = say("chat", "tuned", "--max-new-tokens", 2, "--temperature", 0)
    assert code == 0 and out.count("context of 128") == 1 and "/new" in out, out + err


class Script(LanguageModel):
    "A model that says what it is told to say."

    def __init__(self, there, *replies):
        super().__init__(*load_pretrained(there / "tuned"))
        self.replies, self.asked, self.options, self.sizes = iter(replies), [], [], []

    def write(self, ids, **options):
        self.asked.append(self.tokenizer.decode(ids))
        self.options.append(options)
        self.sizes.append(len(ids))
        yield from next(self.replies).split("|")


@pytest.fixture
def window(there, monkeypatch, capsys):
    "Lines typed into a window on a scripted model: the model, and what was printed."

    def run(replies, *lines, **options):
        lm = Script(there, *replies)
        typed(monkeypatch, *lines)
        capsys.readouterr()
        options = {"max_new_tokens": 20, "seed": None, "temperature": None} | options
        trained, plain = options.pop("trained", None), options.pop("plain", False)
        Window(lm, options, plain, trained).loop()
        return lm, capsys.readouterr().out

    return run


def test_commands_never_reach_the_model(window, tmp_path):
    lm, out = window(
        [], "/hlep", "/nonsense x", "/etc/passwd", "/", "/temp hot", "/temp -1", "/save x.txt"
    )
    assert lm.asked == [] and "did you mean /help?" in out and out.count("is no command") == 4
    assert out.count("wanted a number from 0 to 10") == 2 and ".jsonl" in out
    lm, out = window(
        ["Yes."], "/help", " /etc is a folder?", "/save nowhere/x.jsonl", "/quit", "never"
    )
    assert "/regenerate" in out and "/etc is a folder?" in lm.asked[0] and len(lm.asked) == 1
    assert "No such file" in out


def test_commands(window, tmp_path):
    kept = tmp_path / "kept.jsonl"
    lm, out = window(
        ["One.", "Two.", "Three.", "Four."],
        *(
            "Hi",
            "/regenerate",
            "/temp 0.2",
            "/system Be brief.",
            "Hi",
            f"/save {kept}",
            "/new",
            "Ho",
        ),
        seed=3,
    )
    assert [o["seed"] for o in lm.options] == [3, 4, 4, 4] and lm.options[2]["temperature"] == 0.2
    assert "One." not in lm.asked[1] and "Be brief." in lm.asked[2] and "Two." not in lm.asked[2]
    assert "Be brief." in lm.asked[3] and "Three." not in lm.asked[3]
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    roles = [m["role"] for m in rows[0]["conversations"]]
    assert len(rows) == 1 and roles == ["system", "user", "assistant"]
    assert "(nothing has been asked yet)" in window([], "/regenerate")[1]


def test_messages_of_several_lines(window):
    lm, out = window(["a", "b", "c"], '"""one', "two", 'three"""', '"""four"""', "five\nsix")
    asked = [re.findall(r"user\n(.*?)<", s, re.S)[-1] for s in lm.asked]
    assert asked == ["one\ntwo\nthree", "four", "five\nsix"]


def test_what_is_forgotten_is_said(window):
    lm, out = window(["Yes."] * 6, *(f"number {n} " * 3 for n in range(6)), trained=100)
    assert "forgotten, to stay within 100 tokens of a training row; /new starts again" in out
    assert "number 0" not in lm.asked[-1] and "number 5" in lm.asked[-1]
    assert max(lm.sizes) < 100
    # a message that is too long by itself: asked, and said
    lm, out = window(["Yes.", "No."], "short", "long " * 15, trained=32)
    assert "longer than the 32 tokens of a training row" in out and len(lm.asked) == 2
    # a reply that has used up its tokens
    assert "cut off at 20 tokens" in window(["word " * 30], "Hi")[1]
    assert "cut off" not in window(["word"], "Hi")[1]


def test_colour_is_for_terminals(there, monkeypatch):
    def screen(**env):
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", out := io.StringIO())
        out.isatty = lambda: True
        typed(monkeypatch, "Hi")
        Window(Script(there, "Hello|there."), {"max_new_tokens": 20, "seed": None}).loop()
        return out.getvalue()

    assert re.search(r"Hellothere\.\n\x1b\[2m\d+ tokens, [\d,]+/s\x1b\[0m", screen(TERM="xterm"))
    for env in (dict(NO_COLOR="1"), dict(TERM="dumb")):
        # what comes from a file is shown as if somebody had typed it
        assert screen(**env) == "Hi\nHellothere.\n\n"


# ---- the tokenizer, small texts, the ladder


def test_tokenizer(there, say, tmp_path):
    code, out, err = say("tokenizer", "--data", "book.txt", "--out", tmp_path, "--vocab-size", 400)
    assert code == 0 and "400 tokens" in out and (tmp_path / "tokenizer.json").exists()
    assert say("data", "show", "chats.jsonl", "--tokenizer", tmp_path)[0] == 0
    assert (
        say("tokenizer", "--data", "book.txt", "--out", tmp_path / "x", "--vocab-size", 100)[0] == 1
    )
    (tmp_path / "empty.txt").write_text("\n \n")
    code, out, err = say("tokenizer", "--data", tmp_path / "empty.txt", "--out", tmp_path / "x")
    assert code == 1 and "no text" in err and not (tmp_path / "x").exists()
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"txt": "odd"}\n')
    code, out, err = say("tokenizer", "--data", tmp_path / "bad.jsonl", "--out", tmp_path / "x")
    assert code == 1 and "bad.jsonl:2: " in err
    code, out, err = say(
        "tokenizer",
        "--data",
        tmp_path / "bad.jsonl",
        "--out",
        tmp_path / "x",
        "--on-bad-line",
        "skip",
    )
    assert (
        code == 0
        and err.startswith("minimind: the texts gave only 29")
        and "UserWarning" not in err
        and err.count("\n") == 1
    )


def test_two_kilobytes_of_text_work(there, say, tmp_path):
    (tmp_path / "little.txt").write_text(
        (there / "book.txt").read_text(encoding="utf-8")[:2000], encoding="utf-8"
    )
    code, out, err = say(
        "pretrain",
        "--data",
        tmp_path / "little.txt",
        "--out",
        tmp_path / "little",
        "--model",
        "tiny",
        "--seq-len",
        64,
    )
    # no room for 6,400 tokens: said, and gone on with
    assert code == 0 and "texts gave only" in err, err
    code, out, err = say("chat", tmp_path / "little", "--plain", "-p", "And", "--max-new-tokens", 3)
    assert code == 0


@pytest.mark.parametrize(
    "content",
    [b"", b" \n\n", "text".encode("utf-16"), b"\xff\xfe\x00"],
    ids=["empty", "blank", "utf-16", "binary"],
)
def test_a_file_that_is_no_text(there, say, tmp_path, content):
    (tmp_path / "odd.txt").write_bytes(content)
    code, out, err = say(
        "pretrain",
        "--data",
        tmp_path / "odd.txt",
        "--out",
        tmp_path / "odd",
        "--model",
        "tiny",
        "--seq-len",
        64,
    )
    assert code == 1 and "odd.txt" in err and "Traceback" not in err, err
    assert not (tmp_path / "odd" / "model.safetensors").exists()


def test_the_ladder(say, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    shutil.copy(data_dir() / "MANIFEST.json", tmp_path / "data")
    for name in manifest()["files"]:
        lines = sample(name).read_text(encoding="utf-8").splitlines(True)
        (tmp_path / "data" / name).write_text(
            "".join(lines[: 8 if "heldout" in name or "mc_" in name else 40]), encoding="utf-8"
        )
    monkeypatch.setenv("MINIMIND_DATA", str(tmp_path / "data"))
    code, out, err = say(
        "run",
        "--out",
        tmp_path / "ci",
        *(word for name in ladder.rungs() for word in (f"--{name}-steps", 1)),
        "--device",
        "cpu",
    )
    assert code == 0, err
    for word in (
        "[1/7]",
        "[6/7]",
        "[7/7]",
        "About ",
        *ladder.rungs(),
        "before",
        "bigram",
        "right answers",
        "chance 25%",
        "parameters",
        "tokens/s",
        "Sample chats",
        ladder.QUESTIONS[0],
        "minimind chat",
    ):
        assert word in out, word
    results = json.loads((tmp_path / "ci" / "results.json").read_text(encoding="utf-8"))
    told = {"heldout", "answers", "choices", "stages", "tokens_per_second", "chats"}
    told |= {"before", "baselines", "minutes", "chats_right", "adapter_chat"}
    assert set(results) == told and list(results["chats"]) == ladder.QUESTIONS
    assert set(results["before"]) == set(results["stages"]) == set(ladder.rungs())
    assert results["before"]["grpo"]["heldout_reward"] >= 0
    assert "exact_match" in results["baselines"]["distill"]
    too_wide = [line for line in out.replace(str(tmp_path), "").splitlines() if columns(line) > 79]
    assert not too_wide, too_wide
    assert "replies" not in results["answers"] and results["answers"]["n"] == 8
    for numbers in results["heldout"].values():
        assert {"bits_per_byte", "unigram", "bigram", "xz", "bytes"} <= set(numbers)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "An untrained model's folder."
    from minimind.hub import save_pretrained
    from minimind.core import sample
    from minimind.model import MiniMind, preset
    from minimind.tokenizer import Tokenizer

    lines = sample("pretrain_en.jsonl").read_text(encoding="utf-8").splitlines()[:50]
    tokenizer = Tokenizer.train((json.loads(l)["text"] for l in lines), 400)
    torch.manual_seed(0)
    save_pretrained(
        MiniMind(preset("ci", num_hidden_layers=1, vocab_size=400)),
        tokenizer,
        folder := tmp_path_factory.mktemp("base"),
    )
    return folder


def test_files_of_one_name_are_both_measured(base, tmp_path, say):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(f"Some text in {folder}. " * 5)
    out = say(
        "eval", str(base), "--text", str(tmp_path / "a" / "t.txt"), str(tmp_path / "b" / "t.txt")
    )[1]
    assert f"{tmp_path}/a/t.txt" in out and f"{tmp_path}/b/t.txt" in out


def test_longer_texts_on_the_command_line(base, say):
    code, out, err = say(
        "chat",
        str(base),
        "--plain",
        "-p",
        "The king",
        "--max-new-tokens",
        "3",
        "--rope-scaling",
        "yarn",
        "--factor",
        "4",
        "--original-length",
        "64",
    )
    assert code == 0 and "up to 256 positions" in err
    assert (
        "choose one of" in say("chat", str(base), "--rope-scaling", "long")[2]
        or "there is no 'long'" in say("chat", str(base), "--rope-scaling", "long")[2]
    )
