"""The pages say what the code and the measurements say, and everything that they name is there."""

import dataclasses
import json
import re
import shlex
import statistics

import pages
import pytest
import versions
from archives import make_folder
from conftest import convert_quietly

import trainer.recipe
from mlpdata.augment.settings import Augmentation
from mlpdata.cli import main
from mlpdata.inspect.catalogue import catalogue

FOLDERS = (".", "mlpdata", "recipes", "tests", "trainer")  # others are made, such as environments
SOURCES = pages.ROOT / "mlpdata" / "sources" / "README.md"
PAGES = [path for folder in FOLDERS for path in (pages.ROOT / folder).glob("*.md" if folder == "." else "**/*.md")]


@pytest.mark.parametrize(("page", "name"), [(page, name) for page, parts in pages.PARTS.items() for name in parts])
def test_what_is_made_from_the_code_is_up_to_date(page, name):
    text = (pages.ROOT / page).read_text()
    assert pages.part(text, name) == pages.PARTS[page][name](), "run `python tests/pages.py`, which writes it"


def test_every_key_of_a_recipe_has_a_meaning():
    classes = [v for v in vars(trainer.recipe).values() if dataclasses.is_dataclass(v)]
    assert Augmentation in classes
    for cls in classes:
        sections = {f.name for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING}
        without = {name for name, meaning in pages.field_meanings(cls).items() if not meaning} - sections - {"data"}
        assert not without, (cls, without)


def test_measurements_are_complete():
    for row in pages.results():
        assert row.keys() >= {"name", "what", "values", "unit", "ratios", "peer", "machine", "date", "script"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]) and statistics.median(row["values"]) > 0
        assert bool(row["ratios"]) == bool(row["peer"])
        assert (pages.ROOT / "tests" / "bench" / row["script"]).exists() or row["script"].startswith("mlpdata ")


def test_the_page_of_the_data_sets_has_the_sizes_that_list_has():
    """Both are for a person who asks what a download takes; the page says it with three digits at most."""
    listed = {facts["name"]: facts["download_bytes"] for facts in json.loads(catalogue(as_json=True))}
    row = r"^\| `(\w+)` \|[^|]*\|[^|]*\| (?:about )?([\d.]+) ([MGT]B) \|"
    rows = re.findall(row, SOURCES.read_text(), re.MULTILINE)
    assert {name for name, _, _ in rows} == {name for name, num_bytes in listed.items() if num_bytes}
    for name, number, unit in rows:
        assert float(number) * {"MB": 1e6, "GB": 1e9, "TB": 1e12}[unit] == pytest.approx(listed[name], rel=0.005), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(pages.ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_main_page_has_no_figure_of_its_own():
    """Rates and ratios stand in the parts made from results.jsonl, so that they cannot contradict each other."""
    text = (pages.ROOT / "README.md").read_text()
    for name in pages.PARTS["README.md"]:
        text = text.replace(pages.part(text, name), "")
    assert not re.findall(r"[\d,.]+ (?:images/s|GB/s|MB/s)|\b\d[\d.]*x\b", text)


COMMANDS = [
    (path, line.strip()) for path in PAGES for line in path.read_text().splitlines() if line.startswith("    mlpdata ")
]


@pytest.mark.parametrize(("path", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_commands_and_their_options_exist(path, line):
    words = shlex.split(line.replace("...", ""), comments=True)
    words = words[: min((words.index(mark) for mark in (">", "&&") if mark in words), default=len(words))]
    if words[1] == "COMMAND" or path.name == "CHANGELOG.md":
        return
    command = main.commands[words[1]]
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert {word for word in words[2:] if word.startswith("-")} <= options


def test_the_cnn_of_the_main_page_trains(tmp_path, monkeypatch, capsys):
    make_folder(tmp_path / "photos", splits=("train", "val"), per_class=8)
    convert_quietly(dataset="folder", source=str(tmp_path / "photos"), res=64, out=tmp_path / "shards" / "photos-64")
    (code,) = re.findall(r"```python\n(.*?)```", (pages.ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})
    assert re.fullmatch(r"(epoch \d: loss \d\.\d+\n){2}", capsys.readouterr().out)


def test_every_requirement_has_one_lower_bound():
    pins = versions.oldest(versions.required())
    assert len(pins) == len(versions.PROJECT["dependencies"]) + len(versions.FOR_TESTS)
    assert {"torch==2.6", "click==8.1"} <= set(pins)
    with pytest.raises(ValueError, match="torch"):
        versions.oldest(["torch"])
