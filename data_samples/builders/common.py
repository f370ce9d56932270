"""What every builder shares: where files lie, how text is split into train and held out, how rows
are written."""

import hashlib
import json
import random
import re
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parents[1]  # data_samples/
HELDOUT_ONE_IN = 64  # one document of 64 is held out
# the rules come from this clone's package, installed or not
sys.path.insert(0, str(OUT.parent))

from minimind.data import in_heldout  # noqa: E402


def digest(text):
    """The first 64 bits of the sha256 of `text`, as an integer: what 'random' orders and samples
    are made of."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_heldout(key, one_in=HELDOUT_ONE_IN):
    """The split rule of every file, that of `minimind.data`: `key` is held out when the first 64 bits of its sha256 are divisible by `one_in`.

    `key` is the whole text of a pretraining document, the gloss of a WordNet sense, or the canonical name of an exercise
    (such as `add 38 47`), never one of its phrasings. So the side does not depend on seeds, order or sizes.
    """
    return in_heldout(key, one_in)


def shuffled(rows, seed):
    "A shuffled copy; the same order for the same rows and seed on every machine."
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    return rows


def take_bytes(texts, budget):
    """The first texts in hash order whose UTF-8 bytes sum to at most `budget`: a fixed, unbiased
    sample."""
    chosen, used = [], 0
    for text in sorted(set(texts), key=lambda t: (digest(t), t)):
        size = len(text.encode())
        if used + size > budget:
            break
        chosen.append(text)
        used += size
    return chosen


def pack(parts, limit, joiner="\n"):
    """Join consecutive `parts` into documents of at most `limit` UTF-8 bytes; a longer part is
    first cut at sentence ends."""
    documents, current = [], ""
    for part in (piece for part in parts for piece in _sentences(part, limit)):
        joined = current + joiner + part if current else part
        if current and len(joined.encode()) > limit:
            documents.append(current)
            joined = part
        current = joined
    return documents + [current] if current else documents


def _sentences(text, limit):
    "`text` itself if it fits into `limit` bytes, otherwise runs of whole sentences that do."
    if len(text.encode()) <= limit:
        return [text]
    sentences = re.findall(r".+?(?:[。！？][”’」]*|[.!?][\"”’)]*(?=\s)|$)\s*", text, re.S)
    runs = [""]
    for sentence in sentences:
        if runs[-1] and len((runs[-1] + sentence).encode()) > limit:
            runs.append("")
        runs[-1] += sentence
    return [run.strip() for run in runs if run.strip()]


def write_jsonl(name, rows):
    "Write `rows` to data_samples/`name`, one JSON object a line, UTF-8, in the given order."
    with open(OUT / name, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(name):
    "The rows of data_samples/`name`."
    with open(OUT / name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def chat(user, assistant, **extra):
    "One single-turn row in MiniMind's conversation format."
    return {
        "conversations": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": assistant},
        ],
        **extra,
    }
