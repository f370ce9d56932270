"""sft_talks.jsonl, conversations of one to some six exchanges; sft_talks_heldout.jsonl and
first_panel.jsonl, conversations to measure on.

A *block* is a few exchanges that belong together: an exercise, a greeting, a capital and "And of
Spain?". Conversations are made of blocks drawn at random, so that a model meets every kind of
question at the first turn and later on. The exercises are those of `skills`, in other rows, with
the same split: no held-out problem is trained on. The times tables are facts, and there are too few
of them to hold some out."""

import random

import skills
from common import is_heldout, read_jsonl, shuffled, write_jsonl
from firsts import (
    AND_CAPITAL,
    ASK_ANY_POEM,
    ASK_CAPITAL,
    ASK_OPPOSITE,
    ASK_POEM,
    ASK_WORD,
    BOTS,
    CAPITALS,
    FACTS,
    NAME_ENDS,
    NAME_STARTS,
    NAMES,
    NO_CAPITAL,
    OPPOSITES,
    POEMS,
    SLOTS,
    TALK,
    THE_CAPITAL,
    THE_OPPOSITE,
    UNKNOWN,
    WORDS,
    listed,
)
from panel import PANEL

ONE_IN = skills.ONE_IN
LANGUAGES = ("en", "zh")
OTHER = {"en": "zh", "zh": "en"}
# rows of each skill; few of those that a small model does not learn
EXERCISES = dict(
    add=1700,
    subtract=2200,
    compare=2300,
    parity=650,
    pick=1700,
    count=650,
    weekday=250,
    month=60,
    sequence=150,
    spell=60,
    sort=120,
    reverse=80,
)
# how many blocks a conversation is made of
LENGTHS = (1, 1, 1, 2, 2, 3, 3, 4, 4, 5)
# tokens, roughly: a conversation has to fit into a row of 256
ROOM = 215


def block(language, *turns, system=None):
    "Exchanges `(question, reply)` that belong together, after what the system says, if it does."
    return {"lang": language, "turns": list(turns), "system": system}


def _tokens(text):
    "At most so many: a digit, a mark and a Chinese character are one, letters come in pieces."
    alone = sum(c in "0123456789+-=,.:?!><" or ord(c) > 0x2E00 for c in text)
    return alone + (len(text) - alone) / 2.2


def tokens_of(found):
    "Of a whole block; what stands around an exchange takes eleven."
    around = _tokens(found["system"] or "")
    return around + sum(_tokens(q) + _tokens(a) + 11 for q, a in found["turns"])


# ---- as somebody would type it
AROUND = {
    "en": listed("""OK, {} | Well, {} | So, {} | Hey, {} | Hi, {} | Hello, {} | Please: {} | And {} |
        Oh, {} | Now {} | Tell me, {} | OK then, {} | {} Thanks!"""),
    "zh": listed("""请问{} | 那么{} | 那{} | 嗯，{} | 你好，{} | 好的，{} | 请问一下，{} | 对了，{} |
        {}谢谢！ | 我想问，{}"""),
}
BEHIND = {
    "en": listed("""please | my friend | MiniMind | today | then | now | again | really | dear |
        little model"""),
    "zh": listed("呀 | 呢 | 啊 | 啦 | 哦"),
}
MARKS = "?？.。!！"


def typed(question, rng, language=None, around=0.0):
    "Often without marks or capitals; `around`: how often words stand around it."
    if rng.random() < around:
        core, mark = question.rstrip(MARKS), question[len(question.rstrip(MARKS)) :]
        if rng.random() < 0.5:
            small = question[:1].lower() + question[1:]
            question = rng.choice(AROUND[language]).format(rng.choice((question, small)))
        elif language == "en":
            question = core + rng.choice((", ", ", ", " ")) + rng.choice(BEHIND["en"]) + mark
        else:
            question = core + rng.choice(BEHIND["zh"]) + mark
    if rng.random() < 0.2:
        question = question.lower()
    if rng.random() < 0.25:
        question = question.rstrip(MARKS) or question
    elif rng.random() < 0.08:
        question = question.replace("？", "?").replace("！", "!")
    return question


