"""How an answer to a row of sft_skills_heldout.jsonl is scored: one rule for every skill."""
import re
import unicodedata

_MARKER = re.compile(r"[=:]|\bis\b|是")


def normalise(text):
    "NFKC, lower case, single spaces, no space around commas, no full stop at the end: `１7 , 42。` becomes `17,42`."
    text = unicodedata.normalize("NFKC", text).casefold().replace("、", ",").replace("。", ".")
    text = re.sub(r"\s+", " ", text).strip(" .!\n")
    return re.sub(r"\s*,\s*", ",", text)


def extract_answer(reply, answer):
    """The part of `reply` that is compared: for a whole-number `answer` the last whole number in the reply,
    otherwise what follows the last `=`, `:`, `is` or `是` (the whole reply if there is none)."""
    text = normalise(reply)
    if re.fullmatch(r"\d+", answer): return (re.findall(r"\d+", text) or [""])[-1].lstrip("0") or "0"
    return normalise(_MARKER.split(text)[-1])


def score(reply, answer):
    "1.0 if the extracted answer equals the expected one after normalisation, else 0.0."
    return float(extract_answer(reply, answer) == normalise(answer))
