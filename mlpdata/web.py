"""HTTP as downloads and remote sources use it: the user's proxies and logins, ranges, growing pauses, one-line errors.

`requests` speaks the protocol and honours HTTP_PROXY, HTTPS_PROXY, NO_PROXY and .netrc. Here is what it leaves open:
which answers are worth another try, and whether a range belongs to the file it is thought to belong to.
"""

from __future__ import annotations

import email.utils
import posixpath
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from mlpdata.errors import Error

if TYPE_CHECKING:  # a tenth of a second, which a conversion of local files need not pay
    import requests

CONNECT_S, STALL_S = 10.0, 30.0  # until a server answers, and without a byte from it
ATTEMPTS = 5  # failures in a row, with nothing gained in between
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 120.0  # pauses double; a server may ask for longer ones up to the second
CHUNK_BYTES = 1 << 18
PASSING = {408, 425, 429, 500, 502, 503, 504}

T = TypeVar("T")


class Passing(Exception):
    """A failure that may be gone on the next try."""

    def __init__(self, reason: str, pause_s: float = 0.0):
        super().__init__(reason)
        self.pause_s = pause_s  # what the server asked for


class Refused(Error):
    """An answer that no further try will better."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


class Changed(Exception):
    """The server has another file under this URL than the one that was begun, or serves no ranges of it."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """What a server needs to let the user in: headers, and a cookies.txt. Sent to the URL's own host only."""

    headers: dict[str, str] = field(default_factory=dict)
    cookies: Path | None = None

    def session(self) -> requests.Session:
        """A new session. Raises Error for a cookie file that cannot be read."""
        from http.cookiejar import LoadError, MozillaCookieJar

        session = _session_class()(set(self.headers))
        # Bytes as they lie on the server: offsets would mean nothing in a stream compressed on the way.
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": "mlpdata", **self.headers})
        if self.cookies is not None:
            jar = MozillaCookieJar(self.cookies)
            try:
                jar.load(ignore_discard=True, ignore_expires=True)
            except (OSError, LoadError, UnicodeDecodeError) as e:
                reason = getattr(e, "strerror", None) or "it is not in the cookies.txt format that browsers export"
                raise Error(f"cannot read --cookies {self.cookies}: {reason}") from None
            for cookie in jar:
                cookie.expires = cookie.expires or None  # browsers write 0 for "as long as the session"
            session.cookies = jar
        return session


@cache
def _session_class():
    import requests

    class Session(requests.Session):
        def __init__(self, private: set[str]):
            super().__init__()
            self._private = private

        def rebuild_auth(self, prepared_request, response):
            # requests itself takes Authorization off; the user's other headers are no business of another host either.
            if self.should_strip_auth(response.request.url, prepared_request.url):
                for name in self._private:
                    prepared_request.headers.pop(name, None)
            super().rebuild_auth(prepared_request, response)

    return Session