class Slots(dict):
    "What fills the slots of a template: what is given, else anything of the kind."

    def __init__(self, language, rng, given):
        super().__init__(given)
        self.language, self.rng = language, rng

    def __missing__(self, slot):
        return self.rng.choice(SLOTS[self.language][slot])


def ask(questions, language, rng, around=0.35, **slots):
    "One of the wordings, as somebody would type it."
    filled = rng.choice(questions).format_map(Slots(language, rng, slots))
    return typed(filled, rng, language, around)


# ---- sums, as they are typed
SUMS = {
    ("+", "en"): listed("""{a}+{b} | {a} + {b} | {a}+{b}= | {a} + {b} = | {a} plus {b} |
        What is {a}+{b}? | What is {a} + {b}? | {a}+{b}=? | {a} + {b}? | what's {a}+{b} |
        Calculate {a} + {b} | How much is {a}+{b}? | What is {a} plus {b}? | {a} + {b} = ? |
        Can you add {a} and {b}? | What is the sum of {a} and {b}? | Please compute {a} + {b}."""),
    (
        "+",
        "zh",
    ): listed("""{a}+{b} | {a}加{b} | {a}+{b}等于几 | {a}+{b}等于多少？ | {a}加{b}等于几？ |
        {a}加{b}是多少 | {a}+{b}= | {a}+{b}是多少？ | 计算{a}+{b} | {a}加{b}等于多少？ |
        算一下{a}+{b}"""),
    ("-", "en"): listed("""{a}-{b} | {a} - {b} | {a}-{b}= | {a} minus {b} | What is {a}-{b}? |
        What is {a} - {b}? | {a}-{b}=? | {a} - {b}? | what's {a}-{b} | Calculate {a} - {b} |
        How much is {a}-{b}? | What is {a} minus {b}? | {a} - {b} = ? | Please compute {a} - {b}."""),
    (
        "-",
        "zh",
    ): listed("""{a}-{b} | {a}减{b} | {a}-{b}等于几 | {a}-{b}等于多少？ | {a}减{b}等于几？ |
        {a}减{b}是多少 | {a}-{b}= | {a}-{b}是多少？ | 计算{a}-{b} | 算一下{a}-{b}"""),
}
GO_ON = {
    ("+", "en"): listed("""And plus {b}? | plus {b}? | +{b} | Now add {b}. | And plus {b} |
        Add {b} to that. | and + {b}?"""),
    ("+", "zh"): listed("再加{b}呢？ | 再加{b} | 加{b}呢？ | +{b} | 再加上{b}是多少？ | 然后加{b}"),
    ("-", "en"): listed("""And minus {b}? | minus {b}? | -{b} | Now take away {b}. |
        Subtract {b} from that."""),
    ("-", "zh"): listed("再减{b}呢？ | 再减{b} | 减{b}呢？ | -{b} | 再减去{b}是多少？"),
}


def columns(a, b, sign):
    "The working, column by column from the right as in `skills`, and the result."
    result, steps, carry, x, y = (a + b if sign == "+" else a - b), [], 0, a, b
    while max(a, b) > 9 and (x or y):
        p, q = x % 10, y % 10
        if sign == "+":
            value = p + q + carry
            steps.append(f"{p}+{q}{'+1' * carry}={value}")
            carry = value // 10
        else:
            borrow = p - carry < q
            value = p + 10 * borrow - q - carry
            steps.append(f"{p + 10 * borrow}-{q}{'-1' * carry}={value}")
            carry = int(borrow)
        x, y = x // 10, y // 10
    return f"{', '.join(steps)}{'. ' * bool(steps)}{a}{sign}{b}={result}", result


