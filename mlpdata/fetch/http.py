"""HTTP for downloads and remote sources: ranges of one unchanged file, and errors that say whether to try again.

`requests` speaks the protocol and honours HTTP_PROXY, HTTPS_PROXY, NO_PROXY and .netrc. This module decides what
`requests` leaves open: which answers are worth another try, and whether a range belongs to the file it is taken for.
"""

from __future__ import annotations

import email.utils
import posixpath
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from mlpdata.errors import Error, first_line
from mlpdata.fetch.retry import TransientError

if TYPE_CHECKING:  # importing requests takes a tenth of a second, which a conversion of local files need not pay
    import requests

CONNECT_S, STALL_S = 10.0, 30.0  # until a server answers, and without a byte from it
HEAD_S = 100.0  # until the head of a response is whole
CHUNK_BYTES = 1 << 18
DRIP_BYTES, DRIP_S = 4096, 60.0  # a server that sends fewer bytes in so many seconds has stalled
MAX_HEADER = 1024  # characters; real headers have a few dozen
T = TypeVar("T")
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class FileChangedError(Exception):
    """The server has another file under this URL than when the transfer started, or serves no ranges of it."""


class NotFoundError(Error):
    """The server has nothing under this URL."""


@dataclass(frozen=True)
class Response:
    """A reply whose body is still to be read: the bytes from `start` of a file of `size` bytes (None: not said)."""

    reply: requests.Response
    start: int
    size: int | None
    tag: str  # a strong ETag or the time of the last change; "" where the server gives neither
    ranges: bool  # whether the server is known to serve ranges

    @property
    def is_page(self) -> bool:
        """Whether it is a web page, which may be what a server shows instead of a file."""
        return self.reply.headers.get("Content-Type", "").startswith("text/html")

    def chunks(self) -> Iterator[bytes]:
        """The body. Raises TransientError when it ends early or stalls."""
        import urllib3

        since, got = time.monotonic(), 0
        try:
            while chunk := self.reply.raw.read1(CHUNK_BYTES, decode_content=False):
                got += len(chunk)
                yield chunk
                if time.monotonic() - since > DRIP_S:
                    if got < DRIP_BYTES:
                        raise TransientError(f"only {got} bytes arrived in {DRIP_S:.0f} s")
                    since, got = time.monotonic(), 0
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise TransientError(_reason(e)) from None

    def close(self) -> None:
        self.reply.close()


def get(session: requests.Session, url: str, start: int = 0, stop: int | None = None, tag: str = "") -> Response:
    """Ask for bytes `start` to `stop` (None: to the end) of a file.

    tag: of the file as it was before; "" accepts any. Raises TransientError for what another try may mend,
    FileChangedError where the file is another one by now or the server serves no ranges, Error for everything else.
    """
    import requests

    headers = {}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if tag:
            headers["If-Range"] = tag
    try:
        response = in_time(lambda: session.get(url, headers=headers, stream=True, timeout=(CONNECT_S, STALL_S)))
    except (requests.ConnectionError, requests.Timeout) as e:
        cause = _innermost(e)
        if isinstance(e, requests.exceptions.SSLError | requests.exceptions.ProxyError) or (
            isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN
        ):
            raise Error(f"cannot fetch {url}: {_reason(e)}") from None
        raise TransientError(_reason(e)) from None
    except (requests.RequestException, UnicodeError, ValueError) as e:
        raise Error(f"cannot fetch {url}: {_reason(e)}") from None
    try:
        return _read_response(url, response, start, headers, tag)
    except BaseException:
        response.close()
        raise


def in_time(ask: Callable[[], T]) -> T:
    """What ask() returns or raises. Raises TransientError where that takes too long, as the head of a response may.

    The timeouts of a connection count from one byte to the next: a server that drips headers, or says "100 Continue"
    for ever, keeps within them. The thread that waits for such a server is given up.
    """
    results: list = []
    lock = threading.Lock()
    given_up = False

    def run() -> None:
        try:
            result = ask()
        except BaseException as e:
            result = e
        with lock:
            results.append(result)
            if given_up and not isinstance(result, BaseException):
                getattr(result, "close", lambda: None)()

    thread = threading.Thread(target=run, name="mlpdata-ask", daemon=True)
    thread.start()
    thread.join(HEAD_S)
    with lock:
        given_up = not results
    if given_up:
        raise TransientError("no whole answer in time")
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _read_response(url: str, response: requests.Response, start: int, asked: dict, tag: str) -> Response:
    status, now = response.status_code, _tag(response)
    if status == 206:
        served = _header(response, "Content-Range")
        match = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", served)
        if not match or int(match[1]) != start or not start <= int(match[2]) or (match[3] == "0"):
            raise Error(f"{url} answers a range with {served or 'no range'!r}")
        if tag and now and now != tag:
            raise FileChangedError("the file has changed on the server")
        return Response(response, start, None if match[3] == "*" else int(match[3]), now, True)
    if status == 200:
        if "Range" in asked and start:
            changed = tag and now != tag
            raise FileChangedError(
                "the file has changed on the server" if changed else "the server does not go on in the middle"
            )
        length = _header(response, "Content-Length")
        if length and not re.fullmatch(r"\d{1,19}", length):
            raise Error(f"{url}: the server says the file has {length[:30]!r} bytes")
        size, ranges = int(length) if length else None, _header(response, "Accept-Ranges") == "bytes"
        return Response(response, 0, size, now, ranges)
    if status == 416:
        raise FileChangedError("the file has become shorter on the server")
    if status in TRANSIENT:
        raise TransientError(f"the server answers {status} {_words(response.reason)}", _retry_after(response))
    hint = "; it wants a login: `mlpdata download` takes --cookies and --header" if status in (401, 403) else ""
    kind = NotFoundError if status in (404, 410) else Error
    raise kind(f"{url}: the server answers {status} {_words(response.reason)}{hint}")


def _header(response: requests.Response, name: str) -> str:
    """A header's value; "" where it is missing or absurdly long."""
    value = response.headers.get(name, "")
    return value if len(value) <= MAX_HEADER else ""


def _words(text: str | None) -> str:
    """A server's text as part of one line on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text or "")[:100]


def _tag(response: requests.Response) -> str:
    tag = _header(response, "ETag")
    tag = tag if tag.startswith('"') else _header(response, "Last-Modified")
    return tag if tag.isascii() and tag.isprintable() else ""  # it is sent back


def _retry_after(response: requests.Response) -> float:
    """Seconds, from a number or a date (RFC 9110, 10.2.3)."""
    value = _header(response, "Retry-After")
    if re.fullmatch(r"\s*\d{1,12}\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):  # what it raises for no date, by version
        return 0.0


def _innermost(error: BaseException) -> BaseException:
    """The exception that requests and urllib3 have wrapped."""
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
    return _words(re.sub(r"^<[^>]*>:? ?|\w+\(.*?\): ", "", first_line(seen))) or type(seen).__name__


def is_url(text: str) -> bool:
    """Whether a --source is a URL that this module can read."""
    return text.startswith(("http://", "https://"))


def file_name(path: str) -> str:
    """The last part of a path, or of a URL's path."""
    return posixpath.basename(urlsplit(path).path if is_url(path) else path)
