"""The layout of the code: imports go one way, and mlpdata/README.md shows the tree as it is."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each imports only from what stands before it: the ground, then one package a hop of the data.
ORDER = [
    "choices", "errors", "splits", "labels", "system", "image", "augment", "fetch", "archive", "sources", "shards",
    "derive", "datasets", "loader", "convert", "export", "manifest", "plan", "inspect", "trainer", "cli", "__main__",
]  # fmt: skip
PUBLIC = {"__version__", "Error", "load", "Loader", "Augment", "Batch"}


def modules():
    for package in ("mlpdata", "trainer"):
        yield from sorted((ROOT / package).rglob("*.py"))


def imports(path):
    """(package below mlpdata, or `trainer`; module) of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "mlpdata" else [f"mlpdata.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "trainer":
                yield "trainer", name
            elif first == "mlpdata" and rest and rest[0] not in PUBLIC:
                yield rest[0], name


def forbidden(path, root=ROOT):
    """What a file imports against the order."""
    package, below, *_ = path.relative_to(root).with_suffix("").parts
    own = "trainer" if package == "trainer" else below
    if own == "__init__":
        return []
    return [name for used, name in imports(path) if ORDER.index(used) > ORDER.index(own)]


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    assert not forbidden(path)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("mlpdata/image/codec.py", "from mlpdata.shards import beton"),
        ("mlpdata/sources/folder.py", "from mlpdata import datasets"),
        ("mlpdata/loader/loader.py", "def f():\n    from mlpdata.inspect.verify import verify"),
        ("mlpdata/convert/run.py", "import trainer.train"),
        ("trainer/train.py", "import mlpdata.cli"),
    ],
)
def test_a_forbidden_import_is_found(where, line, tmp_path):
    path = tmp_path / where
    path.parent.mkdir(parents=True)
    path.write_text(f"from mlpdata.errors import Error\n{line}\n")
    assert len(forbidden(path, tmp_path)) == 1


LONGEST_MODULE, LONGEST_CLASS = 350, 250  # lines


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_classes_can_be_read_at_a_sitting(path):
    text = path.read_text()
    assert text.count("\n") <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < LONGEST_CLASS, node.name


def test_modules_of_a_package_make_no_circle():
    uses = {}
    for path in modules():
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        found = uses[name] = set()
        for node in tree.body:  # what is imported inside a function is imported later
            if isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    done = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in uses and name not in done:
            for other in sorted(uses[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in uses:
        visit(name, [])


def first_sentence(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def tree():
    """The tree with a line a module, as mlpdata/README.md has it."""
    lines = []
    for package in ("mlpdata", "trainer"):
        paths = (ROOT / package).rglob("*.py")
        for path in sorted(paths, key=lambda p: (p.parent.parts, p.name != "__init__.py", p.name)):
            below = path.relative_to(ROOT)
            if path.name == "__init__.py":
                lines.append(f"\n**`{below.parent}/`** {first_sentence(path)}\n")
            else:
                lines.append(f"- `{below.name}` {first_sentence(path)}")
    return "\n".join(lines).strip() + "\n"


def test_readme_of_the_package_shows_the_tree():
    text = (ROOT / "mlpdata" / "README.md").read_text()
    shown = re.search(r"<!-- tree -->\n(.*)<!-- end -->", text, re.DOTALL)[1]
    assert shown == tree(), "run `python tests/test_layout.py`, which writes it"


if __name__ == "__main__":
    readme = ROOT / "mlpdata" / "README.md"
    text = readme.read_text()
    start, end = text.index("<!-- tree -->\n") + len("<!-- tree -->\n"), text.index("<!-- end -->")
    readme.write_text(text[:start] + tree() + text[end:])

    sys.path.insert(0, str(ROOT))  # else tests/trainer is `trainer`: a script's own folder comes first
    import pages

    pages.main()  # the other parts that are made from the code