def held_out(a, b, sign):
    "Is this problem kept for the tests? By its name in `skills`."
    name = f"add {min(a, b)} {max(a, b)}" if sign == "+" else f"subtract {a} {b}"
    return is_heldout(name, ONE_IN)


def _numbers(sign, digits, rng):
    "Two numbers, the larger one with so many digits."
    while True:
        low = 10 ** (digits - 1) if digits > 1 else 0
        a = rng.randint(low, 10**digits - 1)
        b = rng.randint(low if rng.random() < 0.7 else 1, 10**digits - 1)
        if sign == "-":
            a, b = max(a, b), min(a, b)
        elif rng.random() < 0.5:
            a, b = b, a
        if not held_out(a, b, sign):
            return a, b


def sums(digits, count, go_on, rng):
    "Sums and differences; a share of them goes on from the result."
    for i in range(count):
        language, sign = LANGUAGES[i % 2], rng.choice("++-")
        a, b = _numbers(sign, digits, rng)
        reply, result = columns(a, b, sign)
        turns = [(rng.choice(SUMS[sign, language]).format(a=a, b=b), reply)]
        while rng.random() < go_on and 0 < result < 100:
            sign = rng.choice("++-") if result > 9 else "+"
            b = rng.randint(1, 9) if rng.random() < 0.6 else rng.randint(1, 50)
            if held_out(result, b, sign) or (sign == "-" and b > result):
                continue
            reply, result = columns(result, b, sign)
            turns.append((rng.choice(GO_ON[sign, language]).format(b=b), reply))
        yield block(language, *turns)


TIMES = {
    "en": listed("""{a}*{b} | {a} * {b} | {a} x {b} | {a}x{b} | {a} times {b} | {a}×{b}=? |
        What is {a} times {b}? | What is {a} x {b}? | What is {a} * {b}? | {a} x {b} = ? |
        Multiply {a} by {b}. | How much is {a} times {b}?"""),
    "zh": listed("""{a}*{b} | {a}乘{b} | {a}乘以{b} | {a}×{b} | {a}乘以{b}等于几？ | {a}乘{b}是几？ |
        {a}×{b}等于多少？ | {a}乘{b}等于多少 | {a}*{b}=? | {a}乘{b}是多少？"""),
}
OVER = {
    "en": listed("""{a}/{b} | {a} / {b} | What is {a} divided by {b}? | {a} divided by {b} |
        Divide {a} by {b}. | What is {a} / {b}?"""),
    "zh": listed("{a}/{b} | {a}除以{b} | {a}÷{b} | {a}除以{b}等于几？ | {a}÷{b}等于多少？"),
}
TOO_LARGE = {
    "en": "These numbers are too large for me. I can add and subtract numbers below 1000.",
    "zh": "这些数太大了，我只会1000以内的加减法。",
}


def tables(times, over, rng):
    "The times tables up to ten times ten, forwards and backwards."
    pairs = [(a, b) for a in range(1, 11) for b in range(1, 11)]
    for i in range(times + over):
        (a, b), language = pairs[i % 100], rng.choice(LANGUAGES)
        if i < times:
            turn = rng.choice(TIMES[language]).format(a=a, b=b), f"{a}×{b}={a * b}"
        else:
            turn = rng.choice(OVER[language]).format(a=a * b, b=b), f"{a * b}÷{b}={a}"
        yield block(language, turn)


def too_large(count, rng):
    "Problems that are beyond the model, and it says so."
    for i in range(count):
        language = LANGUAGES[i % 2]
        if rng.random() < 0.4:
            a, b = rng.randint(21, 9999), rng.randint(12, 999)
            wordings = rng.choice((TIMES, OVER))[language]
        else:
            a, b = (rng.randint(10 ** rng.randint(3, 5), 10**6) for _ in range(2))
            wordings = SUMS[rng.choice("+-"), language]
        yield block(language, (rng.choice(wordings).format(a=a, b=b), TOO_LARGE[language]))


