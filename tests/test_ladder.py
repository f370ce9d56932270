"""`minimind run`: how long it will take, what it shows, what a reply is worth."""

import json
import os
import sys

import pytest

from minimind import ladder
from minimind.stage import Rung


def finished(run, step):
    (run / "trainer" / f"step-{step:08}").mkdir(parents=True)
    return str(run)


def test_what_is_done_costs_nothing(tmp_path):
    steps = {name: rung.steps for name, rung in ladder.rungs().items()}
    nowhere = dict.fromkeys(steps, str(tmp_path / "nowhere"))
    whole = ladder.effort(nowhere, steps, fresh=False)
    assert whole["pretrain"] == steps["pretrain"] + ladder.rungs()["pretrain"].measuring
    there = nowhere | {"pretrain": finished(tmp_path / "pretrain", steps["pretrain"])}
    there["sft"] = finished(tmp_path / "sft", 80)
    some = ladder.effort(there, steps, fresh=False)
    assert some["pretrain"] == 0 < some["sft"] < whole["sft"]
    assert ladder.effort(there, steps, fresh=True) == whole


def test_a_baseline_is_a_second_run(monkeypatch):
    plain = Rung(10, "", lambda folder: {}, pace=2.0, measuring=5)
    judged = Rung(10, "", lambda folder: {}, 2.0, 5, dict(alpha=1.0), "without a teacher")
    monkeypatch.setattr(ladder, "rungs", lambda: {"a": plain, "b": judged})
    cost = ladder.effort({"a": "nowhere", "b": "nowhere"}, {"a": 10, "b": 10}, False)
    assert cost == {"a": 25.0, "b": 50.0}


def test_the_forecast_learns():
    forecast = ladder.Forecast({"a": 300, "b": 100, "measuring": 60}, unit=0.2)
    assert forecast.seconds() == pytest.approx(92) and forecast.seconds("b") == pytest.approx(20)
    forecast.finished("a", seconds=180.0)  # three times as long
    assert forecast.seconds("b") == pytest.approx(50) and forecast.seconds("a") == 0
    forecast.finished("a", seconds=1e6)  # it has been complete: that says nothing
    assert forecast.seconds("b") == pytest.approx(50)


@pytest.mark.parametrize(
    "reply, answer, mark",
    [
        ("7+5=12, 2+4+1=7. 27+45=72", "72", "✓"),
        ("27+45=82", "72", "✗"),
        ("72 is even.", "even", "✓"),
        ("首都是北京。", "北京", "✓"),
        ("whatever", None, " "),
    ],
)
def test_marks(reply, answer, mark):
    assert ladder._mark(reply, answer) == mark


def test_a_conversation_of_three_turns_is_shown():
    assert max(map(len, ladder.CHATS)) >= 3
    assert len(set(ladder.QUESTIONS)) == len(ladder.QUESTIONS)


def test_activation_is_told_where_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    told = "source .venv/bin/activate" if os.name != "nt" else r".venv\Scripts\activate"
    assert ladder.activation() == told
    assert any(told in line for line in ladder.what_next(tmp_path, "runs/ci/sft"))
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    assert ladder.activation() == ""
    monkeypatch.delenv("VIRTUAL_ENV")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert ladder.activation() == ""


def test_what_was_measured_first(tmp_path):
    lines = [{"step": 0, "bpb": 4.0}, {"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 1, "bpb": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ladder.first_numbers(str(tmp_path)) == {"bpb": 4.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[1]) + "\n")
    assert ladder.first_numbers(str(tmp_path)) == {}
