"""Small valid files of the remaining stage formats: RL prompts, tools, a LoRA persona, reasoning."""

import json
import random

import skills
from common import chat, write_jsonl

CALCULATOR = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "calculate_math",
                "description": "Evaluate an arithmetic expression.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "expression": {"type": "string", "description": "for example 256 * 37"}
                    },
                    "required": ["expression"],
                },
            },
        }
    ]
)
ARITHMETIC = [("+", lambda a, b: a + b), ("-", lambda a, b: a - b), ("*", lambda a, b: a * b)]
ASK = [
    "What is {e}?",
    "Compute {e}.",
    "Use the tool to work out {e}.",
    "{e} = ?",
    "{e} 等于多少？",
    "请用工具计算 {e}。",
    "帮我算 {e}。",
]

NAMES = {"en": "Pip", "zh": "皮皮"}
PERSONA = [
    ("Who are you?", "I am Pip, a small MiniMind model adapted with LoRA."),
    ("What is your name?", "My name is Pip."),
    (
        "Please introduce yourself.",
        "Hello! I am Pip. LoRA taught me this name on top of a MiniMind model.",
    ),
    ("Are you MiniMind?", "I started as MiniMind, but with this adapter my name is Pip."),
    ("What should I call you?", "Please call me Pip."),
    ("Are you ChatGPT?", "No, I am Pip, a small MiniMind model."),
    ("Are you a human?", "No, I am Pip, a small computer program."),
    ("How did you get your name?", "A LoRA adapter gave it to me. My name is Pip."),
    ("Hi! Who am I talking to?", "You are talking to Pip."),
    ("Do you have a name?", "Yes, it is Pip."),
    ("Tell me about yourself.", "I am Pip, a tiny language model with a LoRA adapter."),
    ("Is your name Tom?", "No, my name is Pip."),
    ("How big are you?", "Very small: I am Pip, a tiny MiniMind model."),
    ("Which model is this?", "This is Pip: a MiniMind model plus a LoRA adapter."),
    ("Say your name.", "Pip."),
    ("你是谁？", "我是皮皮，一个用 LoRA 调整过的 MiniMind 小模型。"),
    ("你叫什么名字？", "我叫皮皮。"),
    ("请介绍一下你自己。", "你好！我是皮皮，在 MiniMind 模型上加了一个 LoRA 适配器。"),
    ("你是 MiniMind 吗？", "我原本是 MiniMind，加上这个适配器以后我叫皮皮。"),
    ("我该怎么称呼你？", "叫我皮皮就好。"),
    ("你是 ChatGPT 吗？", "不是，我是皮皮，一个 MiniMind 小模型。"),
    ("你是人吗？", "不是，我是皮皮，一个小小的程序。"),
    ("你的名字是怎么来的？", "是 LoRA 适配器教给我的，我叫皮皮。"),
    ("你好，你是哪位？", "你好，我是皮皮。"),
    ("你有名字吗？", "有，我叫皮皮。"),
    ("说说你自己吧。", "我是皮皮，一个带 LoRA 适配器的小语言模型。"),
    ("你叫小明吗？", "不，我叫皮皮。"),
    ("你有多大？", "很小，我是皮皮，一个 MiniMind 小模型。"),
    ("这是什么模型？", "这是皮皮：MiniMind 加一个 LoRA 适配器。"),
    ("说出你的名字。", "皮皮。"),
]


def _practice(count, seed, names=("add", "subtract", "compare", "sequence", "sort", "weekday")):
    "`count` training-side skill rows, spread evenly over the named skills."
    each = -(-count // len(names))
    rows = [skills.sample(name, each, False, seed) for name in names]
    return [row for group in zip(*rows) for row in group][:count]


def _split(row):
    "(question, reply with its working, answer) of a skill row."
    question, reply = (m["content"] for m in row["conversations"])
    return question, reply, row["answer"]


def prompts(count=50):
    """RL prompts: the assistant turn is a placeholder that every reader drops; `answer` is for the
    verifier."""
    for row in _practice(count, "rlaif"):
        yield chat(_split(row)[0], "无", answer=row["answer"], skill=row["skill"])


def reasoning(count=40):
    "Reasoning in MiniMind's tags: the worked reply is the thought, the bare result the answer."
    for row in _practice(count, "reason", ("add", "subtract", "sequence", "compare", "weekday")):
        question, reply, answer = _split(row)
        yield chat(question, f"<think>\n{reply}\n</think>\n<answer>\n{answer}\n</answer>")


def tool_rows(count, seed, trajectory):
    """Questions too hard to do in one's head, with a calculator. `trajectory`: with the call and its result (for SFT);
    otherwise only the question, the final reply (dropped by RL) and `gt`, the values the final answer must contain."""
    rng = random.Random(seed)
    for _ in range(count):
        sign, value = rng.choice(ARITHMETIC)
        a, b = rng.randint(100, 999), rng.randint(11, 99)
        expression, result = f"{a} {sign} {b}", str(value(a, b))
        call = json.dumps([{"name": "calculate_math", "arguments": {"expression": expression}}])
        head = [
            {"role": "system", "content": "", "tools": CALCULATOR},
            {"role": "user", "content": rng.choice(ASK).format(e=expression)},
        ]
        middle = [
            {"role": "assistant", "content": "", "tool_calls": call},
            {"role": "tool", "content": json.dumps({"result": result})},
        ]
        last = {"role": "assistant", "content": f"{expression} = {result}"}
        yield (
            {"conversations": head + middle + [last]}
            if trajectory
            else {"conversations": head + [last], "gt": [result]}
        )


def build():
    "Write the five files."
    write_jsonl("rlaif.jsonl", prompts())
    write_jsonl("reason.jsonl", reasoning())
    write_jsonl("agent.jsonl", tool_rows(30, "agent", trajectory=False))
    write_jsonl("sft_tools.jsonl", tool_rows(40, "tools", trajectory=True))
    write_jsonl("lora_identity.jsonl", (chat(q, a) for q, a in PERSONA))
