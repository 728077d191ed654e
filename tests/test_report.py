import json
import shutil
from html.parser import HTMLParser

import pytest

from plast_train.analysis.plots import plot_layers
from plast_train.analysis.report import write_report
from plast_train.config import Config, dump_config
from plast_train.run_folder import RunFolder

RULE = "parrot2024"
NASTY = "<script>alert('&')</script>"


class Page(HTMLParser):
    """The text of every cell, by table and row, and every address the page names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for key, value in attributes if key in {"src", "href", "action"}]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell &= tag not in {"td", "th"}

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data


def scores(accuracy: float, no_match: float = 0.0) -> dict:
    return {
        "n": 40,
        "generated": {RULE: accuracy},
        "option_logits": accuracy / 2,
        "no_match": {RULE: no_match},
        "circular": {"n": 10, "generated": {RULE: accuracy / 4}, "option_logits": accuracy / 8},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The report of a finished run of two languages and three layers."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    curve = {"en": [1.0, 1.0, 1.0], "pt": [0.5, 0.7, 0.9]}
    config = Config.model_validate(
        {"model": {"path": NASTY}, "data": {"questions": [NASTY], "languages": ["en", "pt"]}}
    )
    summary = {"languages": ["en", "pt"], "layers": 3, "records": 9, "msd": [4.0, 1.0, 0.0], "overlap": curve}
    selection = {
        "strategy": "msd",
        "candidates": [0, 1],
        "threshold": 2.5,
        "selected_layers": [0],
        "modules": "all",
        "plateau": 0.8,
        "curve": curve["pt"],
        "trainable_parameters": 1000,
        "total_parameters": 20000,
        "trainable_fraction": 0.05,
        "options": {"position": "last", "overlap": "english", "threshold": "candidates", "k": None},
    }
    step = {"loss": 2.0, "samples_per_second": 3.0, "peak_memory_bytes": 5e9, "mfu": None}
    metrics = [step | {"step": 1}, step | {"step": 2, "loss": 1.0, "validation_loss": {"en": 0.5, "pt": 1.5}}]
    results = {
        NASTY: {
            "pt": {"n": 40, "base": scores(0.4), "plast": scores(0.6, no_match=0.2)},
            "en": {"n": 40, "base": scores(0.9), "plast": scores(0.8)},
        }
    }
    run.config.write_text(dump_config(config))
    trees = {
        run.summary: summary,
        run.selection: selection,
        run.results: results,
        run.environment: {"packages": {"torch": "2.6.0", "x": None}, "host": NASTY, "gpus": []},
        run.base: {"path": NASTY, "fingerprint": "f" * 64, "files": {}},
    }
    for path, tree in trees.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(tree))
    run.metrics.write_text("".join(json.dumps(m) + "\n" for m in metrics))
    plot_layers(summary, selection, run.report)
    write_report(config, run)
    return run


def read(run: RunFolder) -> Page:
    return Page((run.report / "index.html").read_text())


def test_page_loads_nothing_and_escapes_every_text(run):
    page = read(run)
    assert page.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert page.text.count(NASTY) >= 5
    html = (run.report / "index.html").read_text()
    assert "default-src 'none'" in html
    assert "<script" not in html


def test_accuracies_before_and_after_stand_in_the_tables(run):
    circular, rows = read(run).tables[:2]
    assert rows[2:] == [
        ["en", "40", "90.0", "80.0", "-10.0", "45.0", "40.0", "-5.0", "0.0", "0.0"],
        ["pt", "40", "40.0", "60.0", "+20.0", "20.0", "30.0", "+10.0", "0.0", "20.0"],
        ["mean of the others", "", "40.0", "60.0", "+20.0", "20.0", "30.0", "+10.0", "", ""],
    ]
    assert circular[3] == ["pt", "10", "10.0", "15.0", "+5.0", "5.0", "7.5", "+2.5"]


def test_failures_to_look_for_are_said(run):
    text = read(run).text
    assert "English changed by -2.5 points" in text  # circular accuracy decides where there is one
    assert "More replies name no option in pt" in text
    assert "did not gain" not in text


def test_layers_training_and_versions_are_shown(run):
    page = read(run)
    layers = next(table for table in page.tables if table[1][:1] == ["layer"])
    assert layers[2] == ["0", "0.500", "0.500", "4", "yes", "yes"]
    assert layers[3][-2:] == ["yes", ""]
    held_back = next(table for table in page.tables if table[1][:1] == ["held-back loss"])
    assert held_back[1:] == [["held-back loss", "step 2"], ["en", "0.5000"], ["pt", "1.5000"]]
    facts = dict(row for table in page.tables for row in table if len(row) == 2)
    assert facts["loss, first and last step"] == "2.0000, 1.0000"
    assert facts["MFU"] == "unknown"
    assert facts["versions"] == "torch 2.6.0"
    assert "k" not in facts["our reading of the method"].split(", ")[-1].split()


def test_figures_lie_beside_the_page(run):
    names = {path.name for path in run.report.iterdir()}
    assert {"overlap.svg", "msd.png", "training.svg"} <= names
    assert all("/" not in name and "<" not in name for name in names)
    assert len([name for name in names if name.startswith("accuracy-")]) == 2


def test_a_run_without_benchmarks_says_so(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    other = RunFolder(tmp_path / "run")
    other.results.write_text("{}")
    config = Config.model_validate(
        {"model": {"path": "x"}, "data": {"questions": ["q"], "languages": ["en", "pt"]}}
    )
    write_report(config, other)
    assert "No benchmark was evaluated" in read(other).text
