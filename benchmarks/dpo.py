"""Preferences after fine-tuning: DPO on the shipped pairs, plain and with the chosen answers' own
loss, against more fine-tuning on the chosen answers.

python benchmarks/dpo.py --init runs/ci/sft [--seeds 3] [--out benchmarks/results/dpo.json]

All begin with the same fine-tuned model (`minimind run` leaves one in runs/ci/sft) and see the same
pairs as often. Measured before and after: the share of held-out pairs whose chosen answer the model
finds likelier, by the reason why the other is worse; and right answers to the held-out exercises,
of which none is trained on. The change of the share has a 95 % interval from a bootstrap over the
pairs."""

import argparse, json, tempfile, time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench import provenance, save

from minimind import dpo, sft
from minimind.hub import load_pretrained
from minimind.core import sample
from minimind.data import JsonlReader
from minimind.evaluate import exact_match, wilson

SEQ_LEN = 256


def measure(folder, held, reasons, questions, reference=None, beta=0.1):
    """What a model prefers, by reason, and what it answers. With the log-probabilities of the
    reference: how far it has moved as well."""
    model, tokenizer = load_pretrained(folder)
    batches = dpo.PairBatches(dpo.read_pairs([held], tokenizer, SEQ_LEN), 16)
    logps = dpo.reference_logps(model, batches)
    likelier = (logps[:, 0] > logps[:, 1]).tolist()
    by_reason = defaultdict(lambda: [0, 0])
    for reason, better in zip(reasons, likelier):
        by_reason[reason] = [by_reason[reason][0] + better, by_reason[reason][1] + 1]
    answers = exact_match(model, tokenizer, questions)
    out = dict(
        likelier=sum(likelier) / len(likelier),
        interval=wilson(sum(likelier), len(likelier)),
        by_reason=dict(sorted(by_reason.items())),
        exact_match=answers["accuracy"],
        exact_interval=(answers["low"], answers["high"]),
        skills=answers["skills"],
    )
    if reference is not None:
        out |= {
            k: v
            for k, v in dpo.measure_pairs(logps, reference, beta).items()
            if not k.startswith("likelier")
        }
    return logps, likelier, out


def paired_change(before, after, draws=10_000):  # `(N,)` 0 or 1; `(seeds, N)`
    "Mean change of the share, and its 95 % interval over resampled pairs."
    change = np.mean(after, 0) - np.array(before, float)
    means = change[np.random.default_rng(0).integers(len(change), size=(draws, len(change)))].mean(
        1
    )
    return dict(mean=change.mean(), low=np.quantile(means, 0.025), high=np.quantile(means, 0.975))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--init", required=True, help="folder of a fine-tuned model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=dpo.DPOConfig.lr)
    parser.add_argument("--beta", type=float, default=dpo.DPOConfig.beta)
    parser.add_argument("--sft-weight", type=float, default=1.0)
    parser.add_argument("--epochs", type=float, default=dpo.DPOConfig.epochs)
    parser.add_argument(
        "--questions", type=int, default=600, help="held-out exercises that are asked"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dpo.json")
    args = parser.parse_args()
    started = time.perf_counter()
    held, pairs = sample("dpo_heldout.jsonl"), [row for _, row in JsonlReader(sample("dpo.jsonl"))]
    reasons = [row["reason"] for _, row in JsonlReader(held)]
    questions = [row for _, row in JsonlReader(sample("sft_skills_heldout.jsonl"))][
        : args.questions
    ]
    reference, likelier_before, before = measure(args.init, held, reasons, questions)
    runs, likelier = [], defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        chosen = folder / "chosen.jsonl"
        chosen.write_text(
            "".join(
                json.dumps({"conversations": row["chosen"]}, ensure_ascii=False) + "\n"
                for row in pairs
            ),
            encoding="utf-8",
        )
        for seed in range(args.seeds):
            common = dict(
                init=args.init,
                seed=seed,
                epochs=args.epochs,
                eval_rows=0,
                seq_len=SEQ_LEN,
                save_every=10_000,
            )
            preferring = dpo.DPOConfig(
                out=str(folder / f"dpo-{seed}"),
                lr=args.lr,
                beta=args.beta,
                sft_weight=args.sft_weight,
                **common,
            )
            plain = replace(preferring, out=str(folder / f"plain-{seed}"), sft_weight=0.0)
            # packed rows of some 5 conversations: 4 rows a step are about as many chosen answers as
            # DPO's 16 pairs, in one epoch too (65 steps with Muon, where DPO makes 91 with AdamW);
            # the rates are a tenth of fine-tuning's
            copying = sft.SFTConfig(
                out=str(folder / f"sft-{seed}"),
                data=chosen,
                batch_size=4,
                lr=4e-4,
                muon_lr=2e-3,
                **common,
            )
            for name, stage, cfg in (
                ("plain DPO", dpo, plain),
                ("DPO + loss of the chosen", dpo, preferring),
                ("fine-tuning on the chosen", sft, copying),
            ):
                at = time.perf_counter()
                last = stage.run(cfg)
                seconds = time.perf_counter() - at
                _, better, numbers = measure(
                    cfg.out, held, reasons, questions, reference, args.beta
                )
                likelier[name].append(better)
                runs.append(
                    dict(
                        arm=name,
                        seed=seed,
                        steps=last["step"],
                        seconds=round(seconds, 1),
                        **numbers,
                    )
                )
                print(
                    name,
                    seed,
                    {
                        k: numbers[k]
                        for k in ("likelier", "exact_match", "chosen_change", "rejected_change")
                    },
                    round(seconds),
                    "s",
                )
    change = {name: paired_change(likelier_before, after) for name, after in likelier.items()}
    share, mean = (
        "{:.1%}".format,
        lambda name, key: float(np.mean([r[key] for r in runs if r["arm"] == name])),
    )
    table = [["before", share(before["likelier"]), "", share(before["exact_match"]), ""]]
    table += [
        [
            name,
            share(mean(name, "likelier")),
            f"{c['low']:+.1%} to {c['high']:+.1%}",
            share(mean(name, "exact_match")),
            f"{mean(name, 'chosen_change'):+.1f}",
        ]
        for name, c in change.items()
    ]
    result = dict(
        **provenance(__doc__.split("\n")[0]),
        minutes=round((time.perf_counter() - started) / 60, 1),
        columns=[
            "",
            f"chosen likelier (of {len(reasons)} pairs)",
            "change (95 %)",
            f"right answers (of {len(questions)})",
            "log p of the chosen (nats)",
        ],
        rows=table,
        settings=dict(
            lr=args.lr,
            beta=args.beta,
            sft_weight=args.sft_weight,
            epochs=args.epochs,
            seeds=args.seeds,
            pairs=len(pairs),
        ),
        before=before,
        change=change,
        runs=runs,
    )
    save(args.out, result)


if __name__ == "__main__":
    main()