IS_LARGER = {
    "en": listed("Is {a} larger than {b}? | Is {a} bigger than {b}? | Is {a} more than {b}?"),
    "zh": listed("{a}比{b}大吗？ | {a}大于{b}吗？ | {a}比{b}大吗"),
}
WHICH_IS_LARGER = {
    "en": listed("""Which is bigger, {a} or {b}? | {a} or {b}, which is larger? |
        Which one is larger: {a} or {b}? | What is bigger, {a} or {b}? | bigger: {a} or {b}"""),
    "zh": listed("{a}和{b}哪个更大？ | {a}和{b}谁大？ | 哪个大，{a}还是{b}？ | {a}和{b}哪个大"),
}


def comparisons(count, rng):
    "Which is larger, and is it?"
    for i in range(count):
        language = LANGUAGES[i % 2]
        a, b = rng.sample(range(rng.choice((10, 100, 100, 1000))), 2)
        low, high = sorted((a, b))
        if is_heldout(f"compare {low} {high}", ONE_IN):
            continue
        if rng.random() < 0.6:
            wordings = WHICH_IS_LARGER
            en, zh = f"{high} > {low}. The answer is {high}.", f"{high} > {low}，答案是{high}。"
        else:
            wordings, sign = IS_LARGER, ">" if a > b else "<"
            en = f"{'Yes' if a > b else 'No'}, {a} {sign} {b}."
            zh = f"{'是的' if a > b else '不是'}，{a} {sign} {b}。"
        reply = en if language == "en" else zh
        yield block(language, (rng.choice(wordings[language]).format(a=a, b=b), reply))


NEXT = {
    ("weekday", "en"): listed("""What day comes after {d}? | Which day comes after {d}? |
        What comes after {d}? | What day is after {d}? | {d} is followed by which day?"""),
    ("weekday", "zh"): listed("""{d}后面是星期几？ | {d}的后一天是什么 | {d}之后是哪天？ |
        {d}后面是哪一天？"""),
    ("month", "en"): listed("""What month comes after {d}? | Which month comes after {d}? |
        What comes after {d}? | {d} is followed by which month?"""),
    ("month", "zh"): listed("{d}后面是几月？ | {d}的后一个月是什么？ | {d}之后是几月？"),
}


def following(times, rng):
    "The next day and the next month, of those that `skills` does not hold out."
    for skill, calendar in (("weekday", skills.DAYS), ("month", skills.MONTHS)):
        for language, names in zip(LANGUAGES, calendar):
            for i, name in enumerate(names):
                if is_heldout(f"{skill} after {i} 1", ONE_IN):
                    continue
                after = names[(i + 1) % len(names)]
                reply = (
                    f"{after} comes after {name}." if language == "en" else f"{name}后面是{after}。"
                )
                for _ in range(times):
                    yield block(
                        language, (ask(NEXT[skill, language], language, rng, d=name), reply)
                    )


# ---- words
ONE_MORE = {
    "en": listed("Another one | Another one, please! | One more! | Tell me another"),
    "zh": listed("再来一个 | 再讲一个 | 还有吗？"),
}


def small_talk(share, rng):
    "`share`: of the times that `firsts` says."
    for language in LANGUAGES:
        topics = TALK[language]
        for times, questions, replies in topics.values():
            for _ in range(round(times * share)):
                yield block(language, (ask(questions, language, rng), rng.choice(replies)))
        _, jokes, told = topics["joke"]
        for _ in range(30):
            first, second = rng.sample(told, 2)
            more = rng.choice(ONE_MORE[language])
            yield block(language, (ask(jokes, language, rng), first), (more, second))
        (_, how, fine), (_, well, glad) = topics["how"], topics["fine"]
        for _ in range(30):
            asked = ask(how, language, rng), fine[0]
            yield block(language, asked, (ask(well, language, rng), rng.choice(glad)))
        (_, thanks, welcome), (_, bye, goodbye) = topics["thanks"], topics["bye"]
        for _ in range(40):
            thanked = ask(thanks, language, rng), rng.choice(welcome)
            yield block(language, thanked, (ask(bye, language, rng), rng.choice(goodbye)))


