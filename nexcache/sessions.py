"""Sessions: what an application remembers of a browser, under a random id, shared by all of its processes.

The id is 256 random bits and is nowhere but in the cookie: the store knows its BLAKE2b hash. Every use gives a session
its `ttl` again, never beyond its `max_age`. Sessions are no entries: no invalidation reaches them.

Revoking all sessions of a user is one write: each of them holds the random token that the user had when it began, and
ends with it. It is read with every look at a session that has a user, so that a revocation holds everywhere at once.

While the store is away calls raise StoreUnavailable, unless `when_away="memory"` was chosen. Then new sessions are
held in this process, and go over to the store, one by one, when they are next used and it is back. Those that the
store holds are not guessed, and what ends a session is never pretended.
"""

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from nexcache.errors import ConfigurationError, InvalidName, StoreUnavailable, ValueUnreadable
from nexcache.key import KeySpace
from nexcache.policy import Duration, seconds
from nexcache.stores.codec import Codec, Undecodable
from nexcache.tenants import is_valid_id
from nexcache.value_codec import NotDecodable, Types, ValueCodec
from nexcache.values import Backend, Delete, Expire, Get, MemoryValues, NotAsked, Put, Seals

_ID_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}")
"""What 32 bytes look like in base64url; anything else is no id, and the store is not asked."""
_LONGEST_USER: Final = 1024
_CLOCKS_DIFFER: Final = 60.0
"""Seconds by which the clocks of two nodes may differ: a session held in memory that began so soon after a revocation
on another node is ended with the rest."""
_TOKEN_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Session:
    """A session as it was when it was read."""

    id: str = field(repr=False)
    """What the cookie holds; whoever has it has the session."""
    data: dict[str, Any] = field(repr=False)
    user: str | None
    created_at: float
    """Seconds since 1970."""
    ends_at: float
    """Seconds since 1970 after which no use prolongs it."""
    token: bytes = field(default=b"", repr=False)
    """Its user's token; empty without a user, and for what only this process holds."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A session that this process holds."""

    session: Session
    sent: bool
    """The store may have it too: it was asked to take it, and the answer was lost."""
    memory: MemoryValues


