"""Entries as bytes, and back: a msgpack envelope with a version and a MAC. Never pickle. Pure.

The MAC covers the key too, so that a value that was copied to another key is a miss, like one that was changed,
cut short or never written by NexCache. Without a signing key it is a plain digest: corruption is still caught,
forgery by someone who can write to the store is not.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, Final, Protocol

import msgpack

from nexcache.key import ENVELOPE
from nexcache.message import Entry, StoredResponse
from nexcache.policy import LONGEST
from nexcache.semantics.headers import MOST_FIELDS, is_end_to_end, is_sendable, values
from nexcache.stores.tokens import CLOCK

VERSION: Final = ENVELOPE
_MOST_GENERATIONS: Final = 64
_MOST_CODINGS: Final = 8
_LONGEST_KID: Final = 64
_SPAN: Final = 24
_OLDEST: Final = 2**31
_GZIP: Final = b"gzip"
_GZIP_FRAME: Final = 31
"""The window of zlib, and gzip's frame around it."""
_INFLATED: Final = 256 * 1024
"""Bytes of a body that is inflated while others wait."""
_DENSEST: Final = 64
"""So many times its size a body may be inflated to: nobody who can write to the store makes a bomb of it."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A value that is not used, and why: `corrupt`, `forged`, `sealed` (with another key), `newer`, `older`."""

    reason: str
    worthless: bool = field(default=False, compare=False)
    """No node can read it, whatever its version and its keys: it may be removed."""


_CORRUPT: Final = Undecodable("corrupt", worthless=True)


class Seal(Protocol):
    """Encrypts values; the name is bound to them, so that one cannot be put in another's place."""

    def seal(self, name: bytes, plain: bytes) -> bytes:
        """Encrypt."""

    def open(self, name: bytes, sealed: bytes) -> bytes | None:
        """Decrypt; None for what was not sealed under this name with one of the keys."""


class Codec:
    """Encodes and decodes entries under a ring of signing keys: the first signs, all of them verify."""

    def __init__(self, keys: Mapping[str, bytes] | None = None) -> None:
        self._keys = {kid: blake2b(key, digest_size=32).digest() for kid, key in (keys or {}).items()}
        self._kid = next(iter(self._keys), "")

    @property
    def signs(self) -> bool:
        """Whether a forged value is refused, not only a corrupt one."""
        return bool(self._keys)

    def encode(self, key: bytes, entry: Entry, seal: Seal | None = None) -> bytes:
        """Write an entry down for this key, encrypted where there is a seal."""
        response = entry.response
        payload = msgpack.packb(
            (
                entry.request,
                entry.generations,
                entry.captured,
                int(response.stored_at * 1000),
                int(response.ttl * 1000),
                int(response.kept_on * 1000),
                response.initial_age,
                min(int(response.cost * 1000), _OLDEST - 1),
                response.status,
                response.etag,
                response.headers,
                _plain(response),
                *(each for each in (response.filled_by, response.encoded) if each),
            )
        )
        if seal is not None:
            payload = seal.seal(key, payload)
        return self.sign(key, payload)

    def decode(self, key: bytes, value: bytes, seal: Seal | None = None) -> Entry | Undecodable:
        """Read an entry of this key; never raises, whatever the bytes are."""
        payload = self.verify(key, value)
        if isinstance(payload, Undecodable):
            return payload
        if seal is not None:
            opened = seal.open(key, payload)
            if opened is None:
                return Undecodable("sealed")
            payload = opened
        return _entry(_unpack(payload)) or _CORRUPT

    def sign(self, key: bytes, payload: bytes) -> bytes:
        """Put any bytes into an envelope for this key."""
        return bytes(msgpack.packb((VERSION, self._kid, self._mac(self._kid, key, payload), payload)))

    def verify(self, key: bytes, value: bytes) -> bytes | Undecodable:
        """Take the bytes out of an envelope of this key; never raises, whatever they are."""
        envelope = _unpack(value)
        if not isinstance(envelope, tuple) or not envelope or type(envelope[0]) is not int:
            return _CORRUPT
        if envelope[0] != VERSION:
            return Undecodable("newer" if envelope[0] > VERSION else "older")
        match envelope:
            case (_, str(kid), bytes(mac), bytes(payload)):
                pass
            case _:
                return _CORRUPT
        if kid != "" and kid not in self._keys:
            return Undecodable("forged")
        if self._keys and kid == "":
            return Undecodable("forged")
        if not compare_digest(mac, self._mac(kid, key, payload)):
            return Undecodable("forged", worthless=True) if kid else _CORRUPT
        return payload

    def _mac(self, kid: str, key: bytes, payload: bytes) -> bytes:
        digest = blake2b(digest_size=16, key=self._keys.get(kid, b""), person=b"nexcache-value")
        digest.update(b"%d:%b" % (len(key), key))
        digest.update(payload)
        return digest.digest()