def facts(times, rng):
    for language in LANGUAGES:
        for questions, reply, short in FACTS[language]:
            # a line of a poem is harder to know by heart
            for _ in range(2 * times if reply == short else times):
                yield block(language, (ask(questions, language, rng), reply))


def capitals(times, unknown, rng):
    "Those that it knows, one after another, and those that it does not know."
    for language in LANGUAGES:
        known, say = CAPITALS[language], THE_CAPITAL[language]
        for country, city in known.items():
            for _ in range(times):
                asked = ask(ASK_CAPITAL[language], language, rng, c=country)
                turns = [(asked, say.format(c=country, k=city))]
                while rng.random() < 0.3 and len(turns) < 4:
                    other = rng.choice(list(known))
                    asked = ask(AND_CAPITAL[language], language, rng, around=0, c=other)
                    turns.append((asked, say.format(c=other, k=known[other])))
                yield block(language, *turns)
        for country in UNKNOWN[language]:
            for _ in range(unknown):
                asked = ask(ASK_CAPITAL[language], language, rng, c=country)
                yield block(language, (asked, NO_CAPITAL[language]))


def words(opposites, translations, rng):
    for language in LANGUAGES:
        for pair in OPPOSITES[language]:
            for a, b in (pair.split(), pair.split()[::-1]):
                for _ in range(opposites):
                    asked = ask(ASK_OPPOSITE[language], language, rng, a=a)
                    yield block(language, (asked, THE_OPPOSITE[language].format(a=a, b=b)))
        for pair in WORDS:
            e, z = pair.split()
            for _ in range(translations):
                asked = ask(ASK_WORD[language], language, rng, around=0, e=e, z=z)
                yield block(language, (asked, z if language == "en" else e))


def poems(times, rng):
    "A verse on each subject; without a subject, one of the first two."
    for language in LANGUAGES:
        verses = POEMS[language]
        for subject, verse in verses.items():
            for _ in range(times):
                yield block(language, (ask(ASK_POEM[language], language, rng, t=subject), verse))
        for _ in range(6 * times):
            verse = rng.choice(list(verses.values())[:2])
            yield block(language, (ask(ASK_ANY_POEM[language], language, rng), verse))


# ---- names
TELL_NAME = {
    "en": listed("""My name is {n}. | I am {n}. | I'm {n}. | Call me {n}. | Hello, I am {n}. |
        Hi, my name is {n}! | You can call me {n}"""),
    "zh": listed("""我叫{n}。 | 我的名字是{n} | 我是{n}。 | 你好，我叫{n} | 叫我{n}就好 |
        你好，我是{n}！"""),
}
HELLO_NAME = {
    "en": ["Nice to meet you, {n}!", "Hello, {n}! How can I help you?"],
    "zh": ["你好，{n}！", "你好，{n}！很高兴认识你。"],
}
ASK_NAME = {
    "en": listed("""What is my name? | Who am I? | Do you know my name? | What's my name? |
        Do you remember my name? | Say my name. | And what is my name?"""),
    "zh": listed("""我叫什么名字？ | 我叫什么 | 我是谁？ | 你知道我叫什么吗？ | 还记得我的名字吗？ |
        我的名字是什么？"""),
}
THE_NAME = {"en": "Your name is {n}.", "zh": "你叫{n}。"}
NO_NAME = {"en": "I do not know your name. What is it?", "zh": "我不知道你的名字，你叫什么？"}


