"""How the inputs of a class are sent, and what counts as a leak. An attack returns what leaked, or None."""

import base64
import gzip
import hashlib
import json
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgpack
from pydantic import SecretStr

from nexcache.errors import ConfigurationError
from nexcache.settings import Settings
from nexcache.stores.codec import VERSION
from tests.hostile.inputs import Input
from tests.hostile.listener import Listener
from tests.hostile.site import MEMORY, NEW_KEYS, OPERATOR, SECRET_KEYS
from tests.hostile.wire import Reply, Wire, write
from tests.servers import Valkey

Leak: TypeAlias = str | None
MIB: Final = 1024 * 1024
NOT_TRIED: Final = "not tried"


class NotTried(Exception):  # noqa: N818 - reads as what it says
    """There was nothing to attack: no safeguard was shown."""


class Target:
    """A server that is attacked, and what else an attacker or a judge can see of it."""

    def __init__(self, port: int, valkey: Valkey, log: Path, listener: Listener) -> None:
        self.wire = Wire(port)
        self.valkey = valkey
        self.log = log
        self.listener = listener
        self.hits = 0
        """Answers from the cache to those who may have them: an attack on a cache that keeps nothing shows nothing."""

    def state(self, *, anew: bool = False) -> dict[str, int]:
        """Ask the process what it computes, and for the most memory that it took since it was last asked `anew`."""
        found: dict[str, int] = json.loads(
            self.wire.ask("GET", "/", [("x-hostile", "state/anew" if anew else "state/")]).body
        )
        return found

    def settle(self) -> None:
        """Wait until nothing is computed or stored any more."""
        for _ in range(500):
            if not self.state()["running"]:
                return
            time.sleep(0.002)

    def close(self) -> None:
        """Close what is open."""
        self.wire.close()


