"""Shard directories that are elsewhere: copied here once and verified, and put there whole.

`hf:OWNER/NAME[@REVISION]` is a data set repository on the Hugging Face Hub; any other URL is fsspec's business (s3://,
gs://, ...; install the extra `remote`). Either way the manifest is read first here, and written last there, and what
its checksums say is what a copy has to be.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mlpdata.archive.url import UrlFile
from mlpdata.errors import Error, first_line
from mlpdata.fetch import hub
from mlpdata.fetch.download import RemoteFile, exclusive, fetch_unlocked
from mlpdata.fetch.official import download_folder
from mlpdata.shards.manifest import FileEntry, Manifest, manifest_path, work_path
from mlpdata.shards.text import MAX_TEXT_BYTES
from mlpdata.system.files import sync_dir
from mlpdata.system.format import format_bytes
from mlpdata.system.progress import Progress

BLOCK_BYTES = 8 << 20
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")
STALE = (
    "*-[0-9][0-9][0-9][0-9][0-9][0-9].tar",
    "*.beton",
    "*.index.parquet",
    "*.real.json",
    "manifest.json",
    "_info.json",
)
# Exceptions of these packages are the network's or the server's doing, whatever they are called.
STORAGE = ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs")


def is_remote(root: str | Path | None) -> bool:
    """Whether a directory is named by a URL or as a repository."""
    return root is not None and (hub.is_repository(str(root)) or SCHEME.fullmatch(str(root)) is not None)


def local_copy(root: str | Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """The directory itself, or a verified copy of one that is elsewhere, made in the download folder on first use.

    Raises Error where it is not there, is unfinished, or is not what its manifest says.
    """
    if not is_remote(root):
        return Path(root)
    store = _open(str(root))
    text = store.read(manifest_path(Path()).name)
    folder = download_folder() / "shards" / f"{store.name}-{hashlib.sha256(text).hexdigest()[:16]}"
    try:
        if not manifest_path(folder).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive(folder.with_name(f".{folder.name}.lock"), say):
                if not manifest_path(folder).exists():
                    _copy(store, text, folder, say)
    except OSError as e:
        raise Error(f"cannot copy {root} to {folder}: {e.strerror or e}") from None
    return folder


def _copy(store: _Hub | _Storage, text: bytes, folder: Path, say: Callable[[str], None]) -> None:
    files = Manifest.parse(text, f"{store.where}/{manifest_path(Path()).name}").files
    unproven = folder / ".remote"  # a manifest is only in its place when everything it lists is
    unproven.mkdir(exist_ok=True)
    manifest_path(unproven).write_bytes(text)
    missing = {name: entry for name, entry in files.items() if _size(folder / name) != entry["bytes"]}
    need, free = sum(entry["bytes"] for entry in missing.values()), shutil.disk_usage(folder).free
    if need > free:
        raise Error(f"no space for {folder}: {format_bytes(need)} are missing, {format_bytes(free)} free")
    say(f"copying {store.where} to {folder}: {format_bytes(need)} in {len(missing)} files")
    for name, entry in missing.items():
        store.fetch(RemoteFile(name=name, urls=(), num_bytes=entry["bytes"], sha256=entry["sha256"]), folder, say)
    os.replace(manifest_path(unproven), manifest_path(folder))
    unproven.rmdir()
    sync_dir(folder)


def _size(path: Path) -> int | None:
    """The bytes of a file; None for what is none."""
    return path.stat().st_size if path.is_file() else None


class _Hub:
    """A repository as a place to read from."""

    def __init__(self, text: str):
        self._repository = hub.open_repository(text)
        self.where = str(self._repository)
        self.name = f"{self._repository.name}/{self._repository.folder}".strip("/").replace("/", "--")

    def read(self, name: str) -> bytes:
        if name not in self._repository.files:
            raise Error(f"{self.where} has no {name}; it is not a finished shard directory")
        _check_length(f"{self.where}/{name}", self._repository.files[name])
        blob = UrlFile(self._repository.url(name), self._repository.login(), self._repository.files[name])
        data = blob.read_at(0, blob.size)
        blob.close()
        return data

    def fetch(self, wanted: RemoteFile, folder: Path, say) -> None:
        if wanted.name not in self._repository.files:
            raise Error(f"{self.where} lacks {wanted.name}, though its manifest lists it")
        url = self._repository.url(wanted.name)
        fetch_unlocked(wanted.from_urls(url), folder / wanted.name, self._repository.login(), say)


class _Storage:
    """A folder of an object storage, through fsspec."""

    def __init__(self, url: str):
        scheme, rest = SCHEME.fullmatch(url).groups()
        if scheme in ("file", "local"):
            raise Error(f"{url} is a directory of this machine: give it as a path, /{rest}")
        self.where = f"{scheme}://{rest}".rstrip("/")  # a Path has lost one of the slashes
        self.name = re.sub(r"[^\w.-]+", "--", self.where)
        with self._one_line():
            from fsspec.core import url_to_fs

            self.fs, self.base = url_to_fs(self.where)

    def path(self, name: str) -> str:
        return f"{self.base.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        with self._one_line():
            self.fs.invalidate_cache()
            return self.fs.exists(self.path(name))

    def sizes(self) -> dict[str, int | None]:
        """The bytes of what lies in the folder, by name."""
        with self._one_line():
            self.fs.invalidate_cache()
            if not self.fs.exists(self.base):
                return {}
            found = {e["name"].rstrip("/").rpartition("/")[2]: e["size"] for e in self.fs.ls(self.base, detail=True)}
        found.pop("", None)  # the folder itself, where it is an object
        return found

    def read(self, name: str) -> bytes:
        if not self.exists(name):
            raise Error(f"{self.where} has no {name}; it is not a finished shard directory")
        with self._one_line(), self.fs.open(self.path(name), "rb") as f:
            text = f.read(MAX_TEXT_BYTES + 1)
        _check_length(f"{self.where}/{name}", len(text))
        return text

    def fetch(self, wanted: RemoteFile, folder: Path, say) -> None:
        part, found, left = folder / f"{wanted.name}.part", hashlib.sha256(), wanted.num_bytes
        with (
            self._one_line(),
            self.fs.open(self.path(wanted.name), "rb") as theirs,
            open(part, "wb") as ours,
            Progress(wanted.name, wanted.num_bytes or 0, unit="bytes") as progress,
        ):
            while left >= 0 and (block := theirs.read(BLOCK_BYTES)):
                left -= len(block)  # it may be anything but what the manifest says, and without end
                ours.write(block)
                found.update(block)
                progress.add(len(block))
            ours.flush()
            os.fsync(ours.fileno())
        if found.hexdigest() != wanted.sha256:
            part.unlink()
            raise Error(f"{self.where}/{wanted.name} is not what the manifest says: its sha256 differs")
        os.replace(part, folder / wanted.name)

    def put(self, path: Path) -> None:
        """Store a file under its name, and make sure that it is there in its length."""
        with self._one_line():
            self.fs.put_file(str(path), self.path(path.name))
            self.fs.invalidate_cache()
            there = self.fs.size(self.path(path.name))
        if there != path.stat().st_size:
            raise Error(f"{self.where}/{path.name} has {there} bytes there, {path.stat().st_size} here; try again")

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except ImportError as e:
            raise Error(f"cannot reach {self.where}: {e}; install the extra: pip install 'mlpdata[remote]'") from None
        except FileNotFoundError as e:
            raise Error(f"{self.where} lacks {e.filename or first_line(e)}") from None
        except (OSError, ValueError) as e:
            raise Error(f"cannot use {self.where}: {first_line(e)}") from None
        except Exception as e:
            if type(e).__module__.partition(".")[0] not in STORAGE:
                raise
            raise Error(f"cannot use {self.where}: {first_line(e)}") from None


def _check_length(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_TEXT_BYTES:
        raise Error(f"{name} is no manifest: it has more than {MAX_TEXT_BYTES >> 20} MB")


def _open(text: str) -> Any:
    return _Hub(text) if hub.is_repository(text) else _Storage(text)


# ----------------------------------------------------------------------------------------------------------- write


@contextlib.contextmanager
def staged(url: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A local directory to convert into; what is finished in it is uploaded to `url`, the manifest last, and removed.

    What lies at `url` already is made known there: a finished conversion stands as its manifest. The same command goes
    on after an interruption, in the conversion as in the upload.
    """
    if hub.is_repository(url):
        raise Error(f"--out {url}: convert to a local directory, then `mlpdata push` it")
    store = _Storage(url)
    folder = download_folder() / "staging" / store.name
    journal = folder.with_name(f"{folder.name}.uploaded")
    finished = store.exists(manifest_path(folder).name)
    if finished:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        text = store.read(manifest_path(folder).name)
        files = Manifest.parse(text, f"{store.where}/{manifest_path(folder).name}").files
        _check_there(store.where, files, store.sizes(), f"delete {store.where} and run the same command again")
        for name, entry in files.items():  # as holes: their sizes are looked at
            with open(folder / name, "wb") as f:
                f.truncate(entry["bytes"])
        manifest_path(folder).write_bytes(text)
    elif not folder.exists() and not journal.exists() and store.sizes():
        raise Error(f"{store.where} is not empty and no conversion of ours; choose another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield folder
    except Error as e:
        if finished:
            shutil.rmtree(folder)
        raise Error(str(e).replace(str(folder), store.where) if finished else str(e)) from None
    if not finished:
        _upload(store, folder, journal, say)
    shutil.rmtree(folder)
    journal.unlink(missing_ok=True)


def _upload(store: _Storage, folder: Path, journal: Path, say: Callable[[str], None]) -> None:
    """Store a finished directory. What the journal says of an earlier attempt counts only where it is there still.

    journal: a line a stored file, its SHA-256 and its name.
    """
    manifest = Manifest.load(folder)
    manifest.check_sizes(folder)
    files = manifest.files
    lines = set(journal.read_text().split("\n")) if journal.exists() else set()
    there = store.sizes()
    if strange := {name for name in there if any(fnmatch(name, stale) for stale in STALE)} - {*files}:
        raise Error(
            f"{store.where} also holds {min(strange)}, which is no part of this: remove it, or choose another --out"
        )
    done = {n for n, e in files.items() if f"{e['sha256']} {n}" in lines and there.get(n) == e["bytes"]}
    progress = Progress(f"uploading to {store.where}", sum(entry["bytes"] for entry in files.values()), unit="bytes")
    progress.resume(sum(files[name]["bytes"] for name in done))
    with open(journal, "a") as f:
        for name, entry in files.items():
            if name not in done:
                store.put(folder / name)
                print(entry["sha256"], name, file=f, flush=True)
                progress.add(entry["bytes"])
    _check_there(store.where, files, store.sizes())
    store.put(manifest_path(folder))
    progress.finish()
    say(f"uploaded {len(files) + 1} files to {store.where}")


def _check_there(
    where: str, files: dict[str, FileEntry], there: dict[str, int | None], then: str = "run the same command again"
) -> None:
    """Raise Error where not all files have arrived: the manifest must not say they have. then: what to do about it."""
    for name, entry in files.items():
        if there.get(name) != entry["bytes"]:
            found = f"{there[name]} bytes" if name in there else "nothing"
            raise Error(f"{where} has {found} as {name} instead of {entry['bytes']} bytes; {then}")


def push(root: Path, name: str, private: bool = False, say: Callable[[str], None] = print) -> str:
    """Upload a finished directory to the data set repository OWNER/NAME on the Hub, which is made if need be.

    Shards of an earlier push that are no longer part of it are removed; other files are left alone. Run again it goes
    on where it stopped. Returns the page of the repository. Raises Error for an unfinished directory.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    manifest, api = Manifest.load(root), HfApi(library_name="mlpdata")
    if work_path(root).exists():
        raise Error(f"{root} is being converted; wait for it")
    manifest.check_sizes(root)
    size = sum(entry["bytes"] for entry in manifest.files.values())
    say(f"uploading {root} to {name}: {format_bytes(size)} in {len(manifest.files) + 1} files")
    with hub.hub_errors(name):
        api.create_repo(name, repo_type="dataset", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=root,
            allow_patterns=list(manifest.files),
            delete_patterns=list(STALE),
            commit_message=f"{manifest.dataset} at {manifest.res} px",
        )
        tree = api.list_repo_tree(name, repo_type="dataset", recursive=True)
        _check_there(name, manifest.files, {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)})
        api.upload_file(
            path_or_fileobj=manifest_path(root),
            path_in_repo=manifest_path(root).name,
            repo_id=name,
            repo_type="dataset",
            commit_message="Manifest",
        )
    return f"{hub.endpoint()}/datasets/{name}"
