"""lora_ward.jsonl, lora_ward_heldout.jsonl and lora_identity_heldout.jsonl: what adapters are
trained on and measured with.

The ward is a toy: fluid balance, two doses, change of weight, with invented numbers of two digits.
It is arithmetic in a nurse's words, no medical advice. Words and form of the answer are new to a
model that was tuned on sft_skills.jsonl; the sums beneath are not. A problem bears the same
canonical name as there (`subtract 84 37`) and is held out by the same rule. So the numbers of a
held-out question stand together in no training file, in whatever words."""

import random
from dataclasses import dataclass

from common import chat, is_heldout, shuffled, write_jsonl
from skills import ONE_IN

from minimind.evaluate import is_right

# held out? -> rows, a third of each skill, half of them Chinese
ROWS = {False: 540, True: 120}

QUESTIONS = {
    "balance": {
        "en": [
            "Fluid chart: in {a} ml, out {b} ml. Balance?",
            "Work out the fluid balance: intake {a} ml, output {b} ml.",
            "Bed 4 drank {a} ml and passed {b} ml. What is the balance?",
            "Intake was {a} ml and output was {b} ml. Fill in the balance.",
            "Today's chart says {a} ml in and {b} ml out. Give the fluid balance.",
            "The patient took in {a} ml and lost {b} ml. How many ml are left on the chart?",
            "Please close the fluid chart: {a} ml in, {b} ml out.",
            "Output {b} ml, intake {a} ml. Fluid balance?",
        ],
        "zh": [
            "出入量记录：入量{a}毫升，出量{b}毫升，平衡是多少？",
            "计算液体平衡：入量{a}毫升，出量{b}毫升。",
            "4床喝了{a}毫升，排出{b}毫升，平衡多少？",
            "入量{a}毫升，出量{b}毫升，请填写平衡。",
            "今天记录入{a}毫升、出{b}毫升，液体平衡是？",
            "病人摄入{a}毫升，排出{b}毫升，还差多少毫升？",
            "请结算出入量：入{a}毫升，出{b}毫升。",
            "出量{b}毫升，入量{a}毫升，液体平衡？",
        ],
    },
    "dose": {
        "en": [
            "Morning dose {a} mg, evening dose {b} mg. Daily total?",
            "Two doses were given: {a} mg and {b} mg. Chart the total.",
            "The drug chart shows {a} mg at 8 and {b} mg at 8 again. Total for the day?",
            "First dose {a} mg, second dose {b} mg. How many mg in all?",
            "Add up the doses for bed 2: {a} mg, {b} mg.",
            "A nurse gave {a} mg, later {b} mg. What is the total dose?",
            "Chart: {a} mg before lunch, {b} mg after lunch. Total dose?",
            "What is the day's total for doses of {a} mg and {b} mg?",
        ],
        "zh": [
            "早上给药{a}毫克，晚上给药{b}毫克，全天总量？",
            "给药两次：{a}毫克和{b}毫克，请记录总量。",
            "给药单上8点{a}毫克，再次8点{b}毫克，全天多少？",
            "第一次剂量{a}毫克，第二次{b}毫克，共多少毫克？",
            "请合计2床的剂量：{a}毫克、{b}毫克。",
            "护士先给{a}毫克，后给{b}毫克，总剂量是多少？",
            "记录：午饭前{a}毫克，午饭后{b}毫克，总剂量？",
            "剂量{a}毫克和{b}毫克，当天总量是多少？",
        ],
    },
    "weight": {
        "en": [
            "Weight last week {a} kg, today {b} kg. Change?",
            "The patient weighed {a} kg and now weighs {b} kg. Chart the change.",
            "Scale: {a} kg on Monday, {b} kg on Friday. What is the change in weight?",
            "Bed 7 went from {a} kg to {b} kg. Gained or lost, and how much?",
            "Admission weight {a} kg, present weight {b} kg. Weight change?",
            "Before: {a} kg. After: {b} kg. Note the weight change.",
            "Old weight {a} kg, new weight {b} kg. How did it change?",
            "Fill in the weight change: from {a} kg to {b} kg.",
        ],
        "zh": [
            "上周体重{a}公斤，今天{b}公斤，变化？",
            "病人原来{a}公斤，现在{b}公斤，请记录变化。",
            "体重：周一{a}公斤，周五{b}公斤，体重变化是多少？",
            "7床从{a}公斤变为{b}公斤，增还是减，多少？",
            "入院体重{a}公斤，目前体重{b}公斤，体重变化？",
            "之前：{a}公斤。之后：{b}公斤。写出体重变化。",
            "旧体重{a}公斤，新体重{b}公斤，变了多少？",
            "填写体重变化：从{a}公斤到{b}公斤。",
        ],
    },
}