class Pauses:
    """Growing pauses between tries.

    say: told the reason and the length of every pause, as one line.
    """

    def __init__(self, what: str, say: Callable[[str], None] | None = None):
        self.what, self._say, self._failures = what, say, 0

    def gained(self) -> None:
        """Something arrived: the next failure counts as the first."""
        self._failures = 0

    def after(self, failure: Passing, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait before the next try. Raises Error when it is enough."""
        self._failures += 1
        if self._failures >= ATTEMPTS:
            raise Error(f"{self.what}: {failure}; gave up after {ATTEMPTS} attempts") from None
        if failure.pause_s > LONGEST_PAUSE_S:
            raise Error(f"{self.what}: {failure}; the server asks to come back in {failure.pause_s:,.0f} s") from None
        pause = max(failure.pause_s, min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S))
        if self._say:
            self._say(f"{self.what}: {failure}; trying again in {pause:.3g} s")
        sleep(pause)


def persist(what: str, attempt: Callable[[], T], say: Callable[[str], None] | None = None) -> T:
    """The result of attempt(), tried again where its failure is Passing."""
    pauses = Pauses(what, say)
    while True:
        try:
            return attempt()
        except Passing as e:
            pauses.after(e)


# --------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Answer:
    """A response whose body is still to be read: bytes `start` on of a file of `size` bytes (None: not said)."""

    response: requests.Response
    start: int
    size: int | None
    tag: str  # a strong ETag or the time of the last change; "" where the server gives neither
    ranges: bool  # whether the server is known to serve ranges

    def chunks(self) -> Iterator[bytes]:
        """The body. Raises Passing when it ends early or stalls."""
        import urllib3

        try:
            while chunk := self.response.raw.read1(CHUNK_BYTES, decode_content=False):
                yield chunk
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise Passing(_reason(e)) from None

    def close(self) -> None:
        self.response.close()


def get(session: requests.Session, url: str, start: int = 0, stop: int | None = None, tag: str = "") -> Answer:
    """Ask for bytes `start` to `stop` (None: to the end) of a file.

    tag: of the file as it was before; "" accepts any. Raises Passing for what another try may mend, Changed where the
    file is another one by now or the server serves no ranges, Error for everything else.
    """
    import requests

    headers = {}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if tag:
            headers["If-Range"] = tag
    try:
        response = session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, STALL_S))
    except (requests.ConnectionError, requests.Timeout) as e:
        cause = _innermost(e)
        if isinstance(e, requests.exceptions.SSLError | requests.exceptions.ProxyError) or (
            isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN
        ):
            raise Error(f"cannot fetch {url}: {_reason(e)}") from None
        raise Passing(_reason(e)) from None
    except (requests.RequestException, UnicodeError, ValueError) as e:
        raise Error(f"cannot fetch {url}: {_reason(e)}") from None
    try:
        return _read_answer(url, response, start, headers, tag)
    except BaseException:
        response.close()
        raise


def _read_answer(url: str, response: requests.Response, start: int, asked: dict, tag: str) -> Answer:
    status, now = response.status_code, _tag(response)
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != start:
            raise Error(f"{url} answers a range with {response.headers.get('Content-Range', 'no range')!r}")
        if tag and now and now != tag:
            raise Changed("the file has changed on the server")
        return Answer(response, start, None if match[2] == "*" else int(match[2]), now, True)
    if status == 200:
        if "Range" in asked and start:
            raise Changed(
                "the file has changed on the server"
                if tag and now != tag
                else "the server does not go on in the middle"
            )
        length = response.headers.get("Content-Length", "")
        ranges = response.headers.get("Accept-Ranges") == "bytes"
        return Answer(response, 0, int(length) if length.isdecimal() else None, now, ranges)
    if status == 416:
        raise Changed("the file has become shorter on the server")
    if status in PASSING:
        raise Passing(f"the server answers {status} {response.reason}", _retry_after(response))
    hint = "; it wants a login: `mlpdata download` takes --cookies and --header" if status in (401, 403) else ""
    raise Refused(f"{url}: the server answers {status} {response.reason}{hint}", status)


def _tag(response: requests.Response) -> str:
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _retry_after(response: requests.Response) -> float:
    """Seconds, from a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _innermost(error: BaseException) -> BaseException:
    """What requests and urllib3 have wrapped."""
    import urllib3

    while True:
        inner = getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            inner = next((a for a in error.args if isinstance(a, BaseException)), None)
        if inner is None and isinstance(error, urllib3.exceptions.NewConnectionError):
            inner = error.__cause__
        if inner is None:
            return error
        error = inner


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words, without addresses of objects."""
    import urllib3

    seen = _innermost(error)
    if isinstance(seen, urllib3.exceptions.ConnectTimeoutError):
        return "no answer in time"
    if isinstance(seen, urllib3.exceptions.TimeoutError | TimeoutError):
        return "nothing arrived in time"
    if isinstance(seen, urllib3.exceptions.IncompleteRead):
        return "the connection was cut"
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror
    text = re.sub(r"^<[^>]*>:? ?|\w+\(.*?\): ", "", str(seen).splitlines()[0] if str(seen) else "")
    return text or type(seen).__name__


def is_url(text: str) -> bool:
    """Whether a --source is a URL that this module can read."""
    return text.startswith(("http://", "https://"))


def file_name(path: str) -> str:
    """The last part of a path, or of a URL's path."""
    return posixpath.basename(urlsplit(path).path if is_url(path) else path)


def parse_headers(lines: tuple[str, ...]) -> dict[str, str]:
    """`K: V` lines as on a command line. Raises Error for one without a colon."""
    pairs = [line.partition(":") for line in lines]
    for (name, colon, _), line in zip(pairs, lines, strict=True):
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name.strip()) or "\n" in line or "\r" in line:
            raise Error(f"--header {line!r} is no header; expected 'Name: value'")
    return {name.strip(): value.strip() for name, _, value in pairs}
