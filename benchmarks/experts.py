"""Experts against a dense model of equal work: `ci` and `ci-moe` (four experts, one for a token)
pretrained alike, with and without the load-balance loss.

python benchmarks/experts.py [--seeds 3] [--steps 300] [--out benchmarks/results/experts.json]

Each run is `minimind pretrain` on the shipped text: same data, same order of rows, same tokenizer,
same number of steps. Measured: held-out bits per byte, seconds a step, and over the run how evenly
the routers spread the tokens."""

import argparse, tempfile, time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from bench import provenance, save

from minimind import pretrain
from minimind.model import PRESETS, num_parameters
from minimind.log import read_metrics

ARMS = {
    "dense": PRESETS["ci"],
    "experts": PRESETS["ci-moe"],
    "experts, no balance loss": replace(PRESETS["ci-moe"], router_aux_loss_coef=0.0),
}


def run(name, seed, steps, folder):
    cfg = pretrain.PretrainConfig(
        out=str(folder / f"{name}-{seed}"),
        model=name,
        tokenizer=str(folder / "tokenizer.json"),
        seed=seed,
        steps=steps,
        save_every=10_000,
        log_every=10,
    )
    with mock.patch.dict(PRESETS, {name: ARMS[name]}):
        last, metrics = pretrain.run(cfg), read_metrics(cfg.out)
    curve = [
        {k: m[k] for k in ("step", "loss", "lm_loss", "balance", "busiest") if k in m}
        for m in metrics
        if "loss" in m
    ]
    seconds = sorted(m["seconds"] for m in metrics if "seconds" in m)
    return dict(
        arm=name,
        seed=seed,
        bits_per_byte={k.removeprefix("bpb_"): v for k, v in last.items() if k.startswith("bpb_")},
        seconds_for_10_steps=seconds[len(seconds) // 2],
        curve=curve,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "experts.json"
    )
    args = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        files, _ = pretrain.PretrainConfig().files(pretrain.TEXT_SAMPLES)
        pretrain.make_tokenizer(pretrain.PretrainConfig(out=str(folder / "none")), files).save(
            folder / "tokenizer.json"
        )
        runs = [run(name, seed, args.steps, folder) for seed in range(args.seeds) for name in ARMS]
    result = dict(
        **provenance(__doc__.split("\n")[0]),
        minutes=round((time.perf_counter() - start) / 60, 1),
        steps=args.steps,
        parameters={
            name: dict(total=num_parameters(c), active=num_parameters(c, active=True))
            for name, c in ARMS.items()
        },
        runs=runs,
    )
    save(args.out, result)
    for r in runs:
        print(r["arm"], r["seed"], r["bits_per_byte"], r["seconds_for_10_steps"])


if __name__ == "__main__":
    main()
