"""Invalidates when the surrounding transaction has committed: Django's, or that of a SQLAlchemy session.

Before the commit nobody else can see the change yet: an answer that is computed in between would be stored as the old
one, under the new generations. What was rolled back invalidates nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

Invalidate: TypeAlias = Callable[[], Coroutine[Any, Any, object]]
Run: TypeAlias = Callable[[Coroutine[Any, Any, object]], object]
"""Runs a coroutine to its end, in a thread without an event loop."""
_PENDING: Final = "nexcache.after_commit"
"""Where a session keeps what is to be done."""


def after_django(invalidate: Invalidate, run: Run, using: str | None) -> None:
    """Invalidate when the transaction of this thread commits, or now where there is none.

    `using` is the alias of the database. The commit returns when the invalidation has.
    """
    from django.db import transaction  # noqa: PLC0415 - only for those who use it

    transaction.on_commit(lambda: run(invalidate()), using=using)


def after_sqlalchemy(invalidate: Invalidate, run: Run, session: Any) -> None:
    """Invalidate when the session's transaction commits; a savepoint's release is no commit.

    `session` is a `Session` or an `AsyncSession`. The commit returns when the invalidation has. Raises RuntimeError for
    a `Session` in a thread whose event loop is running: its commit could not wait.
    """
    from sqlalchemy import event  # noqa: PLC0415 - only for those who use it
    from sqlalchemy.util import await_only  # noqa: PLC0415 - as above
    from sqlalchemy.util.concurrency import in_greenlet  # noqa: PLC0415 - as above

    own = getattr(session, "sync_session", session)
    if own is session and _in_loop() and not in_greenlet():
        raise RuntimeError(
            "the commit of a Session would hold up the event loop that runs in this thread: use an AsyncSession, or "
            "await cache.invalidate(…) after the commit"
        )
    if _PENDING in own.info:
        own.info[_PENDING].append(invalidate)
        return
    pending = own.info[_PENDING] = [invalidate]

    def committed(session: Any) -> None:
        if session.in_nested_transaction():
            return
        due = pending.copy()
        pending.clear()
        for each in due:
            if _in_loop():
                await_only(each())
            else:
                run(each())

    def ended(_session: Any, transaction: Any) -> None:
        if transaction.parent is None:  # of what was undone with a savepoint alone, too much is invalidated
            pending.clear()

    event.listen(own, "after_commit", committed)
    event.listen(own, "after_transaction_end", ended)


def _in_loop() -> bool:
    return asyncio._get_running_loop() is not None  # noqa: SLF001 - documented; its public form raises
