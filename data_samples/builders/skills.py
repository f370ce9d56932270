"""sft_skills.jsonl and sft_skills_heldout.jsonl: twelve small skills with checkable answers, in
English and Chinese.

A *problem* (`add 38 47`) is split by its canonical name and only then put into words, so no
phrasing of a held-out problem is ever trained on. Every reply ends in its answer (see `is_right` in
minimind.evaluate). Where one step is not enough, the working is written first, column by column,
because digits are single tokens and each step is then a small lookup."""

import random
import re
from dataclasses import dataclass

from common import chat, is_heldout, shuffled, write_jsonl
from phrasings import QUESTIONS, WRAPPERS

from minimind.evaluate import is_right

ONE_IN = 8  # one problem of eight is held out


@dataclass(frozen=True)
class Problem:
    skill: str  # also the key of its phrasings
    form: str  # which group of phrasings: "larger", "smaller" ...
    name: str  # canonical name, decides the split
    slots: dict  # what the phrasings fill in, by language where the languages differ
    reply: dict  # language -> reply
    answer: dict  # language -> expected answer


def _problem(skill, form, name, slots, reply, answer, reply_zh=None, answer_zh=None, slots_zh=None):
    "A Problem whose Chinese side equals the English one where it is not given."
    return Problem(
        skill,
        form,
        f"{skill} {name}",
        {"en": slots, "zh": {**slots, **(slots_zh or {})}},
        {"en": reply, "zh": reply_zh or reply},
        {"en": answer, "zh": answer_zh or answer},
    )


def _two(rng, high=99):
    "Two numbers; one time in four the second (or both) has a single digit."
    a = rng.randint(1, high)
    b = rng.randint(1, 9) if rng.random() < 0.25 else rng.randint(1, high)
    return (a, b) if rng.random() < 0.5 else (b, a)


def add(rng):
    a, b = _two(rng)
    units, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    working = f"{a % 10}+{b % 10}={units}"
    if a > 9 or b > 9:
        working += f", {a // 10}+{b // 10}{'+1' * carry}={a // 10 + b // 10 + carry}"
    return _problem(
        "add",
        "sum",
        f"{min(a, b)} {max(a, b)}",
        {"a": a, "b": b},
        f"{working}. {a}+{b}={a + b}",
        str(a + b),
    )


def subtract(rng):
    a, b = sorted(_two(rng), reverse=True)
    borrow = a % 10 < b % 10
    working = f"{a % 10 + 10 * borrow}-{b % 10}={(a - b) % 10}"
    if a > 9:
        working += f", {a // 10}-{b // 10}{'-1' * borrow}={(a - b) // 10}"
    return _problem(
        "subtract",
        "difference",
        f"{a} {b}",
        {"a": a, "b": b},
        f"{working}. {a}-{b}={a - b}",
        str(a - b),
    )


def compare(rng):
    a, b = rng.sample(range(100), 2)
    form = rng.choice(["larger", "smaller"])
    low, high = sorted((a, b))
    x, sign, y = (high, ">", low) if form == "larger" else (low, "<", high)
    return _problem(
        "compare",
        form,
        f"{low} {high}",
        {"a": a, "b": b},
        f"{x} {sign} {y}. The answer is {x}.",
        str(x),
        f"{x} {sign} {y}，答案是{x}。",
    )


def sequence(rng):
    step, start = rng.randint(1, 9), rng.randint(1, 60)
    terms = [start + step * i for i in range(5)]
    if rng.random() < 0.3:
        terms.reverse()
    shown, c, d, e = ", ".join(map(str, terms[:4])), *terms[2:]
    sign, high, low = ("+", d, c) if d > c else ("-", c, d)
    return _problem(
        "sequence", "next", shown, {"s": shown}, f"{high}-{low}={step}, {d}{sign}{step}={e}", str(e)
    )


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
_HAN = "零一二三四五六七八九"


