"""Every stage, end to end at a tiny size: it learns, leaves a model folder, goes on after a stop,
plans without writing, and says what is wrong. A new stage joins by an entry in `TINY`."""

import json
import re
import shutil
import signal
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minimind import pretrain, sft, train
from minimind import stage as stages
from minimind.hub import load_pretrained, read_tensors, save_pretrained, to_hf_config
from minimind.hub import write_tensors
from minimind.checkpoint import SettingsChanged, newest_run, run_stage_name, run_state
from minimind.cli import build_parser, main
from minimind.core import sample
from minimind.data import JsonlReader, in_heldout, read_documents
from minimind.model import MiniMind, ModelConfig
from minimind.plugins import plugin_names
from minimind.stage import find_stage, settled
from minimind.tokenizer import Tokenizer
from minimind.log import read_metrics
from shared import SHAPE, write_lines

STAGES = plugin_names("stage")
SHARED = dict(
    steps=24,
    seq_len=64,
    batch_size=8,
    micro_batch_size=4,
    warmup=2,
    log_every=4,
    lr=1e-2,
    muon_lr=2e-2,
    device="cpu",
)


def on_chats(world, **settings):
    "Settings of a stage that goes on with the base model on conversations."
    files = dict(data=(world / "chats.jsonl",), heldout=(world / "more_chats.jsonl",))
    return files | dict(init=world / "base", eval_rows=8) | settings


