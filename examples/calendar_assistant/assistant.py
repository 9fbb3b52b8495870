"""The calendar assistant: the slow directory behind cached functions."""

from typing import Any

from examples.calendar_assistant.directory import Event, RemoteDirectory, User
from nexcache import NexCache
from nexcache.functions import Cached
from nexcache.invalidation.apply import Invalidation

ORGANISATION = "contoso"

# REDIS_URL → Redis or Valkey; without it, in memory. REDIS_CACHE_ENABLED=false: every call goes to the directory.
cache = NexCache.from_env(default_tenant=ORGANISATION)
directory = RemoteDirectory(ORGANISATION)

# The names of the operations are those of the environment: CACHE_TTL_USER_INFO, CACHE_TTL_DEPARTMENTS,
# CACHE_TTL_CALENDAR. Several functions may share one; their arguments and names tell their results apart.


@cache.cached("user_info", ttl=600, tags=["lists"])
async def get_all_users(limit: int = 100) -> tuple[User, ...]:
    return await directory.users(limit)


@cache.cached("user_info", ttl=600, tags=["user:{user_id}"])
async def get_user_by_user_id(user_id: str) -> User | None:
    return await directory.user(user_id)


@cache.cached("user_info", ttl=600, tags=["lists"])
async def search_users(text: str) -> tuple[User, ...]:
    return await directory.search(text)


@cache.cached("departments", ttl=3600)
async def get_all_departments() -> tuple[str, ...]:
    return await directory.departments()


@cache.cached("calendar", ttl=180, tags=["user:{user_id}"])
async def get_calendar_events(user_id: str, days: int = 7) -> tuple[Event, ...]:
    return await directory.events(user_id, days)


@cache.cached("user_info", ttl=600, tags=["user:{mail}"], condition=bool)  # "there is none" is asked again
async def validate_user_mailbox(mail: str) -> bool:
    return await directory.has_mailbox(mail)


@cache.cached("user_info", ttl=600, tags=["user:{user_id}", "lists"])
async def get_users_manager_by_user_id(user_id: str) -> User | None:
    return await directory.manager(user_id)


async def user_changed(user_id: str, mail: str) -> Invalidation:
    """Take the directory's event that a user was changed: all that was known of the user, in one call."""
    return await cache.invalidate(ORGANISATION, tags=[f"user:{user_id}", f"user:{mail}", "lists"])


CALLS: dict[str, tuple[Cached[..., Any], tuple[Any, ...]]] = {
    "get_all_users(100)": (get_all_users, (100,)),
    "get_user_by_user_id": (get_user_by_user_id, ("u42",)),
    "search_users": (search_users, ("user 4",)),
    "get_all_departments": (get_all_departments, ()),
    "get_calendar_events": (get_calendar_events, ("u42",)),
}
"""What is measured: a function and its arguments."""
