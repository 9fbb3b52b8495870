"""Sessions in front of an app: `scope["session"]`, a mapping of which the browser holds nothing but a random id.

Starlette's and FastAPI's `request.session` is the same mapping. The cookie is `HttpOnly`, `Secure`, `SameSite=Lax` and
named `__Host-…` (draft-ietf-httpbis-rfc6265bis §4.1.3): no other host can set it, and no script can read it.
"""

import json
import re
from collections.abc import Iterator, MutableMapping
from typing import Any, Final, Literal

from nexcache.asgi import ASGIApp, Message, Receive, Scope, Send
from nexcache.errors import ConfigurationError, StoreError, StoreUnavailable, ValueUnreadable
from nexcache.sessions import Session, Sessions, check_user

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TRY_AGAIN_LATER: Final = 1013
_BODY: Final = json.dumps(
    {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "Sessions cannot be read or written at the moment; try again.",
    }
).encode()


class RequestSession(MutableMapping[str, Any]):
    """What an app remembers of a browser. What is changed before the response begins is stored before it is sent."""

    def __init__(self, stored: Session | None, sessions: Sessions, *, unread: str | None = None) -> None:
        self._sessions = sessions
        self._stored = stored
        self._unread = unread
        self._data: dict[str, Any] = {} if stored is None else dict(stored.data)
        self._before = self._written()
        self._user = None if stored is None else stored.user
        self._rotates = self._logs_in = self._ends = False
        self.accessed: bool = False
        """Whether the app has looked: the response depends on the cookie then."""

    @property
    def user(self) -> str | None:
        """Whose session it is; None before a login."""
        self.accessed = True
        return self._user

    def login(self, user: str) -> None:
        """Begin a session of this user with what is remembered; an id from before the login is worth nothing."""
        check_user(user)
        self.accessed = True
        if user != self._user and self._user is not None:
            self._data.clear()  # what the one user did is not the other's
        self._user, self._logs_in = user, True

    def rotate(self) -> None:
        """Give the session a new id; to be done when rights change."""
        self.accessed = self._rotates = True

    def end(self) -> None:
        """End the session: a logout. What is written after it begins another."""
        self.accessed = self._ends = True
        self._data.clear()
        self._user, self._logs_in = None, False

    def __getitem__(self, name: str) -> Any:
        """Return what is remembered under a name."""
        self.accessed = True
        return self._data[name]

    def __setitem__(self, name: str, value: Any) -> None:
        """Remember something."""
        self.accessed = True
        self._data[name] = value

    def __delitem__(self, name: str) -> None:
        """Forget something."""
        self.accessed = True
        del self._data[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        self.accessed = True
        return iter(self._data)

    def __len__(self) -> int:
        """How many names there are."""
        self.accessed = True
        return len(self._data)

    def __repr__(self) -> str:
        """Say nothing of what is remembered."""
        return f"<{type(self).__name__} of {len(self._data)} names>"

    async def store(self) -> str | None:
        """Carry out what was done; returns the id for the cookie, "" for none any more, None where it may stay.

        Raises StoreError where that is not certain.
        """
        stored, sessions = self._stored, self._sessions
        leaves = self._ends or self._logs_in
        if leaves and stored is not None:
            await sessions.delete(stored.id)
        elif self._ends and self._unread is not None:
            await sessions.delete(self._unread)
        if leaves or stored is None:
            changed = self._before != self._written()
            if changed and not leaves and self._unread is not None:
                raise StoreUnavailable("connection", "the session was not read: it cannot be changed")
            if self._logs_in or (self._data if leaves else changed):
                return (await sessions.create(self._data, user=self._user)).id
            return "" if self._ends else None
        moved = stored
        if self._rotates:
            rotated = await sessions.rotate(stored.id)
            if rotated is None:  # it has ended, or another request was first: the cookie may be that one's
                return None
            moved = rotated
        if self._before != self._written():
            await sessions.save(moved, self._data)
        return moved.id if self._rotates else None

    def _written(self) -> bytes:
        return self._sessions.values.encode(self._data)


class SessionMiddleware:
    """Gives an app `scope["session"]`, and the browser its cookie.

    `sessions` is what `cache.sessions(…)` made. The session is read before the app is called, which prolongs it, and
    what was changed is written before the response begins; changes after that are not kept. Where the response depends
    on the session it gets `Vary: Cookie`, and where it sets the cookie `Cache-Control: no-store`.

    While the store is away a request with a session's cookie is answered with 503, or (`when_away="anonymous"`) passed
    on without its session; what cannot be written is always answered with 503. `secure=False` is for development
    without TLS. Raises ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: Sessions,
        cookie: str | None = None,
        secure: bool = True,
        same_site: Literal["lax", "strict", "none"] = "lax",
        when_away: Literal["refuse", "anonymous"] = "refuse",
    ) -> None:
        name = cookie if cookie is not None else "__Host-session" if secure else "session"
        if _TOKEN.fullmatch(name) is None:
            raise ConfigurationError(f"SessionMiddleware: no name of a cookie: {name!a}")
        if not secure and (name.lower().startswith(("__host-", "__secure-")) or same_site == "none"):
            raise ConfigurationError("SessionMiddleware: __Host-, __Secure- and SameSite=None need secure=True")
        if same_site not in ("lax", "strict", "none"):
            raise ConfigurationError(f'SessionMiddleware: same_site is "lax", "strict" or "none", not {same_site!a}')
        if when_away not in ("refuse", "anonymous"):
            raise ConfigurationError(f'SessionMiddleware: when_away is "refuse" or "anonymous", not {when_away!a}')
        self.app = app
        self._sessions = sessions
        self._name = name.encode()
        self._attributes = f"; Path=/; HttpOnly{'; Secure' if secure else ''}; SameSite={same_site.title()}".encode()
        self._refuses = when_away == "refuse"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the session, call the app, and write the session before the response."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        asked = self._asked(scope)
        stored: Session | None = None
        unread: str | None = None
        try:
            stored = await self._sessions.get(asked) if asked else None
        except ValueUnreadable:
            pass  # as good as none
        except StoreError:
            if self._refuses:
                await _refuse(scope, receive, send)
                return
            unread = asked
        session = RequestSession(stored, self._sessions, unread=unread)
        refused = False

        async def tell(message: Message) -> None:
            nonlocal refused
            if refused:
                return
            if message["type"] in ("http.response.start", "websocket.accept"):
                try:
                    session_id = await session.store()
                except StoreError:
                    refused = True
                    await _refuse(scope, None, send)
                    return
                message = {**message, "headers": [*message.get("headers", ()), *self._fields(session, session_id)]}
            await send(message)

        await self.app({**scope, "session": session}, receive, tell)

    def _asked(self, scope: Scope) -> str | None:
        """Return the cookie's value; None where there is none, or more than one: which is whose is not guessed."""
        found = {
            value.strip()
            for name, line in scope["headers"]
            if name == b"cookie"
            for each, is_pair, value in (pair.partition(b"=") for pair in line.split(b";"))
            if is_pair and each.strip() == self._name
        }
        return found.pop().decode("latin-1") if len(found) == 1 else None

    def _fields(self, session: RequestSession, session_id: str | None) -> list[tuple[bytes, bytes]]:
        fields = [(b"vary", b"Cookie")] if session.accessed else []
        if session_id is not None:
            age = round(self._sessions.max_age) if session_id else 0
            value = b"%b=%b; Max-Age=%d%b" % (self._name, session_id.encode(), age, self._attributes)
            fields += [(b"set-cookie", value), (b"cache-control", b"no-store")]
        return fields


async def _refuse(scope: Scope, receive: Receive | None, send: Send) -> None:
    if scope["type"] == "websocket":
        if receive is not None:
            await receive()  # websocket.connect comes first
        await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
        return
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(_BODY)),
        (b"cache-control", b"no-store"),
        (b"retry-after", b"1"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else _BODY, "more_body": False})
