"""`nexcache serve`: the cache as a reverse proxy before any HTTP service, described by a TOML file."""

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import uvicorn
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nexcache import principals, tenants
from nexcache.admin.app import AdminApp
from nexcache.asgi import ASGIApp, Receive, Scope, Send
from nexcache.cache import NexCache
from nexcache.errors import ConfigurationError
from nexcache.ingest.windows import SPANS, TimeWindow
from nexcache.middleware import CacheMiddleware
from nexcache.policy import Policy, Query, Shadow, seconds
from nexcache.proxy import Gateway, Upstream
from nexcache.tenants import Resolver

_ENVIRONMENT: Final = "NEXCACHE_SERVE"
"""Where the configuration is handed to worker processes, as JSON."""
_GRACE: Final = 30
_OWN: Final = "/.nexcache"


def _duration(value: Any) -> float:
    return seconds(value)


Seconds = Annotated[float, BeforeValidator(_duration)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UpstreamConfig(_Part):
    """`[upstream]`: the service behind the proxy."""

    url: str
    connect_timeout: Seconds = 5.0
    read_timeout: Seconds = 60.0
    connections: int = Field(200, ge=1)
    preserve_host: bool = False
    ca_certs: str | None = None


class ListenConfig(_Part):
    """`[listen]`: where requests come in."""

    host: str = "127.0.0.1"
    port: int = Field(8081, ge=0, le=65535)
    workers: int = Field(1, ge=1)


class IdentityConfig(_Part):
    """`[tenant]` and `[principal]`: whose request it is, by what nobody can choose freely."""

    source: Literal["header", "api-key", "host", "fixed", "credential"] = Field(alias="from")
    name: str | None = None
    """The header field, of `header` and `api-key`; the fields, separated by commas, of `credential`."""
    trusted: bool | list[str] | None = None
    """Of `header`: true if something upstream sets or checks it, or the networks of the proxies that do."""
    pattern: str | None = None
    """Of `host`: such as `{tenant}.example.com`."""
    value: str | None = None
    """Of `fixed`."""

    def resolver(self, cache: NexCache) -> Resolver:
        """Make the resolver; raises ConfigurationError."""
        match self.source:
            case "header":
                return tenants.header(self._given("name"), trusted=False if self.trusted is None else self.trusted)
            case "api-key":
                if not cache.settings.api_keys:
                    raise ConfigurationError('from = "api-key" needs CACHE_API_KEYS or CACHE_API_KEYS_FILE')
                return tenants.api_key(self.name or "X-API-Key", keys=cache.settings.api_keys)
            case "host":
                return tenants.host(self._given("pattern"))
            case "fixed":
                return tenants.fixed(self._given("value"))
            case "credential":
                names = [name.strip() for name in (self.name or "").split(",") if name.strip()]
                return principals.per_credential(*names)

    def _given(self, field: str) -> str:
        value: str | None = getattr(self, field)
        if not value:
            raise ConfigurationError(f'from = "{self.source}" needs {field} = "…"')
        return value


class WindowConfig(_Part):
    """`[policy.window]`: the range of span times that an answer covers. The fields are those of `TimeWindow`."""

    start: str
    end: str
    step: float | str | None = None
    of: str = SPANS
    settled: float | str = "1h"
    closed_ttl: float | str = "6h"
    open_ttl: float | str | None = None


class ShadowConfig(_Part):
    """`[policy.shadow]`: how many hits are computed again and compared. The fields are those of `Shadow`."""

    share: float
    ignore: list[str] = []
    grace: float | str = "1s"
    limit: float = 0.01
    after: int = 20
    bypass_for: float | str = "5m"


class PolicyConfig(_Part):
    """`[[policy]]`: how the answers of one path are cached. The fields are those of `Policy`."""

    path: str
    op: str
    ttl: float | str | None = None
    methods: list[str] = ["GET"]
    statuses: list[int] = [200]
    vary: list[str] = []
    query_allow: list[str] | None = None
    query_ignore: list[str] | None = None
    tags: list[str] = []
    max_body: int | str = "1MiB"
    share_authenticated: bool = False
    compress: bool = False
    version: str = ""
    stale_while_revalidate: float | str = 0.0
    stale_if_error: float | str = 0.0
    early_refresh: bool = True
    jitter: float = 0.1
    fill_soft_limit: float | str = "30s"
    fill_hard_limit: float | str = "60s"
    window: WindowConfig | None = None
    shadow: ShadowConfig | None = None

    def policy(self) -> Policy:
        """Make the policy; raises ConfigurationError."""
        given: dict[str, Any] = self.model_dump(exclude={"query_allow", "query_ignore", "path", "window", "shadow"})
        if self.window is not None:
            given["window"] = TimeWindow(**self.window.model_dump())
        if self.shadow is not None:
            given["shadow"] = Shadow(**self.shadow.model_dump())
        if self.query_allow is not None or self.query_ignore is not None:
            given["query"] = Query(allow=self.query_allow, ignore=self.query_ignore or ())
        return Policy(self.path, **given)


class ServeConfig(_Part):
    """The whole file."""

    upstream: UpstreamConfig
    listen: ListenConfig = Field(default_factory=lambda: ListenConfig.model_validate({}))
    mode: Literal["policy", "rfc"] = "rfc"
    max_body: int | str = "1MiB"
    """The largest body that is stored for a path without a policy."""
    tenant: IdentityConfig = Field(
        default_factory=lambda: IdentityConfig.model_validate({"from": "fixed", "value": "default"})
    )
    principal: IdentityConfig | None = None
    credentials: list[str] = ["authorization", "cookie", "x-api-key"]
    policy: list[PolicyConfig] = []

    @classmethod
    def load(cls, file: Path | None, **overrides: Any) -> Self:
        """Read a file, and what the command line says over it; raises ConfigurationError in one sentence."""
        document: dict[str, Any] = {}
        where = "nexcache serve" if file is None else str(file)
        if file is not None:
            try:
                document = tomllib.loads(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeError) as error:
                raise ConfigurationError(f"{where} cannot be read: {type(error).__name__}") from None
            except tomllib.TOMLDecodeError as error:
                raise ConfigurationError(f"{where} is not TOML: {error}") from None
        for dotted, value in overrides.items():
            if value is not None:
                part, _, name = dotted.partition("__")
                if name:
                    document.setdefault(part, {})[name] = value
                else:
                    document[part] = value
        if "upstream" not in document:
            raise ConfigurationError(f"{where}: say what is behind the proxy: --upstream URL, or [upstream] url = …")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(step) for step in first["loc"])
            raise ConfigurationError(f"{where}: {place}: {first['msg'].removeprefix('Value error, ')}") from None
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from None