# What a stage needs beside `SHARED` to run in a second. `world` is the folder that the fixture
# below fills.
TINY = {
    "pretrain": lambda world: dict(
        data=(world / "texts.jsonl",),
        heldout=(world / "more_texts.jsonl",),
        tokenizer=world / "base",
        model=world / "shape",
        eval_bytes=1000,
    ),
    "sft": on_chats,
    "lora": lambda world: on_chats(world, lr=3e-2, muon_lr=None, r=16, alpha=64.0),
    "dpo": lambda world: dict(
        data=(world / "pairs.jsonl",), heldout=(world / "more_pairs.jsonl",), init=world / "base"
    ),
    "distill": lambda world: on_chats(world, teacher=world / "base"),
    "ppo": lambda world: on_chats(world, **REINFORCED, updates=4, passes=2),
    "grpo": lambda world: on_chats(world, **REINFORCED, updates=2, beta=0.01),
    "spo": lambda world: on_chats(
        world, **(REINFORCED | dict(prompts=32, group_size=1)), updates=2
    ),
}
# `None`: the stage has no such setting. To draw long tokens is learned in seconds
REINFORCED = dict(
    batch_size=None,
    prompts=8,
    group_size=4,
    max_new_tokens=8,
    micro_batch_size=16,
    reward=("length",),
)
# stages whose folder is not a model's but an adapter's, and its weights
ADAPTERS = {"lora": "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):  # a folder with small files of every kind, a shape and a base model
    "Everything that a stage can read."
    world = tmp_path_factory.mktemp("world")
    texts = [
        row["text"][:600]
        for _, row in zip(range(48), (row for _, row in JsonlReader(sample("pretrain_en.jsonl"))))
    ]
    chats = [
        {
            "conversations": [
                {"role": "user", "content": f"Say {word}."},
                {"role": "assistant", "content": f"{word}!"},
            ],
            "answer": f"{word}!",
        }
        for word in dict.fromkeys(w for t in texts[:4] for w in t.split() if w.isalpha())
    ]
    write_lines(world / "texts.jsonl", ({"text": t} for t in texts[:40]))
    write_lines(world / "more_texts.jsonl", ({"text": t} for t in texts[40:]))
    write_lines(world / "chats.jsonl", chats[:-8])
    write_lines(world / "more_chats.jsonl", chats[-8:])
    (world / "empty.txt").write_text("\n \n")
    pairs = [
        {
            "chosen": c["conversations"],
            "rejected": [c["conversations"][0], {"role": "assistant", "content": "No."}],
        }
        for c in chats
    ]
    write_lines(world / "pairs.jsonl", pairs[:-8])
    write_lines(world / "more_pairs.jsonl", pairs[-8:])
    write_lines(
        world / "broken.jsonl",
        [
            {"text": texts[0], **chats[0], **pairs[0]},
            {"what": "neither"},
            {"text": texts[1], **chats[1], **pairs[1]},
        ],
    )
    write_lines(world / "no_answer_text.jsonl", [chats[0] | {"answer": 7}])
    long = [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": "Too late."}]
    write_lines(world / "long.jsonl", [*chats[:20], {"conversations": long}])
    tokenizer = Tokenizer.train(texts, SHAPE["vocab_size"])
    torch.manual_seed(0)
    save_pretrained(MiniMind(ModelConfig(**SHAPE)), tokenizer, world / "base")
    (world / "shape").mkdir()
    (world / "shape" / "config.json").write_text(json.dumps(to_hf_config(ModelConfig(**SHAPE))))
    Tokenizer.train(texts, SHAPE["vocab_size"] + 50).save(world / "larger")
    save_pretrained(
        MiniMind(ModelConfig(**SHAPE)), Tokenizer.from_file(world / "larger"), world / "mismatched"
    )
    return world


def values_of(
    name, world, out, changes
):  # a run that goes on from another one has that one's shape and tokenizer
    own = {
        k: v
        for k, v in TINY[name](world).items()
        if not (name == "pretrain" and "init" in changes and k in ("model", "tokenizer"))
    }
    return {k: v for k, v in {**SHARED, **own, "out": str(out), **changes}.items() if v is not None}


def config(name, world, out, **changes):  # the stage and its tiny config
    stage = find_stage(name)
    return stage, stage.config(**values_of(name, world, out, changes))


def flags(name, world, out, **changes):  # the same as arguments of the command line
    values = values_of(name, world, out, changes)
    return [
        name,
        *(
            str(a)
            for k, v in values.items()
            for a in [f"--{k.replace('_', '-')}", *(v if isinstance(v, tuple) else [v])]
        ),
    ]


@pytest.fixture(scope="module")
def finished(world):  # stage -> (stage, config, what `run` returned), made when first asked for
    runs = {}

    def get(name):
        if name not in runs:
            stage, cfg = config(name, world, world / "runs" / name)
            runs[name] = stage, cfg, stage.run(cfg)
        return runs[name]

    return get


def contents(folder):  # {file: bytes}
    return {f: f.read_bytes() for f in sorted(Path(folder).rglob("*")) if f.is_file()}


def complaint(argv, capsys):  # what the command says when it refuses
    "Run a command that must fail; not with a traceback."
    try:
        code = main(argv)
    except SystemExit as e:
        code = e.code
    assert code in (1, 2), code
    return capsys.readouterr().err


def test_every_stage_is_tested():
    assert TINY.keys() == set(STAGES), "give the new stage an entry in TINY"


@pytest.mark.parametrize("name", STAGES)
def test_learns(name, finished):
    _, cfg, last = finished(name)
    lines = read_metrics(cfg.out)
    # the loss of reinforcement learning says nothing: it is 0 on average
    losses = [
        -line["reward"] if "reward" in line else line["loss"] for line in lines if "loss" in line
    ]
    # nats; the first loss is a mean over four steps. An adapter has to work with embeddings that
    # were never trained
    least = 0.01 if name in ("ppo", "grpo", "spo") else 0.1 if name in ADAPTERS else 0.5
    assert losses[-1] < losses[0] - least, losses
    assert last["step"] == cfg.steps and last == {
        k: v for line in lines if line["step"] == cfg.steps for k, v in line.items()
    }
    measured = [line for line in lines if "lr" not in line]
    when = [0, cfg.steps] if cfg.eval_first else [cfg.steps]
    assert [line["step"] for line in measured] == when, "held-out numbers at the ends only"
    assert all(v == v for line in measured for v in line.values())


# for those: tests/test_lora.py
@pytest.mark.parametrize("name", [name for name in STAGES if name not in ADAPTERS])
def test_leaves_a_hugging_face_folder(name, finished):
    _, cfg, _ = finished(name)
    model, tokenizer = load_pretrained(cfg.out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, their_tokenizer = (
            AutoModelForCausalLM.from_pretrained(cfg.out).eval(),
            AutoTokenizer.from_pretrained(cfg.out),
        )
    ids = tokenizer.encode("The king said to the people")
    assert (
        ids == their_tokenizer("The king said to the people", add_special_tokens=False)["input_ids"]
    )
    with torch.no_grad():
        torch.testing.assert_close(
            model(torch.tensor([ids])), theirs(torch.tensor([ids])).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", STAGES)
def test_a_finished_run_is_left_alone(name, finished, capsys):
    stage, cfg, last = finished(name)
    before = contents(cfg.out)
    assert stage.run(cfg) == last
    assert "are done" in capsys.readouterr().out
    assert contents(cfg.out) == before


@pytest.mark.parametrize("name", STAGES)
def test_goes_on_after_an_interrupt(name, world, finished, tmp_path, monkeypatch):
    stage, whole, _ = finished(name)
    _, cfg = config(name, world, tmp_path / "run")
    factor = train.lr_factor

    def interrupting(step, *args):
        if step == 9:
            signal.raise_signal(signal.SIGINT)
        return factor(step, *args)

    monkeypatch.setattr(train, "lr_factor", interrupting)
    # a shell's background jobs are started with Ctrl-C ignored
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stage.run(cfg)
    finally:
        signal.signal(signal.SIGINT, old)
    assert max(line["step"] for line in read_metrics(cfg.out)) < whole.steps
    monkeypatch.setattr(train, "lr_factor", factor)
    stage.run(cfg)
    weights = ADAPTERS.get(name, "model.safetensors")
    assert (tmp_path / "run" / weights).read_bytes() == (Path(whole.out) / weights).read_bytes(), (
        "not the weights of the run that was not interrupted"
    )


@pytest.mark.parametrize("name", STAGES)
def test_a_dry_run_writes_nothing(name, world, finished, tmp_path, capsys):
    stage, cfg = config(name, world, tmp_path / "run")
    assert stage.run(cfg, dry_run=True) == {}
    said = capsys.readouterr().out
    assert "parameters" in said and "24 steps" in said and "about 0:" in said, said
    assert not list(tmp_path.iterdir())
    _, cfg, _ = finished(name)
    before = contents(cfg.out)
    stage.run(cfg, dry_run=True)
    assert contents(cfg.out) == before


@pytest.mark.parametrize("name", STAGES)
def test_one_file_need_not_be_a_list(name, world, tmp_path):
    _, cfg = config(
        name, world, tmp_path, data=world / "texts.jsonl", heldout=[world / "more_texts.jsonl"]
    )
    assert cfg.data == (str(world / "texts.jsonl"),) and cfg.heldout == (
        str(world / "more_texts.jsonl"),
    )


# (stage, or None for all; changed settings; what the message must say)
MISTAKES = [
    (None, dict(data="missing.jsonl"), "no such file: missing.jsonl"),
    (None, dict(heldout="missing.jsonl"), "no such file: missing.jsonl"),
    (None, dict(data="{world}/broken.jsonl"), "broken.jsonl:2: "),
    (None, dict(heldout="{data}"), "is in data and in heldout"),
    (None, dict(seq_len=1024), "max_position_embeddings=512"),
    (None, dict(init="{world}/runs"), "is not a model folder"),
    (None, dict(init="{world}/mismatched"), "the tokenizer has 450 tokens, the model knows 400"),
    ("pretrain", dict(model="minimind4"), "neither a preset (ci, minimind2-small"),
    ("pretrain", dict(heldout="{world}/empty.txt"), "'empty' has no text to measure on"),
    ("pretrain", dict(data="{world}/empty.txt"), "no document is left of"),
    ("pretrain", dict(eval_bytes=-1), "eval_bytes=-1: must be zero or positive"),
    (
        "sft",
        dict(heldout="{world}/no_answer_text.jsonl"),
        "no_answer_text.jsonl:1: a question needs an 'answer'",
    ),
    ("sft", dict(data="{world}/long.jsonl"), "long.jsonl:21: nothing to learn"),
]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (name, changes, message)
        for only, changes, message in MISTAKES
        for name in STAGES
        if only in (None, name)
    ],
)
def test_a_mistake_is_one_clear_line(name, changes, message, world, tmp_path, capsys):
    data = str(TINY[name](world)["data"][0])
    changes = {
        k: v.format(world=world, data=data) if isinstance(v, str) else v for k, v in changes.items()
    }
    said = [
        line
        for line in complaint(flags(name, world, tmp_path / "run", **changes), capsys).splitlines()
        if line.startswith(f"minimind {name}: ")
    ]
    assert len(said) == 1 and message in said[0], said
    assert not list(tmp_path.glob("run/model*"))


@pytest.mark.parametrize("name", STAGES)
def test_bad_lines_can_be_skipped_and_are_counted(name, world, tmp_path, capsys):
    stage, cfg = config(
        name, world, tmp_path / "run", data=world / "broken.jsonl", steps=1, on_bad_line="skip"
    )
    assert stage.run(cfg)["step"] == 1
    said = capsys.readouterr().out
    assert re.search("^2 (documents|pairs|prompts)", said, re.M) and "left out: 1 × " in said, said


@pytest.mark.parametrize("name", STAGES)
def test_a_run_is_not_mixed_with_another(name, world, finished):
    stage, cfg, _ = finished(name)
    before = contents(cfg.out)
    _, changed = config(name, world, cfg.out, lr=2e-2)
    with pytest.raises(ValueError, match=r"lr was 0.0\d, is 0.02.*--fresh"):
        stage.run(changed)
    assert contents(cfg.out) == before


@pytest.mark.parametrize("name, measure", [("pretrain", "bpb_heldout"), ("sft", "heldout_loss")])
def test_a_part_is_kept_out_where_no_files_are(name, measure, world, tmp_path, capsys):
    stage, cfg = config(
        name,
        world,
        tmp_path / "run",
        data=sample("pretrain_heldout_en.jsonl" if name == "pretrain" else "sft_chat_en.jsonl"),
        heldout=(),
        steps=1,
        seq_len=256,
    )
    assert stage.run(cfg)[measure] > 0
    assert "held out: " in capsys.readouterr().out
    if name == "pretrain":
        files, _ = cfg.files(pretrain.TEXT_SAMPLES)
        cfg = pretrain.fit_to_text(cfg, files, [])
        held = pretrain.heldout_texts(cfg, files, [])["heldout"]
        one_in = run_state(cfg.out)["settings"]["heldout_one_in"]
        assert held and all(in_heldout(text, one_in) for text in held)
        assert not any(in_heldout(text, one_in) for text in read_documents(files, "train", one_in))


def test_pretraining_can_go_on_from_a_model(world, tmp_path):
    stage, cfg = config(
        "pretrain", world, tmp_path / "run", init=str(world / "runs" / "pretrain"), steps=4
    )
    config_of_base = config("pretrain", world, world / "runs" / "pretrain")
    # done already, unless this test runs alone
    stage.run(config_of_base[1])
    started = read_metrics(config_of_base[1].out)[0]["loss"]
    stage.run(cfg)
    assert read_metrics(cfg.out)[0]["loss"] < started


def test_a_changed_vocabulary_is_noticed(
    world, tmp_path
):  # killed before its first checkpoint, a run leaves nothing that a later one could take for its own
    stage, cfg = config("pretrain", world, tmp_path / "run", tokenizer="", vocab_size=300, steps=1)
    pretrain.make_tokenizer(cfg, [world / "texts.jsonl"])
    assert not (tmp_path / "run").exists()
    stage.run(cfg)
    assert (
        load_pretrained(cfg.out)[0].config.vocab_size
        == load_pretrained(cfg.out)[1].vocab_size
        == 300
    )


def test_a_long_conversation_is_cut_and_counted(world, tmp_path, capsys):
    long = [
        {"role": "user", "content": "Say all you know."},
        {"role": "assistant", "content": "word " * 300},
    ]
    stage, cfg = config(
        "sft",
        world,
        tmp_path / "run",
        data=write_lines(tmp_path / "talk.jsonl", [{"conversations": long}]),
        steps=1,
    )
    stage.run(cfg)
    assert "cut at 64 tokens: 1" in capsys.readouterr().out


# ---- what would be lost, or be measured on nothing
def test_a_refused_command_leaves_the_run_as_it_was(world, tmp_path, capsys):
    stage, cfg = config("pretrain", world, tmp_path / "run", steps=2)
    stage.run(cfg)
    before = {f: f.read_bytes() for f in sorted((tmp_path / "run").rglob("*")) if f.is_file()}
    assert (
        main(flags("pretrain", world, tmp_path / "run", steps=2, data=world / "broken.jsonl")) == 1
    )
    assert main(flags("sft", world, tmp_path / "run", init=tmp_path / "run", steps=2)) == 1
    assert before == {
        f: f.read_bytes() for f in sorted((tmp_path / "run").rglob("*")) if f.is_file()
    }
    said = capsys.readouterr().err
    assert "data was" in said and "init and out are both" in said


def test_other_data_under_the_same_name_are_noticed(world, tmp_path):
    lines = (world / "texts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    stage, cfg = config(
        "pretrain", world, tmp_path / "run", data=(str(tmp_path / "a.jsonl"),), steps=2
    )
    stage.run(cfg)
    (tmp_path / "a.jsonl").write_text("".join(lines[::-1]), encoding="utf-8")
    with pytest.raises(ValueError, match="data_sha256 was"):
        stage.run(cfg)


def test_the_same_files_may_be_spelt_otherwise(world, tmp_path, monkeypatch):
    stage, cfg = config(
        "pretrain", world, tmp_path / "run", data=(str(world / "texts.jsonl"),), steps=2
    )
    stage.run(cfg)
    monkeypatch.chdir(world)
    last = stage.run(
        config("pretrain", world, tmp_path / "run", data=("./texts.jsonl",), steps=2)[1]
    )
    assert last["step"] == 2


def test_little_data_are_all_trained_on_and_that_is_said(world, tmp_path, capsys):
    "One document, whichever side its hash is on."
    for i in range(40):
        if in_heldout(text := f"A short text, number {i}. " + "It goes on. " * 30):
            break
    (tmp_path / "one.txt").write_text(text)
    stage, cfg = config(
        "pretrain", world, tmp_path / "run", data=(str(tmp_path / "one.txt"),), heldout=(), steps=1
    )
    assert "bpb_heldout" not in stage.run(cfg)
    assert "nothing is held out" in capsys.readouterr().out


# ---- runs find each other, and may be moved
def test_a_run_says_which_stage_made_it(finished):
    for name in ("pretrain", "sft", "dpo", "lora"):
        _, cfg, _ = finished(name)
        assert run_stage_name(cfg.out) == run_state(cfg.out)["settings"]["stage"] == name


def test_a_stage_begins_from_the_newest_run(world, finished, monkeypatch, capsys, tmp_path):
    for name in ("pretrain", "sft"):
        finished(name)
    monkeypatch.chdir(world)
    begun = {}
    for name, from_whom in (("sft", "pretrain"), ("dpo", "sft")):
        stage, cfg = config(name, world, tmp_path / name, init=None, steps=1)
        stage.run(cfg)
        assert f"begins from runs/{from_whom}, the newest" in capsys.readouterr().out
        begun[name] = run_state(cfg.out)["settings"]["init"]
    assert begun["sft"] == str(world / "runs" / "pretrain")
    # a newer one has come; the run that goes on keeps the one that it was begun with
    stage, newer = config("pretrain", world, world / "runs" / "deep" / "newer", steps=1)
    stage.run(newer)
    assert newest_run("base", world / "runs").name == "newer"
    stage, cfg = config("sft", world, tmp_path / "sft", init=None, steps=1)
    stage.run(cfg)
    assert "are done" in capsys.readouterr().out


@pytest.mark.parametrize("name", [n for n in STAGES if n != "pretrain"])
def test_without_a_run_to_begin_from_the_maker_is_named(name, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gone = "teacher" if name == "distill" else "init"
    said = complaint(flags(name, world, tmp_path / "run", **{gone: None}), capsys)
    maker = "pretrain" if name == "sft" else "sft"
    assert f"`minimind {maker}` or `minimind run` makes one" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def clone(world, tmp_path, monkeypatch):  # a folder with data and two runs, as a clone has it
    "Base and fine-tuned model, begun by relative paths from within the folder."
    here = tmp_path / "clone"
    here.mkdir()
    for name in ("texts", "more_texts", "chats", "more_chats"):
        (here / f"{name}.jsonl").write_bytes((world / f"{name}.jsonl").read_bytes())
    monkeypatch.chdir(here)
    go_on(world)
    return here


def go_on(world):  # in the clone's folder: the same commands again
    last = []
    base = dict(data=("texts.jsonl",), heldout=("more_texts.jsonl",), steps=2)
    chats = dict(data=("chats.jsonl",), heldout=("more_chats.jsonl",), init="runs/base", steps=2)
    for name, out, own in (("pretrain", "base", base), ("sft", "chat", chats)):
        stage, cfg = config(name, world, f"runs/{out}", **own)
        last.append(stage.run(cfg))
    return last


@pytest.mark.parametrize("how", ["copied", "renamed", "runs copied"])
def test_runs_may_be_moved(how, clone, world, tmp_path, monkeypatch, capsys):
    new = tmp_path / "elsewhere"
    if how == "renamed":
        clone.rename(new)
    elif how == "copied":
        shutil.copytree(clone, new, copy_function=shutil.copyfile)  # with times of its own
    else:
        new.mkdir()
        shutil.copytree(clone / "runs", new / "runs", copy_function=shutil.copyfile)
        for file in clone.glob("*.jsonl"):
            shutil.copyfile(file, new / file.name)
    monkeypatch.chdir(new)
    stores = {f: f.stat().st_ino for f in Path("runs").glob("*/store/meta.json")}
    capsys.readouterr()
    assert [last["step"] for last in go_on(world)] == [2, 2]
    assert capsys.readouterr().out.count("are done") == 2
    assert {f: f.stat().st_ino for f in stores} == stores  # nothing was tokenised again


def test_a_moved_run_finds_what_it_was_begun_with(clone, world, tmp_path, monkeypatch):
    new = tmp_path / "elsewhere"
    clone.rename(new)
    monkeypatch.chdir(new)
    chats = dict(data=("chats.jsonl",), heldout=("more_chats.jsonl",), steps=2)
    stage, cfg = config("sft", world, "runs/chat", **chats, init=None)  # it is open
    assert settled(cfg).init == "runs/base"
    assert stage.run(cfg)["step"] == 2


def test_another_model_under_the_same_path_is_refused(clone, world):
    tensors = read_tensors("runs/base/model.safetensors")
    write_tensors("runs/base/model.safetensors", {k: v + 1 for k, v in tensors.items()})
    with pytest.raises(SettingsChanged, match="init_sha256 was"):
        chats = dict(data=("chats.jsonl",), heldout=("more_chats.jsonl",), steps=2)
        stage, cfg = config("sft", world, "runs/chat", **chats, init="runs/base")
        stage.run(cfg)


def test_a_constant_run_can_be_given_more_steps(world, tmp_path):
    def train(steps, out="run", **more):
        how = dict(schedule="constant", warmup=0, steps=steps) | more
        stage, cfg = config("pretrain", world, tmp_path / out, **how)
        return stage.run(cfg)["loss"], (tmp_path / out / "model.safetensors").read_bytes()

    train(4)
    assert train(8) == train(8, "whole")  # as if it had been planned
    train(4, "cosine", schedule="cosine")
    with pytest.raises(SettingsChanged, match="steps was 4, is 8.*--init .*cosine --out"):
        train(8, "cosine", schedule="cosine")


# ---- one's own text and chats, in one command
def own_text(path, kilobytes):
    words = " ".join(row["text"] for _, row in JsonlReader(sample("pretrain_en.jsonl")))
    return path.write_text(words[: kilobytes * 1000], encoding="utf-8") and path


def test_an_older_run_goes_on(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = own_text(tmp_path / "mine.txt", 60)
    changes = dict(data=(str(data),), heldout=(), tokenizer=None, steps=2)
    old = dict(heldout_one_in=50, vocab_size=700, lr=2e-2)
    stage, cfg = config("pretrain", world, tmp_path / "run", **changes | old)
    stage.run(cfg)
    file = max((tmp_path / "run" / "trainer").glob("step-*")) / "state.json"
    state = json.loads(file.read_text())
    for unknown in ("stage", "heldout_one_in"):  # to the version that made it
        del state["settings"][unknown]
    del state["saved"]
    state["settings"]["epochs"] = 1.0
    file.write_text(json.dumps(state))
    assert run_stage_name(tmp_path / "run") == "pretrain"
    assert newest_run("base", tmp_path).name == "run"
    open_again = config("pretrain", world, tmp_path / "run", **changes | dict(lr=None))[1]
    capsys.readouterr()
    stage.run(open_again)
    assert "are done" in capsys.readouterr().out


def test_a_small_text_is_fitted(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where no other run lies
    data = own_text(tmp_path / "mine.txt", 60)
    stage, cfg = config(
        *("pretrain", world, tmp_path / "run"),
        **dict(data=(str(data),), heldout=(), steps=3, tokenizer=None, lr=None, muon_lr=None),
    )
    last = stage.run(cfg)
    said, settings = capsys.readouterr().out, run_state(cfg.out)["settings"]
    assert last["bpb_heldout"] > 0 and "held out: " in said
    fitting = data.stat().st_size // 100
    assert settings["vocab_size"] == fitting and f"a vocabulary of {fitting} tokens" in said
    assert (settings["lr"], settings["muon_lr"]) == (1e-2, 0.02)
    assert "3 steps are few: --steps " in said and "would take about" in said
    stage.run(cfg)
    assert "are done" in capsys.readouterr().out


def test_passes_fit_the_data(world, tmp_path, capsys):
    stage, cfg = config("pretrain", world, tmp_path / "run", steps=0)
    stage.run(cfg, dry_run=True)
    said = capsys.readouterr().out
    assert "--epochs 19" in said and "513 steps = 19.00 epochs" in said
    chats = find_stage("sft").config()
    assert [chats.fitting_epochs(n) for n in (1, 30, 5000)] == [20, 3, 2]
    assert [find_stage("pretrain").config().fitting_epochs(n) for n in (1, 100, 5000)] == [20, 5, 1]


def test_one_long_document_is_cut(world, tmp_path, capsys):
    text = own_text(tmp_path / "long.txt", 30).read_text()
    lines = [text[i : i + 400] for i in range(0, len(text), 400)]
    data = write_lines(tmp_path / "one.jsonl", [{"text": "\n\n".join(lines)}])
    changes = dict(data=(str(data),), heldout=(), steps=1)
    stage, cfg = config("pretrain", world, tmp_path / "run", **changes)
    assert stage.run(cfg)["bpb_heldout"] > 0
    assert "cut at their paragraphs" in capsys.readouterr().out


def test_an_empty_file_is_called_empty(world, tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    argv = flags("pretrain", world, tmp_path / "run", data=str(tmp_path / "empty.txt"))
    assert "the file is empty" in complaint(argv, capsys)


def test_a_trained_model_gets_gentle_rates_or_a_warning(world, tmp_path, capsys, monkeypatch):
    pretraining, tuning = (find_stage(name).config for name in ("pretrain", "sft"))
    assert pretraining().fitting_rates(10**8) == (1e-2, 0.02)
    assert pretraining(init="x").fitting_rates(10**6)[0] < 1e-2
    assert tuning().fitting_rates(10**6) == (4e-3, 0.02) > tuning().fitting_rates(10**8)
    for module in (stages, sft):
        monkeypatch.setattr(module, "SMALL", 1000)
    stage, cfg = config("sft", world, tmp_path / "run", steps=1, lr=4e-3, muon_lr=None)
    stage.run(cfg, dry_run=True)
    said = capsys.readouterr().out
    assert "warning: " in said and "Gentler:  --lr 0.0001\n" in said
    assert "chosen to fit:  --muon-lr 0.002\n" in said


def test_the_temperature_for_those_who_talk_to_it(world, finished, tmp_path):
    _, tuned, _ = finished("sft")
    how = json.loads((Path(tuned.out) / "generation_config.json").read_text())
    assert how["temperature"] == 0.3 and how["do_sample"]
    stage, cfg = config("sft", world, tmp_path / "run", steps=1, chat_temperature=0.5)
    stage.run(cfg)
    stage, after = config("dpo", world, tmp_path / "dpo", steps=1, init=cfg.out)
    stage.run(after)
    how = json.loads((tmp_path / "dpo" / "generation_config.json").read_text())
    assert how["temperature"] == 0.5  # later stages hand it on


@pytest.mark.parametrize("name", STAGES)
def test_closing_lines_are_commands(name):
    stage = find_stage(name)
    lines = stage.closing(stage.config(out="runs/mine", init="runs/base")).splitlines()
    assert max(map(len, lines)) <= 80
    for argv in (line.split() for line in lines if line.strip().startswith("minimind")):
        build_parser(argv[1]).parse_args(argv[1:])


@pytest.mark.parametrize(
    "changes, name",
    [
        (dict(init="x", model="minimind2"), "model"),
        (dict(init="x", tokenizer="y"), "tokenizer"),
        (dict(tokenizer="y", vocab_size=5000), "vocab_size"),
    ],
)
def test_flags_without_effect_are_refused(changes, name):
    with pytest.raises(ValueError, match=f"{name}=.* would have no effect"):
        find_stage("pretrain").config(**changes)


@pytest.mark.parametrize("content", ["Call me Ishmael.", "{}", '{"model": 3}', ""])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json is no tokenizer.json"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file; a tokenizer is"):
        Tokenizer.from_file(tmp_path / "nowhere")


def test_chat_templates_by_name(world, tmp_path):
    Tokenizer.from_file(world / "base").save(tmp_path)
    write = (tmp_path / "tokenizer_config.json").write_text
    write(
        json.dumps(
            {
                "chat_template": [
                    {"name": "tool_use", "template": "no"},
                    {"name": "default", "template": "{{ messages }}"},
                ]
            }
        )
    )
    assert Tokenizer.from_file(tmp_path).chat_template == "{{ messages }}"
    write("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        Tokenizer.from_file(tmp_path)
    write("{")
    with pytest.raises(ValueError, match="tokenizer_config.json is damaged"):
        Tokenizer.from_file(tmp_path)


# ---- precision, chosen for the command line


def plain(tmp_path, **changes):
    return pretrain.PretrainConfig(out=str(tmp_path / "run"), device="cpu", **changes)


def test_the_command_line_takes_the_fastest_precision(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MINIMIND_DTYPE", raising=False)
    monkeypatch.setattr(stages, "fastest_dtype", lambda device: torch.bfloat16)
    stages._say_once.cache_clear()
    assert stages.fast(plain(tmp_path)).dtype == "bfloat16"
    assert stages.fast(plain(tmp_path)).dtype == "bfloat16"
    assert capsys.readouterr().out.count("computing in bfloat16") == 1
    assert stages.fast(plain(tmp_path, dtype="float32")).dtype == "float32"
    monkeypatch.setattr(stages, "fastest_dtype", lambda device: torch.float32)
    assert stages.fast(plain(tmp_path)).dtype == "auto"


@pytest.mark.parametrize("then", ["bfloat16", "float32", "auto"])
def test_a_run_goes_on_in_its_precision(tmp_path, monkeypatch, then):
    "Whatever is fastest on the machine where it goes on."
    monkeypatch.setattr(stages, "fastest_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(stages, "run_state", lambda out: {"settings": {"dtype": then}})
    cfg = plain(tmp_path, heldout_one_in=50, epochs=1.0, lr=0.1, muon_lr=0.1)
    assert settled(stages.fast(cfg)).dtype == then


# ---- compiled layers


def small(layers=2):
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    return MiniMind(
        ModelConfig(**shape, num_hidden_layers=layers, intermediate_size=64, vocab_size=50)
    )


def test_a_layer_that_cannot_be_compiled_runs_as_it_is(monkeypatch, capsys):
    model, ids = small(), torch.randint(0, 50, (2, 8))
    want = model(ids)

    def broken(graph, inputs):
        raise RuntimeError("no such instruction")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda block: real(block, backend=broken))
    model.model.compiled = [stages.CompiledBlock(block) for block in model.model.layers]
    assert stages.compiled_line(model) == "compiled: 2 of 2 layers"
    torch.testing.assert_close(model(ids), want)
    said = capsys.readouterr().out
    assert said.count("a layer runs as it is from now on") == 2 and "BackendCompiler" in said
    assert stages.compiled_line(model) == "compiled: 0 of 2 layers"
    model(ids)
    assert capsys.readouterr().out == ""


def test_too_many_programs_are_said(monkeypatch, capsys):
    "Rows of ever other form: the limit is ours, and reaching it is no secret."
    model = small(1)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda block: real(block, backend="eager", dynamic=False))
    monkeypatch.setattr(stages.CompiledBlock, "variants", 3)
    model.model.compiled = [stages.CompiledBlock(block) for block in model.model.layers]
    for T in range(4, 10):
        ids = torch.randint(0, 50, (2, T))
        torch.testing.assert_close(model(ids), small(1)(ids))
    assert "a layer runs as it is from now on" in capsys.readouterr().out
    assert stages.compiled_line(model) == "compiled: 0 of 1 layers"
    assert torch._dynamo.config.recompile_limit == 8  # the setting of others is as it was


def test_nothing_is_said_of_layers_that_nobody_compiles():
    assert stages.compiled_line(small()) == ""
