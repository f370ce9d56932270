"A reply is read the same way whole and in parts, and as a plain reading of the finished text says."

import json

import pytest
from hypothesis import example, given, settings, strategies as st

from minimind import chat
from minimind.chat import Reply, ReplyParser, ReplyPiece, join_pieces, parse_reply

MODES = None, True, False


def plain_thought(text, thinking):
    "`(thought or None, the rest)` of a finished text."
    if thinking is False:
        return None, text
    head = text.lstrip()
    if head.startswith("<think>"):
        thought, _, rest = head.removeprefix("<think>").partition("</think>")
        return thought, rest
    before, close, rest = text.partition("</think>")
    if close and "<think>" not in before:
        return before, rest
    return (text, "") if thinking else (None, text)


def plain_call(text):
    "`(call, rest of the text)` if a call and its closing tag stand at the beginning, else None."
    try:
        value, end = chat._JSON.raw_decode(text.lstrip())
        call, rest = chat._as_call(value), text.lstrip()[end:].lstrip()
    except (ValueError, RecursionError):
        return None
    closed = rest.startswith("</tool_call>") or not rest
    return (call, rest.removeprefix("</tool_call>")) if closed else None


def plain_reply(text, thinking):
    "What `parse_reply` must return, written for finished texts only."
    ended = text.rstrip("\n")
    text = ended.removesuffix("<|im_end|>") if ended.endswith("<|im_end|>") else text
    thought, text = plain_thought(text, thinking)
    if thought is not None:
        thought, text = thought.strip("\n"), text.lstrip("\n")
    first, *blocks = text.split("<tool_call>")
    content, calls, tried = first, [], 0
    while blocks and tried < 64:
        # a call's strings may hold tags, so a block is read with all that follows it
        found, tried = plain_call("<tool_call>".join(blocks)), tried + 1
        if found:
            content = content if calls or content.strip() else ""
            calls.append(found[0])
            after, *blocks = found[1].split("<tool_call>")
            content = content + after if content.strip() else after.lstrip()
        else:
            content += "<tool_call>" + blocks.pop(0)
    content = "<tool_call>".join([content, *blocks])
    return Reply(thought, content.rstrip() if calls else content, calls)


def streamed(parts, thinking):
    "The pieces of a reply that arrives in parts."
    parser = ReplyParser(thinking)
    pieces = [piece for part in parts for piece in parser.add(part)]
    return pieces + parser.finish()


def as_streamed(text, thinking):
    "The mode in which the whole text says what the parts can say."
    before, close, _ = text.partition("</think>")
    return False if thinking is None and close and "<think>" not in before else thinking


