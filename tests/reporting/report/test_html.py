"""The page of a report: needs nothing else, and nothing in a name or a text runs or breaks it."""

import re
from dataclasses import replace
from html.parser import HTMLParser

from flower_split.reporting import RoundResult, RunResult
from flower_split.reporting.report import report_page

EVIL = "<script>alert('x')</script>\"'&"
VOID = {"meta"}


class Reader(HTMLParser):
    """Tags that were opened, all closed again, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def evil_result():
    rounds = [
        RoundResult(
            server_round=number,
            train={EVIL: {"train-loss": 2.0 - number, "num-examples": 3}},
            evaluate={EVIL: {"eval-loss": 2.0 - number}},
            aggregated={EVIL: 1.0, "eval-loss": 2.0 - number},
            failures={f"{EVIL}2": EVIL},
            train_counters={EVIL: {"seconds": 2.0, "seconds-waiting": 1.0}},
        )
        for number in (0, 1)
    ]
    return RunResult(
        rounds=rounds,
        alone=rounds,
        wire_bytes={EVIL: {EVIL: 7}},
        delivery_bytes={EVIL: 7},
        samples={0: EVIL, 1: EVIL},
        config={"model.name": EVIL, EVIL: EVIL},
        versions={EVIL: EVIL},
        failure=EVIL,
        state=EVIL,
        prompt_format={"template": EVIL, "prompt": EVIL},
    )


def test_no_name_or_text_becomes_markup():
    page = report_page(evil_result())
    read = Reader(page)
    assert read.open == []
    assert "script" not in read.tags
    assert {name for name, _ in read.attributes}.isdisjoint({"onload", "onclick", "src", "href"})
    assert EVIL in read.text
    assert "<script" not in page


def test_it_needs_nothing_else(result):
    page = report_page(result)
    assert not re.search(r"https?://|@import|url\(|<script|<link|<img", page)
    assert "default-src 'none'" in page


def test_charts_and_tables_are_there(result):
    read = Reader(report_page(result))
    assert read.tags.count("polyline") == 2 * 3 * 2
    assert "against alone" in read.text and "completed" in read.text


def test_many_silos_are_drawn_alike(result):
    silos = {str(n): {"eval-loss": 2.0} for n in range(64)}
    rounds = [RoundResult(server_round=n, evaluate=silos) for n in (0, 1)]
    read = Reader(report_page(replace(result, rounds=rounds, alone=(), wire_bytes={})))
    assert read.tags.count("polyline") == 64 + 1
    assert "their mean" in read.text
