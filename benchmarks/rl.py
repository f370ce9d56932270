"""Reinforcement learning after fine-tuning: GRPO, CISPO, PPO and SPO on the same number of samples,
measured on problems that were never trained on.

python benchmarks/rl.py --init runs/ci/sft [--seeds 3] [--out benchmarks/results/rl.json]

All begin with the same fine-tuned model (`minimind run` leaves one in runs/ci/sft) and draw equally
many completions for exercises of the shipped samples; the reward is 1 for a right answer. Measured
before and after on held-out exercises: the mean reward of sampled replies (temperature 1, eight a
problem, which is what is trained), right greedy replies, length, and the divergence from the first
model. The change has a 95 % interval from a bootstrap over the problems. A run that is done is kept
in the result file: the same command goes on after an interruption."""

import argparse, json, tempfile, time
from pathlib import Path

import numpy as np
import torch
from bench import provenance

from minimind import grpo, ppo
from minimind.hub import load_pretrained
from minimind.core import IGNORE, read_json, sample, write_json
from minimind.data import JsonlReader
from minimind.ppo import k3
from minimind.rewards import RewardMix
from minimind.rollout import LocalEngine, completion_rows, read_prompts, reply_text, score_rows
from minimind.log import read_metrics

# sampled replies to a held-out problem; tokens
DRAWS, MAX_NEW_TOKENS, SEQ_LEN = 8, 40, 160


def arms(rollouts, updates, rates):
    """`{name: (stage, config class, settings)}`: as many rollouts of 128 completions each, each
    used for the same number of optimizer steps."""
    common = dict(
        steps=updates * rollouts,
        updates=updates,
        max_new_tokens=MAX_NEW_TOKENS,
        seq_len=SEQ_LEN,
        micro_batch_size=64,
        eval_rows=0,
        save_every=10_000,
        log_every=10,
        warmup=10,
        **rates,
    )
    groups = dict(prompts=16, group_size=8)
    return {
        "GRPO": (grpo, grpo.GRPOConfig, common | groups),
        "CISPO": (grpo, grpo.GRPOConfig, common | groups | dict(loss_type="cispo")),
        "PPO": (ppo, ppo.PPOConfig, common | groups | dict(passes=1)),
        "SPO": (grpo, grpo.SPOConfig, common | dict(prompts=128)),
    }


@torch.no_grad()
def measure(folder, first, heldout):
    """What a model earns on held-out problems: sampled and greedy, problem by problem; and how far
    it is from the first model."""
    (model, tokenizer), (reference, _) = load_pretrained(folder), load_pretrained(first)
    prompts, reward, engine = (
        read_prompts([heldout], tokenizer, SEQ_LEN, MAX_NEW_TOKENS),
        RewardMix("answer"),
        LocalEngine(model),
    )
    rows, ids = [p.row for p in prompts], [p.ids for p in prompts]

    def score(groups):
        return reward(
            [row for row, group in zip(rows, groups) for _ in group],
            [reply_text(tokenizer, c, engine.stop) for group in groups for c in group],
        )[0].view(len(rows), -1)

    sampled, greedy = (
        engine.sample(ids, DRAWS, MAX_NEW_TOKENS, 1.0, seed=0),
        engine.sample(ids, 1, MAX_NEW_TOKENS, 0.0, seed=0),
    )
    batch = completion_rows([(p, c) for p, group in zip(ids, sampled) for c in group[:1]])
    drawn = batch["labels"][:, 1:] != IGNORE
    kl = k3(score_rows(model, batch), score_rows(reference, batch))[drawn]
    earned, right = score(sampled).mean(1), score(greedy)[:, 0]
    skills = {
        skill: (
            float(np.mean([r for r, row in zip(earned.tolist(), rows) if row["skill"] == skill])),
            float(np.mean([r for r, row in zip(right.tolist(), rows) if row["skill"] == skill])),
        )
        for skill in sorted({row["skill"] for row in rows})
    }
    flat = [c for group in sampled for c in group]
    return dict(
        reward=float(earned.mean()),
        exact_match=float(right.mean()),
        tokens=float(np.mean([len(c.ids) for c in flat])),
        truncated=float(np.mean([c.truncated for c in flat])),
        kl=float(kl.mean()),
        skills=skills,
        each=[round(x, 3) for x in earned.tolist()],
    )


def paired_change(before, after, draws=10_000):  # `(N,)`; `(seeds, N)`
    "Mean change of the reward, and its 95 % interval over resampled problems and resampled seeds."
    change, random = np.array(after) - np.array(before), np.random.default_rng(0)
    seeds, problems = (random.integers(n, size=(draws, n)) for n in change.shape)
    means = np.array([change[np.ix_(s, p)].mean() for s, p in zip(seeds, problems)])
    return dict(
        mean=float(change.mean()),
        low=float(np.quantile(means, 0.025)),
        high=float(np.quantile(means, 0.975)),
    )