def _unpack(value: bytes) -> Any:
    try:
        return msgpack.unpackb(
            value,
            use_list=False,
            max_bin_len=len(value),
            max_str_len=_LONGEST_KID,
            max_array_len=MOST_FIELDS,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError):
        return None


def _entry(fields: Any) -> Entry | None:
    """Check every type and bound; what passes is as good as if it had been built here."""
    match fields:
        case (
            bytes(request),
            tuple(generations),
            int(captured),
            int(stored_at),
            int(ttl),
            int(kept_on),
            int(initial_age),
            int(cost),
            int(status),
            bytes(etag),
            tuple(headers),
            bytes(body) | int(body),
            *more,
        ):
            pass
        case _:
            return None
    if any(
        number is True or number is False for number in (captured, stored_at, ttl, kept_on, initial_age, cost, status)
    ):
        return None
    if not (_are_pairs(generations, _MOST_GENERATIONS) and generations and _are_pairs(headers, MOST_FIELDS)):
        return None
    if not (200 <= status <= 599 and 0 <= initial_age < _OLDEST):  # noqa: PLR2004
        return None
    # a field of the cache's own, such as what a response varies by, has a name that no message can have
    named = tuple((name.removeprefix(b":"), value) for name, value in headers)
    if not (is_sendable(((b"etag", etag), *named)) and is_end_to_end(named)):
        return None
    if not (stored_at >= 0 and 0 < ttl <= LONGEST * 1000 and 0 <= cost < _OLDEST):
        return None
    if not (0 <= captured < CLOCK and 0 <= kept_on <= LONGEST * 1000):
        return None
    filled_by = b""
    encoded: tuple[tuple[bytes, bytes], ...] = ()
    for each in more:
        if type(each) is bytes and len(each) == _SPAN and not filled_by and not encoded:
            filled_by = each
        elif isinstance(each, tuple) and each and _are_pairs(each, _MOST_CODINGS) and not encoded:
            encoded = each
        else:
            return None
    if type(body) is not bytes:
        inflated = _inflated(dict(encoded).get(_GZIP, b""), body) if type(body) is int else None
        if inflated is None:
            return None
        body = inflated
    if any(length != b"%d" % len(body) for length in values(headers, b"content-length")):
        return None
    response = StoredResponse(
        status,
        headers,
        body,
        etag,
        stored_at / 1000,
        ttl / 1000,
        initial_age,
        cost / 1000,
        kept_on / 1000,
        encoded,
        filled_by,
    )
    return Entry(request, response, generations, captured)


def _plain(response: StoredResponse) -> bytes | int:
    """Return the body as it is stored; where it can be had from its gzip coding, only how many bytes it is."""
    packed = dict(response.encoded).get(_GZIP)
    if packed is None or _inflated(packed, len(response.body)) != response.body:
        return response.body
    return len(response.body)


def _inflated(packed: bytes, size: int) -> bytes | None:
    """Return what has been compressed, if it is so many bytes, and neither many nor much more than there are."""
    if not 0 <= size <= min(_INFLATED, _DENSEST * len(packed)):
        return None
    inflate = zlib.decompressobj(_GZIP_FRAME)
    try:
        body = inflate.decompress(packed, size + 1)
    except zlib.error:
        return None
    return body if len(body) == size and inflate.eof and not inflate.unused_data else None


def _are_pairs(pairs: Sequence[Any], most: int) -> bool:
    return len(pairs) <= most and all(
        isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) is bytes and type(pair[1]) is bytes  # noqa: PLR2004
        for pair in pairs
    )
