"""dpo.jsonl and dpo_heldout.jsonl: pairs of a better and a worse answer, each with the reason why
one is worse.

The questions are the exercises of `skills` and the conversations written by hand (sft_chat_*). A
pair is on the side of its exercise: held-out pairs ask only problems that no file trains on, and
the training pairs none of those. Conversations come from the file of their side."""

import random

import skills
from common import digest, read_jsonl, shuffled, write_jsonl

from minimind.evaluate import is_right

# exercises, in the proportions of what a small model has a chance to learn
SKILLS = dict(
    add=264,
    subtract=240,
    compare=168,
    parity=128,
    count=80,
    pick=120,
    weekday=80,
    sequence=80,
    sort=48,
    month=24,
    spell=32,
    reverse=40,
)
# skills whose reply has words, and so a language
SPOKEN = {"compare", "parity", "weekday", "month"}
CHATS = 74  # pairs of each language from conversations
HELDOUT_SHARE = 8  # one held-out pair for so many training pairs of a skill
HELDOUT_CHATS = 16

CALCULATIONS = {"add", "subtract", "sequence"}
FULL_STOP = {"en": ".", "zh": "。"}
EVASIONS = {
    "en": [
        "I don't know.",
        "That is hard to say.",
        "It depends.",
        "I would rather not answer that.",
        "Please ask somebody else.",
        "Sorry, I can't help with that.",
        "Maybe. Who knows?",
    ],
    "zh": [
        "我不知道。",
        "这很难说。",
        "看情况吧。",
        "我不想回答这个问题。",
        "你去问别人吧。",
        "抱歉，我帮不了你。",
        "也许吧，谁知道呢？",
    ],
}
OTHER = {"en": "zh", "zh": "en"}


def good_reply(problem, language):
    """The reply of the exercise; a calculation ends in a full stop, for which only preferences ask:
    `sft_skills.jsonl` has none there."""
    return problem.reply[language] + (FULL_STOP[language] if problem.skill in CALCULATIONS else "")


def wrong_answer(problem, language, rng):
    "The right kind of answer, but not the right one."
    answer, slots = problem.answer[language], problem.slots[language]
    if problem.skill == "compare":
        return str(slots["a"] if answer == str(slots["b"]) else slots["b"])
    if problem.skill == "parity":
        return {"even": "odd", "odd": "even", "偶数": "奇数", "奇数": "偶数"}[answer]
    if problem.skill in ("weekday", "month"):
        names = (skills.DAYS if problem.skill == "weekday" else skills.MONTHS)[language == "zh"]
        return names[(names.index(answer) + rng.choice((1, -1))) % len(names)]
    if problem.skill == "pick":
        return rng.choice(
            [c for c in slots["s"].split() if c != answer] or ["z" if answer != "z" else "a"]
        )
    if problem.skill in ("reverse", "sort"):
        separator = ", " if problem.skill == "sort" else " "
        items = answer.split(separator)
        i = rng.randrange(len(items) - 1)
        items[i], items[i + 1] = items[i + 1], items[i]
        return separator.join(items)
    # a number in words: of another number
    if not answer.isdigit():
        near = max(0, problem.slots["en"]["n"] + rng.choice((-10, -1, 1, 10)))
        return (
            skills.chinese_number(near % 1000)
            if any(c in "零一二三四五六七八九十百" for c in answer)
            else skills.english_number(near % 1000)
        )
    return str(abs(int(answer) + rng.choice((-10, -2, -1, 1, 2, 10))))


def worse_reply(problem, language, rng):
    "(a reply that is worse, why); None if the drawn reason does not fit the exercise."
    plain, good, answer = (
        problem.reply[language],
        good_reply(problem, language),
        problem.answer[language],
    )
    kind = rng.choice(
        (
            "wrong",
            "wrong",
            "wrong",
            "wrong",
            "no stop",
            "no stop",
            "bare",
            "language",
            "repeats",
            "breaks off",
            "evades",
        )
    )
    if kind == "wrong":
        wrong, (head, _, tail) = wrong_answer(problem, language, rng), plain.rpartition(answer)
        worse = head + wrong + tail + good[len(plain) :]
        return None if is_right(worse, answer) else (worse, "wrong answer")
    if kind == "no stop":
        return (plain, "no full stop") if good != plain else None
    if kind == "bare":
        return (answer, "no working shown") if len(good) > len(answer) + 12 else None
    if kind == "language":
        return (
            (good_reply(problem, OTHER[language]), "answers in the wrong language")
            if problem.skill in SPOKEN
            else None
        )
    if kind == "repeats":
        return " ".join([good] * 2), "repeats itself"
    if kind == "breaks off":
        head = plain.rpartition(answer)[0].rstrip(" =：:")
        return (
            (head, "breaks off before the answer") if head and not is_right(head, answer) else None
        )
    return rng.choice(EVASIONS[language]), "evades the question"


