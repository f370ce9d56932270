"""What the front page and benchmarks/README.md show, taken from what was measured.

python tools/front.py [--run runs/ci]     the numbers, a chat and the curve of a run, kept in
                                          benchmarks/results/run.json, and a picture of the curve
python tools/front.py --tables            only benchmarks/README.md, from benchmarks/results/
python tools/front.py --check             compare only; the tests do

After it, `make outputs NB=index` puts the numbers on the front page (`make front` does both)."""

import argparse
import json
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
results, page = root / "benchmarks/results", root / "benchmarks/README.md"
sys.path.insert(0, str(root / "benchmarks"))

# ---- a run -------------------------------------------------------------------------------------
STAGES = {"pretrain": "reads", "sft": "learns to answer"}  # whose losses are the picture


def curve(folder):  # of a stage
    "Minutes of training since its start, and loss, of each line of a run's log."
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl", encoding="utf-8")]
    lines, seconds, points = [line for line in lines if "seconds" in line], 0.0, []
    for line in lines:
        seconds += line["seconds"]
        points.append([round(seconds / 60, 3), round(line["loss"], 4)])
    return points


def record_run(folder):  # of `minimind run`
    "The few numbers of a run that the front page needs. Raises `FileNotFoundError` without one."
    import torch
    from bench import provenance

    from minimind.checkpoint import run_state

    measured = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "sft/config.json").read_text(encoding="utf-8"))
    curves = {stage: curve(folder / stage) for stage in STAGES}
    stages = [path.parent for path in sorted(folder.glob("*/metrics.jsonl"))]
    then = run_state(folder / "sft")["settings"]["computed_in"].removeprefix("torch.")
    title = "A run of all stages at size `ci` on the shipped texts: `make run`."
    out = provenance(title, dtype=getattr(torch, then))
    out["minutes"] = round(measured.get("minutes", 0), 1)  # an older run doesn't know
    out["training_minutes"] = round(sum(curve(stage)[-1][0] for stage in stages), 1)
    out["vocab_size"] = config["vocab_size"]
    out["chats"] = list(measured["chats"].items())
    out["chats_right"] = measured.get("chats_right", [0, 0])
    return out | {key: measured[key] for key in ("heldout", "answers")} | {"curves": curves}


def draw_as_the_chapters():
    "Set matplotlib to the look of the chapters, without a window."
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rc_file(root / "nbs/matplotlibrc")


def draw(run):  # what `record_run` made
    "The losses of pretraining and fine-tuning, one after the other, as nbs/figs/run.svg."
    draw_as_the_chapters()
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(figsize=(7, 3))
    blind, start = float(np.log(run["vocab_size"])), 0.0
    for stage, points in run["curves"].items():
        minutes, losses = np.array(points).T
        axes.plot(start + minutes, losses)
        axes.annotate(
            f"it {STAGES[stage]}",
            (start + minutes[-1] / 2, np.interp(0.5, [0, 1], losses[[0, -1]])),
        )
        start += minutes[-1]
    axes.axhline(blind, color="0.6", ls=":", lw=1)
    axes.annotate("blind guessing", (start, blind), ha="right", va="bottom", color="0.4")
    axes.set(xlabel="minutes of training on two cores", ylabel="loss (nats a token)")
    axes.set(ylim=(0, blind + 0.9), xlim=(0, start * 1.01))
    right = run["answers"]["accuracy"]
    whole = f" (of {run['minutes']:.0f} for all stages)" if run["minutes"] else ""
    axes.set_title(f"{start:.0f} minutes{whole}: {right:.0%} of held-out questions answered right")
    figure.savefig(root / "nbs/figs/run.svg", metadata={"Date": None})


