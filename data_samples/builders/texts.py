"""sft_text.jsonl (poems and definitions as chat) and the two multiple-choice files, which use
held-out texts only."""

import math
import random
import re
from collections import Counter

import sources
from common import chat, digest, is_heldout, read_jsonl, shuffled, write_jsonl
from pretrain import GLOSS_ONE_IN, sentence

FIRST_LINES = [
    "背诵{author}的《{title}》开头两句。",
    "《{title}》的头两句是什么？",
    "{author}的《{title}》是怎么开头的？",
    "请写出《{title}》（{author}）的前两句。",
    "我想听{author}的《{title}》。",
    "Recite the beginning of 《{title}》 by {author}.",
    "How does the poem 《{title}》 by {author} begin?",
]
NEXT_LINE = [
    "“{line}”的下一句是什么？",
    "“{line}”下一句？",
    "请接下一句：{line}",
    "接着背：{line}",
    "{line}后面是哪一句？",
    "“{line}”后面那句怎么写？",
    "What line follows “{line}”?",
    "Continue the poem: {line}",
]
AUTHOR = [
    "《{title}》是谁写的？",
    "《{title}》的作者是谁？",
    "谁写了《{title}》？",
    "Who wrote 《{title}》?",
]
DEFINE = [
    "What does the word {word} mean?",
    "Define {word}.",
    'What is the meaning of "{word}"?',
    "Explain the {kind} {word}.",
    'What does "{word}" mean?',
    "Give a definition of {word}.",
    "{word}这个英文单词是什么意思？请用英文解释。",
    "用英文解释{word}。",
]
NAME = [
    "Which {kind} means: {gloss}?",
    "Find the {kind}: {gloss}.",
    "What is the word for this: {gloss}?",
    "{gloss}. Which word is it?",
    "I look for this {kind}: {gloss}.",
    "哪个英文单词的意思是：{gloss}？",
]
USE = [
    "Use the word {word} in a sentence.",
    'Make a sentence with "{word}".',
    "Give an example of the {kind} {word}.",
    "用{word}造一个英文句子。",
]
# most other examples are fragments
_SENTENCE = re.compile(r"(The|A|An|He|She|They|It|We|I|His|Her|My|Their|There|You)( \S+){4}")


def couplets(poem):
    "The (first half, second half) pairs of a poem's regular five- or seven-character lines."
    found = [
        re.fullmatch(r"([\u4e00-\u9fff]{5}|[\u4e00-\u9fff]{7})，([\u4e00-\u9fff]+)。", line)
        for line in poem.lines
    ]
    return [(m[1] + "，", m[2] + "。") for m in found if m and len(m[1]) == len(m[2])]


def common_senses(min_count):
    """The most frequent sense of each noun, verb and adjective tagged at least `min_count` times,
    if its gloss does not name the word."""
    best = {}
    for sense in sorted(sources.wordnet(min_count), key=lambda s: s.count):
        best[sense.word] = sense
    return [
        s
        for s in best.values()
        if s.kind != "adverb" and s.word[:5] not in s.gloss and len(s.gloss) < 100
    ]


def _ask(items, templates, answer, count, seed):
    """`count` chat rows: item i (in hash order) asked with a random template; `answer` makes the
    reply."""
    rng, rows = random.Random(seed), []
    for item in sorted(items, key=lambda i: digest(seed + repr(sorted(i.items()))))[:count]:
        rows.append(chat(rng.choice(templates).format(**item), answer.format(**item)))
    assert len(rows) == count, f"{seed}: {len(rows)} of {count}"
    return rows