def build_app(config: ServeConfig, cache: NexCache | None = None) -> ASGIApp:
    """Put the proxy together; raises ConfigurationError."""
    cache = cache if cache is not None else NexCache.from_env()
    upstream = Upstream(
        config.upstream.url,
        connect_timeout=config.upstream.connect_timeout,
        read_timeout=config.upstream.read_timeout,
        connections=config.upstream.connections,
        preserve_host=config.upstream.preserve_host,
        ca_certs=config.upstream.ca_certs,
    )
    tenant = config.tenant.resolver(cache)
    principal = tenant if config.principal == config.tenant else config.principal and config.principal.resolver(cache)
    cached = CacheMiddleware(
        upstream,
        cache=cache,
        tenant=tenant,
        principal=principal or None,
        credentials=config.credentials,
        policies=[policy.policy() for policy in config.policy],
        mode=config.mode,
        max_body=config.max_body,
    )
    own: dict[str, ASGIApp] = {f"{_OWN}/alive": _alive}
    if cache.settings.api_keys:
        own[_OWN] = AdminApp(cache, authorize=tenants.api_key(keys=cache.settings.api_keys))
    return Gateway(cached, paths=own)


async def _alive(scope: Scope, receive: Receive, send: Send) -> None:
    """Say that this process answers; what is behind it is not asked."""
    del scope, receive
    headers = [(b"content-type", b"application/json"), (b"content-length", b"15"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"status":"ok"}'})


def from_environment() -> ASGIApp:
    """Build the app in a worker process."""
    return build_app(ServeConfig.model_validate(json.loads(os.environ[_ENVIRONMENT])))


def run(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way; raises ConfigurationError before anything opens."""
    app: ASGIApp | str = build_app(config)
    if config.listen.workers > 1:
        os.environ[_ENVIRONMENT] = config.model_dump_json(by_alias=True)
        app = "nexcache.serve:from_environment"
    uvicorn.run(
        app,
        factory=config.listen.workers > 1,
        workers=config.listen.workers,
        host=config.listen.host,
        port=config.listen.port,
        date_header=False,  # the upstream's own counts
        server_header=False,
        proxy_headers=False,
        access_log=False,
        log_level="warning",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE,
        ws="none",
    )