def a_name(language, rng, known):
    "One of the list, or one that nobody has: a name is to be copied, not known by heart."
    if rng.random() < 0.9:
        return rng.choice(known)
    return (rng.choice(NAME_STARTS[language]) + rng.choice(NAME_ENDS[language])).capitalize()


def names(count, between, rng):
    "The user's name, told, and asked for later, with other things between; or never told."
    for i in range(count):
        language = LANGUAGES[i % 2]
        name = a_name(language, rng, NAMES[language])
        told = rng.choice(TELL_NAME[language]).format(n=name)
        told = told.rstrip(MARKS) if rng.random() < 0.3 else told
        turns = [(told, rng.choice(HELLO_NAME[language]).format(n=name))]
        while rng.random() < 0.4 and len(turns) < 3:
            turns += rng.choice(between[language])["turns"][:1]
        if rng.random() < 0.85:
            asked = typed(rng.choice(ASK_NAME[language]), rng)
            turns.append((asked, THE_NAME[language].format(n=name)))
        yield block(language, *turns)
        if i % 6 < 2:
            yield block(language, (typed(rng.choice(ASK_NAME[language]), rng), NO_NAME[language]))


# ---- system prompts
NEUTRAL = {
    "en": listed("""You are a helpful assistant. | You are MiniMind. |
        You are a helpful assistant. Be polite. | Answer the questions of the user. |
        You are a friendly assistant. | You are MiniMind, a helpful assistant."""),
    "zh": listed("""你是一个有用的助手。 | 你是MiniMind。 | 你是一个友好的助手。 | 请回答用户的问题。 |
        你是MiniMind，一个有用的助手。"""),
}
BE_NAMED = {
    "en": listed("""Your name is {n}. | You are {n}. | You are {n}, a helpful assistant. |
        You are called {n}. | Your name is {n}. Be friendly."""),
    "zh": listed(
        "你叫{n}。 | 你的名字是{n}。 | 你是{n}，一个有用的助手。 | 你是{n}。 | 你叫{n}，请友好地回答。"
    ),
}
I_AM = {"en": ["I am {n}.", "My name is {n}."], "zh": ["我是{n}。", "我叫{n}。"]}
USER_IS = {
    "en": listed("The user's name is {n}. | The user is called {n}. | You talk to {n}."),
    "zh": listed("用户的名字是{n}。 | 用户叫{n}。 | 你在和{n}说话。"),
}
BRIEF = {
    "en": listed("Answer in one word. | Be brief. | One word only. | Answer with one word."),
    "zh": listed("请用一个词回答。 | 回答要简短。 | 只回答一个词。 | 请简短回答。"),
}
SPEAK = {
    "en": listed("""Answer in English. | Always answer in English. | Speak English. |
        请用英文回答。 | 只说英文。"""),
    "zh": listed("""Answer in Chinese. | Always answer in Chinese. | Speak Chinese. |
        请用中文回答。 | 只说中文。"""),
}
STYLES = (
    ("en", "Talk like a pirate. | You are a pirate. | Speak like a pirate.", "Arr! {}"),
    (
        "en",
        "You are a cat. | Always say meow at the end. | End every answer with: Meow!",
        "{} Meow!",
    ),
    ("en", "Be very polite. | Call the user Sir. | You are a butler.", "{} At your service, Sir."),
    ("en", "Always be happy. | You are very happy. | Be cheerful!", "Yay! {}"),
    ("zh", "每句话最后说“喵”。 | 你是一只小猫。 | 请在最后说“喵”。", "{}喵！"),
)


def assistants(count, rng):
    "The system gives the assistant a name."
    for i in range(count):
        language = LANGUAGES[i % 2]
        name = a_name(language, rng, BOTS[language])
        _, questions, replies = TALK[language][rng.choice(("who", "name", "name"))]
        asked = ask(questions, language, rng), rng.choice(I_AM[language]).format(n=name)
        _, hello, hi = TALK[language]["greet"]
        greeted = ask(hello, language, rng), rng.choice(hi)
        turns = [greeted, asked] if rng.random() < 0.3 else [asked]
        yield block(language, *turns, system=rng.choice(BE_NAMED[language]).format(n=name))


