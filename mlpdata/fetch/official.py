"""The authors' archives: what is known of each file, how to get it, and where it is kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlpdata.errors import Error
from mlpdata.fetch import http
from mlpdata.fetch.download import RemoteFile, fetch
from mlpdata.fetch.login import Login
from mlpdata.fetch.transfer import part_path
from mlpdata.system.format import format_bytes

ACCOUNT = "https://image-net.org/download-images"  # where one registers, and finds what has no address of its own


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file the authors ship."""

    name: str
    url: str | None = None
    mirrors: tuple[str, ...] = ()
    num_bytes: int | None = None
    md5: str | None = None
    login: bool = False  # whether the URL wants an account
    note: str = ""  # where to get it where there is no URL, or what it wants
    beside: tuple[Archive, ...] = ()  # what belongs into the same folder

    @property
    def facts(self) -> str:
        """Name, size and checksum, for people. Without a checksum the size is not exact either."""
        facts = [f"MD5 {self.md5}"] if self.md5 else []
        if self.num_bytes:
            facts.insert(0, f"{self.num_bytes:,} bytes" if self.md5 else f"about {format_bytes(self.num_bytes)}")
        return f"{self.name} ({', '.join(facts)})" if facts else self.name

    def remote_file(self) -> RemoteFile:
        """What to fetch; mirrors named in the environment come first."""
        extra = os.environ.get("MLPDATA_MIRROR", "").split()
        urls = (
            *(f"{base.rstrip('/')}/{self.name}" for base in extra),
            *([self.url] if self.url else []),
            *self.mirrors,
        )
        return RemoteFile(name=self.name, urls=urls, num_bytes=self.num_bytes if self.md5 else None, md5=self.md5)


def download_folder() -> Path:
    """Where downloads go and are looked for: $MLPDATA_HOME, else the user's cache folder.

    A user without a home, as in a container that knows only the user's number, has one in the temporary folder.
    """
    if home := os.environ.get("MLPDATA_HOME"):
        return Path(home)
    from platformdirs import user_cache_path

    with contextlib.suppress(RuntimeError):  # of newer platformdirs; older ones return "~/..." as it is
        if (folder := user_cache_path("mlpdata", appauthor=False)).is_absolute():
            return folder
    return Path(tempfile.gettempdir()) / f"mlpdata-{os.getuid()}"


def fetch_url(url: str, say: Callable[[str], None], quiet: bool = False) -> Path:
    """Fetch the file behind any URL into a folder of its own below the download folder, and return its path."""
    folder = download_folder() / "urls" / hashlib.sha256(url.encode()).hexdigest()[:16]
    return fetch(RemoteFile(name=http.file_name(url) or "archive", urls=(url,)), folder, say=say, quiet=quiet)


def download(
    archives: Sequence[Archive],
    folder: Path,
    *,
    only: tuple[str, ...] = (),
    login: Login | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    quiet: bool = False,
) -> None:
    """Fetch the first of the archives, and what belongs beside it.

    only:  names of files, where not all are wanted, or another than the first.
    login: sent to the servers that need an account, not to mirrors.
    Raises Error that says what to get by hand, and how.
    """
    offered = [a for archive in archives for a in (archive, *archive.beside)]
    unknown = set(only) - {a.name for a in offered}
    if unknown:
        raise Error(f"there is no file {min(unknown)!r} here, only {', '.join(a.name for a in offered)}")
    chosen = [a for a in offered if a.name in only] if only else [archives[0], *archives[0].beside]
    closed, failures = [], []
    for archive in chosen:
        file, path = archive.remote_file(), folder / archive.name
        if not path.exists() and (not file.urls or (archive.login and login is None)):
            closed.append(archive)
        elif dry_run:
            say(_plan(file, path))
        else:
            try:
                fetch(file, folder, (login or Login()).to(archive.url), say, quiet)
                checked = "checksum right" if file.md5 else "no checksum of it is published"
                say(f"{path}: {path.stat().st_size:,} bytes, {checked}")
            except Error as e:
                by_hand = f"; or get {archive.name} by other means and put it into {folder}"
                failures.append(f"{e}{by_hand if str(e).startswith('cannot fetch') else ''}")
    if closed:
        failures.insert(0, how_to_get(closed, folder, " and "))
    if failures:
        raise Error("; ".join(failures))


def how_to_get(archives: Sequence[Archive], folder: Path, word: str = " or ", otherwise: str = "") -> str:
    """How the user can get files that need an account and therefore cannot be fetched automatically."""
    names, sources = word.join(a.facts for a in archives), word.join(dict.fromkeys(a.url or a.note for a in archives))
    how = "; `mlpdata download` can do it with --cookies FILE of your browser" if any(a.login for a in archives) else ""
    them = "it" if len(archives) == 1 or word == " or " else "them"
    return (
        f"for {names} an account is needed: register at {ACCOUNT}, get {them} from {sources} and put {them} into "
        f"{folder}{otherwise}{how}"
    )


def _plan(file: RemoteFile, path: Path) -> str:
    size = format_bytes(file.num_bytes) if file.num_bytes else "size not known"
    if path.exists():
        return f"{path} is there: would check its {'size and MD5' if file.md5 else 'size'}"
    begun = "go on fetching" if part_path(path).exists() else "fetch"
    return f"would {begun} {' or '.join(file.urls)} ({size}) to {path}"
