"""Shard directories put elsewhere whole: to an object storage as they are converted, or to the Hugging Face Hub.

Either way the manifest goes last, when everything that it lists has arrived.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from mlpdata.errors import Error
from mlpdata.fetch import http, hub
from mlpdata.fetch.official import download_folder
from mlpdata.shards.files import FileEntry, check_sizes
from mlpdata.shards.manifest import Manifest, manifest_path, work_path
from mlpdata.shards.remote import ObjectStore, Say, normal
from mlpdata.system.files import make_folder
from mlpdata.system.format import format_bytes, plural
from mlpdata.system.progress import Progress

AGAIN = "run the same command again"
# Files that a reader takes for part of a shard directory: left from another one, they are in the way.
SHARD_FILES = (
    "*-[0-9][0-9][0-9][0-9][0-9][0-9].tar",
    "*.beton",
    "*.index.parquet",
    "*.real.json",
    "manifest.json",
    "_info.json",
)


@contextlib.contextmanager
def staged(url: str, say: Say) -> Iterator[tuple[Path, Say]]:
    """A local directory to convert into, which is uploaded to `url` when it is finished, and removed.

    With it comes the `say` of the conversion: that it is done is said when it is, of the URL. A finished conversion at
    `url` already stands in the directory as its manifest, so that the same options find nothing to do and others are
    refused. The same command goes on after an interruption, of the conversion or of the upload. Raises Error.
    """
    if hub.is_repository(url):
        raise Error(f"--out {url}: convert to a local directory, then `mlpdata push` it")
    if http.is_url(normal(url)):
        raise Error(f"--out {url}: a web server takes no files; convert to a local directory, then copy it there")
    store = ObjectStore(url)
    folder = download_folder() / "staging" / store.name
    journal = folder.with_name(f"{folder.name}.uploaded")
    finished, done = store.exists(manifest_path(folder).name), []

    def renamed(text: str) -> str:
        """A text about the directory as one about the URL, whose conversions --overwrite does not replace."""
        for ours, theirs in (
            (str(folder), store.where),
            (", delete that directory, or say --overwrite", " or delete it"),
            (", --overwrite makes it again", ""),
        ):
            text = text.replace(ours, theirs)
        return text

    def say_here(line: str) -> None:
        if line.startswith("done: "):
            done.append(renamed(line))
        else:
            say(renamed(line) if finished else line)

    if finished:
        _stand_in(store, folder)
    elif not folder.exists() and not journal.exists() and store.sizes():
        raise Error(f"{store.where} is not empty and not a conversion of mlpdata; choose another --out")
    try:
        make_folder(folder.parent)
        yield folder, say_here
    except Error as e:
        if finished:
            shutil.rmtree(folder)
            raise Error(renamed(str(e))) from None
        raise
    if not finished:
        _upload(store, folder, journal, say)
    shutil.rmtree(folder)
    journal.unlink(missing_ok=True)
    for line in done:
        say(line)


def _stand_in(store: ObjectStore, folder: Path) -> None:
    """Make a local directory of the manifest and files of the right sizes, which are holes, for one in a storage."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = store.read(manifest_path(folder).name)
    files = Manifest.parse(data, f"{store.where}/{manifest_path(folder).name}").files
    check_sizes(files, store.sizes(), store.where, f"delete {store.where} and {AGAIN}")
    for name, entry in files.items():
        with open(folder / name, "wb") as f:
            f.truncate(entry["bytes"])
    manifest_path(folder).write_bytes(data)


def _upload(store: ObjectStore, folder: Path, journal: Path, say: Say) -> None:
    """Store a finished directory. What the journal says of an earlier attempt counts only where it is there still.

    journal: a line a stored file, its SHA-256 and its name.
    """
    manifest = Manifest.load(folder)
    manifest.check_sizes(folder)
    files = manifest.files
    lines = set(journal.read_text().split("\n")) if journal.exists() else set()
    sizes = store.sizes()
    if strange := {name for name in sizes if any(fnmatch(name, pattern) for pattern in SHARD_FILES)} - {*files}:
        raise Error(
            f"{store.where} also holds {min(strange)}, which is not part of it: remove it, or choose another --out"
        )
    stored = {n for n, e in files.items() if f"{e['sha256']} {n}" in lines and sizes.get(n) == e["bytes"]}
    total = sum(entry["bytes"] for entry in files.values())
    with Progress(f"uploading to {store.where}", total, unit="bytes") as progress, open(journal, "a") as f:
        progress.resume(sum(files[name]["bytes"] for name in stored))
        for name, entry in files.items():
            if name not in stored:
                store.put(folder / name)
                print(entry["sha256"], name, file=f, flush=True)
                progress.add(entry["bytes"])
        check_sizes(files, store.sizes(), store.where, AGAIN)
        store.put(manifest_path(folder))
    say(f"uploaded {plural(len(files) + 1, 'file')} to {store.where}")


def push(root: Path, name: str, private: bool = False, say: Say = print) -> str:
    """Upload a finished directory to the data set repository OWNER/NAME on the Hub, which is made if need be.

    Shards of an earlier push that are no longer part of it are removed; other files are left alone. Run again it goes
    on where it stopped. Returns the page of the repository. Raises Error for an unfinished directory.
    """
    manifest = Manifest.load(root)
    if work_path(root).exists():
        raise Error(f"{root} is being converted; wait for it")
    manifest.check_sizes(root)
    title = f"{manifest.dataset} at {manifest.res} px"
    return push_files(root, manifest.files, manifest_path(root), SHARD_FILES, title, name, private, say)


def push_files(
    root: Path,
    files: Mapping[str, FileEntry],
    listing: Path,
    replaced: Sequence[str],
    title: str,
    name: str,
    private: bool,
    say: Say,
) -> str:
    """Upload files below a directory, and the listing of them when all have arrived. Returns the repository's page.

    files: by path below the directory. replaced: patterns of what is removed there where it is none of the files.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api, num_bytes = HfApi(library_name="mlpdata"), sum(entry["bytes"] for entry in files.values())
    say(f"uploading {root} to {name}: {format_bytes(num_bytes)} in {plural(len(files) + 1, 'file')}")
    with hub.hub_errors(name):
        api.create_repo(name, repo_type="dataset", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=root,
            allow_patterns=list(files),
            delete_patterns=list(replaced),
            commit_message=title,
        )
        tree = api.list_repo_tree(name, repo_type="dataset", recursive=True)
        check_sizes(files, {e.path: e.size for e in tree if isinstance(e, RepoFile)}, name, AGAIN)
        api.upload_file(
            path_or_fileobj=listing,
            path_in_repo=listing.name,
            repo_id=name,
            repo_type="dataset",
            commit_message="Manifest",
        )
    return f"{hub.endpoint()}/datasets/{name}"