class Sessions:
    """An application's sessions, in one tenant.

    Raises StoreUnavailable while the store is away, StoreRefused where it refuses, NotEncodable (a TypeError) for data
    that would not come back as it was, ValueUnreadable for a stored session that is corrupt, forged, or holds a class
    that is not known here.
    """

    def __init__(
        self,
        *,
        ttl: Duration = "1h",
        max_age: Duration = "7d",
        tenant: str,
        backend: Backend,
        memory: MemoryValues | None,
        keys: KeySpace,
        codec: Codec,
        types: Types,
        seals: Seals | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ttl: float = seconds(ttl, "ttl")
        """Seconds after its last use that a session ends."""
        self.max_age: float = seconds(max_age, "max_age")
        """Seconds after its beginning that a session ends, used or not."""
        if not 0 < self.ttl <= self.max_age:
            raise ConfigurationError(f"sessions need 0 < ttl <= max_age, not ttl={ttl!a} and max_age={max_age!a}")
        if not is_valid_id(tenant):
            raise InvalidName(f"not a tenant's id: {tenant!a}")
        self.values: ValueCodec = ValueCodec(types)
        """Writes what a session holds."""
        self._tenant = tenant
        self._backend = backend
        self._memory = memory
        self._keys = keys
        self._codec = codec
        self._seals = seals
        self._clock = clock
        self._user_ms = _ms(self.max_age + self.ttl)

    async def create(self, data: Mapping[str, Any] | None = None, *, user: str | None = None) -> Session:
        """Begin a session under a new id; `user` is whose it is, once that is known."""
        check_user(user)
        now = self._clock()
        return await self._begin(Session(_new_id(), dict(data or {}), user, now, now + self.max_age))

    async def get(self, session_id: str) -> Session | None:
        """Return a session and prolong it; None where there is none, or none any more."""
        if _ID.fullmatch(session_id) is None:
            return None
        held = self._held(session_id)
        if held is not None and not await self._hand_over(held):
            return held.session
        return await self._get(session_id)

    async def update(self, session_id: str, data: Mapping[str, Any]) -> Session | None:
        """Let a session hold `data` instead of what it held, and prolong it; None where there is none any more."""
        session = await self.get(session_id)
        return None if session is None else await self.save(session, data)

    async def save(self, session: Session, data: Mapping[str, Any]) -> Session | None:
        """As `update`, for a session that was read before: what has ended meanwhile is not begun again."""
        session = replace(session, data=dict(data))
        self.values.encode(session.data)
        held = self._held(session.id)
        if held is not None and not await self._hand_over(held):
            held = self._held(session.id)
            if held is None:
                return None
            await self._hold(replace(held, session=session))
            return session
        return session if await self._put(session, present=True) else None

    async def rotate(self, session_id: str, *, user: str | None = None) -> Session | None:
        """Give a session a new id, and end the old one; to be done whenever rights change, such as at a login.

        With `user` it is that user's from now on; where it was not before, its `max_age` begins anew. None where there
        is none any more: of several at once, one succeeds.
        """
        check_user(user)
        session = await self.get(session_id)
        if session is None or not await self.delete(session_id):
            return None
        if user is not None and user != session.user:
            return await self.create(session.data, user=user)
        return await self._begin(replace(session, id=_new_id()))

    async def delete(self, session_id: str) -> bool:
        """End a session; whether there was one. Raises StoreUnavailable where the store may still hold it."""
        if _ID.fullmatch(session_id) is None:
            return False
        key = self._key(session_id)
        held = self._held(session_id)
        if held is not None:
            held.memory.drop(key)
            if not held.sent:
                return True
        [found] = await self._backend.carry_out([Delete(key)])
        return bool(found) or held is not None

    async def revoke(self, user: str) -> None:
        """End all sessions of a user, everywhere, those that another process holds in memory included.

        Raises StoreUnavailable where some may go on.
        """
        check_user(user)
        if self._memory is not None:
            for key in self._memory.names(self._keys.sessions(self._tenant)):
                if any(self.values.decode(put.data)[2] == user for put in self._memory.held((key,))):
                    self._memory.drop(key)
        token = _token(revoked_at=self._clock())
        await self._backend.carry_out([Put(self._keys.session_user(self._tenant, user), token, self._user_ms)])

    # --- in the store --------------------------------------------------------------------------------------------

    async def _begin(self, session: Session) -> Session:
        self.values.encode(session.data)
        try:
            if session.user is not None and not session.token:
                session = replace(session, token=await self._token_of(session.user))
            await self._put(session, absent=True)
        except StoreUnavailable as error:
            if self._memory is None:
                raise
            session = replace(session, token=b"")
            await self._hold(_Held(session, not isinstance(error, NotAsked), self._memory))
        return session

    async def _get(self, session_id: str) -> Session | None:
        key = self._key(session_id)
        data, _ = await self._backend.carry_out([Get(key), Expire(key, _ms(self.ttl))])
        if data is None:
            return None
        session = await self._read(key, session_id, data)
        if session.ends_at > self._clock():
            if session.user is None:
                return session
            [token] = await self._backend.carry_out([Get(self._keys.session_user(self._tenant, session.user))])
            if token is not None and secrets.compare_digest(token, session.token):
                return session
        await self._backend.carry_out([Delete(key)])
        return None

    async def _put(self, session: Session, *, absent: bool = False, present: bool = False) -> bool:
        key, left = self._key(session.id), self._left(session)
        if left <= 0:
            return False
        data = await self._written(key, session)
        [done] = await self._backend.carry_out([Put(key, data, _ms(left), absent=absent, present=present)])
        return bool(done)

    async def _token_of(self, user: str) -> bytes:
        """Return a user's token, made where there is none, and kept for as long as a session of today can live."""
        key = self._keys.session_user(self._tenant, user)
        _, _, token = await self._backend.carry_out(
            [Put(key, _token(), self._user_ms, absent=True), Expire(key, self._user_ms, longer=True), Get(key)]
        )
        return bytes(token)

    async def _written(self, key: bytes, session: Session) -> bytes:
        payload = self.values.encode(_fields(session))
        if self._seals is not None:
            payload = (await self._seals.of(self._tenant)).seal(key, payload)
        return self._codec.sign(key, payload)

    async def _read(self, key: bytes, session_id: str, data: bytes) -> Session:
        payload: bytes | Undecodable | None = self._codec.verify(key, data)
        if isinstance(payload, bytes) and self._seals is not None:
            payload = (await self._seals.of(self._tenant)).open(key, payload)
        if not isinstance(payload, bytes):
            raise ValueUnreadable(f"a session is {payload.reason if payload is not None else 'sealed otherwise'}")
        try:
            fields = self.values.decode(payload)
        except NotDecodable as error:
            raise ValueUnreadable(f"a session: {error}") from error
        return Session(session_id, *fields)

    def _key(self, session_id: str) -> bytes:
        return self._keys.session(self._tenant, session_id)

    def _left(self, session: Session) -> float:
        return min(self.ttl, session.ends_at - self._clock())

    # --- in this process, until the store is back ----------------------------------------------------------------

    def _held(self, session_id: str) -> _Held | None:
        if self._memory is None:
            return None
        for put in self._memory.held((self._key(session_id),)):
            sent, *fields = self.values.decode(put.data)
            session = Session(session_id, *fields)
            if session.ends_at > self._clock():
                return _Held(session, sent, self._memory)
        return None

    async def _hold(self, held: _Held) -> None:
        data = self.values.encode([held.sent, *_fields(replace(held.session, token=b""))])
        await held.memory.carry_out([Put(self._key(held.session.id), data, _ms(self._left(held.session)))])

    async def _hand_over(self, held: _Held) -> bool:
        """Give the store a session; whether it has it now, or has ended it. If not, its life here is prolonged."""
        session, key = held.session, self._key(held.session.id)
        await self._hold(replace(held, sent=True))  # before anything can leave: whoever ends it now asks the store too
        try:
            if session.user is not None:
                session = replace(session, token=await self._token_of(session.user))
            data = await self._written(key, session)
            ended = _revoked_at(session.token) + _CLOCKS_DIFFER > session.created_at
            if not ended and held.memory.held((key,)):
                put = Put(key, data, _ms(self._left(session)), absent=True)
                await self._backend.carry_out([put])
        except StoreUnavailable as error:
            if held.memory.held((key,)):
                await self._hold(replace(held, sent=held.sent or not isinstance(error, NotAsked)))
            return False
        held.memory.drop(key)
        return True


def _fields(session: Session) -> list[Any]:
    return [session.data, session.user, session.created_at, session.ends_at, session.token]


def _new_id() -> str:
    return secrets.token_urlsafe(_ID_BYTES)


def _token(*, revoked_at: float = 0.0) -> bytes:
    """Make a user's token; when the user's sessions were revoked last concerns those that the store has not seen."""
    return b"%.3f:%b" % (revoked_at, secrets.token_hex(_TOKEN_BYTES).encode())


def _revoked_at(token: bytes) -> float:
    return float(token.partition(b":")[0]) if token else float("-inf")


def check_user(user: str | None) -> None:
    """Raise InvalidName for what cannot name a user."""
    if user is not None and not 0 < len(user.encode("utf-8", "surrogatepass")) <= _LONGEST_USER:
        raise InvalidName(f"a session's user is text of 1 to {_LONGEST_USER} bytes")


def _ms(duration: float) -> int:
    return max(1, round(duration * 1000))
