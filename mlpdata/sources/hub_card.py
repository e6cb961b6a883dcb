"""The card of a data set (README.md) as the Hub's header has it: which files make which split, what the columns are.

Everything in it is text of strangers: what has another shape than expected is passed over, and `problems` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import yaml

from mlpdata import splits
from mlpdata.errors import Error, first_line

MAX_CARD_BYTES = 8 << 20
MAX_PATTERNS = 1_000  # with * and the like, which are held against every path
WILD = re.compile(r"[*?\[]")
LOADER = getattr(
    yaml, "CBaseLoader", yaml.BaseLoader
)  # every scalar is text: `no` stays a class's name, and no tag acts


class HubCard:
    """The YAML header of a card.

    problems: what of it is not as it should be, a line each.
    """

    def __init__(self, text: str = ""):
        self.problems: list[str] = []
        match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        try:
            header = yaml.load(match[1], LOADER) if match else {}
        except (yaml.YAMLError, ValueError, RecursionError) as e:
            header = {}
            self.problems.append(f"the header of README.md cannot be read ({first_line(e)}) and is not used")
        self._header = header if isinstance(header, dict) else {}
        self._config = self._choose_config()

    def _choose_config(self) -> dict:
        """The default configuration; {} where the card has none. Raises Error where it has several and no default."""
        found = [c for c in _maps(self._header.get("configs")) if "data_files" in c or "data_dir" in c]
        default = [c for c in found if c.get("default") == "true" or c.get("config_name") == "default"]
        if len(found) > 1 and not default:
            raise Error(
                f"README.md has several configurations and none is the default: {_names(found)}; choose one: pass the "
                "folder of its files as --source"
            )
        config = (default or found or [{}])[0]
        if len(found) > 1:
            others = _names(c for c in found if c is not config)
            self.problems.append(
                f"configuration {_name(config)} is used, README.md's default; others are left out: {others} (to take "
                "one, pass the folder of its files as --source)"
            )
        return config

    @property
    def folder(self) -> str:
        """The folder that the configuration's files lie in; "" for all."""
        folder = self._config.get("data_dir")
        return folder.removeprefix("./").strip("/") if isinstance(folder, str) else ""

    def assign(self, paths: list[str]) -> dict[str, list[str]] | None:
        """Split, as the card calls it -> its files in order. None where the card does not say, or fits none of them.

        paths: relative to `folder`, with `/`. Raises Error for a file in two splits.
        """
        if "data_files" not in self._config:
            return None
        found: dict[str, list[str]] = {}
        owner: dict[str, str] = {}
        known = set(paths)
        for split, pattern in self._patterns():
            files = found.setdefault(split, [])
            for path in _matching(pattern, paths, known):
                if path not in owner:
                    owner[path] = split
                    files.append(path)
                elif owner[path] != split:
                    raise Error(f"README.md puts {path} into two splits, {owner[path]!r} and {split!r}; correct it")
        if not owner:
            self.problems.append("no file is where README.md says that the splits are: they follow from file names")
            return None
        for split, files in found.items():
            if not files:
                self.problems.append(f"split {split!r} of README.md is left out: none of its files is there")
        return {split: files for split, files in found.items() if files}

    def _patterns(self) -> Iterator[tuple[str, str]]:
        """(split, pattern) of the configuration, whichever of the allowed ways it is written in."""
        entries, num_wild = self._config["data_files"], 0
        if isinstance(entries, dict):
            entries = [{"split": split, "path": path} for split, path in entries.items()]
        for entry in entries if isinstance(entries, list) else [entries]:
            entry = {"split": "train", "path": entry} if isinstance(entry, str) else entry
            split, patterns = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (None, None)
            patterns = [patterns] if isinstance(patterns, str) else patterns
            if not isinstance(split, str) or not isinstance(patterns, list):
                self.problems.append("a part of `data_files` in README.md has no `split` and `path`: not used")
                continue
            if splits.canonical(split) is None:
                splits.checked(split)
            for pattern in patterns:
                num_wild += isinstance(pattern, str) and WILD.search(pattern) is not None
                if num_wild > MAX_PATTERNS:
                    raise Error(f"README.md has more than {MAX_PATTERNS:,} patterns of files")
                if isinstance(pattern, str):
                    yield split, pattern.removeprefix("./")

    def features(self) -> dict[str, dict]:
        """Feature by column, as `columns.features` has it."""
        infos = _maps(self._header.get("dataset_info"))
        name = self._config.get("config_name")
        info = next((i for i in infos if name is not None and i.get("config_name") == name), (infos or [{}])[0])
        found = {}
        for feature in _maps(info.get("features")):
            column, kind = feature.get("name"), feature.get("dtype")
            if not isinstance(column, str):
                continue
            if kind == "image":
                found[column] = {"_type": "Image"}
            elif isinstance(kind, dict) and isinstance(kind.get("class_label"), dict):
                found[column] = {"_type": "ClassLabel", "names": self._class_names(column, kind["class_label"])}
        return found

    def _class_names(self, column: str, label: dict) -> list | None:
        names = label.get("names")
        if isinstance(names, dict):
            numbered = [names.get(str(i)) for i in range(len(names))]
            names = None if None in numbered else numbered
        if not isinstance(names, list):
            self.problems.append(f"README.md numbers the classes of {column!r} otherwise than 0, 1, ...: not used")
            return None
        return names


def _maps(value: object) -> list[dict]:
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, dict)]


def _name(config: dict) -> str:
    name = config.get("config_name")
    return f"{name!r:.60}" if isinstance(name, str) else "without a name"


def _names(configs: Iterable[dict]) -> str:
    names = [_name(c) for c in configs]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _matching(pattern: str, paths: list[str], known: set[str]) -> list[str]:
    """The paths that a pattern means: `*` inside a folder, `**` for any folders, as fsspec has it."""
    if not WILD.search(pattern):
        return [pattern] if pattern in known else []
    parts = pattern.split("/")
    return [path for path in paths if _fits(path.split("/"), parts)]


def _fits(path: list[str], pattern: list[str]) -> bool:
    reached = {0}  # how much of the path the pattern so far may have taken
    for part in pattern:
        if part == "**":
            reached = set(range(min(reached), len(path) + 1))
        else:
            reached = {i + 1 for i in reached if i < len(path) and fnmatchcase(path[i], part)}
        if not reached:
            return False
    return len(path) in reached
