"""The remote directory: an API that takes its time. What it answers is made up, how long it takes is not.

`DIRECTORY_SCALE` scales the latencies: 1 (the default) is what was measured with the real one, 0.02 is for tests.
"""

import asyncio
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

LATENCIES: Final = {
    "get_all_users": 2.5,
    "get_user_by_user_id": 0.8,
    "search_users": 1.2,
    "get_all_departments": 3.1,
    "get_calendar_events": 1.5,
    "validate_user_mailbox": 0.6,
    "get_users_manager_by_user_id": 0.7,
}
"""Seconds."""


# Frozen, and in tuples: what nobody can change is read once and handed to every caller. Lists and other dataclasses
# work as well; each caller then gets his own copy, which costs what making it costs.


@dataclass(frozen=True, slots=True)
class User:
    id: str
    name: str
    mail: str
    department: str
    manager: str | None


@dataclass(frozen=True, slots=True)
class Event:
    subject: str
    starts: datetime
    lasts: timedelta
    attendees: tuple[str, ...]


class RemoteDirectory:
    """One organisation's users and calendars, behind a slow network."""

    def __init__(self, organisation: str, *, scale: float | None = None) -> None:
        self.organisation = organisation
        self.calls = 0
        self._scale = scale if scale is not None else float(os.environ.get("DIRECTORY_SCALE", "1"))
        departments = ["Engineering", "Sales", "Support", "Finance"]
        self._users = {
            f"u{number}": User(
                f"u{number}",
                f"User {number}",
                f"user{number}@{organisation}.example",
                departments[number % len(departments)],
                f"u{number // 10}" if number else None,
            )
            for number in range(200)
        }

    async def request(self, operation: str) -> None:
        """Wait as long as the remote API does."""
        self.calls += 1
        await asyncio.sleep(LATENCIES[operation] * self._scale)

    async def users(self, limit: int) -> tuple[User, ...]:
        await self.request("get_all_users")
        return tuple(self._users.values())[:limit]

    async def user(self, user_id: str) -> User | None:
        await self.request("get_user_by_user_id")
        return self._users.get(user_id)

    async def search(self, text: str) -> tuple[User, ...]:
        await self.request("search_users")
        return tuple(user for user in self._users.values() if text.lower() in user.name.lower())

    async def departments(self) -> tuple[str, ...]:
        await self.request("get_all_departments")
        return tuple(sorted({user.department for user in self._users.values()}))

    async def events(self, user_id: str, days: int) -> tuple[Event, ...]:
        await self.request("get_calendar_events")
        start = datetime(2025, 1, 6, 9, tzinfo=UTC)
        return tuple(
            Event(f"Stand-up of {user_id}", start + timedelta(days=day), timedelta(minutes=15), (user_id, "u0"))
            for day in range(days)
        )

    async def has_mailbox(self, mail: str) -> bool:
        await self.request("validate_user_mailbox")
        return any(user.mail == mail for user in self._users.values())

    async def manager(self, user_id: str) -> User | None:
        await self.request("get_users_manager_by_user_id")
        user = self._users.get(user_id)
        return self._users.get(user.manager) if user is not None and user.manager is not None else None

    def rename(self, user_id: str, name: str) -> None:
        """Change what the directory says of a user."""
        self._users[user_id] = replace(self._users[user_id], name=name)
