"""The dashboard page: a static shell without data, which asks the endpoints with the key that is typed in.

Anybody may have the shell: it says nothing. Its content security policy permits nothing from outside, no inline
script or style, and no place for text to become markup.
"""

from collections.abc import Mapping
from hashlib import blake2b
from importlib.resources import files
from typing import Final
from urllib.parse import quote

from nexcache.admin.answers import Answer
from nexcache.asgi import Headers, Scope
from nexcache.semantics.headers import first
from nexcache.semantics.validation import none_match

_FOLDER: Final = "page"
"""The path below which the files are served."""
_KINDS: Final = {"js": b"text/javascript", "css": b"text/css", "svg": b"image/svg+xml"}
_POLICY: Final = b"; ".join(
    (
        b"default-src 'none'",
        b"script-src 'self'",
        b"style-src 'self'",
        b"img-src 'self'",
        b"connect-src 'self'",
        b"base-uri 'none'",
        b"form-action 'none'",
        b"frame-ancestors 'none'",
        b"require-trusted-types-for 'script'",
        b"trusted-types 'none'",
    )
)
_GUARDS: Final[Headers] = (
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


class Page:
    """The files of the page, read once."""

    def __init__(self) -> None:
        self._files: Mapping[str, bytes] | None = None

    def answer(self, scope: Scope, segments: list[str]) -> Answer | None:
        """Answer a request for the page or one of its files; None where it is for neither."""
        if scope["method"] not in ("GET", "HEAD"):
            return None
        if not segments:
            return self._file(scope, "index.html")
        if len(segments) == 2 and segments[0] == _FOLDER and segments[1] in self._all():  # noqa: PLR2004
            return self._file(scope, segments[1])
        return None

    def _file(self, scope: Scope, name: str) -> Answer:
        body = self._all()[name]
        if name == "index.html":
            body = body.replace(b'="page/', b'="' + _to(scope) + b"page/")
        etag = b'"' + blake2b(body, digest_size=12).hexdigest().encode() + b'"'
        headers = ((b"etag", etag), *_GUARDS)
        condition = first(scope["headers"], b"if-none-match")
        kind = _KINDS.get(name.rpartition(".")[2], b"text/html") + b"; charset=utf-8"
        if condition is not None and none_match(condition, etag):
            return Answer(304, b"", kind, headers)
        return Answer(200, body, kind, headers)

    def _all(self) -> Mapping[str, bytes]:
        if self._files is None:
            folder = files("nexcache.admin") / "dashboard"
            self._files = {
                each.name: each.read_bytes()
                for each in folder.iterdir()
                if each.is_file() and each.name.rpartition(".")[2] in (*_KINDS, "html")
            }
        return self._files


def _to(scope: Scope) -> bytes:
    """Return the way from the page's own URL to what lies below it: nothing after a slash.

    Relative, because a proxy may have taken a prefix away that nobody here knows of.
    """
    path: str = scope["path"] or scope.get("root_path", "")
    return b"" if path.endswith("/") or not path else quote(path.rpartition("/")[2], safe="").encode() + b"/"
