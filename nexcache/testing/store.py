"""A store that fails, is slow, or answers wrong, by a script or by chance, and counts what it did."""

import asyncio
import inspect
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from nexcache.errors import StoreError, StoreUnavailable
from nexcache.stores.base import Capture, Reading, Store


@dataclass
class _Script:
    """What is to happen to calls of some operations."""

    operations: str
    kind: Literal["failed", "lost", "delayed", "corrupted"]
    times: int | None
    """How often yet; None: always."""
    chance: float
    seconds: float = 0.0
    error: Callable[[], StoreError] | None = None


def _timeout() -> StoreError:
    return StoreUnavailable("timeout", "the store did not answer in time, as the test wants it")


if TYPE_CHECKING:
    _AnyStore = Any  # it may be given for a store of any class, as a mock may
else:
    _AnyStore = object


class FaultyStore(_AnyStore):  # type: ignore[misc]  # to a type checker it is whatever is asked for
    """Stands for a store, and does what it is told to the calls of its operations: those of `Store`, and its own.

        store = FaultyStore(MyStore())
        store.fail("read", times=3)
        store.fail("unlink", answer_lost=True)  # it was done, and nobody knows
        store.delay("*", 0.2, chance=0.1)
        ...
        assert store.seen["read failed"] == 3

    Operations are named as their methods are, or by a glob. Of several faults that were asked for, all that apply
    happen to a call, in the order in which they were asked for, until one of them ends it. The draws follow from
    `seed`. A call that is delayed beyond its deadline fails there with StoreUnavailable("timeout"), as stores promise.
    """

    def __init__(self, store: Store, *, seed: int = 0) -> None:
        self._store = store
        self._scripts: list[_Script] = []
        self._draw = random.Random(seed)  # noqa: S311 - no secret
        self._seen: Counter[str] = Counter()

    @property
    def seen(self) -> Counter[str]:
        """How often which operation was `failed`, `lost`, `delayed` or `corrupted`: `"read failed"`, and so on."""
        return self._seen

    def fail(
        self,
        operations: str,
        *,
        times: int | None = None,
        chance: float = 1.0,
        error: Callable[[], StoreError] = _timeout,
        answer_lost: bool = False,
    ) -> None:
        """Fail calls; with `answer_lost` they are carried out, and fail all the same."""
        kind: Literal["lost", "failed"] = "lost" if answer_lost else "failed"
        self._scripts.append(_Script(operations, kind, times, chance, error=error))

    def delay(self, operations: str, seconds: float, *, times: int | None = None, chance: float = 1.0) -> None:
        """Keep calls waiting before they are carried out."""
        self._scripts.append(_Script(operations, "delayed", times, chance, seconds))

    def corrupt(self, operations: str = "read", *, times: int | None = None, chance: float = 1.0) -> None:
        """Turn one bit of a value that a call returns; calls that return none are left alone and not counted."""
        self._scripts.append(_Script(operations, "corrupted", times, chance))

    def heal(self) -> None:
        """Do as the store does from now on; what was counted stays."""
        self._scripts.clear()

    def __getattr__(self, name: str) -> Any:
        if name == "_store":  # asked for before there is one
            raise AttributeError(name)
        found = getattr(self._store, name)
        if name.startswith("_") or not inspect.iscoroutinefunction(found):
            return found

        @wraps(found)
        async def call(*arguments: Any, **options: Any) -> Any:
            return await self._carry_out(name, found, arguments, options)

        return call

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            setattr(self._store, name, value)

    async def _carry_out(
        self, name: str, method: Callable[..., Awaitable[Any]], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        after: list[_Script] = []
        for script in tuple(self._scripts):
            if not self._applies(script, name):
                continue
            if script.kind in ("lost", "corrupted"):
                after.append(script)
                continue
            self._note(script, name)
            if script.kind == "delayed":
                await self._wait(script.seconds, options.get("deadline"))
            elif script.error is not None:
                raise script.error()
        result = await method(*arguments, **options)
        for script in after:
            if script.kind == "lost" and script.error is not None:
                self._note(script, name)
                raise script.error()
            corrupted = self._corrupted(result)
            if corrupted is not result:
                self._note(script, name)
                result = corrupted
        return result

    def _applies(self, script: _Script, name: str) -> bool:
        if script.times == 0 or not fnmatchcase(name, script.operations):
            return False
        return script.chance >= 1 or self._draw.random() < script.chance

    def _note(self, script: _Script, name: str) -> None:
        self._seen[f"{name} {script.kind}"] += 1
        if script.times is not None:
            script.times -= 1

    async def _wait(self, seconds: float, deadline: float | None) -> None:
        left = seconds if deadline is None else deadline - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, min(seconds, left)))
        if left < seconds:
            raise _timeout()

    def _corrupted(self, result: Any) -> Any:
        match result:
            case bytes() if result:
                at, bit = divmod(self._draw.randrange(8 * len(result)), 8)
                return result[:at] + bytes((result[at] ^ 1 << bit,)) + result[at + 1 :]
            case Reading(values=values) if (changed := self._one_of(values)) is not None:
                return result._replace(values=changed)
            case Capture(tokens=tokens) if (changed := self._one_of(tokens)) is not None:
                return result._replace(tokens=changed)
            case _:
                return result

    def _one_of(self, values: Any) -> list[bytes | None] | None:
        places = [place for place, value in enumerate(values) if value]
        if not places:
            return None
        place = self._draw.choice(places)
        return [self._corrupted(value) if index == place else value for index, value in enumerate(values)]
