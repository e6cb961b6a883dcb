"""Shard directories that are elsewhere, at the Hugging Face Hub, a web server or an object storage, copied here once.

`hf:OWNER/NAME[@REVISION]` is a data set repository, http:// and https:// lead to web servers; any other URL is left to
fsspec (s3://, gs://, ...; install the extra `remote`). The manifest is read first and moved into its place last, when
every file that it lists is there with its checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mlpdata.archive.url import UrlFile
from mlpdata.errors import Error
from mlpdata.fetch import http, hub
from mlpdata.fetch.download import RemoteFile, exclusive, fetch_unlocked
from mlpdata.fetch.login import Login
from mlpdata.fetch.official import download_folder
from mlpdata.fetch.retry import retry
from mlpdata.fetch.storage import StorageFile, storage_errors
from mlpdata.shards.classes import parse_classes, read_classes
from mlpdata.shards.files import FileEntry, local_sizes
from mlpdata.shards.manifest import Manifest, classes_path, manifest_path
from mlpdata.shards.text import MAX_TEXT_BYTES
from mlpdata.system.files import make_folder, sync_dir
from mlpdata.system.format import format_bytes, plural

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")

Say = Callable[[str], None]  # takes a line for the user


def is_remote(root: str | Path | None) -> bool:
    """Whether a directory is named by a URL or as a repository.

    >>> is_remote("hf:me/shapes-32"), is_remote("s3://bucket/shapes-32"), is_remote("shards/shapes-32")
    (True, True, False)
    """
    return root is not None and (hub.is_repository(str(root)) or SCHEME.fullmatch(str(root)) is not None)


def local_copy(root: str | Path, say: Say = lambda line: None) -> Path:
    """The directory itself, or a verified copy of one that is elsewhere, made in the download folder on first use.

    Raises Error where it is not there, is unfinished, or is not what its manifest says.
    """
    if not is_remote(root):
        return Path(root)
    store = open_store(str(root))
    text, manifest = read_manifest(store)
    folder = folder_of(store, text, "shards")
    try:
        if not manifest_path(folder).exists():
            make_folder(folder)
            with exclusive(folder.with_name(f".{folder.name}.lock"), say):
                if not manifest_path(folder).exists():
                    _copy(store, text, manifest.files, folder, say)
    except OSError as e:
        raise Error(f"cannot copy {root} to {folder}: {e.strerror or e}") from None
    return folder


def place_of(root: str | Path) -> tuple[Path, Manifest, bool]:
    """(directory, or where `local_copy` puts one that is elsewhere; manifest; whether it is there). Raises Error."""
    if not is_remote(root):
        return Path(root), Manifest.load(root), True
    store = open_store(str(root))
    text, manifest = read_manifest(store)
    folder = folder_of(store, text, "shards")
    return folder, manifest, manifest_path(folder).exists()


def folder_of(store: Store, manifest: bytes, kind: str) -> Path:
    """Where the directory of a store is kept that has this manifest. kind: in which folder of the download folder."""
    return download_folder() / kind / f"{store.name}-{hashlib.sha256(manifest).hexdigest()[:16]}"


def _copy(store: Store, manifest: bytes, files: dict[str, FileEntry], folder: Path, say: Say) -> None:
    aside = folder / ".remote"  # a manifest is only in its place when everything that it lists is
    aside.mkdir(exist_ok=True)
    manifest_path(aside).write_bytes(manifest)
    sizes = local_sizes(folder)
    missing = {name: entry for name, entry in files.items() if sizes.get(name) != entry["bytes"]}
    need, free = sum(entry["bytes"] for entry in missing.values()), shutil.disk_usage(folder).free
    if need > free:
        raise Error(f"no space for {folder}: {format_bytes(need)} are missing, {format_bytes(free)} free")
    say(f"copying {store.where} to {folder}: {format_bytes(need)} in {plural(len(missing), 'file')}")
    for name, entry in missing.items():
        store.fetch(name, entry, folder, say)
    os.replace(manifest_path(aside), manifest_path(folder))
    aside.rmdir()
    sync_dir(folder)


# --------------------------------------------------------------------------------------------------------- stores


def read_manifest(store: Store) -> tuple[bytes, Manifest]:
    """The manifest of a store, and its text. Raises Error where it is not there or damaged."""
    name = manifest_path(Path()).name
    text = store.read(name)
    return text, Manifest.parse(text, f"{store.where}/{name}")


def read_lists(root: str | Path) -> tuple[Manifest, list[tuple[str, str]]]:
    """The manifest and the classes of a directory. Of one that is elsewhere, no other file is fetched. Raises Error."""
    if not is_remote(root):
        manifest = Manifest.load(root)
        return manifest, read_classes(root, manifest)
    store = open_store(str(root))
    manifest = read_manifest(store)[1]
    name = classes_path(Path()).name
    return manifest, parse_classes(store.read(name), f"{store.where}/{name}", manifest)


class Store(Protocol):
    """A shard directory elsewhere, to be read. Its methods raise Error."""

    where: str  # its address, for messages
    name: str  # of a local folder for its copy

    def read(self, name: str) -> bytes:
        """A file of at most MAX_TEXT_BYTES."""
        ...

    def fetch(self, name: str, entry: FileEntry, folder: Path, say: Say, quiet: bool = False) -> None:
        """Put a file that is what the manifest says into a local folder, whole or not at all.

        For a caller who sees to it that nobody else does. What has arrived when it fails is there for the next call.
        """
        ...


def open_store(address: str) -> Store:
    """The store that a URL or a repository names. Raises Error."""
    if hub.is_repository(address):
        return HubStore(address)
    return HttpStore(address) if http.is_url(normal(address)) else ObjectStore(address)


def normal(url: str) -> str:
    """A URL with its two slashes, of which a Path has lost one, and none at its end. Raises Error.

    >>> normal("s3:/bucket/x/")
    's3://bucket/x'
    """
    parts = SCHEME.fullmatch(url)
    if parts is None or not parts[2].strip("/"):
        raise Error(f"{url} is no URL of a directory")
    return f"{parts[1]}://{parts[2]}".rstrip("/")


def _name_of(url: str) -> str:
    return re.sub(r"[^\w.-]+", "--", url)


class HubStore:
    """A repository of the Hub, at one commit."""

    def __init__(self, address: str):
        self._repository = hub.open_repository(address)
        self.where = str(self._repository)
        self.name = f"{self._repository.name}/{self._repository.folder}".strip("/").replace("/", "--")

    def read(self, name: str) -> bytes:
        if name not in self._repository.files:
            raise Error(f"{self.where} has no {name}; it is not a finished shard directory")
        _check_length(f"{self.where}/{name}", self._repository.files[name])
        with contextlib.closing(
            UrlFile(self._repository.url(name), self._repository.login(), self._repository.files[name])
        ) as file:
            return file.read_at(0, file.size)

    def fetch(self, name: str, entry: FileEntry, folder: Path, say: Say, quiet: bool = False) -> None:
        if name not in self._repository.files:
            raise Error(f"{self.where} lacks {name}, though its manifest lists it")
        file = _listed(name, entry, self._repository.url(name))
        fetch_unlocked(file, folder / name, self._repository.login(), say, quiet)


class HttpStore:
    """A folder of a web server, which may be one that serves no ranges."""

    def __init__(self, url: str):
        self.where = normal(url)
        self.name = _name_of(self.where)

    def read(self, name: str) -> bytes:
        url, login = f"{self.where}/{name}", Login()

        def ask() -> bytes:
            data = bytearray()
            with login.session(url) as session, contextlib.closing(login.get(session, url)) as response:
                for chunk in response.chunks():
                    data += chunk
                    if len(data) > MAX_TEXT_BYTES:
                        break
            return bytes(data)

        try:
            data = retry(url, ask)
        except http.NotFoundError:
            raise Error(f"{self.where} has no {name}; it is not a finished shard directory") from None
        _check_length(url, len(data))
        if data.lstrip()[:1] == b"<":
            raise Error(f"{url} gives a web page; {self.where} has to be the address of a finished shard directory")
        return data

    def fetch(self, name: str, entry: FileEntry, folder: Path, say: Say, quiet: bool = False) -> None:
        fetch_unlocked(_listed(name, entry, f"{self.where}/{name}"), folder / name, Login(), say, quiet)


class ObjectStore:
    """A folder of an object storage, through fsspec."""

    def __init__(self, url: str):
        self.where = normal(url)
        scheme, _, path = self.where.partition("://")
        if scheme in ("file", "local"):
            raise Error(f"{url} is a directory of this machine: give it as a path, /{path.lstrip('/')}")
        self.name = _name_of(self.where)
        with self._one_line():
            from fsspec.core import url_to_fs

            self._fs, self._base = url_to_fs(self.where)

    def exists(self, name: str) -> bool:
        with self._one_line():
            self._fs.invalidate_cache()
            return self._fs.exists(self._path(name))

    def sizes(self) -> dict[str, int | None]:
        """Bytes of what lies in the folder, by name."""
        with self._one_line():
            self._fs.invalidate_cache()
            if not self._fs.exists(self._base):
                return {}
            entries = self._fs.ls(self._base, detail=True)
        sizes = {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] for entry in entries}
        sizes.pop("", None)  # the folder itself, where it is an object
        return sizes

    def read(self, name: str) -> bytes:
        if not self.exists(name):
            raise Error(f"{self.where} has no {name}; it is not a finished shard directory")
        with self._one_line(), self._fs.open(self._path(name), "rb") as f:
            data = f.read(MAX_TEXT_BYTES + 1)
        _check_length(f"{self.where}/{name}", len(data))
        return data

    def fetch(self, name: str, entry: FileEntry, folder: Path, say: Say, quiet: bool = False) -> None:
        access = StorageFile(fs=self._fs, path=self._path(name), where=self.where)
        fetch_unlocked(_listed(name, entry, f"{self.where}/{name}"), folder / name, access, say, quiet)

    def put(self, path: Path) -> None:
        """Store a local file under its name, and make sure that it has arrived in its length."""
        with self._one_line():
            self._fs.put_file(str(path), self._path(path.name))
            self._fs.invalidate_cache()
            size = self._fs.size(self._path(path.name))
        if size != os.stat(path).st_size:
            raise Error(f"{self.where}/{path.name} has {size} bytes there, {os.stat(path).st_size} here; try again")

    def _path(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"

    def _one_line(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors(self.where)


def _listed(name: str, entry: FileEntry, url: str) -> RemoteFile:
    """A file that a manifest lists, as it is fetched."""
    return RemoteFile(name=name, urls=(url,), num_bytes=entry["bytes"], sha256=entry["sha256"])


def _check_length(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_TEXT_BYTES:
        raise Error(f"{name} is no manifest: it has more than {MAX_TEXT_BYTES >> 20} MB")
