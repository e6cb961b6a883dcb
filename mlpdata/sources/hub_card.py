"""The card of a data set (README.md) as the Hub's header has it: which files make which split, what the columns are.

Cards are written by strangers. What has another shape than expected is passed over, and `problems` says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

import yaml

from mlpdata import splits
from mlpdata.errors import Error, first_line
from mlpdata.sources.keys import listed

MAX_CARD_BYTES = 8 << 20
MAX_PATTERNS = 1_000  # with wildcards: each is compared with every path
WILD = re.compile(r"[*?\[]")
# Every scalar is text: `no` stays the name of a class, and no tag acts.
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class HubCard:
    """The YAML header of a card.

    problems: a line for everything in it that cannot be used.
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
        folder = self._config.get("data_dir")
        # The folder that the configuration's files lie in; "" for all.
        self.folder = folder.removeprefix("./").strip("/") if isinstance(folder, str) else ""

    def _choose_config(self) -> dict:
        """The default configuration; {} where the card has none. Raises Error where it has several and no default."""
        configs = [c for c in _dicts(self._header.get("configs")) if "data_files" in c or "data_dir" in c]
        default = [c for c in configs if c.get("default") == "true" or c.get("config_name") == "default"]
        if len(configs) > 1 and not default:
            raise Error(
                f"README.md has several configurations and none is the default: {listed(_names(configs), 8)}; choose "
                "one: pass the folder of its files as --source"
            )
        config = (default or configs or [{}])[0]
        if len(configs) > 1:
            others = [c for c in configs if c is not config]
            self.problems.append(
                f"configuration {_names([config])[0]} is used, README.md's default; others are left out: "
                f"{listed(_names(others), 8)} (to take one, pass the folder of its files as --source)"
            )
        return config

    def assign(self, paths: list[str]) -> dict[str, list[str]] | None:
        """The files of each split, in order, under the card's name of the split; None where the card tells of no file.

        paths: relative to `folder`, with `/`. Raises Error for a file in two splits.
        """
        if "data_files" not in self._config:
            return None
        files_of: dict[str, list[str]] = {}
        split_of: dict[str, str] = {}
        known = set(paths)
        for split, pattern in self._patterns():
            files = files_of.setdefault(split, [])
            for path in _matching(pattern, paths, known):
                if path not in split_of:
                    split_of[path] = split
                    files.append(path)
                elif split_of[path] != split:
                    raise Error(f"README.md puts {path} into two splits, {split_of[path]!r} and {split!r}; correct it")
        if not split_of:
            self.problems.append("no file is where README.md says that the splits are: they follow from file names")
            return None
        for split in [split for split, files in files_of.items() if not files]:
            self.problems.append(f"split {split!r} of README.md is left out: none of its files is there")
            del files_of[split]
        return files_of

    def _patterns(self) -> Iterator[tuple[str, str]]:
        """(split, pattern) of the configuration's files, in whichever of the allowed ways the card writes them."""
        entries, num_wild = self._config["data_files"], 0
        if isinstance(entries, dict):
            entries = [{"split": split, "path": path} for split, path in entries.items()]
        for entry in entries if isinstance(entries, list) else [entries]:
            entry = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            split, patterns = entry.get("split"), entry.get("path")
            patterns = [patterns] if isinstance(patterns, str) else patterns
            if not isinstance(split, str) or not isinstance(patterns, list):
                self.problems.append("a part of `data_files` in README.md has no `split` and `path`: not used")
                continue
            if splits.canonical(split) is None:
                splits.checked(split)
            for pattern in filter(lambda pattern: isinstance(pattern, str), patterns):
                num_wild += WILD.search(pattern) is not None
                if num_wild > MAX_PATTERNS:
                    raise Error(f"README.md has more than {MAX_PATTERNS:,} patterns of files")
                yield split, pattern.removeprefix("./")

    def features(self) -> dict[str, dict]:
        """Feature by column, as `parquet_columns.features` has it."""
        infos = _dicts(self._header.get("dataset_info"))
        name = self._config.get("config_name")
        info = next((i for i in infos if name is not None and i.get("config_name") == name), (infos or [{}])[0])
        features = {}
        for feature in _dicts(info.get("features")):
            column, kind = feature.get("name"), feature.get("dtype")
            if not isinstance(column, str):
                continue
            if kind == "image":
                features[column] = {"_type": "Image"}
            elif isinstance(kind, dict) and isinstance(kind.get("class_label"), dict):
                features[column] = {"_type": "ClassLabel", "names": self._class_names(column, kind["class_label"])}
        return features

    def _class_names(self, column: str, label: dict) -> list | None:
        names = label.get("names")
        if isinstance(names, dict):
            numbered = [names.get(str(i)) for i in range(len(names))]
            names = None if None in numbered else numbered
        if isinstance(names, list):
            return names
        self.problems.append(f"README.md numbers the classes of {column!r} otherwise than 0, 1, ...: not used")
        return None


def _dicts(value: object) -> list[dict]:
    return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, dict)]


def _names(configs: list[dict]) -> list[str]:
    names = (config.get("config_name") for config in configs)
    return [f"{name!r:.60}" if isinstance(name, str) else "without a name" for name in names]


def _matching(pattern: str, paths: list[str], known: set[str]) -> list[str]:
    """The paths that a pattern means: `*` inside a folder, `**` for any folders, as fsspec has it."""
    if not WILD.search(pattern):
        return [pattern] if pattern in known else []
    parts = pattern.split("/")
    return [path for path in paths if _fits(path.split("/"), parts)]


def _fits(path: list[str], pattern: list[str]) -> bool:
    """Linear in both, unlike one regular expression of a stranger's pattern.

    >>> _fits(["a", "b", "c.parquet"], ["a", "**", "*.parquet"])
    True
    """
    reached = {0}  # how many parts of the path the pattern so far may have taken
    for part in pattern:
        if part == "**":
            reached = set(range(min(reached), len(path) + 1))
        else:
            reached = {i + 1 for i in reached if i < len(path) and fnmatchcase(path[i], part)}
        if not reached:
            return False
    return len(path) in reached