class Sender:
    """Sends the requests of one input to one tier."""

    def __init__(self, target: Target, given: Input, tier: str) -> None:
        self.target = target
        self.given = given
        self.tier = tier
        self._words = {
            "{id}": given.token(tier),
            "{canary}": given.canary,
            "{listener}": f"127.0.0.1:{target.listener.port}",
        }

    def fill_in(self, text: str, where: str = "") -> str:
        """Fill the placeholders of a text; others stay."""
        for word, value in (*self._words.items(), ("{where}", where)):
            text = text.replace(word, value)
        return text

    def send(self, wanted: Mapping[str, Any], *, tier: str | None = None) -> Reply:
        """Send what an input, or its class, describes."""
        where = f"{tier or self.tier}/{wanted.get('area', 'public')}"
        if raw := wanted.get("raw"):
            replies = self.target.wire.raw(self.fill_in(raw, where).encode("latin-1"))
            return replies[0] if replies else Reply(0)
        fields = [("x-hostile", where), *self._who(wanted)]
        fields += [(self.fill_in(name), self.fill_in(value)) for name, value in wanted.get("fields", ())]
        return self.target.wire.ask(
            wanted.get("method", "GET"),
            self.target_of(wanted),
            fields,
            self._body(wanted),
            host=wanted.get("host", "site.example"),
        )

    def _who(self, wanted: Mapping[str, Any]) -> list[tuple[str, str]]:
        who = wanted.get("who")
        if who is None:
            return []
        return [("x-api-key", OPERATOR if who == "ops" else SECRET_KEYS.get(who, who))]

    def target_of(self, wanted: Mapping[str, Any]) -> str:
        """Return the request's target, with the answer that it asks for."""
        target = self.fill_in(wanted.get("target", "/echo/{id}"))
        if (answer := wanted.get("answer")) is not None:
            text = self.fill_in(json.dumps(answer))
            target += f"?t={self.given.number}&r={base64.urlsafe_b64encode(text.encode()).decode()}"
        return target

    def _body(self, wanted: Mapping[str, Any]) -> bytes | None:
        body = wanted.get("body")
        if body is None:
            return None
        return build(body) if isinstance(body, dict) else self.fill_in(body).encode("latin-1")


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Merge descriptions of requests; fields add up."""
    found: dict[str, Any] = {}
    for table in tables:
        fields = [*found.get("fields", ()), *table.get("fields", ())]
        found |= {**table, "fields": fields}
    return found


# --- an answer that somebody else gets ----------------------------------------------------------------------


def poison(target: Target, given: Input, tier: str) -> Leak:
    """The attacker asks first; then somebody asks harmlessly, and must get what the app itself would say."""
    sender, sends = Sender(target, given, tier), given.sends
    clean = merged(sends.get("clean", {}), {"area": sends.get("area", "public")})
    attack = merged({name: value for name, value in clean.items() if name != "fields"}, _request(sends))
    return _cross(sender, attack, clean, given.canary)


def steal(target: Target, given: Input, tier: str) -> Leak:
    """The victim asks first; then the attacker asks for it, and must get what the app itself would say to them."""
    sender, sends = Sender(target, given, tier), given.sends
    attack = merged({"area": sends.get("area", "keys")}, _request(sends))
    victim = merged(attack if "raw" not in sends else {}, sends["victim"])
    victim["fields"] = sends["victim"].get("fields", [])
    return _cross(sender, victim, attack, None)


def _request(sends: Mapping[str, Any]) -> dict[str, Any]:
    names = ("area", "who", "method", "target", "fields", "body", "raw", "answer", "host")
    return {name: sends[name] for name in names if name in sends}


def _cross(sender: Sender, first: Mapping[str, Any], second: Mapping[str, Any], canary: str | None) -> Leak:
    truth = sender.send(second, tier="none")
    sender.send(first)
    sender.target.settle()
    for _ in range(2):
        got = sender.send(second)
        sender.target.hits += got.hit
        if not got.hit:
            sender.target.settle()
        if got.seen != truth.seen:
            return f"{got.seen} instead of {truth.seen}"
        if canary is not None and got.holds(canary):
            return f"the canary in {got.seen}"
    return None


def not_stored(target: Target, given: Input, tier: str) -> Leak:
    """An answer for one caller that says that nobody else may have it, or that nobody can have."""
    sender, sends = Sender(target, given, tier), given.sends
    request = merged({"target": "/respond/{id}"}, _request(sends))
    callers = [merged(request, {"fields": [("x-caller", name)]}) for name in (given.canary, "somebody", "else")]
    truth = sender.send(callers[1], tier="none")
    sender.send(callers[0])
    target.settle()
    got = sender.send(callers[1])
    if got.holds(given.canary) or got.hit:
        return f"{got.cache}: {got.seen[:2]} {got.body[:80]!r}"
    if got.seen != truth.seen:
        return f"{got.seen} instead of {truth.seen}"
    if sender.send(callers[2]).hit:
        return "stored in the end"
    return None


def endless(target: Target, given: Input, tier: str) -> Leak:
    """An answer without end: neither kept nor held, and over when its client has gone."""
    sender, sends = Sender(target, given, tier), given.sends
    request = merged({"target": "/respond/{id}"}, _request(sends))
    fields = [("x-hostile", f"{tier}/{request.get('area', 'public')}"), ("x-caller", given.canary)]
    wanted = sends.get("read", 4 * MIB)
    got = target.wire.leave_after(write("GET", sender.target_of(request), fields), wanted)
    if got < wanted:
        return f"only {got} bytes came"
    left = target.state()["given"]
    target.settle()
    state = target.state()
    if state["running"]:
        return "the computation goes on without its client"
    taken = state["given"] - left
    return f"{taken // MIB} MiB were taken from the app with nobody there" if taken > 48 * MIB else None


# --- power over others --------------------------------------------------------------------------------------


def refused(target: Target, given: Input, tier: str) -> Leak:
    """A call that is not the caller's to make: refused, with nothing said, and the victim's entry where it was."""
    sender, sends = Sender(target, given, tier), given.sends
    victim = merged({"area": "keys", "who": "globex", "target": "/secret/{id}"}, sends.get("victim", {}))
    sender.send(victim)
    target.settle()
    if not sender.send(victim).hit:
        raise NotTried("the victim has no entry")
    target.hits += 1
    heard = target.listener.heard
    got = sender.send(merged({"area": "keys", "method": "GET"}, _request(sends)))
    allowed = sends.get("allowed", (400, 401, 403, 404, 405))
    if got.status not in allowed:
        return f"{got.status} {got.body[:200]!r}"
    for secret in ("the-key-of", "initech", *(("globex",) if got.status >= 400 else ())):
        if got.holds(secret):
            return f"{secret} in {got.body[:200]!r}"
    if target.listener.heard != heard:
        return "a connection to where the caller said"
    return None if sender.send(victim).hit else "the victim's entry has gone"


def limited(target: Target, given: Input, tier: str) -> Leak:
    """Whoever has used up a limit stays beyond it, whatever a request looks like."""
    sender, sends = Sender(target, given, tier), given.sends
    plain = {"area": "limited", "who": f"the-key-of-{sends['who']}", "target": "/secret/limited"}
    if 429 not in [sender.send(plain).status for _ in range(4)]:
        raise NotTried("there is no limit")
    target.hits += 1
    if before := sends.get("before"):
        sender.send(merged({"area": "keys", "who": plain["who"]}, before))
    got = sender.send(merged(plain, {name: value for name, value in _request(sends).items() if name != "who"}))
    return None if got.status in sends.get("allowed", (429,)) else f"{got.status} beyond the limit"


def flood(target: Target, given: Input, tier: str) -> Leak:
    """Hundreds of keys that nobody asks for twice: the quiet tenant keeps its entries, the store its room."""
    sender, sends = Sender(target, given, tier), given.sends
    where = f"{tier}/flood"
    noisy, quiet = f"noisy-{sender.fill_in('{id}')}", "quiet"
    mine = [
        write("GET", f"/secret/{number}", [("x-hostile", where), ("x-tenant", quiet), ("x-role", "a")])
        for number in range(2)
    ]
    target.wire.many(mine)
    target.settle()
    kept = target.wire.many(mine)
    if not all(reply.hit for reply in kept):
        raise NotTried("the quiet tenant has no entries")
    chance = random.Random(given.number)
    requests = []
    for number in range(sends.get("requests", 64)):
        path, fields = sends["target"], [("x-hostile", where), ("x-tenant", noisy), ("x-role", "a")]
        words = {"{n}": str(number), "{random}": f"{chance.getrandbits(64):x}", "{long}": "x" * 2000}
        more = [(name, value) for name, value in sends.get("fields", ())]
        for word, value in words.items():
            path, more = path.replace(word, value), [(name, text.replace(word, value)) for name, text in more]
        requests.append(write("GET", path, [*fields, *more]))
    for start in range(0, len(requests), 32):
        target.wire.many(requests[start : start + 32])
    target.settle()
    stored = [
        key for key in target.valkey.ask("KEYS", f"nexarch:{noisy}:*") if key.count(b":") == 3 and b":@" not in key
    ]
    if len(stored) > 2 * NEW_KEYS:  # a minute may end meanwhile
        return f"{len(stored)} entries in the store"
    after = target.wire.many(mine)
    if not all(reply.hit for reply in after):
        return f"{sum(not reply.hit for reply in after)} of the quiet tenant's entries have gone"
    if target.state()["quiet"] < len(mine):
        return f"of {MEMORY} entries in memory the quiet tenant's had to leave"
    target.hits += 1
    return None


# --- bytes to be decoded ------------------------------------------------------------------------------------


def otlp(target: Target, given: Input, tier: str) -> Leak:
    """A body that is no OTLP, or too much of it: refused, and nothing is invalidated, held or broken."""
    sender, sends = Sender(target, given, tier), given.sends
    victim = {"area": "keys", "who": "acme", "target": "/secret/{id}"}
    sender.send(victim)
    target.settle()
    if not sender.send(victim).hit:
        raise NotTried("the victim has no entry")
    target.hits += 1
    before = target.state(anew=True)["peak"]
    got = sender.send(
        merged({"area": "keys", "who": "acme", "method": "POST", "target": "/v1/traces"}, _request(sends))
    )
    if got.status not in sends.get("allowed", (400, 401, 413, 415)):
        return f"{got.status} {got.body[:100]!r}"
    if got.holds(given.canary):
        return "the answer repeats the body"
    if (grown := target.state()["peak"] - before) > sends.get("grows", 48 * MIB):
        return f"{grown // MIB} MiB were taken"
    return None if sender.send(victim).hit else "what was refused has invalidated"


def build(wanted: Mapping[str, Any]) -> bytes:
    """Build a body that is too large, or too strange, to be written down."""
    return _built(json.dumps(wanted))


@lru_cache(maxsize=256)
def _built(described: str) -> bytes:
    wanted: dict[str, Any] = json.loads(described)
    data = wanted.get("text", "").encode("latin-1") * wanted.get("times", 1)
    data += bytes.fromhex(wanted.get("hex", ""))
    data += b"\0" * wanted.get("zeros", 0)
    if "ends" in wanted:
        data += wanted["ends"].encode("latin-1") * wanted.get("times", 1)
    for _ in range(wanted.get("gzips", 0)):
        data = gzip.compress(data, 9, mtime=0)
    if wanted.get("deflates"):
        data = zlib.compress(data)
    data *= wanted.get("members", 1)
    return bytes(data[: wanted.get("cut", len(data))])


# --- values in the store ------------------------------------------------------------------------------------


def forge(target: Target, given: Input, tier: str) -> Leak:
    """Somebody who can write to the store changes a value: it is a miss, never an answer."""
    sender, sends = Sender(target, given, tier), given.sends
    tenant, other = f"forged-{sender.fill_in('{id}')}", f"other-{sender.fill_in('{id}')}"

    def ask(who: str, page: str = "page", tier: str | None = None) -> Reply:
        fields = [("x-tenant", who), ("x-role", "reader")]
        return sender.send({"area": "proxy", "target": f"/secret/{page}", "fields": fields}, tier=tier)

    truth = ask(tenant, tier="none")
    ask(tenant)
    target.settle()
    if not ask(tenant).hit:
        raise NotTried("there is no entry")
    target.hits += 1
    key = _entry(target.valkey, tenant)
    value: bytes = target.valkey.ask("GET", key)
    ask(other)
    ask(tenant, "another")
    target.settle()
    pages = [each for each in _entries(target.valkey, tenant) if each != key]
    swapped = {
        "other": lambda: target.valkey.ask("GET", _entry(target.valkey, other)),
        "another": lambda: target.valkey.ask("GET", pages[0]),
    }
    if sends.get("invalidated"):
        sender.send(
            {"area": "proxy", "method": "DELETE", "target": "/admin/invalidate", "fields": [("x-tenant", tenant)]}
        )
    target.valkey.ask("SET", key, swapped[sends["swap"]]() if "swap" in sends else mutate(value, sends), "PX", 60_000)
    got = ask(tenant)
    if got.seen != truth.seen:
        return f"{got.seen} instead of {truth.seen}"
    if got.hit:
        return "the value was used"
    target.settle()
    return None if ask(tenant).hit else "no entry takes its place"


def _entries(valkey: Valkey, tenant: str) -> list[bytes]:
    return sorted(key for key in valkey.ask("KEYS", f"nexarch:{tenant}:secret:*") if key.count(b":") == 3)


def _entry(valkey: Valkey, tenant: str) -> bytes:
    [key] = _entries(valkey, tenant)[:1]
    return key


def mutate(value: bytes, how: Mapping[str, Any]) -> bytes:
    """Change a value as an input says."""
    changed = bytearray(value)
    if "flip" in how:  # which bit, as a part of the whole
        place = int(how["flip"] * len(value))
        changed[min(place, len(value) - 1)] ^= 1 << how.get("bit", 0)
    if "cut" in how:
        changed = changed[: int(how["cut"] * len(value))]
    if "prepend" in how:
        changed = bytearray.fromhex(how["prepend"]) + changed
    if "append" in how:
        changed += bytes.fromhex(how["append"])
    if "replace" in how:
        changed = bytearray.fromhex(how["replace"]) * how.get("times", 1)
    if "text" in how:
        changed = bytearray(how["text"].encode("latin-1") * how.get("times", 1))
    if "zeros" in how:
        changed = bytearray(zlib.compress(bytes(how["zeros"])))
    if any(name in how for name in ("kid", "mac", "version", "payload", "fields")):
        changed = bytearray(_rewritten(value, how))
    return bytes(changed)


_FIELDS: Final = (
    "request",
            "generations",
            "captured",
            "stored_at",
            "ttl",
            "kept_on",
            "initial_age", "cost", "status", "etag", "headers", "body",
)  # fmt: skip


def _rewritten(value: bytes, how: Mapping[str, Any]) -> bytes:
    """Write an envelope anew: what whoever knows the format, and no key, can do."""
    version, kid, mac, payload = msgpack.unpackb(value, use_list=False)
    if "fields" in how:
        names = (
            "request",
            "generations",
            "captured",
            "stored_at",
            "ttl",
            "kept_on",
            "initial_age",
            "cost",
            "status",
            "etag",
            "headers",
            "body",
        )
        known = dict(zip(names, msgpack.unpackb(payload, use_list=False), strict=True))
        for name, text in how["fields"].items():
            known[name] = text.encode("latin-1") if isinstance(text, str) else _tuples(text)
        payload = msgpack.packb(tuple(known.values()))
    payload = bytes.fromhex(how["payload"]) if "payload" in how else payload
    kid, version = how.get("kid", kid), how.get("version", version)
    if how.get("mac") == "digest":
        plain = hashlib.blake2b(digest_size=16, person=b"nexcache-value")
        plain.update(payload)
        mac = plain.digest()
    elif "mac" in how:
        mac = bytes.fromhex(how["mac"])
    return bytes(msgpack.packb((version, kid, mac, payload)))


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(each) for each in value)
    return value.encode("latin-1") if isinstance(value, str) else value


def collide(target: Target, given: Input, tier: str) -> Leak:
    """Hashes of eight bits: requests collide, and nobody gets another's answer."""
    sender, sends = Sender(target, given, tier), given.sends
    who, paths = sends["who"], [sender.fill_in(sends["target"]).replace("{n}", str(number)) for number in range(24)]
    where = f"{tier}/short"
    key = SECRET_KEYS[who]
    for _ in range(2):
        requests = [
            write("GET", path, [("x-hostile", where), ("x-api-key", key), *sends.get("fields", ())]) for path in paths
        ]
        for path, reply in zip(paths, target.wire.many(requests), strict=True):
            if ascii(path.partition("?")[0]).encode() not in reply.body and path.encode() not in reply.body:
                return f"{path}: {reply.body[:200]!r}"
            target.hits += reply.hit
        target.settle()
    return None


