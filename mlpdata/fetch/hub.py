"""Repositories of the Hugging Face Hub: their files at one commit, and what to do where one is closed.

Tokens come from the usual places (`hf auth login`, HF_TOKEN), the endpoint from HF_ENDPOINT. Everything that may go
wrong there is turned into one line.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from mlpdata.errors import Error, first_line
from mlpdata.fetch.login import Login

PREFIX = "hf:"
NAME = re.compile(
    r"hf:(?://datasets/)?(?P<name>[\w.-]+/[\w.-]+)(?P<below>(?:/[^/@\n]+)*)/?(?:@(?P<revision>[\w./-]+))?"
)


@dataclass(frozen=True)
class Repository:
    """A data set repository at one commit."""

    name: str  # OWNER/NAME
    commit: str
    files: dict[str, int]  # path -> bytes
    folder: str = ""  # the paths are relative to; "" is the repository itself

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}{f'/{self.folder}' if self.folder else ''}@{self.commit}"

    def below(self, folder: str) -> Repository:
        """One of its folders alone; without files where there is none."""
        files = {p.removeprefix(f"{folder}/"): n for p, n in self.files.items() if p.startswith(f"{folder}/")}
        return replace(self, files=files, folder=f"{self.folder}/{folder}" if self.folder else folder)

    def url(self, path: str) -> str:
        """Where a file of this commit is served."""
        from huggingface_hub import hf_hub_url

        path = f"{self.folder}/{path}" if self.folder else path
        return hf_hub_url(self.name, path, repo_type="dataset", revision=self.commit)

    def login(self) -> Login:
        """What the server wants to see with every request."""
        from huggingface_hub.utils import build_hf_headers

        headers = build_hf_headers(library_name="mlpdata")
        return Login(headers={k: v for k, v in headers.items() if k.lower() == "authorization"})


def is_repository(text: str) -> bool:
    """Whether a --source or --shards names a repository."""
    return text.startswith(PREFIX)


def open_repository(text: str) -> Repository:
    """The repository, or its folder, that `hf:OWNER/NAME[/FOLDER][@REVISION]` names, at one commit. Raises Error."""
    match = NAME.fullmatch(text)
    if not match:
        raise Error(f"{text!r} names no repository; expected hf:OWNER/NAME[/FOLDER][@REVISION]")
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    name, api = match["name"], HfApi(library_name="mlpdata")
    with hub_errors(name, match["revision"]):
        info = api.dataset_info(name, revision=match["revision"])
        if info.gated:
            api.auth_check(name, repo_type="dataset")
        tree = api.list_repo_tree(name, repo_type="dataset", revision=info.sha, recursive=True)
        files = {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}
    if info.sha is None:
        raise Error(f"{name}: the Hub names no commit; see {endpoint()}/datasets/{name}")
    for path in files:
        if path.startswith("/") or ".." in Path(path).parts:
            raise Error(f"{name} has a file with the impossible path {path!r}")
    whole, folder = Repository(name, info.sha, files), match["below"].strip("/")
    if folder and not whole.below(folder).files:
        raise Error(f"{name} has no folder {folder!r} at {info.sha}")
    return whole.below(folder) if folder else whole


@contextlib.contextmanager
def hub_errors(name: str, revision: str | None = None):
    """Turn what huggingface_hub raises about a repository into an Error that says what to do."""
    from huggingface_hub import errors

    page = f"{endpoint()}/datasets/{name}"
    token = "a token (`hf auth login`, or HF_TOKEN)"
    try:
        yield
    except errors.GatedRepoError:
        raise Error(f"{name} is gated: accept its conditions at {page}, then come with {token}") from None
    except errors.RepositoryNotFoundError:
        raise Error(f"no data set {name} on the Hub, or it is private and wants {token}: see {page}") from None
    except errors.RevisionNotFoundError:
        raise Error(f"{name} has no revision {revision!r}; see {page}/commits/main") from None
    except errors.HFValidationError as e:
        raise Error(f"{name} is no name of a repository: {first_line(e)}") from None
    except (errors.LocalTokenNotFoundError, errors.OfflineModeIsEnabled) as e:
        raise Error(f"{name}: {first_line(e)}") from None
    except errors.HfHubHTTPError as e:
        status = getattr(e.response, "status_code", None)
        hint = f"; it wants {token} that may do this" if status in (401, 403) else ""
        raise Error(f"{name}: the Hub answers {first_line(e)}{hint}") from None
    except Exception as e:
        # The HTTP library below has been exchanged before; its errors are known by their package alone.
        if type(e).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        raise Error(f"cannot reach {endpoint()} for {name}: {first_line(e)}") from None


def endpoint() -> str:
    """The address of the Hub."""
    from huggingface_hub import constants

    return constants.ENDPOINT
