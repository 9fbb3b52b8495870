"""What a type checker sees of cached functions: their own signatures. mypy reads this file with the rest.

Every `assert_type` and every ignored error is checked by `mypy --strict`, which fails for an ignore that is not needed.
"""

from typing import assert_type

import pytest

from nexcache import NexCache, Settings
from nexcache.functions import Cached
from nexcache.sync import SyncCached

cache = NexCache(Settings(redis_url=None, redis_host=None), default_tenant="acme")


@cache.cached("user", ttl=60)
async def user(number: int, *, active: bool = True) -> dict[str, int]:
    """One user."""
    return {"number": number}


@cache.sync.cached("user", ttl=60)
def plain(number: int, *, active: bool = True) -> dict[str, int]:
    """One user."""
    return {"number": number}


class Directory:
    @cache.cached("user", ttl=60, exclude=["self"])
    async def user(self, number: int) -> str:
        return str(number)

    @cache.sync.cached("user", ttl=60, exclude=["self"])
    def plain(self, number: int) -> str:
        return str(number)


async def test_a_coroutine_function_keeps_its_signature() -> None:
    assert_type(user, Cached[[int, bool], dict[str, int]])  # type: ignore[assert-type] # the names are kept, too
    assert_type(await user(1, active=False), dict[str, int])
    assert_type(await user.refresh(1), dict[str, int])
    assert_type(await user.bypass(number=1), dict[str, int])
    assert_type(user.key(1), str)
    assert_type(await user.set({}, 1), bool)
    with pytest.raises(TypeError):
        await user("1", 2)  # type: ignore[arg-type,call-arg]
    with pytest.raises(TypeError):
        await user.invalidate(unknown=1)  # type: ignore[call-arg]
    assert await user.set(5, 1)  # type: ignore[arg-type]


def test_a_plain_function_keeps_its_signature() -> None:
    assert_type(plain(1, active=False), dict[str, int])
    assert_type(plain.refresh(1), dict[str, int])
    assert_type(plain.set({}, 1), bool)
    with pytest.raises(TypeError):
        plain.key(1, 2)  # type: ignore[call-arg,arg-type]
    with pytest.raises(TypeError):
        plain()  # type: ignore[call-arg]
    cache.sync.close()


async def test_a_method_keeps_its_signature_without_self() -> None:
    assert_type(await Directory().user(1), str)
    assert_type(Directory().user, Cached[[int], str])  # type: ignore[assert-type]
    assert_type(await Directory.user(Directory(), 1), str)
    assert_type(Directory().user.key(1), str)
    with pytest.raises(TypeError):
        await Directory().user()  # type: ignore[call-arg]


def test_a_plain_method_keeps_its_signature_without_self() -> None:
    assert_type(Directory().plain(1), str)
    assert_type(Directory.plain(Directory(), 1), str)
    assert isinstance(Directory.plain, SyncCached)
    with pytest.raises(TypeError):
        Directory().plain.invalidate(1, 2)  # type: ignore[call-arg]
    cache.sync.close()