# --- what is written down -----------------------------------------------------------------------------------


def logged(target: Target, given: Input, tier: str) -> Leak:
    """Text that would forge a line of the log, or a secret that has no place there."""
    sender, sends = Sender(target, given, tier), given.sends
    size = target.log.stat().st_size
    replies = [sender.send(merged({"area": "keys", "who": "acme"}, _request(sends))) for _ in range(2)]
    told = sender.send({"area": "keys", "who": "ops", "target": "/admin/metrics"}).body
    told += sender.send({"area": "keys", "who": "ops", "target": "/admin/health"}).body
    with target.log.open("rb") as log:
        log.seek(size)
        lines = log.read()
    for needle in (sender.fill_in(each).encode("latin-1") for each in sends["unseen"]):
        if needle in lines:
            return f"{needle!r} in the log"
        if needle in told:
            return f"{needle!r} in metrics or health"
        if any(reply.status >= 400 and needle in reply.body for reply in replies):
            return f"{needle!r} in the error"
    target.hits += 1
    return None


def settings(given: Input, parse: Callable[..., object] = Settings) -> Leak:
    """A malformed setting: the error says which it is, and no piece of what it holds, in no part of its chain."""
    sends = given.sends
    secret = sends.get("secret", "S3CR3Tpw")
    try:
        made = parse(**{sends.get("setting", "redis_url"): SecretStr(sends["value"])})
    except ConfigurationError as error:
        told: list[str] = []
        chain: BaseException | None = error
        while chain is not None:
            told += [repr(chain), str(chain), repr(chain.args), *map(str, getattr(chain, "__notes__", ()))]
            chain = chain.__cause__ or chain.__context__
    except Exception as error:  # noqa: BLE001 - anything else is no answer for whoever configures
        return f"{type(error).__name__}: {error}"
    else:
        told = [repr(made), str(made)]
    pieces = sends.get("pieces", [secret, "S3CR"])
    return next((f"{piece} in {text}" for text in told for piece in pieces if piece in text), None)


ATTACKS: Final[Mapping[str, Callable[[Target, Input, str], Leak]]] = {
    "poison": poison,
    "steal": steal,
    "not-stored": not_stored,
    "endless": endless,
    "refused": refused,
    "limited": limited,
    "flood": flood,
    "otlp": otlp,
    "forge": forge,
    "collide": collide,
    "logged": logged,
}
IN_PROCESS: Final = "settings"


def run(target: Target, inputs: Sequence[Input], tier: str) -> list[tuple[Input, str]]:
    """Try inputs at one tier; returns what leaked."""
    found = []
    for each in inputs:
        try:
            leak = ATTACKS[each.group.attack](target, each, tier)
        except NotTried as reason:
            leak = f"{NOT_TRIED}: {reason}"
        if leak is not None:
            found.append((each, leak))
    return found


assert VERSION == 4, "the forged values are written for this format"
