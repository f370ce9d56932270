"""A chat that goes on: conversations of three held-out exercises, turn by turn, and sixty things
that people type first, at several temperatures.

python benchmarks/chat.py --model runs/ci/sft [--seeds 5] [--out benchmarks/results/chat.json]

METHOD: `conversation_accuracy` plays the user: each question goes with all that was said before, in
the model's own words. The exercises of sft_talks_heldout.jsonl (add, subtract, compare, parity)
were never trained on; of the questions of first_panel.jsonl, those marked `trained` were, word for
word. At temperature 0 one pass; else the mean of several seeds, top_p 0.9. The single questions are
the 600 of sft_skills_heldout.jsonl, greedy."""

import argparse, time
from pathlib import Path

from bench import provenance, save

from minimind.core import sample
from minimind.data import JsonlReader
from minimind.evaluate import answers_row, conversation_accuracy, exact_match
from minimind.hub import load_pretrained
from minimind.log import text_table

TEMPERATURES = (0, 0.2, 0.3, 0.5, 0.7)
COLUMNS = ["turn 1", "turn 2", "turn 3", "panel", "of it trained", "not trained"]
TALKS, PANEL, SINGLE = "sft_talks_heldout.jsonl", "first_panel.jsonl", "sft_skills_heldout.jsonl"


def rows_of(name):
    return [row for _, row in JsonlReader(sample(name))]


def marked(rows, replies):
    "Right answers to the panel's questions, and how many there are: `{trained word for word: …}`."
    counts = {True: [0, 0], False: [0, 0]}
    for row, said in zip(rows, replies):
        for reply, wanted, trained in zip(said, row["answers"], row["trained"]):
            key = "must_contain" if isinstance(wanted, list) else "answer"
            counts[trained][0] += answers_row(reply, {key: wanted})
            counts[trained][1] += 1
    return counts


def measure(model, tokenizer, temperature, seeds):
    "Shares of right answers: at each turn of the exercises, of the panel and of its two parts."
    talks, panel, found = rows_of(TALKS), rows_of(PANEL), []
    for seed in range(1 if temperature == 0 else seeds):
        sampling = dict(temperature=temperature, top_p=0.9, seed=1000 * seed)
        held = conversation_accuracy(model, tokenizer, talks, **sampling)
        first = conversation_accuracy(model, tokenizer, panel, **sampling)
        parts = marked(panel, first["replies"])
        turns = [right / n for right, n in held["turns"]]
        shares = [parts[trained][0] / parts[trained][1] for trained in (True, False)]
        found.append([*turns, first["accuracy"], *shares])
    return [sum(column) / len(column) for column in zip(*found)]


def transcript(model, tokenizer, temperature):
    "The panel as it was said, with a mark at each reply."
    rows, lines = rows_of(PANEL), []
    result = conversation_accuracy(model, tokenizer, rows, temperature=temperature, seed=0)
    for row, said in zip(rows, result["replies"]):
        asked = [m["content"] for m in row["conversations"] if m["role"] == "user"]
        system = [m["content"] for m in row["conversations"] if m["role"] == "system"]
        lines += [f"[{text}]" for text in system]
        for question, reply, wanted, trained in zip(asked, said, row["answers"], row["trained"]):
            key = "must_contain" if isinstance(wanted, list) else "answer"
            mark = "right" if answers_row(reply, {key: wanted}) else f"WRONG, wanted {wanted}"
            lines.append(f"› {question}{'  (trained)' if trained else ''}\n    {reply}    [{mark}]")
        lines.append("")
    share = f"{result['accuracy']:.1%} of {result['n']} right"
    return f"temperature {temperature}: {share}\n\n" + "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a fine-tuned model")
    parser.add_argument("--seeds", type=int, default=5, help="passes at a temperature above 0")
    parser.add_argument("--single", type=int, default=600, help="single held-out questions")
    parser.add_argument(
        "--transcript", type=Path, help="also write the panel, as it was said, here"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "chat.json")
    args = parser.parse_args()
    started = time.perf_counter()
    model, tokenizer = load_pretrained(args.model)
    shares = {t: measure(model, tokenizer, t, args.seeds) for t in TEMPERATURES}
    single = exact_match(model, tokenizer, rows_of(SINGLE)[: args.single]) if args.single else {}
    if args.transcript:
        parts = [transcript(model, tokenizer, t) for t in (0, 0.3)]
        args.transcript.write_text("\n\n".join(parts), encoding="utf-8")
    result = dict(
        **provenance(__doc__.split("\n\n")[0].replace("\n", " ").rstrip(".")),
        minutes=round((time.perf_counter() - started) / 60, 1),
        columns=["temperature", *COLUMNS],
        rows=[[f"{t:g}", *(f"{share:.0%}" for share in row)] for t, row in shares.items()],
        settings=dict(seeds=args.seeds, top_p=0.9, model=args.model),
        shares={str(t): dict(zip(COLUMNS, row)) for t, row in shares.items()},
        single={k: single[k] for k in ("accuracy", "low", "high", "n", "skills") if k in single},
    )
    save(args.out, result)
    print(text_table([result["columns"], *result["rows"]]))
    print("single questions", result["single"])


if __name__ == "__main__":
    main()