def pair(prompt, chosen, rejected, reason, **extra):
    "One row in MiniMind's format: two conversations that differ in their last message."
    return {
        "chosen": [*prompt, {"role": "assistant", "content": chosen}],
        "rejected": [*prompt, {"role": "assistant", "content": rejected}],
        "reason": reason,
        **extra,
    }


def exercises(skill, count, held):
    "`count` pairs of one skill, each of another question, all of held-out problems or none."
    rng, found = random.Random(f"dpo {skill} {held}"), {}
    for attempt in range(400 * count):
        if len(found) == count:
            break
        problem, language = skills.SKILLS[skill][0](rng), "en" if attempt % 2 else "zh"
        if skills.is_heldout(problem.name, skills.ONE_IN) != held:
            continue
        question = skills.put_into_words(problem, language, rng)["conversations"][0]["content"]
        good, worse = good_reply(problem, language), worse_reply(problem, language, rng)
        if worse is None or worse[0] == good:
            continue
        assert is_right(good, problem.answer[language])
        found.setdefault(
            question,
            pair([{"role": "user", "content": question}], good, *worse, problem=problem.name),
        )
    assert len(found) == count, f"{skill}: only {len(found)} of {count} pairs"
    return list(found.values())


def conversations(language, count, held):
    """`count` pairs from conversations written by hand; the worse reply evades, repeats, is another
    question's or the other language's."""
    suffix = "_heldout" if held else ""
    rows, other = (
        sorted(
            read_jsonl(f"sft_chat_{l}{suffix}.jsonl"), key=lambda r: digest(str(r["conversations"]))
        )
        for l in (language, OTHER[language])
    )
    rng, out = random.Random(f"dpo chat {language} {held}"), []
    for row in rows:
        *prompt, last = ({"role": m["role"], "content": m["content"]} for m in row["conversations"])
        reply, kind = last["content"], rng.choice(("evades", "repeats", "another", "language"))
        if len(reply) > 160 or row.get("tools") or len(str(prompt)) > 400:
            continue
        if kind == "evades":
            worse = rng.choice(EVASIONS[language]), "evades the question"
        elif kind == "repeats":
            worse = " ".join([reply] * rng.randint(2, 3)), "repeats itself"
        elif kind == "another":
            worse = rng.choice(rows)["conversations"][-1]["content"], "answers another question"
        else:
            worse = (
                rng.choice(other)["conversations"][-1]["content"],
                "answers in the wrong language",
            )
        if worse[0] == reply or len(worse[0]) > 480:
            continue
        out.append(pair(prompt, reply, *worse))
        if len(out) == count:
            return out
    raise AssertionError(f"{language}: only {len(out)} of {count} conversations")


def pairs(held):
    "All pairs of one side, shuffled."
    rows = [
        row
        for skill, count in SKILLS.items()
        for row in exercises(skill, count // HELDOUT_SHARE if held else count, held)
    ]
    for language in OTHER:
        rows += conversations(language, HELDOUT_CHATS if held else CHATS, held)
    return shuffled(rows, seed=0)


def build():
    """Write the training and the held-out pairs; no problem may appear in both, nor one that the
    exercises hold out in training."""
    train, held = pairs(False), pairs(True)
    kept_out = {row["problem"] for row in held if "problem" in row} | {
        row["problem"] for row in read_jsonl("sft_skills_heldout.jsonl")
    }
    assert not kept_out & {row.get("problem") for row in train}
    asked = lambda rows: {str(row["chosen"][:-1]) for row in rows}
    assert not asked(train) & asked(held)
    write_jsonl("dpo.jsonl", train)
    write_jsonl("dpo_heldout.jsonl", held)


if __name__ == "__main__":
    build()
