"""Distillation: a small student alone, and with a teacher's distributions or texts, at equal steps.

python benchmarks/distill.py [--seeds 3] [--teacher-steps 90] [--steps 90] [--out
benchmarks/results/distill.json]

Two teachers of the same vocabulary, a wider dense model and a mixture of experts, are pretrained on
English text. The same small student is then trained on a part of that text: on its tokens alone, on
each teacher's distributions (the 128 likeliest tokens of 1,024 and a bucket for the rest, asked
once and cached), or, black-box, on text that the teacher has written. Same number of steps and
rows. Measured: held-out bits per byte."""

import argparse, json, statistics, tempfile, time
from dataclasses import replace
from pathlib import Path

from bench import provenance, save

from minimind import distill, pretrain
from minimind.hub import load_pretrained, to_hf_config
from minimind.core import sample
from minimind.evaluate import bits_per_byte
from minimind.generate import generate
from minimind.model import PRESETS, num_parameters
from minimind.pretrain import PretrainConfig, read_documents, take_bytes

V, K, T = 1024, 128, 128
SHAPES = {
    name: replace(shape, vocab_size=V)
    for name, shape in {
        "dense": PRESETS["ci"],
        "experts": PRESETS["ci-moe"],
        "student": replace(
            PRESETS["ci"],
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=176,
        ),
    }.items()
}
ARMS = {
    "forward KL": dict(kind="forward", alpha=0.0),
    "forward KL, half text": dict(kind="forward", alpha=0.5),
    "reverse KL": dict(kind="reverse", alpha=0.0),
    "JSD": dict(kind="jsd", alpha=0.0),
    "forward KL, T = 2": dict(kind="forward", alpha=0.0, temperature=2.0),
}


def write_texts(path, texts):
    path.write_text(
        "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8"
    )
    return str(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-steps", type=int, default=90)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "distill.json"
    )
    args = parser.parse_args()
    start, runs, quality = time.perf_counter(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, shape in SHAPES.items():
            (folder / "shapes" / name).mkdir(parents=True)
            (folder / "shapes" / name / "config.json").write_text(json.dumps(to_hf_config(shape)))
        documents = take_bytes(read_documents([sample("pretrain_en.jsonl")]), 1_000_000)
        large = write_texts(folder / "large.jsonl", documents)
        small = write_texts(folder / "small.jsonl", take_bytes(documents, 320_000))
        heldout = take_bytes(read_documents([sample("pretrain_heldout_en.jsonl")]), 20_000)
        held = write_texts(folder / "heldout.jsonl", heldout)
        pretrain.make_tokenizer(
            PretrainConfig(out=str(folder / "none"), vocab_size=V), [large]
        ).save(folder / "tokenizer.json")

        shared = dict(seq_len=T, micro_batch_size=16, warmup=10, save_every=10_000, heldout=held)

        def measure(out):
            return bits_per_byte(*load_pretrained(out), heldout, T)["bits_per_byte"]

        def student(arm, teacher, seed, **options):
            cfg = distill.DistillConfig(
                out=str(folder / f"{arm}-{teacher}-{seed}".replace(" ", "_")),
                teacher=str(folder / (teacher or "dense")),
                model=str(folder / "shapes" / "student"),
                seed=seed,
                steps=args.steps,
                batch_size=8,
                eval_rows=0,
                **{**shared, "data": small, **options},
            )
            distill.run(cfg)
            runs.append(dict(arm=arm, teacher=teacher, seed=seed, bits_per_byte=measure(cfg.out)))
            print(runs[-1], f"{time.perf_counter() - start:.0f} s", flush=True)

        for name in ("dense", "experts"):
            out = str(folder / name)
            pretrain.run(
                PretrainConfig(
                    out=out,
                    data=large,
                    model=str(folder / "shapes" / name),
                    tokenizer=str(folder / "tokenizer.json"),
                    steps=args.teacher_steps,
                    batch_size=16,
                    eval_bytes=0,
                    **shared,
                )
            )
            quality[name] = measure(out)
            print(
                "teacher", name, quality[name], f"{time.perf_counter() - start:.0f} s", flush=True
            )
            model, tokenizer = load_pretrained(out)
            wanted = args.steps * 8  # rows that the student will see
            written = [
                ids
                for i in range(0, wanted, 128)
                for ids in generate(
                    model,
                    [[tokenizer.bos_id]] * min(128, wanted - i),
                    T - 1,
                    temperature=1.0,
                    top_p=1.0,
                    seed=i,
                )
            ]
            texts = write_texts(
                folder / f"written_by_{name}.jsonl",
                filter(None, (tokenizer.decode(ids, skip_special=True).strip() for ids in written)),
            )
            for seed in range(args.seeds):
                if name == "dense":
                    student("alone", None, seed, alpha=1.0)
                for arm, options in ARMS.items():
                    # needs a cache of its own: for one teacher
                    hot = "temperature" in options
                    if not hot or name == "dense":
                        student(
                            arm,
                            name,
                            seed,
                            cache_k=K,
                            cache=str(folder / f"asked_{name}{'_hot' if hot else ''}"),
                            **options,
                        )
                student("black-box", name, seed, alpha=1.0, data=texts)

    def row(arm, teacher):
        values = [r["bits_per_byte"] for r in runs if (r["arm"], r["teacher"]) == (arm, teacher)]
        alone = [r["bits_per_byte"] for r in runs if r["arm"] == "alone"]
        return [
            arm,
            teacher or "–",
            round(statistics.mean(values), 3),
            round(max(values) - min(values), 3),
            round(statistics.mean(values) - statistics.mean(alone), 3),
        ]

    rows = [["the teacher itself", name, round(bpb, 3), "–", "–"] for name, bpb in quality.items()]
    rows += [row("alone", None)] + [
        row(arm, name)
        for name in quality
        for arm in [*ARMS, "black-box"]
        if any((r["arm"], r["teacher"]) == (arm, name) for r in runs)
    ]
    result = dict(
        **provenance(__doc__.split("\n")[0]),
        cpu_minutes=round(time.process_time() / 60, 1),
        steps=args.steps,
        teacher_steps=args.teacher_steps,
        seeds=args.seeds,
        cache_k=K,
        parameters={
            name: dict(total=num_parameters(c), active=num_parameters(c, active=True))
            for name, c in SHAPES.items()
        },
        columns=[
            "student learns from",
            "teacher",
            "held-out bits per byte",
            "range over seeds",
            "against alone",
        ],
        rows=rows,
        runs=runs,
        teachers=quality,
    )
    save(args.out, result)
    for r in rows:
        print(*r)


if __name__ == "__main__":
    main()