def text_rows():
    "Poems and senses that are not held out, asked about in several ways."
    poems = [
        p
        for p in sources.tang_poems()
        if not is_heldout(p.text) and 2 <= len(p.lines) <= 6 and len(p.title) <= 8 and couplets(p)
    ]
    titles = Counter(p.title for p in sources.tang_poems())
    named = [
        {"title": p.title, "author": p.author, "start": p.lines[0]}
        for p in poems
        if titles[p.title] == 1 and "·" not in p.title
    ]
    pairs = [{"line": a, "next": b} for p in poems for a, b in couplets(p)[:1]]
    senses = [s for s in common_senses(8) if not is_heldout(s.gloss, GLOSS_ONE_IN)]
    words = [
        {"word": s.word, "kind": s.kind, "gloss": s.gloss, "example": sentence(s.example)}
        for s in senses
    ]
    return (
        _ask(named, FIRST_LINES, "{start}", 250, "first lines")
        + _ask(pairs, NEXT_LINE, "{next}", 300, "next line")
        + _ask(named, AUTHOR, "《{title}》是{author}写的。", 150, "author")
        + _ask(words, DEFINE, "{word}: {gloss}.", 450, "define")
        + _ask(words, NAME, "{word}", 250, "name")
        + _ask(
            [
                w
                for w in words
                if _SENTENCE.match(w["example"]) and w["word"] in w["example"].lower()
            ],
            USE,
            "{example}",
            150,
            "use",
        )
    )


def _choices(question, right, wrong, rng, **extra):
    "One multiple-choice item with its options in random order."
    options = rng.sample([right, *wrong], 4)
    return {"question": question, "choices": options, "answer": options.index(right), **extra}


def mc_poem(count=200):
    """Next half-line of held-out Tang poems among four of the same length, none of which stands in
    the training text."""
    training = "\n".join(r["text"] for r in read_jsonl("pretrain_zh.jsonl"))
    poems = sorted(
        (p for p in sources.tang_poems() if is_heldout(p.text) and couplets(p)),
        key=lambda p: digest(p.text),
    )
    pairs = [
        (pair, p)
        for p in poems
        for pair in couplets(p)[-1:]
        if not any(half in training for half in pair)
    ]
    rng, items = random.Random(0), []
    for (line, right), poem in pairs[:count]:
        others = sorted(
            {b for (_, b), p in pairs if len(b) == len(right) and p is not poem and b != right}
        )
        items.append(
            _choices(
                NEXT_LINE[0].format(line=line),
                right,
                rng.sample(others, 3),
                rng,
                context=line,
                source=f"chinese-poetry: {poem.author}《{poem.title}》",
            )
        )
    assert len(items) == count
    return items


def mc_wordnet(count=200):
    """Held-out WordNet glosses; the wrong words are of the same part of speech and another subject
    field, and about as frequent."""
    senses = [s for s in common_senses(3) if s.kind in ("noun", "verb")]
    held = sorted(
        (s for s in senses if is_heldout(s.gloss, GLOSS_ONE_IN)), key=lambda s: digest(s.gloss)
    )
    rng, items = random.Random(0), []
    for sense in held[:count]:
        others = [
            s
            for s in senses
            if s.kind == sense.kind and s.field != sense.field and s.word not in sense.gloss
        ]
        others = sorted(
            others, key=lambda s: (abs(math.log(s.count / sense.count)), digest(s.word))
        )[:60]
        items.append(
            _choices(
                NAME[0].format(kind=sense.kind, gloss=sense.gloss),
                sense.word,
                [s.word for s in rng.sample(others, 3)],
                rng,
                source="WordNet 3.0",
            )
        )
    assert len(items) == count
    return items


def build():
    "Write sft_text.jsonl, mc_poem.jsonl and mc_wordnet.jsonl."
    rows = text_rows()
    poem, wordnet = mc_poem(), mc_wordnet()
    seen = "\n".join(m["content"] for r in rows for m in r["conversations"])
    assert not any(c in seen for item in poem for c in item["choices"] + [item["context"]])
    write_jsonl("sft_text.jsonl", shuffled(rows, seed=0))
    write_jsonl("mc_poem.jsonl", poem)
    write_jsonl("mc_wordnet.jsonl", wordnet)