def users(count, rng):
    "The system says who the user is."
    for i in range(count):
        language = LANGUAGES[i % 2]
        name = a_name(language, rng, NAMES[language])
        asked = typed(rng.choice(ASK_NAME[language]), rng), THE_NAME[language].format(n=name)
        hello = ask(TALK[language]["greet"][1], language, rng)
        greeted = hello, rng.choice(HELLO_NAME[language]).format(n=name)
        turns = rng.choice(([asked], [greeted], [greeted, asked]))
        yield block(language, *turns, system=rng.choice(USER_IS[language]).format(n=name))


def brief(count, rng):
    "Answers of one word."
    known = {}
    for language in LANGUAGES:
        full_stop = "." if language == "en" else "。"
        known[language] = [(questions, short) for questions, _, short in FACTS[language]]
        known[language] += [
            ([wording.format(c=country) for wording in ASK_CAPITAL[language]], city + full_stop)
            for country, city in CAPITALS[language].items()
        ]
    for i in range(count):
        language = LANGUAGES[i % 2]
        chosen = rng.sample(known[language], rng.randint(1, 3))
        turns = [(ask(questions, language, rng), short) for questions, short in chosen]
        yield block(language, *turns, system=rng.choice(BRIEF[language]))


def languages(count, rng):
    "Asked in one language, answered in the other; or in the same one, if that is wanted."
    both = [k for k in TALK["en"] if k in TALK["zh"] and k not in ("joke", "fact", "noise")]
    for i in range(count):
        asked = LANGUAGES[i % 2]
        wanted = OTHER[asked] if i % 4 < 2 else asked
        topics = rng.sample(both, rng.randint(1, 3))
        turns = [
            (ask(TALK[asked][k][1], asked, rng), rng.choice(TALK[wanted][k][2])) for k in topics
        ]
        yield block(wanted, *turns, system=rng.choice(SPEAK[wanted]))


def styles(count, rng):
    "A manner of speaking."
    for i in range(count):
        language, prompts, style = STYLES[i % len(STYLES)]
        topics = [t for t in TALK[language].values() if max(map(len, t[2])) < 90]
        turns = [
            (ask(questions, language, rng), style.format(rng.choice(replies)))
            for _, questions, replies in rng.sample(topics, rng.randint(1, 3))
        ]
        yield block(language, *turns, system=rng.choice(listed(prompts)))


# ---- all blocks
def exercises():
    "The skills of `skills`, other rows than those of sft_skills.jsonl."
    for skill, count in EXERCISES.items():
        for row in skills.sample(skill, count, False, seed="talks"):
            question, reply = (m["content"] for m in row["conversations"])
            # of one digit each: the result at once, as in `sums`
            if skill in ("add", "subtract") and "," not in reply:
                reply = reply.split(". ")[-1]
            yield block(row["lang"], (question, reply))


def written():
    "The conversations written by hand, once more, among others."
    for language in LANGUAGES:
        for row in read_jsonl(f"sft_chat_{language}.jsonl"):
            messages = row["conversations"]
            system = messages[0]["content"] if messages[0]["role"] == "system" else None
            texts = [m["content"] for m in messages if m["role"] != "system"]
            yield block(language, *zip(texts[::2], texts[1::2]), system=system)


