"""What NexCache raises. Outcomes of a request (a miss, a bypass) are values, never exceptions."""


class NexCacheError(Exception):
    """The root of every error that NexCache raises."""


class ConfigurationError(NexCacheError, ValueError):
    """A setting or an argument cannot work; the message names it, says what would, and holds no secret."""


class InvalidName(NexCacheError, ValueError):  # noqa: N818 - reads as what it says
    """A tenant, an operation or a tag that cannot be part of a key."""


class CannotKey(NexCacheError, TypeError):  # noqa: N818 - reads as what it says
    """An argument of a cached function cannot be part of a key; says which, and what to do."""

    def __init__(self, function: str, argument: str, kind: str) -> None:
        super().__init__(
            f"{function}(): the argument {argument!r} of type {kind} cannot be part of a key: exclude=[{argument!r}] "
            f"if it makes no difference to the result, key=… to say what does, or give {kind} a method __cache_key__()"
        )
        self.argument = argument


class NoTenant(NexCacheError, LookupError):  # noqa: N818 - reads as what it says
    """A call names no tenant, and there is no default one: whose result it is cannot be known."""

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation}: no tenant: name the argument that holds it (tenant=…), call it inside a request that the "
            "middleware has resolved or inside tenants.acting_for(…), or build NexCache(default_tenant=…)"
        )


class ValueUnreadable(NexCacheError, ValueError):  # noqa: N818 - reads as what it says
    """A kept value is there but cannot be used: corrupt, forged, or of a class that is not known here."""


class OverQuota(NexCacheError):  # noqa: N818 - reads as what it says
    """A tenant holds, or keeps each second, as much as its quota permits; nothing was kept."""


class StoreError(NexCacheError):
    """The store did not do what it was asked to; nothing is known of the value."""


class StoreUnavailable(StoreError, ConnectionError):  # noqa: N818 - reads as what it says
    """The store could not be reached in time, or the breaker keeps requests from it for now.

    `kind` is one word of a closed list: `timeout`, `connection`, `breaker`, `busy`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StoreRefused(StoreError):  # noqa: N818 - reads as what it says
    """The store was reached and refused: memory full, no permission, a replica, a wrong password.

    `kind` is one word of a closed list: `out-of-memory`, `auth`, `readonly`, `refused`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class OriginFailed(NexCacheError):  # noqa: N818 - reads as what it says
    """The app behind the cache is a service elsewhere, and that failed: not reached, too slow, or cut off.

    `status` is what a gateway answers (RFC 9110 §15.6): 502, 504, or 400 where the request was to blame.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