def summary(result):
    "The table and the changes, from the runs that are there."
    before, runs = result["before"], result["runs"]
    names = list(dict.fromkeys(r["arm"] for r in runs))
    of = {name: [r for r in runs if r["arm"] == name] for name in names}
    change = {
        name: paired_change(before["each"], [r["each"] for r in rs])
        | {"seeds": [round(r["reward"] - before["reward"], 3) for r in rs]}
        for name, rs in of.items()
    }
    share, mean = "{:.1%}".format, lambda name, key: float(np.mean([r[key] for r in of[name]]))
    table = [
        [
            "before",
            share(before["reward"]),
            "",
            share(before["exact_match"]),
            "",
            f"{before['tokens']:.1f}",
            "",
        ]
    ]
    table += [
        [
            name,
            share(mean(name, "reward")),
            f"{c['low']:+.1%} to {c['high']:+.1%}",
            share(mean(name, "exact_match")),
            f"{mean(name, 'kl'):.3f}",
            f"{mean(name, 'tokens'):.1f}",
            f"{mean(name, 'seconds'):.0f}",
        ]
        for name, c in change.items()
    ]
    columns = [
        "",
        f"held-out reward ({len(before['each'])} problems)",
        "change (95 %)",
        "right greedily",
        "KL (nats a token)",
        "tokens a reply",
        "seconds",
    ]
    return result | dict(columns=columns, rows=table, change=change)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--init", required=True, help="folder of a fine-tuned model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=90, help="of 128 completions each")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--muon-lr", type=float, default=2e-3)
    parser.add_argument("--updates", type=int, default=1, help="optimizer steps on a rollout")
    parser.add_argument(
        "--beta", type=float, default=0.0, help="price of a nat of divergence from the first model"
    )
    parser.add_argument(
        "--skills",
        nargs="+",
        default=["compare"],
        help="what the fine-tuned model gets right sometimes, but not always",
    )
    parser.add_argument("--arms", nargs="+", default=["GRPO", "CISPO", "PPO", "SPO"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rl.json")
    args = parser.parse_args()
    settings = dict(
        rollouts=args.rollouts,
        completions=128,
        updates=args.updates,
        beta=args.beta,
        optimizer=args.optimizer,
        lr=args.lr,
        muon_lr=args.muon_lr,
        skills=args.skills,
    )
    result = read_json(args.out) if args.out.exists() else {}
    # of another measurement
    if result.get("settings") != settings:
        result = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        files = {}
        for name in ("sft_skills", "sft_skills_heldout"):
            files[name] = folder / f"{name}.jsonl"
            files[name].write_text(
                "".join(
                    json.dumps(row, ensure_ascii=False) + "\n"
                    for _, row in JsonlReader(sample(f"{name}.jsonl"))
                    if row["skill"] in args.skills
                ),
                encoding="utf-8",
            )
        before = measure(args.init, args.init, files["sft_skills_heldout"])
        # of another model
        if result and result["before"]["each"] != before["each"]:
            result = {}
        if not result:
            result = dict(
                **provenance(__doc__.split("\n")[0]), settings=settings, before=before, runs=[]
            )
        print("before", {k: before[k] for k in ("reward", "exact_match", "skills")}, flush=True)
        for seed in range(args.seeds):
            for name, (stage, cls, own) in arms(
                args.rollouts,
                args.updates,
                dict(beta=args.beta, optimizer=args.optimizer, lr=args.lr, muon_lr=args.muon_lr),
            ).items():
                if name not in args.arms or any(
                    r["arm"] == name and r["seed"] == seed for r in result["runs"]
                ):
                    continue
                cfg = cls(
                    out=str(folder / f"{name}-{seed}"),
                    init=args.init,
                    data=files["sft_skills"],
                    heldout=files["sft_skills_heldout"],
                    seed=seed,
                    **own,
                )
                at = time.perf_counter()
                stage.run(cfg)
                seconds = round(time.perf_counter() - at, 1)
                numbers = measure(cfg.out, args.init, files["sft_skills_heldout"])
                curve = [
                    {
                        k: round(line[k], 4)
                        for k in (
                            "step",
                            "reward",
                            "kl",
                            "entropy",
                            "completion_tokens",
                            "zero_variance",
                            "clip_fraction",
                            "truncated",
                        )
                        if line.get(k) is not None
                    }
                    for line in read_metrics(cfg.out)
                    if "reward" in line
                ]
                result["runs"].append(
                    dict(arm=name, seed=seed, seconds=seconds, **numbers, curve=curve)
                )
                print(
                    name,
                    seed,
                    {k: numbers[k] for k in ("reward", "exact_match", "kl", "tokens", "skills")},
                    round(seconds),
                    "s",
                    flush=True,
                )
                result = summary(result)
                write_json(args.out, result, indent=1)


if __name__ == "__main__":
    main()
