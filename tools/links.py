"""Look through a built site for links that lead nowhere, and for what a page would fetch from
another server. `python tools/links.py [_site]`; `tools/site.py` does it at its end."""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

root = Path(__file__).resolve().parents[1]


class Page(HTMLParser):
    "The links of a page, what it loads, and the places in it that a link can lead to."

    def __init__(self):
        super().__init__()
        self.links, self.loads, self.places = [], [], {"", "top"}

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.places |= {a[k] for k in ("id", "name") if a.get(k)}
        if tag == "a" and a.get("href"):
            self.links.append(a["href"])
        if tag in ("script", "img", "iframe", "source") and a.get("src"):
            self.loads.append(a["src"])
        if tag == "link" and a.get("href") and a.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(a["href"])


@cache
def read(path):
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def leads(path, target, places):  # a page; a link in it without scheme; look for the place too?
    "Whether there is such a file, and such a place in it."
    parts = urlsplit(target)
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if file.is_dir():
        file = file / "index.html"
    if not file.exists() or file.suffix != ".html" or not places:
        return file.exists()
    return unquote(parts.fragment) in read(file).places


def look(site, places=True):  # the folder of a built site
    "Broken links, and addresses of other servers that pages load from; both as lines."
    broken, remote = [], set()
    for path in sorted(site.rglob("*.html")):
        page = read(path)
        for target in page.links + page.loads:
            if not urlsplit(target).scheme and not target.startswith("//"):
                if not leads(path, target, places):
                    broken.append(f"{path.relative_to(site)}: {target}")
            elif target in page.loads and not target.startswith("data:"):
                remote.add(target)
    return broken, sorted(remote)


def main(site=root / "_site", places=True):
    broken, remote = look(site, places)
    for address in remote:
        print(f"loaded from another server: {address}")
    if broken:
        sys.exit("broken links:\n  " + "\n  ".join(broken))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