# ---- the map -----------------------------------------------------------------------------------
# what goes through the course, from left to right, with the numbers of the chapters
MAP = [
    ("texts", 0, 2.4, "texts\n04", "data"),
    ("pieces", 2.2, 2.4, "pieces of words,\nfull rows 02, 04", "data"),
    ("pretraining", 4.4, 2.4, "pretraining\n12–21", "step"),
    ("base", 6.6, 2.4, "a model that\ngoes on", "model"),
    ("chats", 0, 1.2, "conversations\n03", "data"),
    ("masks", 2.2, 1.2, "rows and what\ncounts in them 03", "data"),
    ("tuning", 4.4, 1.2, "fine-tuning\n22", "step"),
    ("chat", 6.6, 1.2, "a model that\nanswers", "model"),
    ("wishes", 0, 0, "preferences,\nrewards 31, 32", "data"),
    ("replies", 2.2, 0, "its own replies\n33", "data"),
    ("alignment", 4.4, 0, "LoRA, DPO, PPO,\nGRPO … 30–37", "step"),
    ("better", 6.6, 0, "a model that\nanswers better", "model"),
    ("network", 4.4, 3.6, "the network\n05–09", "model"),
    ("use", 8.8, 1.2, "write, measure,\nchat 10, 11,\n19, 60–64", "step", 1.62, 1.1),
]
FLOW = """texts>pieces pieces>pretraining pretraining>base network>pretraining chats>masks
masks>tuning tuning>chat base>tuning wishes>replies replies>alignment alignment>better
chat>alignment base>use chat>use better>use"""


def draw_map():
    "The way of the data through the course, as nbs/figs/map.svg."
    draw_as_the_chapters()
    sys.path.insert(0, str(root / "nbs"))
    from course import boxes

    arrows = [(*arrow.split(">"), "") for arrow in FLOW.split()]
    axes = boxes(MAP, arrows, "From texts to a model that answers, with the chapters' numbers")
    axes.figure.savefig(root / "nbs/figs/map.svg", metadata={"Date": None})


# ---- the tables --------------------------------------------------------------------------------
SUBJECTS = {
    "Training": ["train_speed", "packing", "muon_cost", "moe_step", "checkpointing"],
    "Writing": ["decode", "rollout"],
    "After pretraining": ["chat", "lora", "dpo", "rl", "distill"],
    "A text of one's own": ["own"],
}
HEADINGS = {
    "train_speed": "A training step, beside Hugging Face's model",
    "packing": "Packed rows, beside padded ones",
    "muon_cost": "A step with Muon, beside AdamW",
    "moe_step": "A step with experts, beside a dense model",
    "checkpointing": "What checkpoints cost",
    "decode": "Writing, beside Hugging Face's `generate` and llama.cpp",
    "rollout": "Answers drawn for reinforcement learning",
    "lora": "LoRA, beside full fine-tuning",
    "dpo": "Preferences (DPO)",
    "rl": "Reinforcement learning",
    "distill": "Distillation",
    "chat": "Conversations",
    "own": "From a file to a model, with nothing but defaults",
}
# What was to be reached: of which result, said how, the number's row and column in its table, at
# least or at most how much; and, where the goal is a ratio, the row of what it is divided by.
GOALS = [
    ("train_speed", "tokens/s to transformers', `ci`", 0, 5, "≥", 1.2, None),
    ("train_speed", "the same, 26 M", 1, 5, "≥", 1.0, None),
    ("packing", "useful tokens/s to padded rows of transformers", 2, 3, "≥", 1.5, None),
    ("packing", "the same, to padded rows of minimind", 2, 4, "≥", 1.5, None),
    ("muon_cost", "Muon's step to AdamW's, `ci`", 1, 2, "≤", 1.15, None),
    ("moe_step", "experts' step to a dense one, `ci`, AdamW", 0, 5, "≤", 1.15, None),
    ("moe_step", "the same with Muon", 1, 5, "≤", 1.15, None),
    ("moe_step", "the same, 64 M, AdamW", 2, 5, "≤", 1.15, None),
    ("moe_step", "the same with Muon", 3, 5, "≤", 1.15, None),
    ("checkpointing", "per cent of the time, `ci`", 0, 6, "≤", 1, None),
    ("checkpointing", "the same, 64 M", 2, 6, "≤", 1, None),
    ("decode", "one request, 26 M, tokens/s to transformers'", 2, 4, "≥", 2, None),
    ("decode", "the same to llama.cpp's F32", 2, 5, "≥", 0.9, None),
    ("decode", "int8, to transformers'", 4, 4, "≥", 4.5, None),
    ("decode", "int8, to llama.cpp's Q8_0", 4, 5, "≥", 0.85, None),
    ("decode", "16 requests, 26 M, tokens/s to transformers'", 7, 4, "≥", 3, None),
    ("decode", "the same to llama.cpp's F32", 7, 5, "≥", 2, None),
    ("decode", "int8, to transformers'", 9, 4, "≥", 5, None),
    ("decode", "int8, to llama.cpp's Q8_0", 9, 5, "≥", 2, None),
    ("decode", "one request, `ci`, tokens/s to transformers'", 12, 4, "≥", 4, None),
    ("decode", "16 requests, `ci`", 17, 4, "≥", 4, None),
    ("rollout", "tokens/s to transformers', `ci`", 0, 4, "≥", 3, None),
    ("rollout", "the same, 26 M", 1, 4, "≥", 2, None),
    ("rollout", "memory to that of the update, `ci`", 0, 7, "≤", 1.5, None),
    ("rollout", "the same, 26 M", 1, 7, "≤", 1.5, None),
    ("lora", "per cent of the parameters", 2, 1, "≤", 3, None),
    ("lora", "right answers to those of full fine-tuning", 2, 2, "≥", 0.95, 1),
]