def english_number(n):
    "`371` -> `three hundred seventy-one`, for 0 to 999."
    if n >= 100:
        return _ONES[n // 100] + " hundred" + (f" {english_number(n % 100)}" if n % 100 else "")
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10] + (f"-{_ONES[n % 10]}" if n % 10 else "")


def chinese_number(n):
    "`371` -> `三百七十一`, for 0 to 999."
    if n >= 100:
        rest = n % 100
        tens = ("零" if rest < 10 else "一" if rest < 20 else "") if rest else ""
        return _HAN[n // 100] + "百" + tens + (chinese_number(rest) if rest else "")
    if n < 10:
        return _HAN[n]
    return (_HAN[n // 10] if n >= 20 else "") + "十" + (_HAN[n % 10] if n % 10 else "")


def spell(rng):
    n = rng.randint(0, 999) if rng.random() < 0.7 else rng.randint(0, 99)
    form = rng.choice(["to_english", "to_chinese", "from_english", "from_chinese"])
    en, zh = english_number(n), chinese_number(n)
    answer = {"to_english": en, "to_chinese": zh}.get(form, str(n))
    return _problem("spell", form, str(n), {"n": n, "w": en, "h": zh}, answer, answer)


def _letters(rng, low, high, alphabet="abcdefghijklmnopqrstuvwxyz"):
    return [rng.choice(alphabet) for _ in range(rng.randint(low, high))]


def reverse(rng):
    items = _letters(rng, 3, 5, rng.choice(["abcdefghijklmnopqrstuvwxyz", "0123456789"]))
    form = rng.choice(["backwards", "backwards", "copy"])
    shown, answer = " ".join(items), " ".join(items[::-1] if form == "backwards" else items)
    return _problem("reverse", form, shown, {"s": shown}, answer, answer)


def pick(rng):
    items = _letters(rng, 3, 6)
    form = rng.choice(["first", "last"])
    answer = items[0] if form == "first" else items[-1]
    shown = " ".join(items)
    return _problem("pick", form, shown, {"s": shown}, answer, answer)


def count(rng):
    alphabet = rng.sample("abcdefghijklmnopqrstuvwxyz", 3)
    items = _letters(rng, 4, 7, alphabet)
    letter = rng.choice(sorted(set(items)))
    n, shown = items.count(letter), " ".join(items)
    working = " ".join([letter] * n)
    return _problem(
        "count",
        "letter",
        shown,
        {"s": shown, "c": letter},
        f"{working}: {n}",
        str(n),
        f"{working}：{n}",
    )


def sort_three(rng):
    items = rng.sample(range(1, 100), 3)
    form = rng.choice(["up", "up", "down"])
    answer = ", ".join(map(str, sorted(items, reverse=form == "down")))
    return _problem(
        "sort",
        form,
        " ".join(map(str, sorted(items))),
        {"s": ", ".join(map(str, items))},
        answer,
        answer,
    )


DAYS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    ["星期" + c for c in "一二三四五六日"],
)
MONTHS = (
    "January February March April May June July August September October November December".split(),
    [c + "月" for c in "一 二 三 四 五 六 七 八 九 十 十一 十二".split()],
)


def _calendar(rng, skill, names, furthest):
    "Days or months after or before: the reply counts one step at a time."
    english, chinese = names
    size, start, steps = len(english), rng.randrange(len(english)), rng.randint(1, furthest)
    form = rng.choice(["after", "before"])
    path = [(start + (i if form == "after" else -i)) % size for i in range(steps + 1)]
    en, zh = english[path[-1]], chinese[path[-1]]
    return _problem(
        skill,
        form,
        f"{form} {start} {steps}",
        {"d": english[start], "n": steps, "p": "" if steps == 1 else "s"},
        f"{', '.join(english[i] for i in path)}. The answer is {en}.",
        en,
        f"{'，'.join(chinese[i] for i in path)}。答案是{zh}。",
        zh,
        {"d": chinese[start]},
    )


def weekday(rng):
    return _calendar(rng, "weekday", DAYS, 6)


def month(rng):
    return _calendar(rng, "month", MONTHS, 5)


def parity(rng):
    n = rng.randint(0, 999)
    en, zh = ("even", "偶数") if n % 2 == 0 else ("odd", "奇数")
    return _problem(
        "parity",
        "parity",
        str(n),
        {"n": n},
        f"{n % 10} is {en}, so {n} is {en}.",
        en,
        f"{n % 10}是{zh}，所以{n}是{zh}。",
        zh,
    )


# generator, rows to train on, rows held out
SKILLS = {
    "add": (add, 3200, 140),
    "subtract": (subtract, 2400, 120),
    "compare": (compare, 2000, 100),
    "parity": (parity, 600, 60),
    "pick": (pick, 1000, 60),
    "count": (count, 500, 40),
    "weekday": (weekday, 300, 20),
    "month": (month, 200, 10),
    "sequence": (sequence, 300, 20),
    "spell": (spell, 200, 10),
    "sort": (sort_three, 200, 10),
    "reverse": (reverse, 200, 10),
}


# not with the number one
_PLURAL = re.compile(r"\b(apples|pages|balls|birds|socks)\b")


def put_into_words(problem, language, rng):
    """One row: a random phrasing of the problem, sometimes with a polite opening or a request at
    the end."""
    templates, slots = QUESTIONS[problem.skill][problem.form][language], problem.slots[language]
    if 1 in slots.values():
        templates = [t for t in templates if not _PLURAL.search(t)]
    question = rng.choice(templates).format(**slots)
    question = rng.choice(WRAPPERS[language]).format(question)
    answer = problem.answer[language]
    assert is_right(problem.reply[language], answer), problem
    return chat(
        question,
        problem.reply[language],
        skill=problem.skill,
        problem=problem.name,
        lang=language,
        answer=answer,
    )


def sample(skill, rows, held, seed):
    """`rows` different questions of one skill, all from the held-out problems or all from the
    others."""
    rng = random.Random(f"{skill} {held} {seed}")
    found = {}
    for attempt in range(200 * rows):
        if len(found) == rows:
            break
        problem = SKILLS[skill][0](rng)
        if is_heldout(problem.name, ONE_IN) != held:
            continue
        row = put_into_words(problem, "en" if attempt % 2 else "zh", rng)
        found.setdefault(row["conversations"][0]["content"], row)
    assert len(found) == rows, f"{skill}: only {len(found)} of {rows} rows"
    return list(found.values())


def drills(kilobytes=280, lines=24):
    """Documents of `lines` worked sums, differences and comparisons: exercises as plain text to pretrain on.

    A small model needs thousands of examples to learn to add; as plain text an example costs a third of the tokens
    that it costs as a chat. Held-out problems are left out here too.
    """
    rng, found = random.Random("drills"), {}
    size = 0
    while size < 1000 * kilobytes:
        problem = rng.choice((add, add, add, subtract, subtract, compare, compare))(rng)
        line = problem.reply["en"].split(". The answer")[0]
        if is_heldout(problem.name, ONE_IN) or line in found:
            continue
        found[line] = None
        size += len(line) + 1
    found = list(found)
    return ["\n".join(found[i : i + lines]) for i in range(0, len(found), lines)]


def build():
    """Write the drills, the training and the held-out file; no problem may appear in training and
    held out."""
    write_jsonl("pretrain_numbers.jsonl", [{"text": text} for text in drills()])
    train = [
        row for skill, (_, rows, _) in SKILLS.items() for row in sample(skill, rows, False, seed=0)
    ]
    held = [
        row for skill, (_, _, rows) in SKILLS.items() for row in sample(skill, rows, True, seed=0)
    ]
    assert not {row["problem"] for row in train} & {row["problem"] for row in held}
    write_jsonl("sft_skills.jsonl", shuffled(train, seed=0))
    write_jsonl("sft_skills_heldout.jsonl", shuffled(held, seed=0))
