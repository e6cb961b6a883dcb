"""The recipes that come with the package, by name."""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path

import mlpdata
from mlpdata.errors import Error


def bundled() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package: inside a wheel, beside the packages in a clone."""
    package = Path(mlpdata.__file__).parent
    folder = next((f for f in (package / "recipes", package.parent / "recipes") if f.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def find(recipe: str | Path) -> Path:
    """The file that is meant by a path, or by the name of a recipe that comes with the package.

    A file of that name is meant before the recipe, a folder is not. Raises Error where a name is unknown; whether a
    path can be read is left to the reader.
    """
    path, ours = Path(recipe), bundled()
    if path.is_dir() and str(recipe) in ours:
        return ours[str(recipe)]
    if path.exists():
        return path
    if path.stem in ours and path.suffix == ".yaml":
        raise Error(f"there is no file {path}; for the recipe that comes with mlpdata say {path.stem!r} alone")
    if path.suffix or len(path.parts) != 1:
        return path
    return by_name(str(recipe), f"{str(recipe)!r} is neither a file nor a recipe that comes with mlpdata")


def by_name(name: str, otherwise: str) -> Path:
    """The recipe of that name that comes with the package. Raises Error: `otherwise`, and the nearest name."""
    ours = bundled()
    if name in ours:
        return ours[name]
    near = difflib.get_close_matches(name, ours, 1, 0.6)
    raise Error(f"{otherwise}; {f'did you mean {near[0]!r}?' if near else '`mlpdata recipes` lists them'}")


def table() -> str:
    """The recipes as `mlpdata recipes` prints them: name, and the first sentence of the comment on top."""
    rows = {name: _first_sentence(path.read_text()) for name, path in bundled().items()}
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name.ljust(width)}  {text}" for name, text in rows.items())


def _first_sentence(recipe: str) -> str:
    """
    >>> _first_sentence("# At 64 px,\\n# with 2.5M images. Slow.\\nname: x\\n")
    'At 64 px, with 2.5M images.'
    """
    lines = itertools.takewhile(lambda line: line.startswith("#"), recipe.splitlines())
    return re.split(r"(?<=\.)\s", " ".join(line.lstrip("# ") for line in lines))[0]