def blocks():
    "Everything that the conversations are made of."
    rng = random.Random("talks")
    everyday = [*small_talk(0.5, rng), *facts(14, rng)]
    between = {lang: [b for b in everyday if b["lang"] == lang] for lang in LANGUAGES}
    return [
        *everyday,
        *sums(1, 450, 0.35, rng),
        *sums(2, 450, 0.35, rng),
        *sums(3, 1100, 0.0, rng),
        *tables(900, 200, rng),
        *too_large(120, rng),
        *comparisons(500, rng),
        *following(6, rng),
        *capitals(8, 4, rng),
        *words(5, 5, rng),
        *poems(8, rng),
        *names(360, between, rng),
        *assistants(200, rng),
        *users(100, rng),
        *brief(200, rng),
        *languages(260, rng),
        *styles(240, rng),
        *exercises(),
        *written(),
    ]


# ---- conversations
def conversation(system, turns, **extra):
    "A row of a file."
    messages = [{"role": "system", "content": system}] if system else []
    for question, reply in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"conversations": messages, **extra}


def glued(found, seed):
    "Conversations made of the blocks: each block stands in one of them."
    rng = random.Random(seed)
    obeying = shuffled([b for b in found if b["system"]], seed)
    pools = {
        lang: shuffled([b for b in found if b["lang"] == lang and not b["system"]], seed)
        for lang in LANGUAGES
    }
    while any(pools.values()):
        language = max(LANGUAGES, key=lambda lang: len(pools[lang]) * rng.random())
        # the system says nothing, now and then something that changes nothing
        system = rng.choice(NEUTRAL[language]) if rng.random() < 0.1 else None
        turns, room, wanted = [], ROOM - _tokens(system or ""), rng.choice(LENGTHS)
        while pools[language] and wanted:
            if turns and tokens_of(pools[language][-1]) > room:
                break
            step, wanted = pools[language].pop(), wanted - 1
            turns, room = turns + step["turns"], room - tokens_of(step)
            # now and then somebody goes on in the other language
            language = OTHER[language] if rng.random() < 0.07 else language
        yield conversation(system, turns)
    # after what the system asks for, only what obeys it
    yield from (conversation(b["system"], b["turns"]) for b in obeying)


def heldout_talks(count=40, turns=3):
    "Conversations of held-out exercises, each in one language, every skill at every turn."
    rng, pools, names = random.Random("talks"), {}, ("add", "subtract", "compare", "parity")
    for skill in names:
        rows = skills.sample(skill, 2 * count, True, seed="talks")
        for language in LANGUAGES:
            pools[skill, language] = [row for row in rows if row["lang"] == language]
    for i in range(count):
        rows = [pools[skill, LANGUAGES[i % 2]].pop() for skill in rng.sample(names, turns)]
        yield conversation(
            None,
            [[m["content"] for m in row["conversations"]] for row in rows],
            answers=[row["answer"] for row in rows],
            problems=[row["problem"] for row in rows],
        )


def lines_of_the_user(rows):
    return {m["content"] for r in rows for m in r["conversations"] if m["role"] == "user"}


def panel(trained):
    "The panel, with a mark at each question that stands word for word in training."
    for system, turns in PANEL:
        answers, known = [a for *_, a in turns], [q in trained for q, *_ in turns]
        yield conversation(system, [t[:2] for t in turns], answers=answers, trained=known)


def _fits(row):
    texts = [m["content"] for m in row["conversations"]]
    return sum(map(_tokens, texts)) + 5.5 * len(texts) <= 1.1 * ROOM


def build():
    "Write the three files; no held-out line may appear in training."
    train, held = shuffled(glued(blocks(), seed="talks"), seed=0), list(heldout_talks())
    # what a single block makes too long
    train = [row for row in train if _fits(row)]
    kept_out = lines_of_the_user(held + read_jsonl("sft_skills_heldout.jsonl"))
    assert not kept_out & lines_of_the_user(train)
    others = [read_jsonl(f"sft_chat_{language}.jsonl") for language in LANGUAGES]
    write_jsonl("sft_talks.jsonl", train)
    write_jsonl("sft_talks_heldout.jsonl", held)
    write_jsonl("first_panel.jsonl", panel(lines_of_the_user(sum(others, train))))


if __name__ == "__main__":
    build()
