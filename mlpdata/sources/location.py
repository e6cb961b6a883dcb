"""Where the files of a data set lie: below a local folder, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

from mlpdata.archive.blob import PlainFile
from mlpdata.archive.url import UrlFile
from mlpdata.fetch.hub import Repository

Location = Path | Repository


def open_file(location: Location, path: str) -> PlainFile | UrlFile:
    """A file, to be read at offsets. path: below the folder or in the repository, with `/`. Raises Error."""
    if isinstance(location, Repository):
        return UrlFile(location.url(path), location.login(), location.files[path])
    return PlainFile(location / path)


def has_file(location: Location, path: str) -> bool:
    """Whether there is a file at a path, which may be anybody's text."""
    if isinstance(location, Repository):
        return path in location.files
    return os.path.isfile(os.path.join(location, path))
