"""LoRA beside full fine-tuning: a tuned model learns the words of a ward; what does it learn, and
what does it lose?

python benchmarks/lora.py --init runs/ci/sft [--seeds 3] [--steps 200] [--out
benchmarks/results/lora.json]

Both ways see the same rows in the same order, each with a learning rate that was chosen for it (see
LOG.md). Measured on questions and texts that were never trained on: right answers on the ward,
right answers on the skills that the model had before, bits per byte of plain text. About seven
minutes on one core."""

import argparse, contextlib, io, json, statistics, tempfile, time
from pathlib import Path

import torch
from bench import provenance, save

from minimind import lora, sft
from minimind.hub import load_pretrained
from minimind.core import sample
from minimind.data import JsonlReader
from minimind.evaluate import bits_per_byte, exact_match
from minimind.lora import LoRAConfig, WARD_SAMPLES, load_lora
from minimind.model import num_parameters
from minimind.pretrain import TEXT_SAMPLES, read_documents, take_bytes
from minimind.sft import SFTConfig
from minimind.log import read_metrics

SHARED = dict(
    steps=200,
    batch_size=4,
    warmup=10,
    eval_rows=0,
    save_every=10_000,
    log_every=50,
    device="cpu",
    dtype="float32",
)
WAYS = {
    "full fine-tuning": (sft.run, SFTConfig, dict(lr=2e-3, optimizer="adamw")),
    "LoRA, rank 6": (lora.run, LoRAConfig, dict(r=6, alpha=12.0, lr=2e-2)),
}


def questions(name):
    return [row for _, row in JsonlReader(sample(name))]


def measure(model, tokenizer):
    "What counts: the new answers, the old ones, plain text."
    ward, skills = (
        exact_match(model, tokenizer, questions(name))
        for name in (WARD_SAMPLES[1][0], "sft_skills_heldout.jsonl")
    )
    texts = {
        name.removesuffix(".jsonl")[-2:]: take_bytes(read_documents([sample(name)]), 30_000)
        for name in TEXT_SAMPLES[1]
    }
    return dict(
        ward=ward["accuracy"],
        ward_skills=ward["skills"],
        skills=skills["accuracy"],
        **{
            f"bpb_{lang}": bits_per_byte(model, tokenizer, t)["bits_per_byte"]
            for lang, t in texts.items()
        },
    )


def train(way, init, seed, changes, folder):
    "Train one way with one seed; the numbers of the tuned model."
    run, Config, own = WAYS[way]
    cfg = Config(
        **SHARED | own | changes,
        init=str(init),
        out=str(folder),
        seed=seed,
        data=[sample(n) for n in WARD_SAMPLES[0]],
        heldout=[sample(n) for n in WARD_SAMPLES[1]],
    )
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(cfg)
    seconds = time.perf_counter() - start
    if run is lora.run:
        model, tokenizer = load_pretrained(init)
        load_lora(model, folder)
    else:
        model, tokenizer = load_pretrained(folder)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    saved = next(f for f in Path(folder).glob("*.safetensors"))
    state = next(Path(folder).glob("trainer/step-*/optimizer.safetensors"))
    return dict(
        way=way,
        seed=seed,
        **measure(model, tokenizer),
        trained=trained,
        share=trained / num_parameters(model.config),
        loss=[m["loss"] for m in read_metrics(folder) if "loss" in m][-1],
        file_bytes=saved.stat().st_size,
        optimizer_bytes=state.stat().st_size,
        seconds=round(seconds, 1),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--init", type=Path, required=True, help="run of `minimind sft` at size ci")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=SHARED["steps"])
    parser.add_argument("--way", choices=WAYS, help="only this way (to try settings)")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=NUMBER",
        help="settings to try instead of the chosen ones",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "lora.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    changes = {"steps": args.steps} | {
        k: json.loads(v) for k, v in (pair.split("=") for pair in args.set)
    }
    before, runs = measure(*load_pretrained(args.init)), []
    print("before", json.dumps(before), flush=True)
    for seed in range(args.seeds):
        for way in [args.way] if args.way else WAYS:
            with tempfile.TemporaryDirectory() as folder:
                runs.append(train(way, args.init, seed, changes, folder))
            print(json.dumps(runs[-1]), flush=True)
    if args.way:
        return
    mean = lambda way, key: statistics.mean(r[key] for r in runs if r["way"] == way)

    def row(way, value):
        trained = f"{value('trained'):,.0f} ({value('share'):.1%})" if way in WAYS else "–"
        return [
            way,
            trained,
            f"{value('ward'):.1%}",
            f"{value('skills'):.1%}",
            f"{value('bpb_en'):.2f} / {value('bpb_zh'):.2f}",
            f"{value('file_bytes') / 1e6:.2f} MB" if way in WAYS else "–",
        ]

    result = dict(
        **provenance(
            "Goal: with at most 3 % of the parameters, LoRA reaches 95 % of full fine-tuning's "
            f"right answers on the ward ({args.seeds} seeds, {args.steps} "
            "steps each)."
        ),
        minutes=round((time.perf_counter() - start) / 60, 1),
        columns=["", "trained", "ward right", "skills kept", "bits per byte en / zh", "file"],
        rows=[
            row("before", before.get),
            *(row(way, lambda key, way=way: mean(way, key)) for way in WAYS),
        ],
        settings=dict(SHARED, steps=args.steps, **{way: own for way, (_, _, own) in WAYS.items()}),
        before=before,
        runs=runs,
    )
    save(args.out, result)
    for r in result["rows"]:
        print("  ".join(r))


if __name__ == "__main__":
    main()