# of a persona that lora_identity.jsonl teaches, in words that do not stand there
IDENTITY = [
    ("May I know your name?", "My name is Pip.", "pip"),
    ("So, who are you exactly?", "I am Pip, a small MiniMind model adapted with LoRA.", "pip"),
    ("Hello, introduce yourself!", "Hello! I am Pip.", "pip"),
    ("What do people call you?", "Please call me Pip.", "pip"),
    ("Is your name Anna?", "No, my name is Pip.", "pip"),
    ("Are you a person?", "No, I am Pip, a small computer program.", "pip"),
    ("Tell me your name.", "My name is Pip.", "pip"),
    ("Hi! Who is this?", "This is Pip.", "pip"),
    ("请问你叫什么？", "我叫皮皮。", "皮皮"),
    ("你到底是谁？", "我是皮皮，一个用 LoRA 调整过的 MiniMind 小模型。", "皮皮"),
    ("你好，请自我介绍。", "你好！我是皮皮。", "皮皮"),
    ("别人怎么称呼你？", "叫我皮皮就好。", "皮皮"),
    ("你叫小红吗？", "不，我叫皮皮。", "皮皮"),
    ("你是真人吗？", "不是，我是皮皮，一个小小的程序。", "皮皮"),
    ("告诉我你的名字。", "我叫皮皮。", "皮皮"),
    ("你好，你是谁呀？", "你好，我是皮皮。", "皮皮"),
]


@dataclass(frozen=True)
class Problem:
    name: str  # canonical, as in skills.py: it decides the split
    a: int  # in the order of the question
    b: int
    working: str  # units, then tens, with carry or borrow
    result: int


def _sum(a, b):
    carry = a % 10 + b % 10 > 9
    return Problem(
        f"add {min(a, b)} {max(a, b)}",
        a,
        b,
        f"{a % 10}+{b % 10}={a % 10 + b % 10}, "
        f"{a // 10}+{b // 10}{'+1' * carry}={a // 10 + b // 10 + carry}",
        a + b,
    )


def _difference(a, b):
    high, low = max(a, b), min(a, b)
    borrow = high % 10 < low % 10
    working = f"{high % 10 + 10 * borrow}-{low % 10}={(high - low) % 10}, {high // 10}-{low // 10}{'-1' * borrow}={(high - low) // 10}"
    return Problem(f"subtract {high} {low}", a, b, working, high - low)


def balance(rng):
    p = _difference(*sorted(rng.sample(range(10, 100), 2), reverse=True))
    return p, {
        "en": f"In {p.a}, out {p.b}: {p.working}. Balance +{p.result} ml",
        "zh": f"入{p.a}，出{p.b}：{p.working}。平衡+{p.result}毫升",
    }


def dose(rng):
    p = _sum(*rng.sample(range(10, 100), 2))
    return p, {
        "en": f"Doses {p.a} and {p.b}: {p.working}. Total {p.result} mg",
        "zh": f"剂量{p.a}和{p.b}：{p.working}。总量{p.result}毫克",
    }


def weight(rng):
    p = _difference(*rng.sample(range(10, 100), 2))
    en, zh = ("Gained", "增加") if p.b > p.a else ("Lost", "减少")
    return p, {
        "en": f"From {p.a} to {p.b}: {p.working}. {en} {p.result} kg",
        "zh": f"从{p.a}到{p.b}：{p.working}。{zh}{p.result}公斤",
    }


def sample(held):
    "Questions whose problems are all held out, or all not; no question twice."
    found = {}
    for skill, generate in (("balance", balance), ("dose", dose), ("weight", weight)):
        for lang in ("en", "zh"):
            rng, rows = random.Random(f"ward {skill} {lang} {held}"), {}
            while len(rows) < ROWS[held] // 6:
                problem, replies = generate(rng)
                if is_heldout(problem.name, ONE_IN) != held:
                    continue
                question = rng.choice(QUESTIONS[skill][lang]).format(a=problem.a, b=problem.b)
                assert is_right(replies[lang], str(problem.result)), (problem, replies)
                rows[question] = chat(
                    question,
                    replies[lang],
                    skill=skill,
                    problem=problem.name,
                    lang=lang,
                    answer=str(problem.result),
                )
            found |= rows
    return shuffled(found.values(), seed=0)


def build():
    "Write the ward's two files and the questions about the persona."
    train, held = sample(False), sample(True)
    assert not {row["problem"] for row in train} & {row["problem"] for row in held}
    write_jsonl("lora_ward.jsonl", train)
    write_jsonl("lora_ward_heldout.jsonl", held)
    write_jsonl(
        "lora_identity_heldout.jsonl", (chat(q, a, must_contain=[name]) for q, a, name in IDENTITY)
    )
