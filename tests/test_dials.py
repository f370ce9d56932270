"""Dials turned in a real browser: as they stand on a page, and with a kernel in JupyterLab."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root / "nbs"))
CHROME = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), 0)
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not CHROME, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=CHROME, args=["--no-sandbox"])
        yield chrome
        chrome.close()


@pytest.fixture
def page(browser):
    "A page, and what its console complains of."
    page = browser.new_page()
    page.complaints = []
    page.on("pageerror", lambda e: page.complaints.append(str(e)))
    page.on("console", lambda m: m.type == "error" and page.complaints.append(m.text))
    yield page
    page.close()


def committed():  # (notebook, HTML of a dial)
    for path in sorted((root / "nbs").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for out in cell.get("outputs", ()):
                html = "".join(out.get("data", {}).get("text/html", ""))
                if 'class="dial"' in html:
                    yield pytest.param(html, id=f"{path.stem}-{cell['id']}")


def shown(page):
    "The picture that is to be seen, and nothing else."
    (picture,) = [img for img in page.query_selector_all(".dial img") if img.is_visible()]
    assert picture.evaluate("img => img.naturalWidth") > 100
    return picture.get_attribute("src")


@pytest.mark.parametrize("html", list(committed()))
def test_each_slider_of_a_page_changes_its_picture(page, html):
    page.set_content(html)
    for slider in page.query_selector_all(".dial input"):
        before, said = shown(page), slider.evaluate("s => s.parentNode.innerText")
        last = slider.get_attribute("max") == slider.input_value()
        slider.press("ArrowLeft" if last else "ArrowRight")
        assert shown(page) != before
        assert slider.evaluate("s => s.parentNode.innerText") != said
        slider.press("ArrowRight" if last else "ArrowLeft")
        assert shown(page) == before
    assert not page.complaints


def test_the_pictures_are_those_of_the_values(page):
    "Two sliders choose among all pairs, in the order in which they were drawn."
    course = pytest.importorskip("course")
    plt = pytest.importorskip("matplotlib.pyplot")

    def draw(a, b):
        plt.figure(figsize=(3, 2))
        plt.bar([0, 1], [a, b])

    course.dial(draw)  # a dial without a knob is not worth it, and no error
    dial = course.dial(draw, start=dict(b=0.5), a=[1, 2, 3], b=[0.25, 0.5])
    page.set_content(dial.page())
    a, b = page.query_selector_all(".dial input")
    a.press("ArrowRight")
    a.press("ArrowRight")
    b.press("ArrowLeft")
    assert shown(page).endswith(course._picture(draw, dict(a=3, b=0.25)))
    visible = page.locator(".dial img:visible")
    assert visible.get_attribute("alt") == "a 3, b 0.25"
    assert not page.complaints


# ---- with a kernel ----
LIVE = """import matplotlib.pyplot as plt
from course import dial

def draw(rate):
    print(f"drawn at {rate}")
    plt.figure(figsize=(3, 2))
    plt.bar([0], [rate])

dial(draw, rate=[0.1, 0.2, 0.4])"""


@pytest.fixture
def lab(tmp_path):
    "JupyterLab with one notebook, in which a dial stands; its address."
    pytest.importorskip("jupyterlab")
    pytest.importorskip("ipywidgets")
    import nbformat

    shutil.copy(root / "nbs/course.py", tmp_path)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LIVE)])
    # or JupyterLab asks
    book.metadata["kernelspec"] = dict(name="python3", language="python", display_name="Python 3")
    nbformat.write(book, tmp_path / "live.ipynb")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--IdentityProvider.token="]
    command += [f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None"]
    paths = filter(None, [str(root), os.environ.get("PYTHONPATH")])
    home = dict(JUPYTER_CONFIG_DIR=str(tmp_path / "config"), PYTHONPATH=os.pathsep.join(paths))
    env = {k: v for k, v in (os.environ | home).items() if k != "MPLBACKEND"}
    server = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/live.ipynb"
    finally:
        server.terminate()
        server.wait(20)


def test_a_slider_in_jupyterlab_draws_anew(page, lab):
    page.goto(lab)
    # a notebook that is run before its kernel stands asks which kernel to take
    page.get_by_text("| Idle").wait_for(timeout=90_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    slider = page.locator(".widget-hslider .noUi-handle").first
    slider.wait_for(timeout=60_000)
    page.get_by_text("drawn at 0.1", exact=True).wait_for(timeout=30_000)
    slider.press("ArrowRight")
    page.get_by_text("drawn at 0.2", exact=True).wait_for(timeout=30_000)
    page.locator(".jp-OutputArea-output img").first.wait_for(timeout=30_000)
    assert not [c for c in page.complaints if re.search(r"widget|ipywidgets", c, re.I)]
