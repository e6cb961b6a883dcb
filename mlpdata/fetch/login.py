"""What a server needs to let the user in: headers and cookies, sent to that server and to no other."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlpdata.errors import Error, first_line
from mlpdata.fetch import http

if TYPE_CHECKING:  # importing them takes a tenth of a second, which a conversion of local files need not pay
    from http.cookiejar import MozillaCookieJar

    import requests

MAX_COOKIES_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Login:
    """What a server needs to let the user in: headers, and a cookies.txt. No other server is sent any of it.

    url: whose server it is for. None: that of whatever URL is fetched; servers it redirects to are others all the same.
    """

    headers: dict[str, str] = field(default_factory=dict)
    cookies: Path | None = None
    url: str | None = None

    def to(self, url: str | None) -> Login:
        """The same for one server only; for none where there is no URL."""
        return replace(self, url=url) if url else Login()

    def session(self, url: str) -> requests.Session:
        """A new session to fetch a URL with. Raises Error for a cookie file that cannot be read, or no URL."""
        try:
            urlsplit(url).port  # noqa: B018 - it raises
        except ValueError as e:
            raise Error(f"cannot fetch {url}: {first_line(e)}") from None
        session = _session_class()(self.url or url)
        # Bytes as they lie on the server: offsets would mean nothing in a stream compressed on the way.
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": "mlpdata"})
        jar = _read_cookies(self.cookies) if self.cookies is not None else None
        if session.is_own(url):
            session.headers.update(self.headers)
            session.private = set(self.headers)
            if jar is not None:
                session.cookies = jar  # pyright: ignore[reportAttributeAccessIssue] - requests takes any CookieJar
                session.private.add("Cookie")
        return session

    def get(
        self, session: requests.Session, url: str, start: int = 0, stop: int | None = None, tag: str = ""
    ) -> http.Response:
        """Ask for bytes of a file; see http.get."""
        return http.get(session, url, start, stop, tag)


def _read_cookies(path: Path) -> MozillaCookieJar:
    from http.cookiejar import LoadError, MozillaCookieJar

    jar = MozillaCookieJar(path)
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MAX_COOKIES_BYTES):
            raise LoadError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of damage with a traceback, and then raises
            jar.load(ignore_discard=True, ignore_expires=True)
    except (OSError, LoadError, ValueError) as e:
        reason = getattr(e, "strerror", None) or "it is not in the cookies.txt format that browsers export"
        raise Error(f"cannot read --cookies {path}: {reason}") from None
    for cookie in jar:
        cookie.expires = cookie.expires or None  # browsers write 0 for "as long as the session"
    return jar


@cache
def _session_class():
    import requests

    class Session(requests.Session):
        def __init__(self, home: str):
            super().__init__()
            self._home, self.private = home, set()

        def is_own(self, url: str) -> bool:
            """Whether a URL is on the server that the login is for, or on its encrypted twin."""
            return not self.should_strip_auth(self._home, url)

        def rebuild_auth(self, prepared_request, response):
            # requests itself takes off Authorization only, and adds the cookies of whatever host the file has some for.
            if not self.is_own(str(prepared_request.url)):
                for name in self.private:
                    prepared_request.headers.pop(name, None)
            super().rebuild_auth(prepared_request, response)

    return Session


def parse_headers(lines: tuple[str, ...]) -> dict[str, str]:
    """`K: V` lines as on a command line. Raises Error for what is none."""
    pairs = [line.partition(":") for line in lines]
    for (name, colon, _), line in zip(pairs, lines, strict=True):
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name.strip()) or not line.isprintable():
            raise Error(f"--header {line!r} is no header; expected 'Name: value'")
    return {name.strip(): value.strip() for name, _, value in pairs}