def number(cell):  # of a table: "5,407", "0.01%", "81,408 (2.9%)"
    "The percentage in a cell if there is one, else its number."
    found = re.search(r"([\d.,]+)%", str(cell)) or re.search(r"([\d.,]+)", str(cell))
    return float(found[1].replace(",", ""))


def goal_rows(tables):  # `{name: result}`
    "Rows of the table of goals: what, measured, wanted, met or missed."
    for name, what, row, column, sign, bound, below in GOALS:
        if name in tables:
            value = number(tables[name]["rows"][row][column])
            if below is not None:
                value /= number(tables[name]["rows"][below][column])
            met = value >= bound if sign == "≥" else value <= bound
            yield HEADINGS[name], what, f"{value:.2f}", f"{sign} {bound}", "✓" if met else "✗"


def text_table(rows):  # the head first
    "A table in Markdown."
    head, *rest = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest))


def section(name, result):
    "The table of one result, with what was measured, where and when."
    where = f"{result['machine']}; {result['date']}, commit {result['commit'][:7]}"
    table = text_table([result["columns"], *result["rows"]])
    note = f"\n\n{result['note']}" if result.get("note") else ""
    said = f"{result['title']}\n\n{table}{note}\n\n*{where}*"
    return f"### {HEADINGS.get(name, name)}\n\n{said}"


def tables_page():
    "The text of benchmarks/README.md."
    files = {path.stem: json.loads(path.read_text("utf-8")) for path in results.glob("*.json")}
    tables = {name: result for name, result in sorted(files.items()) if "columns" in result}
    known = [name for names in SUBJECTS.values() for name in names]
    subjects = SUBJECTS | {"Other": [name for name in tables if name not in known]}
    goals = list(goal_rows(tables))
    missed = sum(row[-1] == "✗" for row in goals)
    parts = [
        "<!-- Made by `python tools/front.py --tables` from results/*.json: don't edit. -->",
        "# What was measured",
        "Two ways of doing one thing, interleaved in one run and compared by the ratio of their "
        "medians; or one thing with several seeds. `make bench` measures the speeds again, each "
        "`benchmarks/NAME.py` what it is named after; [LOG.md](LOG.md) tells what did not work. "
        "Every number has its machine, date and commit, and no number is typed by hand.",
        "## Goals",
        f"What this library set out to reach, and did ({len(goals) - missed}) or did not "
        f"({missed}).",
        text_table([("benchmark", "what", "measured", "wanted", ""), *goals]),
    ]
    for subject, names in subjects.items():
        sections = [section(name, tables[name]) for name in names if name in tables]
        parts += [f"## {subject}", *sections] if sections else []
    return "\n\n".join(parts) + "\n"


def write(path, text):
    path.write_text(text, encoding="utf-8", newline="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=root / "runs/ci", help="of `minimind run`")
    parser.add_argument("--tables", action="store_true", help="leave the run alone")
    parser.add_argument("--check", action="store_true", help="compare only")
    args = parser.parse_args()
    if args.check:
        if not page.exists() or page.read_text(encoding="utf-8") != tables_page():
            sys.exit("benchmarks/README.md is old; run `python tools/front.py --tables`")
        return
    if not args.tables:
        run = record_run(args.run)
        write(results / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")
        draw(run)
        draw_map()
    write(page, tables_page())


if __name__ == "__main__":
    main()
