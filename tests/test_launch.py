"""Recipes: what they say is what is run, what nothing would read is refused; and real processes,
which are left alone, found, stopped and gone on with."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from minimind import cli, launch
from minimind.checkpoint import checkpoints
from minimind.core import data_dir, read_json, write_json
from minimind.data import PUBLIC_DATA
from minimind.hub import load_pretrained
from minimind.launch import Launch, curves, process_start, run_recipe
from minimind.model import PRESETS, flops_per_token
from minimind.recipe import (
    GPUS,
    check_data,
    find_recipe,
    estimate,
    format_recipe,
    gpu_of,
    load_recipe,
    measured_mfu,
    parse_changes,
    shell_command,
    stage_command,
    stage_plan,
)
from minimind.stage import find_stage
from minimind.train import split_rows

posix = pytest.mark.skipif(
    os.name != "posix" or not torch.distributed.is_available(),
    reason="runs are set free on POSIX systems only",
)
root = Path(__file__).resolve().parents[1]
recipes = sorted((root / "recipes").glob("*.toml"))
CI = root / "recipes/ci.toml"


def there(folder):
    "A folder in which the small recipe's paths lead somewhere."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data_samples").symlink_to(data_dir(), target_is_directory=True)
    return folder


def understood(argv):
    "The config that a command would make of its flags."
    words = argv[argv.index("minimind") + 1 :]
    return cli.config_from(
        cli.build_parser(words[0]).parse_args(words), find_stage(words[0]).config
    )


# ---- every recipe


@pytest.mark.parametrize("path", recipes, ids=lambda p: p.stem)
def test_a_recipe_is_what_its_command_does(path, monkeypatch):
    monkeypatch.chdir(root)
    recipe = load_recipe(path.relative_to(root))
    for name, stage in recipe.stages.items():
        argv = stage_command(recipe, name)
        assert understood(argv) == stage.config and argv[0] == sys.executable
        assert ("torch.distributed.run" in argv) == (stage.nproc > 1) == ("--standalone" in argv)
        assert name == "pretrain" or stage.config.init == recipe.stages["pretrain"].config.out
        if stage.config.deepspeed:
            assert "zero_optimization" in read_json(stage.config.deepspeed)
        elsewhere = [a for a in argv if a.startswith("/")][1:]
        assert not elsewhere, (
            f"{elsewhere}: a recipe's paths are meant from the folder it is started in"
        )
        assert (
            stage.config.batch_size % stage.nproc == 0
            and len(set(stage_plan(recipe, name)["rows"])) == 1
        )


@pytest.mark.parametrize("path", recipes, ids=lambda p: p.stem)
def test_a_recipe_is_planned_without_data_or_card(path, tmp_path):
    recipe = load_recipe(path, root=tmp_path)
    text = format_recipe(recipe)
    assert "unknown" not in text and "warning" not in text and "nan" not in text.split()
    for name, stage in recipe.stages.items():
        p = stage_plan(recipe, name)
        assert (
            p["parameters"]
            and p["steps"] > 1
            and p["memory"]
            and shell_command(stage_command(recipe, name)) in text
        )
        if recipe.gpu:
            assert p["memory"] < 0.9e9 * GPUS[recipe.gpu].memory and all(
                f["bytes"] > 1e9 for f in recipe.data.values()
            )
            low, high = (estimate(recipe, mfu)[name]["hours"] for mfu in (0.4, 0.2))
            assert (
                high == pytest.approx(2 * low) if stage.nproc == 1 else low < high < 2 * low
            ) and 0.01 < low < 100
    if recipe.gpu:
        assert (
            "assumed, not measured" in text or "measured: gpu-" in text
        ) and "check yours" in text
    public = {row[0] for row in PUBLIC_DATA}
    assert {
        Path(f).name for f, facts in recipe.data.items() if facts["from"] == "minimind"
    } <= public
    named = {f for s in recipe.stages.values() for f in (*s.config.data, *s.config.heldout)}
    assert named == set(recipe.data), "what a recipe says of its data is what it reads"


def test_a_plan_is_arithmetic():
    recipe = load_recipe(root / "recipes/minimind-3-3090.toml")
    p = stage_plan(recipe, "sft")
    assert (
        p["tokens"] == 2 * 260e6
        and p["steps"] == round(2 * 260e6 / (16 * 768))
        and p["dtype"] == "bfloat16"
    )
    assert estimate(recipe, 0.25)["sft"]["hours"] == pytest.approx(
        2 * 260e6 * flops_per_token(PRESETS["minimind-3"], 768) / (0.25 * 71e12) / 3600
    )
    assert estimate(recipe, 0.25)["sft"]["cost"] == pytest.approx(
        estimate(recipe, 0.25)["sft"]["hours"] * GPUS["RTX 3090"].price
    )
    # a T4 has no bfloat16, and takes float16
    assert estimate(recipe, 0.25, gpu="T4")["sft"]["hours"] == pytest.approx(
        estimate(recipe, 0.25, gpu="H200")["sft"]["hours"] * 989 / 65
    )
    # in float32 it would be eight times as long
    assert 8 < GPUS["T4"].rate("float16") / GPUS["T4"].rate("float32") < 8.1
    eight = load_recipe(root / "recipes/minimind2-8gpu.toml")
    computing = lambda nodes: estimate(eight, 0.3, nodes=nodes, link=math.inf)["pretrain"]
    assert computing(1)["hours"] == pytest.approx(2 * computing(2)["hours"]) and computing(1)[
        "cost"
    ] == pytest.approx(computing(2)["cost"])
    p = stage_plan(eight, "pretrain")
    # a ring of eight
    assert estimate(eight, 0.3)["pretrain"]["hours"] - computing(1)["hours"] == pytest.approx(
        p["steps"] * 2 * 7 / 8 * 4 * p["parameters"] / 10e9 / 3600
    )
    # four of eight have nothing to do
    few = load_recipe(root / "recipes/minimind2-8gpu.toml", {"pretrain.batch_size": 4})
    assert estimate(few, 0.3, link=math.inf)["pretrain"]["hours"] == pytest.approx(
        2 * computing(1)["hours"]
    ) and "4 of 8 processes have no row" in format_recipe(few)
    elsewhere = load_recipe(
        root / "recipes/minimind2-8gpu.toml", {"sft.init": "a model that is not here yet"}
    )
    # no time can be told
    assert "unknown parameters" in format_recipe(
        elsewhere, "sft"
    ) and "for sending" not in format_recipe(elsewhere, "sft")
    # one card has nobody to send to
    assert estimate(recipe, 0.25) == estimate(recipe, 0.25, link=1.0)
    assert estimate(load_recipe(CI), 0.3) == {}
    for mfu in (0, -1, 30):
        pytest.raises(ValueError, estimate, recipe, mfu)


@pytest.mark.parametrize(
    "batch, n, micro", [(8, 2, 16), (7, 3, 2), (256, 8, 32), (2, 4, 1), (13, 5, 3)]
)
def test_rows_are_dealt_as_the_loop_deals_them(batch, n, micro):
    recipe = load_recipe(CI, dict(nproc=n, batch_size=batch, micro_batch_size=micro))
    p, rows = stage_plan(recipe, "pretrain"), {"x": torch.arange(batch)}
    mine = [list(split_rows({k: v[rank::n] for k, v in rows.items()}, micro)) for rank in range(n)]
    assert p["rows"] == [sum(len(m["x"]) for m in micros) for micros in mine] and p[
        "micro_batches"
    ] == [len(micros) for micros in mine]


def test_a_measured_rate_takes_the_place_of_the_assumption(tmp_path, monkeypatch):
    write_json(
        tmp_path / "gpu-RTX-3090.json",
        dict(
            gpu="RTX 3090",
            runs=[
                dict(model="minimind2-small", compile=False, mfu=0.33),
                dict(model="minimind2-small", compile=True, mfu=0.44),
                dict(model="minimind-3", compile=False),
            ],
        ),
    )
    assert [
        measured_mfu("RTX 3090", m, c, tmp_path)
        for m, c in (
            ("minimind2-small", False),
            ("minimind2-small", True),
            ("minimind-3", False),
            ("minimind2", False),
        )
    ] == [
        (0.33, tmp_path / "gpu-RTX-3090.json"),
        (0.44, tmp_path / "gpu-RTX-3090.json"),
        None,
        None,
    ]
    assert measured_mfu("H100", "minimind2-small", False, tmp_path) is None
    here = partial(measured_mfu, results=tmp_path)
    monkeypatch.setattr("minimind.recipe.measured_mfu", here)
    text = format_recipe(load_recipe(root / "recipes/minimind2-small-3090.toml"))
    assert text.count("MFU 33%, measured: gpu-RTX-3090.json") == 2 and "about 38 min, " in text


def test_cards_by_their_full_names():
    assert [
        gpu_of(n)
        for n in (
            "NVIDIA GeForce RTX 3090",
            "NVIDIA GeForce RTX 3090 Ti",
            "NVIDIA GeForce RTX 4090 D",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA H200",
            "NVIDIA H100 80GB HBM3",
            "NVIDIA A100-SXM4-80GB",
            "Tesla T4",
            "NVIDIA T400",
            "AMD Instinct MI300X",
        )
    ] == ["RTX 3090", None, None, None, "H200", "H100", "A100", "T4", None, None]


# ---- what is refused

SMALL = 'title = "x"\nsource = "y"\n[hardware]\ngpu = ""\n[pretrain]\nsteps = 2\nmodel = "ci"\nseq_len = 8\nout = "runs/x"\n'


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("steps = 2", "stpes = 2", r"\[pretrain\] has no 'stpes'; did you mean steps\?"),
        ("[pretrain]", "[pretrian]", "has no 'pretrian'; did you mean pretrain"),
        ("title", "titel", "'titel'; did you mean title"),
        ("gpu =", "gpus = 1\ncard =", r"\[hardware\] has no 'card'"),
        ('gpu = ""', 'gpu = "RTX 9090"', "GPUS has no 'RTX 9090'; did you mean RTX"),
        ("steps = 2", 'steps = "2"', "steps = '2' in .*wanted int"),
        ("steps = 2", "steps = true", "wanted int"),
        ("steps = 2", "steps = 2.5", "wanted int"),
        ("steps = 2", "fresh = 1", "wanted bool"),
        ("steps = 2", "data = 3", "wanted a list"),
        ("steps = 2", "steps = -2", r"\[pretrain\]: steps=-2"),
        ("steps = 2", "steps = 2\nnproc = 0", "nproc = 0"),
        ('gpu = ""', 'gpu = "T4"\ngpus = 2\n[pretrain]\nnproc = 3\n[sft]', "gpus = 2"),
        ("steps = 2", "steps = ", "is not TOML: .*line 6"),
        ("[pretrain]", "[data.x]\nbites = 3\n[pretrain]", "has no 'bites'; did you mean bytes"),
        ('source = "y"', "", "needs source"),
        ('title = "x"', "title = 3", "needs title"),
        (SMALL[SMALL.index("[pretrain]") :], "", "at least one stage"),
    ],
)
def test_bad_recipes(tmp_path, old, new, says):
    assert old in SMALL
    text = SMALL.replace(old, new, 1)
    if "[sft]" in new:
        text = text.replace("[pretrain]\nsteps", "steps")
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ValueError, match=says) as e:
        load_recipe(tmp_path / "bad.toml")
    assert "bad.toml" in str(e.value)


def test_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match="cii.toml: no such recipe; did you mean ci?"):
        load_recipe(root / "recipes/cii.toml")
    with pytest.raises(FileNotFoundError, match="there are ci, colab-t4, ") as e:
        load_recipe(tmp_path / "x.toml")
    assert str(tmp_path) in str(e.value)


def test_recipes_by_name(capsys, tmp_path, monkeypatch):
    for name in ("minimind2-small-3090", "minimind2-small-3090.toml"):
        assert find_recipe(name).samefile(root / "recipes/minimind2-small-3090.toml")
    monkeypatch.chdir(tmp_path)
    # wherever one stands
    assert find_recipe("ci").samefile(CI)
    (tmp_path / "ci").mkdir()
    assert find_recipe("ci").samefile(CI), "a folder is not a recipe"
    (tmp_path / "recipes").mkdir()
    shutil.copy(CI, tmp_path / "recipes/ci.toml")
    shutil.copy(CI, tmp_path / "recipes/own.toml")
    assert find_recipe("ci").samefile(tmp_path / "recipes/ci.toml"), "what is here comes first"
    code, out, err = say(capsys, "recipe")
    assert code == 0 and "\nown\n" in out and "minimind-3-moe-8gpu" in out
    assert say(capsys, "recipe", "colab-t4", "--dry-run")[0] == 0
    code, out, err = say(capsys, "recipe", "minimind2-smal-3090")
    assert code == 1 and "did you mean minimind2-small-3090?" in err


def test_changes():
    assert parse_changes(
        [
            "lr=1e-4",
            "sft.epochs=2",
            "fresh=true",
            "data=a.jsonl",
            'out="runs/a b"',
            'track=["tensorboard"]',
            "model=ci=2",
        ]
    ) == {
        "lr": 1e-4,
        "sft.epochs": 2,
        "fresh": True,
        "data": "a.jsonl",
        "out": "runs/a b",
        "track": ["tensorboard"],
        "model": "ci=2",
    }
    for word in ("lr", "=3"):
        pytest.raises(ValueError, parse_changes, [word])
    recipe = load_recipe(
        CI,
        {
            "lr": 1,
            "sft.lr": 2e-3,
            "eval_bytes": 7,
            "pretrain.data": "a.jsonl",
            "nproc": 3,
            "fresh": True,
        },
    )
    assert [(s.config.lr, s.nproc, s.config.fresh) for s in recipe.stages.values()] == [
        (1.0, 3, True),
        (2e-3, 3, True),
    ] and recipe.stages["pretrain"].config.data == ("a.jsonl",)
    assert "--fresh" in stage_command(recipe, "sft") and "--eval-bytes" not in stage_command(
        recipe, "sft"
    )
    for key, says in (
        ("sft.eval_bytes", "no 'eval_bytes'"),
        ("dpo.lr", "no 'dpo'"),
        ("epoch", "did you mean epochs"),
        ("lr", "'fast'"),
    ):
        with pytest.raises(ValueError, match=says):
            load_recipe(CI, {key: "fast"})


def test_settings_of_deepspeed_lie_beside_the_recipe(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine.json").write_text("{}")
    (tmp_path / "a/r.toml").write_text(
        SMALL.replace("steps = 2", 'steps = 2\noptimizer = "adamw"\ndeepspeed = "mine.json"')
    )
    assert load_recipe(tmp_path / "a/r.toml", root=tmp_path).stages[
        "pretrain"
    ].config.deepspeed == os.path.join("a", "mine.json")
    assert (
        load_recipe(tmp_path / "a/r.toml", root=tmp_path / "a").stages["pretrain"].config.deepspeed
        == "mine.json"
    )
    assert load_recipe(tmp_path / "a/r.toml", root=there(tmp_path / "b")).stages[
        "pretrain"
    ].config.deepspeed == str((tmp_path / "a/mine.json").resolve())


# ---- the data


def recipe_for(stage, tmp_path, **options):
    lines = "".join(f"{k} = {json.dumps(v)}\n" for k, v in options.items())
    (tmp_path / "r.toml").write_text(
        'title = "x"\nsource = "y"\n[hardware]\ngpu = ""\n[data."data/mine.jsonl"]\nbytes = 100\nfrom = "me"\n'
        + f'[{stage}]\nout = "runs/x"\n{lines}'
    )
    return load_recipe(tmp_path / "r.toml", root=tmp_path)


@pytest.mark.parametrize(
    "stage, good, bad",
    [
        ("pretrain", "pretrain_numbers", "dpo"),
        ("sft", "sft_skills", "pretrain_numbers"),
        ("lora", "lora_ward", "dpo"),
        ("dpo", "dpo", "sft_skills"),
        ("grpo", "rlaif", "pretrain_numbers"),
        ("distill", "sft_skills", ""),
    ],
)
def test_data_are_read_as_the_stage_will_read_them(tmp_path, stage, good, bad):
    (tmp_path / "data").mkdir()
    options = {} if stage in ("pretrain", "distill") else {"init": "runs/base"}
    recipe = recipe_for(stage, tmp_path, data=["data/mine.jsonl"], **options)
    with pytest.raises(FileNotFoundError, match="data/mine.jsonl: me"):
        check_data(recipe)
    (tmp_path / "runs/base").mkdir(parents=True)
    (tmp_path / "runs/base/config.json").write_text("{}")
    shutil.copy(data_dir() / f"{good}.jsonl", tmp_path / "data/mine.jsonl")
    assert f"fine for {stage}" in check_data(recipe)["data/mine.jsonl"]
    if not bad:
        return
    shutil.copy(data_dir() / f"{bad}.jsonl", tmp_path / "data/mine.jsonl")
    with pytest.raises(ValueError, match="mine.jsonl:1: "):
        check_data(recipe)
    with pytest.raises(ValueError, match=f"no row that {stage} can use"):
        check_data(
            recipe_for(stage, tmp_path, data=["data/mine.jsonl"], on_bad_line="skip", **options)
        )


def test_what_is_wrong_with_the_data(tmp_path):
    (tmp_path / "data").mkdir()
    recipe = load_recipe(root / "recipes/minimind2-small-3090.toml", root=tmp_path)
    (tmp_path / "data/sft_mini_512.jsonl").write_text('{"conversations": []}')
    with pytest.raises(FileNotFoundError, match="pretrain_hq.jsonl") as e:
        check_data(recipe)
    text = str(e.value)
    assert (
        "modelscope download --dataset gongjy/minimind_dataset pretrain_hq.jsonl" in text
        and "hf download" in text
        and "sft_mini_512.jsonl has 21 bytes, 1,200,000,000 were expected" in text
    )
    with pytest.raises(ValueError, match="cut off") as e:
        check_data(recipe, only="sft")
    assert "runs/minimind2-small/pretrain, which sft goes on from, is not a model folder" in str(
        e.value
    )
    (tmp_path / "data/mine.jsonl").write_text(
        '{"text": "a"}\n{"text": ""}\n' + '{"text": "some more"}\n' * 9
    )
    with pytest.raises(ValueError, match="mine.jsonl:2: empty text"):
        check_data(recipe_for("pretrain", tmp_path, data=["data/mine.jsonl"]))
    found = check_data(
        recipe_for("pretrain", tmp_path, data=["data/mine.jsonl"], on_bad_line="skip")
    )
    assert (
        "first 10 rows" in found["data/mine.jsonl"]
        and "1 were left out" in found["data/mine.jsonl"]
    )
    assert "shipped samples" in str(check_data(recipe_for("pretrain", tmp_path)))


# ---- the command line


def say(capsys, *words):
    capsys.readouterr()
    try:
        code = cli.main(list(map(str, words)))
    except SystemExit as e:
        code = e.code
    return (code, *capsys.readouterr())


def test_dry_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = say(
        capsys,
        "recipe",
        root / "recipes/minimind2-8gpu.toml",
        "--dry-run",
        "--nodes",
        2,
        "--address",
        "node0:29500",
        "--only",
        "pretrain",
        "--set",
        "batch_size=250",
        "lr=1e-3",
    )
    assert code == 0 and err == "" and not list(tmp_path.iterdir())
    ranks = re.findall(r"^ +(\d+) +(\d) +cuda:(\d) +(\d+) +(\d) of at most 32$", out, re.M)
    assert [tuple(map(int, r)) for r in ranks] == [
        (rank, rank // 8, rank % 8, 16 if rank < 10 else 15, 1) for rank in range(16)
    ]
    assert (
        "16 ranks on 2 machines, meeting at node0:29500" in out
        and "--lr 0.001" in out
        and "sft:" not in out
    )
    assert (
        say(capsys, "recipe", root / "recipes/minimind2-8gpu.toml", "--dry-run", "--nodes", 2)[0]
        == 1
    )


@pytest.mark.parametrize(
    "words, code, says",
    [
        ("nowhere.toml", 1, "nowhere.toml"),
        ("{CI} --only dpo", 1, "this recipe has no 'dpo'; it has pretrain, sft"),
        ("{CI} --set lr", 1, "wanted KEY=VALUE"),
        ("{CI} --set lrr=1", 1, "did you mean lr?"),
        ("{CI} --dyr-run", 2, "did you mean --dry-run?"),
        ("--dry-run", 2, "which recipe?"),
        ("{CI}", 1, "data_samples/pretrain_en.jsonl"),
        ("{ROOT}/recipes/minimind-3-h200.toml", 1, "modelscope download"),
        (
            "{ROOT}/recipes/minimind2-deepspeed.toml --dry-run --set optimizer=muon",
            1,
            "[pretrain]: optimizer='muon': DeepSpeed cuts the weights",
        ),
        (
            "{CI} --dry-run --set pretrain.model=foo",
            1,
            "[pretrain]: model='foo' is neither a preset",
        ),
        (
            "{CI} --dry-run --set seq_len=99999999",
            1,
            "[pretrain]: seq_len=99999999 is beyond the model's",
        ),
        (
            "{ROOT}/recipes/minimind2-8gpu.toml --dry-run --set device=cuda:0",
            1,
            "device = 'cuda:0' is one card for 8 processes",
        ),
        ("{CI} --dry-run --nodes 0", 1, "nodes=0: wanted at least 1"),
        ("{CI} --dry-run --nodes 2 --address host:99999", 1, "address='host:99999'"),
        (
            "{CI} --dry-run --set deepspeed=zero9.json",
            1,
            "deepspeed = 'zero9.json' in [pretrain]: there is no such file",
        ),
    ],
)
def test_what_the_command_refuses(capsys, tmp_path, monkeypatch, words, code, says):
    monkeypatch.chdir(tmp_path)
    got, out, err = say(
        capsys, "recipe", *words.replace("{CI}", str(CI)).replace("{ROOT}", str(root)).split()
    )
    assert got == code and says in err and "Traceback" not in err and not list(tmp_path.iterdir())


def test_slurm(tmp_path):
    script = root / "recipes/slurm.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    # more than a pipe holds: nobody may stop reading after the first
    for name, body in (
        ("srun", 'printf "%s\\n" "$@"'),
        ("scontrol", "echo nodeA; seq -f node%g 20000"),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[A-B]",
        "SLURM_JOB_ID": "41234",
        "SLURM_NNODES": "2",
    }
    done = subprocess.run(
        ["bash", script, "recipes/minimind2-8gpu.toml", "--only", "pretrain"],
        env=env,
        cwd=root,
        capture_output=True,
        text=True,
    )
    words = done.stdout.splitlines()
    assert done.returncode == 0 and words[:2] == ["--kill-on-bad-exit=1", "minimind"]
    args = cli.build_parser().parse_args(words[2:])
    assert (args.command, args.file, args.nodes, args.address, args.only) == (
        "recipe",
        "recipes/minimind2-8gpu.toml",
        2,
        "nodeA:21234",
        "pretrain",
    )
    assert (
        "usage: sbatch"
        in subprocess.run(["bash", script], env=env, capture_output=True, text=True).stderr
    )


# ---- processes that live by themselves


def wait_for(condition, seconds=180):
    deadline = time.time() + seconds
    while not (value := condition()):
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def python(*code):
    return [sys.executable, "-c", "\n".join(code)]


@posix
def test_how_a_launch_ends(tmp_path):
    job = Launch(tmp_path / "a/run")
    assert not job.running
    with pytest.raises(FileNotFoundError, match="nothing was launched"):
        job.info
    for code in (0, 3):
        job.start(
            python(
                "import os, sys",
                "print(os.getcwd(), os.environ['MINE'], 'ü')",
                "print('x', end='')",
                f"sys.exit({code})",
            ),
            cwd=tmp_path,
            env={"MINE": "17"},
        )
        seen = []
        assert job.follow(seen.append) == code == job.code and not job.running
        assert (
            seen[0].startswith("$ python -c")
            and f"{tmp_path.resolve()} 17 ü" in seen
            and seen[-1] == f"xlaunch: ended with exit code {code}"
        )
    assert job.log.read_text().count("launch: ended") == 2
    assert (
        job.start(["/no/such/program"]).follow(lambda line: None) == 127
        and "No such file" in job.log.read_text()
    )
    assert (
        job.start(python("import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")).follow(
            lambda line: None
        )
        == -9
    )
    with pytest.raises(ValueError, match="nothing runs there"):
        job.stop()


@posix
def test_one_run_a_folder_and_no_other_process_is_hit(tmp_path):
    job = Launch(tmp_path).start(
        python("import time", "print('here', flush=True)", "time.sleep(60)")
    )
    with pytest.raises(ValueError, match=f"going on there already .process {job.info['pid']}"):
        Launch(tmp_path).start(python(""))
    # another machine in the same folder
    other = Launch(tmp_path, "launch-b").start(python("import time; time.sleep(60)"))
    assert other.info["pid"] != job.info["pid"] and os.getsid(job.info["pid"]) == job.info[
        "pid"
    ] != os.getsid(0)
    write_json(job.file, job.info | {"host": "elsewhere"})
    with pytest.raises(RuntimeError, match="launched on elsewhere"):
        job.running
    write_json(job.file, job.info | {"host": socket.gethostname()})
    wait_for(lambda: b"\nhere\n" in job.log.read_bytes())
    info = job.info
    # the number has gone to somebody else
    write_json(job.file, info | {"pid": os.getpid()})
    assert not job.running
    pytest.raises(ValueError, job.stop)
    write_json(job.file, info)
    assert job.stop() == "here" and job.code == -15
    # keeper and all
    os.killpg(other.info["pid"], signal.SIGKILL)
    wait_for(lambda: not other.running)
    assert other.code is None


@posix
def test_two_ways_to_tell_a_process():
    child = subprocess.Popen(python("import time; time.sleep(60)"))
    ways = [
        f
        for f, there in (
            (launch._start_by_proc, Path("/proc/self/stat").exists()),
            (launch._start_by_ps, shutil.which("ps")),
        )
        if there
    ]
    assert (
        ways
        and all(f(child.pid) and f(child.pid) == f(child.pid) for f in ways)
        and process_start(child.pid)
    )
    child.kill()
    # a zombie by now
    wait_for(lambda: not any(f(child.pid) for f in ways))
    child.wait()
    assert not any(f(child.pid) for f in ways)


@posix
def test_a_run_that_does_not_listen(tmp_path):
    job = Launch(tmp_path).start(
        python(
            "import signal, time",
            "signal.signal(signal.SIGTERM, lambda *_: print('later', flush=True))",
            "print('ready', flush=True)",
            "while True: time.sleep(.1)",
        )
    )
    wait_for(lambda: b"\nready\n" in job.log.read_bytes())
    with pytest.raises(TimeoutError, match="still busy 1 s"):
        job.stop(wait=1)
    assert job.running and b"\nlater\n" in job.log.read_bytes()
    os.killpg(job.info["pid"], signal.SIGKILL)


# ---- the small recipe, by two processes


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "The small recipe, done by the command that does them all."
    folder = there(tmp_path_factory.mktemp("recipe"))
    words = [sys.executable, "-m", "minimind", "recipe", str(CI)]
    runs = [
        subprocess.run(
            [*words, *more],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for more in ([], ["--only", "sft"])
    ]
    return folder, runs


@posix
def test_the_small_recipe(done):
    folder, (first, second) = done
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    for stage, steps in (("pretrain", 30), ("sft", 36)):
        run = folder / "runs/recipe-ci" / stage
        model, tokenizer = load_pretrained(run)
        assert (
            model.config.hidden_size == PRESETS["ci"].hidden_size and tokenizer.vocab_size == 1024
        )
        at, losses = curves(run)["loss"]
        assert at == list(range(2, steps + 1, 2)) and losses[-1] < losses[0] - 0.5
        assert (
            Launch(run).code == 0
            and Launch(run).info["argv"][1:3] == ["-m", "torch.distributed.run"]
            and "--nproc-per-node 2" in first.stdout
        )
        assert first.stdout.count(f"{stage} step {steps}/{steps}") == 1
    # asked again, it has nothing left to do
    assert (
        second.returncode == 0
        and "sft: all 36 steps are done" in second.stdout
        and "bits per byte" in first.stdout
    )


def long(done, tmp_path, nproc, **changes):
    "A recipe that would fine-tune for hours, from the model of the small one."
    folder = there(tmp_path / "root")
    (folder / "runs").symlink_to(done[0] / "runs")
    changes = {
        "nproc": nproc,
        "sft.out": "mine",
        "sft.steps": 100_000,
        "sft.save_every": 50_000,
    } | changes
    return load_recipe(CI, changes, root=folder), [f"{k}={v}" for k, v in changes.items()]


@posix
def test_stopped_and_gone_on_with(done, tmp_path):
    recipe, _ = long(done, tmp_path, 2, **{"sft.steps": 36, "sft.save_every": 10})
    argv, job = stage_command(recipe, "sft"), Launch(recipe.folder("sft"))
    job.start(argv, recipe.root, {"OMP_NUM_THREADS": "1"})
    for line in job.lines():
        if "sft step 2/" in line:
            break
    said = Launch(recipe.folder("sft")).stop()
    at = int(re.search(r"SIGTERM after step (\d+) of 36: saved in mine", said)[1])
    assert (
        2 <= at < 36
        and checkpoints(job.folder)[-1].name == f"step-{at:08d}"
        and not job.running
        and job.code
    )
    assert job.start(argv, recipe.root, {"OMP_NUM_THREADS": "1"}).follow(lambda line: None) == 0
    whole, cut = curves(done[0] / "runs/recipe-ci/sft"), curves(job.folder)
    assert cut["loss"][0] == whole["loss"][0] and cut["loss"][1] == pytest.approx(
        whole["loss"][1], abs=1e-6
    )


@posix
def test_an_interrupted_kernel_leaves_the_run_alive(done, tmp_path):
    recipe, changes = long(done, tmp_path, 1)
    code = [
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)",  # which a job in the background has not
        "from minimind.launch import *; from minimind.recipe import *",
        f"r = load_recipe({str(CI)!r}, parse_changes({changes!r}), root={str(recipe.root)!r})",
        "job = Launch(r.folder('sft')).start(stage_command(r, 'sft'), r.root)",
        "print('code', job.follow(), flush=True)",
        "import time; time.sleep(600)",
    ]
    kernel = subprocess.Popen(
        python(*code),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        for line in kernel.stdout:
            if "sft step 2/" in line:
                break
        # as Jupyter does: the whole group
        os.killpg(kernel.pid, signal.SIGINT)
        seen = ""
        while "code None" not in seen:
            seen += kernel.stdout.readline()
        assert "no longer looking; the run goes on" in seen
        os.killpg(kernel.pid, signal.SIGKILL)
        kernel.wait()  # a restart
        job = Launch(recipe.folder("sft"))
        before = len(job.log.read_bytes())
        wait_for(lambda: len(job.log.read_bytes()) > before)
        assert job.running and "saved in mine" in job.stop() and checkpoints(job.folder)
    finally:
        kernel.kill()


@posix
def test_the_command_killed_found_again_and_asked_to_end(done, tmp_path):
    recipe, changes = long(done, tmp_path, 2)
    words, job = (
        [sys.executable, "-m", "minimind", "recipe", str(CI), "--only", "sft", "--set", *changes],
        Launch(recipe.folder("sft")),
    )

    def start(*more):
        return subprocess.Popen(
            [*words, *more],
            cwd=recipe.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    first = start()
    for line in first.stdout:
        if "sft step 2/" in line:
            break
    first.kill()
    first.communicate()  # the terminal is gone
    assert job.running
    other = start("seed=7")
    assert other.wait(60) == 1 and "another command is running there" in other.stderr.read()
    second = start()
    for line in second.stdout:
        if "sft runs already, since" in line:
            break
    for line in second.stdout:
        if "sft step 4/" in line:
            break
    second.send_signal(signal.SIGTERM)
    out, _ = second.communicate(timeout=120)
    assert (
        second.returncode == 143
        and "saved in mine" in out
        and not job.running
        and checkpoints(job.folder)
    )


@posix
def test_a_stage_that_fails_ends_the_recipe(done, tmp_path):
    recipe, _ = long(done, tmp_path, 1, **{"sft.seq_len": 40_000})
    said = []
    with pytest.raises(RuntimeError, match="sft ended with exit code 1; its words are in"):
        run_recipe(recipe, only="sft", show=said.append)
    assert any("max_position_embeddings" in line for line in said)
