"""pretrain_en/zh.jsonl and their held-out twins: real public-domain prose, verse and definitions."""

from collections import defaultdict

import sources
from common import is_heldout, pack, shuffled, take_bytes, write_jsonl

# WordNet senses kept out of all training text: mc_wordnet.jsonl is made of them
GLOSS_ONE_IN = 16


def sentence(example):
    "With a capital at the start and a mark at the end."
    return example[:1].upper() + example[1:] + ("" if example[-1:] in ".!?" else ".")


def definitions(limit=700):
    """WordNet senses as sentences, grouped by subject (animals, food, motion ...), without the
    held-out senses."""
    fields = defaultdict(list)
    for sense in sources.wordnet():
        if is_heldout(sense.gloss, GLOSS_ONE_IN):
            continue
        article = "an" if sense.kind[0] == "a" else "a"
        line = f'"{sense.word}" is {article} {sense.kind} that means: {sense.gloss}.'
        fields[sense.field].append(
            line + (f" For example: {sentence(sense.example)}" if sense.example else "")
        )
    return [d for field in sorted(fields) for d in pack(shuffled(fields[field], seed=1), limit)]


def build():
    """Choose a fixed sample of each source, split it by the hash of the document, shuffle, write
    four files."""
    parts = {
        "en": [
            take_bytes(sources.austen(), 1_900_000),
            take_bytes(sources.state_of_the_union(), 1_250_000),
            take_bytes(sources.bible(), 550_000),
            take_bytes(definitions(), 650_000),
        ],
        "zh": [
            take_bytes(sources.three_kingdoms(), 2_000_000),
            take_bytes(sources.classics(), 500_000),
            take_bytes([p.text for p in sources.tang_poems()], 500_000),
            take_bytes([p.text for p in sources.song_ci()], 250_000),
        ],
    }
    for language, groups in parts.items():
        documents = [t for t in dict.fromkeys(sum(groups, [])) if len(t.encode()) >= 100]
        held = [t for t in documents if is_heldout(t)]
        train = [t for t in documents if not is_heldout(t)]
        assert not set(held) & set(train) and all(t.strip() for t in documents)
        write_jsonl(f"pretrain_{language}.jsonl", ({"text": t} for t in shuffled(train, seed=0)))
        write_jsonl(
            f"pretrain_heldout_{language}.jsonl", ({"text": t} for t in shuffled(held, seed=0))
        )
