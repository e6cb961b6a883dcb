"""Where the files of a data set lie: below a local folder, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlpdata.archive.blob import PlainFile
from mlpdata.archive.url import UrlFile
from mlpdata.fetch.hub import Repository
from mlpdata.sources import keys
from mlpdata.sources.files import matching

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


def without_folders(source: Path | str | Repository | None) -> str:
    """What `--source` says in the folder that holds the source, wherever that is.

    >>> without_folders(Path("/dev/null")), without_folders("https://me:secret@x.org/a.tar?token=1")
    ('null', 'a.tar')
    """
    if source is None or isinstance(source, Repository):
        return str(source or "")
    if isinstance(source, str):  # a URL: the same bytes come of its file on disk
        return keys.text(unquote(urlsplit(source).path.rpartition("/")[2]))
    if os.path.lexists(source):
        return keys.text(os.path.basename(os.path.abspath(source)) or str(source))
    return keys.text(str(source.relative_to(matching(source)[0])))  # a pattern