def parts_of(text, cuts):
    cuts = sorted({min(cut, len(text)) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


NUMBERS = ["-1.5e+10", "12", "-0", "1E5", "0.25"]
ARGUMENTS = [
    "{}",
    '"{\\"a\\": 1}"',
    '{"s": "</tool_call>", "t": "<tool_call>{}"}',
    '{"u": "\\ud83d\\ude00 \\u00e9 \\" \\\\ 好", "v": [true, false, null, {}]}',
    '{"n": [%s]}' % ", ".join(NUMBERS),
]
CALLS = [f'{{"name": "f", "arguments": {a}}}' for a in ARGUMENTS]
CALLS += ['{"function": {"name": "g", "arguments": {"x": [[]]}}}', '{"name": "h"}']
BROKEN = [
    "{broken}",
    '{"name": 7}',
    '{"name": "f", "arguments": NaN}',
    '{"name": "f", "argu',
    "[1]",
]
BROKEN += ['{"a":', "{}", '"', '{"name": "f", "arguments": [1]}', '{"name": "f"} x', "7", "{"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>"]
PARTS = TAGS + [tag[:n] for tag in TAGS for n in (1, 4, len(tag) - 1)]
WORDS = ["\n", "\n\n", " ", "\t", "\u3000", "hm", "Yes.", "好", "x", '"', "{", "}", ">", "|"]
BLOCKS = [
    f"<tool_call>{end}{body}{end}</tool_call>" for body in CALLS + BROKEN for end in ("", "\n")
]
ENDS = ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|>\n\n<|im_", "<|im_end|><|im_end|>"]


def glued(parts, most):
    return st.lists(parts, max_size=most).map("".join)


anything = glued(st.one_of(*map(st.sampled_from, (WORDS, PARTS, BLOCKS, CALLS))), 10)
thoughts = glued(st.sampled_from(["<think>", "</think>", "<thi", "nk>", "\n", " ", "hm"]), 7)
replies = st.tuples(thoughts, anything, st.sampled_from(ENDS)).map("".join) | anything | thoughts


@pytest.mark.parametrize("thinking", MODES)
@settings(max_examples=300)
@given(text=replies)
def test_a_finished_reply_is_read_as_its_text_says(text, thinking):
    assert parse_reply(text, thinking) == plain_reply(text, thinking)


@pytest.mark.parametrize("thinking", MODES)
@settings(max_examples=300)
@given(text=replies, cuts=st.lists(st.integers(0, 150), max_size=12))
@example(text="hm<think>hm</think>Yes.", cuts=[5])
@example(text=" \n x <tool_call>" + CALLS[3] + "</tool_call> \n", cuts=[])
@example(text="<think>\n\nhm\n\n</think>\n\n  Yes. <|im_end|>\n\n", cuts=[])
def test_in_parts_as_in_one(text, thinking, cuts):
    whole = parse_reply(text, as_streamed(text, thinking))
    for parts in (parts_of(text, cuts), text, [text, ""], ["", text]):
        assert join_pieces(streamed(parts, thinking)) == whole


@settings(max_examples=300)
@given(text=replies, cut=st.integers(0, 150), thinking=st.sampled_from(MODES))
def test_what_was_given_out_holds_however_the_text_goes_on(text, cut, thinking):
    "The pieces of a beginning are the beginning of the pieces: none is ever taken back."
    parser = ReplyParser(thinking)
    early = join_pieces(parser.add(text[:cut]))
    whole = join_pieces(streamed([text], thinking))
    assert (whole.reasoning or "").startswith(early.reasoning or "")
    assert whole.content.startswith(early.content)
    assert whole.tool_calls[: len(early.tool_calls)] == early.tool_calls


@settings(max_examples=200)
@given(text=replies, thinking=st.sampled_from(MODES))
def test_pieces_are_of_three_kinds_and_none_is_empty(text, thinking):
    pieces = streamed(text, thinking)
    assert {p.kind for p in pieces} <= {"reasoning", "content", "tool_call"}
    assert all((p.call is not None) == (p.kind == "tool_call") for p in pieces)
    assert not any(p.call and p.text for p in pieces)
    empty = [p for p in pieces if not p.text and p.call is None]
    assert not empty or (empty == [ReplyPiece("reasoning")] and empty[0] == pieces[0])
    kinds = [p.kind for p in pieces]
    assert sorted(kinds, key=lambda kind: kind != "reasoning") == kinds


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
    )
    | st.text(max_size=5)
    | st.sampled_from(["<tool_call>", "</tool_call>", "😀", "\x7f"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(
    arguments=st.dictionaries(st.text(max_size=4), values, max_size=3),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_no_beginning_of_a_call_is_given_up(arguments, ascii_only, indent):
    "Any JSON, sign by sign: until the closing tag nothing is content, and then the call is whole."
    call = {"name": "f", "arguments": arguments}
    body = json.dumps(call, ensure_ascii=ascii_only, indent=indent)
    parser = ReplyParser()
    assert not any(parser.add(sign) for sign in f"<tool_call>{body}</tool_call")
    assert parser.add(">") == [ReplyPiece("tool_call", call=call)]


def test_a_number_may_be_longer_than_pythons_integers():
    body = '{"name": "f", "arguments": {"x": %s.5e-6000}}' % ("9" * 5000)
    parts = [body[:3000], body[3000:5000], *body[5000:]]
    (piece,) = streamed(["<tool_call>", *parts, "</tool_call>"], None)
    assert piece.call["name"] == "f"


@pytest.mark.parametrize("blocks", [["<tool_call>{broken}"] * 62 + BLOCKS[:4], BLOCKS * 4])
def test_after_many_calls_the_rest_is_content(blocks):
    whole = parse_reply("".join(blocks))
    assert whole == plain_reply("".join(blocks), None) == join_pieces(streamed(blocks, None))
    assert "<tool_call>" in whole.content and 0 < len(whole.tool_calls) < 64


def given_out(text, thinking=None):
    "What is certain of a text that goes on: `(thought, content, number of calls)`."
    reply = join_pieces(ReplyParser(thinking).add(text))
    return reply.reasoning, reply.content, len(reply.tool_calls)


@pytest.mark.parametrize(
    "text, thinking, certain",
    [
        # content is shown at once; only a possible tag and white space at the end wait
        ("Y", None, (None, "Y", 0)),
        (" Yes", None, (None, " Yes", 0)),
        ("Yes. \n", None, (None, "Yes.", 0)),
        ("1 <", None, (None, "1", 0)),
        ("1 < 2", None, (None, "1 < 2", 0)),
        ("<thing>", None, (None, "<thing>", 0)),
        ("Yes<|im_end|>\n", None, (None, "Yes", 0)),
        ("<|im_end|>!", None, (None, "<|im_end|>!", 0)),
        ("<think", False, (None, "<think", 0)),
        # thoughts
        ("<think>\nh", None, ("h", "", 0)),
        ("h", True, ("h", "", 0)),
        ("h\n</thin", True, ("h", "", 0)),
        ("<think></think>", None, ("", "", 0)),
        ("<think>h</think>\n\nY", None, ("h", "Y", 0)),
        # calls, at their closing tag
        ('<tool_call>{"name": "f"}</tool_call', None, (None, "", 0)),
        ('<tool_call>{"name": "f"}</tool_call>', None, (None, "", 1)),
        # what can't become a call is content at once, or some signs later if JSON is broken
        ("<tool_call>[", None, (None, "<tool_call>[", 0)),
        ("<tool_call>{broken and", None, (None, "<tool_call>{broken and", 0)),
        ('<tool_call>{"name": 7}', None, (None, '<tool_call>{"name": 7}', 0)),
        ('<tool_call>{"name": "f"}</tool_x', None, (None, '<tool_call>{"name": "f"}</tool_x', 0)),
        ("<tool_call>{broken</tool_call>!", None, (None, "<tool_call>{broken</tool_call>!", 0)),
    ],
)
def test_as_early_as_can_be(text, thinking, certain):
    assert given_out(text, thinking) == certain


def test_a_thought_that_nothing_opened():
    "The whole shows it; in parts it stays in the content, unless the mode says where it began."
    text = "hm\n</think>\n\nYes."
    assert parse_reply(text) == parse_reply(text, True) == Reply("hm", "Yes.", [])
    assert join_pieces(streamed(text, None)) == Reply(None, text, [])
    assert join_pieces(streamed(text, True)) == Reply("hm", "Yes.", [])


def test_finishing_twice_says_nothing_twice():
    for text in ("<think>", "Yes. <", '<tool_call>{"name": "f"}', "Yes.<|im_end|>", ""):
        for thinking in MODES:
            parser = ReplyParser(thinking)
            parser.add(text)
            parser.finish()
            assert parser.finish() == []


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 1_000,
        '<tool_call>{"a":' * 1_000,
        '<tool_call>{"a": "' + "x" * 10_000,
        "<tool_call>{" + '"a": 1, ' * 1_000,
        '<tool_call>{"a": ' + "[" * 10_000,
        '<tool_call>{"a": ' + "9" * 10_000,
        "<think>" * 1_000 + "</think>" * 1_000,
        "\n" * 10_000,
        "<|im_end|>" * 1_000,
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("thinking", MODES)
def test_hostile_text_sign_by_sign(text, thinking):
    whole = parse_reply(text, as_streamed(text, thinking))
    assert join_pieces(streamed(text, thinking)) == whole
