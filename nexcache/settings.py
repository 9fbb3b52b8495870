"""Settings from the environment (and `.env`); a bad one fails at start, named, in one sentence without secrets."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from pydantic_settings.sources import EnvSettingsSource

from nexcache.errors import ConfigurationError
from nexcache.key import name_of, segment
from nexcache.policy import LONGEST, seconds, size_in_bytes
from nexcache.quota import Quota
from nexcache.tenants import ApiKey

FROM_FILES: Final = (
    "REDIS_URL",
    "REDIS_PASSWORD",
    "CACHE_NAMESPACE_SECRET",
    "CACHE_SIGNING_KEYS",
    "CACHE_ENCRYPTION_KEYS",
    "CACHE_ALERT_WEBHOOK",
)
"""Secrets that may be in a file: `REDIS_PASSWORD_FILE` names the file that holds what `REDIS_PASSWORD` would."""

_T = TypeVar("_T")

_TTL: Final = "cache_ttl_"
_OTHER_TTL: Final = re.compile(r"redis_(\w+)_ttl")
_DURATION: Final = 'must be seconds or text such as "90s", "2m" or "1h30m"'
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+")
_ENDPOINT: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_YES: Final = frozenset(("true", "1", "yes", "on"))
_COMMENT: Final = re.compile(r"(?:^|\s)#.*")
_NO: Final = frozenset(("false", "0", "no", "off"))


class Settings(BaseSettings):
    """Everything that can be set from outside; each field says its environment name and its unit.

    Raises ConfigurationError when a value cannot work. Construct it with keyword arguments (the field names) to
    set values from code; those win over the environment.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("REDIS_URL"))
    redis_host: str | None = Field(None, validation_alias=AliasChoices("REDIS_HOST"))
    redis_port: int | None = Field(None, ge=1, le=65535, validation_alias=AliasChoices("REDIS_PORT"))
    redis_username: str | None = Field(None, validation_alias=AliasChoices("REDIS_USERNAME"))
    redis_password: SecretStr | None = Field(None, validation_alias=AliasChoices("REDIS_PASSWORD"))
    redis_ssl: bool = Field(default=False, validation_alias=AliasChoices("REDIS_SSL"))
    redis_password_file: Path | None = Field(None, validation_alias=AliasChoices("REDIS_PASSWORD_FILE"))
    """Read at start for `redis_password`, and anew for every connection."""
    redis_ssl_ca_certs: Path | None = Field(None, validation_alias=AliasChoices("REDIS_SSL_CA_CERTS"))
    redis_ssl_certfile: Path | None = Field(None, validation_alias=AliasChoices("REDIS_SSL_CERTFILE"))
    redis_ssl_keyfile: Path | None = Field(None, validation_alias=AliasChoices("REDIS_SSL_KEYFILE"))
    redis_credentials: Literal["password", "entra-id", "managed-identity"] = Field(
        "password", validation_alias=AliasChoices("REDIS_CREDENTIALS")
    )
    redis_db: int = Field(0, ge=0, validation_alias=AliasChoices("REDIS_DB"))

    enabled: bool = Field(
        default=True, validation_alias=AliasChoices("CACHE_ENABLED", "CACHE_ENABLE_CACHE", "REDIS_CACHE_ENABLED")
    )
    ttl_seconds: float = Field(
        300.0, gt=0, le=LONGEST, validation_alias=AliasChoices("CACHE_TTL_SECONDS", "REDIS_DEFAULT_TTL")
    )
    default_tenant: str | None = Field(None, validation_alias=AliasChoices("CACHE_DEFAULT_TENANT"))
    operation_ttls: dict[str, float] = Field(default_factory=dict)
    """From `CACHE_TTL_<OPERATION>` or `REDIS_<OPERATION>_TTL`: seconds or text such as `2m`.

    Names in upper case, other characters as `_`.
    """
    tenant_ttls: Annotated[dict[str, float], NoDecode] = Field(
        default_factory=dict, validation_alias=AliasChoices("CACHE_TENANT_TTLS")
    )
    """`tenant=duration,tenant/operation=duration`; they win over the TTLs of operations and policies."""
    quota_bytes: int | None = Field(None, ge=0, validation_alias=AliasChoices("CACHE_QUOTA_BYTES"))
    quota_entries: int | None = Field(None, ge=0, validation_alias=AliasChoices("CACHE_QUOTA_ENTRIES"))
    quota_fills_per_second: int | None = Field(
        None, ge=1, le=1_000_000, validation_alias=AliasChoices("CACHE_QUOTA_FILLS_PER_SECOND")
    )
    quotas: Annotated[dict[str, Quota], NoDecode] = Field(
        default_factory=dict, validation_alias=AliasChoices("CACHE_QUOTAS")
    )
    """`tenant bytes=64MiB entries=10000 fills=50,tenant …`; what one leaves out is as for every tenant."""
    instances: int | None = Field(None, ge=1, validation_alias=AliasChoices("CACHE_INSTANCES"))
    """Processes that share the store: while it is away each lets through this part of a rate limit or of a quota's
    fills. By default as many as this host's server announces to have (WEB_CONCURRENCY), else one.
    """
    l1_max_bytes: int = Field(64 * 1024 * 1024, ge=0, validation_alias=AliasChoices("CACHE_L1_MAX_BYTES"))
    l1_max_entries: int = Field(100_000, ge=1, validation_alias=AliasChoices("CACHE_L1_MAX_ENTRIES"))
    l1_enabled: bool = Field(default=True, validation_alias=AliasChoices("CACHE_L1_ENABLED"))
    l1_lease_ms: float = Field(250.0, ge=20, le=1000, validation_alias=AliasChoices("CACHE_L1_LEASE_MS"))
    max_tags: int = Field(10_000, ge=1, validation_alias=AliasChoices("CACHE_MAX_TAGS"))
    tenant_max_fills: int = Field(64, ge=0, validation_alias=AliasChoices("CACHE_TENANT_MAX_FILLS"))
    """Computations of one tenant at a time, in each process; 0: any number."""
    tenant_new_keys_per_minute: int = Field(
        2_000, ge=0, validation_alias=AliasChoices("CACHE_TENANT_NEW_KEYS_PER_MINUTE")
    )
    """Beyond it a tenant's answers are stored at their second miss; 0: any number."""
    fallback_ttl_seconds: float = Field(10.0, ge=0, validation_alias=AliasChoices("CACHE_FALLBACK_TTL_SECONDS"))
    failover: Literal["epoch", "trust"] = Field("epoch", validation_alias=AliasChoices("CACHE_FAILOVER"))
    op_timeout_ms: float = Field(50.0, ge=1, le=10_000, validation_alias=AliasChoices("CACHE_OP_TIMEOUT_MS"))
    """`REDIS_SOCKET_TIMEOUT` sets it too, in seconds."""
    max_connections: int = Field(
        50, ge=3, validation_alias=AliasChoices("CACHE_MAX_CONNECTIONS", "REDIS_MAX_CONNECTIONS")
    )
    """An upper bound, which a process never reaches: it shares three connections."""
    namespace_version: str = Field("", max_length=64, validation_alias=AliasChoices("CACHE_NAMESPACE_VERSION"))
    namespace_secret: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("CACHE_NAMESPACE_SECRET"))
    signing_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict, validation_alias=AliasChoices("CACHE_SIGNING_KEYS")
    )
    """`id:secret,id:secret`: the first signs, all verify."""
    encryption_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict, validation_alias=AliasChoices("CACHE_ENCRYPTION_KEYS")
    )
    """`id:secret,id:secret`: the first encrypts, all decrypt. Needs the extra `crypto`."""
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field((), validation_alias=AliasChoices("CACHE_API_KEYS"))
    """`tenant=sha256:<hex>,…`: hashed API keys."""
    api_keys_file: Path | None = Field(None, validation_alias=AliasChoices("CACHE_API_KEYS_FILE"))
    """One hashed key per line; `#` begins a comment."""

    alert_webhook: SecretStr | None = Field(None, validation_alias=AliasChoices("CACHE_ALERT_WEBHOOK"))
    """Where alerts are posted as JSON; a secret, because such URLs often hold one."""
    alert_interval_seconds: float = Field(15.0, ge=1, validation_alias=AliasChoices("CACHE_ALERT_INTERVAL_SECONDS"))
    alert_after_seconds: float = Field(60.0, ge=0, validation_alias=AliasChoices("CACHE_ALERT_AFTER_SECONDS"))
    alert_hit_rate: float = Field(0.5, ge=0, le=1, validation_alias=AliasChoices("CACHE_ALERT_HIT_RATE"))
    alert_error_rate: float = Field(0.05, ge=0, le=1, validation_alias=AliasChoices("CACHE_ALERT_ERROR_RATE"))
    alert_staleness_seconds: float = Field(5.0, ge=0, validation_alias=AliasChoices("CACHE_ALERT_STALENESS_SECONDS"))
    alert_wrong_answers: float = Field(0.01, ge=0, le=1, validation_alias=AliasChoices("CACHE_ALERT_WRONG_ANSWERS"))
    alert_fullness: float = Field(0.9, gt=0, le=1, validation_alias=AliasChoices("CACHE_ALERT_FULLNESS"))

    def __init__(self, **values: Any) -> None:
        wrong = None
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = _sentence(error)
        except (SettingsError, UnicodeError, OSError):
            wrong = "the environment and .env must be readable UTF-8 text"
        if wrong is not None:  # raised here, where no exception that knows a value can become its context
            raise ConfigurationError(wrong)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add `CACHE_TTL_<OPERATION>` and `<SECRET>_FILE` to what the environment and `.env` give."""
        return (
            init_settings,
            _Patterns(settings_cls, env_settings),
            env_settings,
            _Patterns(settings_cls, dotenv_settings),
            dotenv_settings,
            file_secret_settings,
        )

    @field_validator("operation_ttls", mode="before")
    @classmethod
    def _durations(cls, value: Mapping[str, Any]) -> dict[str, float]:
        durations = {}
        for name, duration in value.items():
            where = f"CACHE_TTL_{_upper(name)}"
            ttl = _quietly(seconds, duration)
            if ttl is None:
                raise ValueError(f"{where} {_DURATION}")
            if not 0 < ttl <= LONGEST:
                raise ValueError(f"{where} must be more than 0 seconds and at most 30 days")
            durations[_upper(name)] = ttl
        return durations

    @field_validator("tenant_ttls", mode="before")
    @classmethod
    def _tenant_ttls(cls, value: Any) -> Any:
        """Read the durations; characters of a tenant's id such as `,`, `=` and `/` are written percent-encoded."""
        if isinstance(value, str):
            pairs = [part.rpartition("=") for part in re.split(r"[,\n]", value) if part.strip()]
            value = {_tenant_and_operation(name.strip()): duration.strip() for name, _, duration in pairs}
        durations = {}
        for name, duration in dict(value).items():
            ttl = _quietly(seconds, duration)
            if not name or ttl is None or not 0 < ttl <= LONGEST:
                raise ValueError(
                    'is written tenant=duration,tenant/operation=duration, such as "acme=1m,globex/trends=30s"; '
                    "each duration more than 0 seconds and at most 30 days"
                )
            durations[name] = ttl
        return durations

    @field_validator("quota_bytes", mode="before")
    @classmethod
    def _quota_bytes(cls, value: Any) -> Any:
        size = None if value is None else _quietly(size_in_bytes, value)
        if size is None and value is not None:
            raise ValueError('must be bytes or text such as "64MiB"')
        return size

    @field_validator("quotas", mode="before")
    @classmethod
    def _quotas(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        quotas: dict[str, Quota] = {}
        for part in filter(None, (part.strip() for part in re.split(r"[,\n]", value))):
            name, *limits = part.split()
            quota = _quota(limits)
            tenant = name_of(name.encode())
            if quota is None or tenant in quotas:
                raise ValueError(
                    'is written "acme bytes=64MiB entries=10000 fills=50,globex entries=500", each tenant once; '
                    "fills are those per second"
                )
            quotas[tenant] = quota
        return quotas

    @field_validator("alert_webhook")
    @classmethod
    def _is_web(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("http://", "https://")):
            raise ValueError("must be an http:// or https:// URL")
        return value

    @field_validator(
        "ttl_seconds",
        "fallback_ttl_seconds",
        "alert_interval_seconds",
        "alert_after_seconds",
        "alert_staleness_seconds",
        mode="before",
    )
    @classmethod
    def _duration(cls, value: Any) -> float:
        duration = _quietly(seconds, value)
        if duration is None:
            raise ValueError(_DURATION)
        return duration

    @field_validator("l1_max_bytes", mode="before")
    @classmethod
    def _size(cls, value: Any) -> int:
        size = _quietly(size_in_bytes, value)
        if size is None:
            raise ValueError('must be bytes or text such as "64MiB"')
        return size

    @field_validator("redis_host")
    @classmethod
    def _is_host(cls, value: str | None) -> str | None:
        if value and not (_is_ipv6(value) or _HOST.fullmatch(value)):
            raise ValueError("must be a host's name or address, without scheme and port")
        return value

    @field_validator("signing_keys", "encryption_keys", mode="before")
    @classmethod
    def _ring(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        ring: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in re.split(r"[,\n]", value))):
            kid, _, secret = part.partition(":")
            if not (kid.isalnum() and kid.isascii()) or len(kid) > 16 or len(secret) < 16:  # noqa: PLR2004
                raise ValueError("is written id:secret,id:secret, each secret at least 16 characters long")
            if kid in ring:
                raise ValueError("must give each key an id of its own")
            ring[kid] = secret
        return ring

    @field_validator("api_keys", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return _api_keys(part for part in value.split(",") if part.strip())

    @field_validator("*", mode="before")  # the last one is the first to run
    @classmethod
    def _text(cls, value: Any) -> Any:
        secret = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(secret, str) and any("\ud800" <= char <= "\udfff" for char in secret):
            raise ValueError("must be UTF-8 text")
        return value

    @field_validator("api_keys_file", "redis_ssl_ca_certs", "redis_ssl_certfile", "redis_ssl_keyfile")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("must name a file that can be read")
        return value

    def model_post_init(self, _context: Any) -> None:
        """Add the keys of the file, and check where the server is."""
        if self.api_keys_file is not None:
            lines = _read("CACHE_API_KEYS_FILE", self.api_keys_file).split("\n")
            try:
                keys = _api_keys(filter(None, (_COMMENT.sub("", line).strip() for line in lines)))
            except ValueError as error:
                raise ConfigurationError(f"CACHE_API_KEYS_FILE {error}") from None
            object.__setattr__(self, "api_keys", (*self.api_keys, *keys))
        if (self.redis_ssl_certfile is None) != (self.redis_ssl_keyfile is None):
            raise ConfigurationError("REDIS_SSL_CERTFILE and REDIS_SSL_KEYFILE belong together: set both or none")
        self.get_redis_url()

    @property
    def on_cluster(self) -> bool:
        """Whether keys are to carry hash tags, because the server is a cluster."""
        url = self.get_redis_url()
        return url is not None and url.partition("://")[0].lower().endswith("+cluster")

    def ttl_of(self, operation: str) -> float | None:
        """Return the seconds that `CACHE_TTL_<OPERATION>` sets for an operation, or None."""
        return self.operation_ttls.get(_upper(operation))

    def tenant_ttl(self, tenant: str, operation: str) -> float | None:
        """Return the seconds that `CACHE_TENANT_TTLS` sets for a tenant's operation, or None."""
        ttls = self.tenant_ttls
        if not ttls:
            return None
        own = ttls.get(f"{_segment(tenant)}/{_upper(operation)}")
        return own if own is not None else ttls.get(_segment(tenant))

    @property
    def default_quota(self) -> Quota:
        """The quota of a tenant that has none of its own."""
        return Quota(self.quota_bytes, self.quota_entries, self.quota_fills_per_second)

    @property
    def processes(self) -> int:
        """How many processes share the store, as far as anybody has told."""
        return self.instances if self.instances is not None else in_workers()

    @property
    def tenant_quotas(self) -> Mapping[str, Quota]:
        """The quotas that tenants have of their own, completed by the default."""
        default = self.default_quota
        return {
            tenant: Quota(
                default.bytes if own.bytes is None else own.bytes,
                default.entries if own.entries is None else own.entries,
                default.fills if own.fills is None else own.fills,
            )
            for tenant, own in self.quotas.items()
        }

    def get_redis_url(self) -> str | None:
        """Return the server's URL, password included, from `REDIS_URL` or its parts; None: no server is set.

        `REDIS_PASSWORD` and `REDIS_SSL` complete a `REDIS_URL` that leaves them out. Raises ConfigurationError for
        a URL that cannot work; the message never repeats it.
        """
        text = self.redis_url.get_secret_value().strip() if self.redis_url is not None else ""
        password = self.redis_password.get_secret_value() if self.redis_password is not None else None
        if not text:
            if not self.redis_host:
                return None
            return _url(
                {
                    "username": self.redis_username,
                    "password": password,
                    "host": self.redis_host,
                    "port": self.redis_port or 6379,
                    "db": self.redis_db,
                    "tls": self.redis_ssl,
                }
            )
        place = parse_redis_url(text)
        completed = dict(place)
        if password and not place["password"]:
            completed |= {"password": password, "username": place["username"] or self.redis_username}
        if self.redis_ssl and "unix_socket" not in place:
            completed["tls"] = True
        return text if completed == place and "://" in text else _url(completed)


class _Patterns(PydanticBaseSettingsSource):
    """Collects from another source's variables those whose names are patterns, not fields.

    It also keeps that source to the documented names: without this, `ENABLED` or `API_KEYS`, which may belong to
    any program, would set the field of that name.
    """

    def __init__(self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._variables: Mapping[str, str | None] = {}
        if isinstance(source, EnvSettingsSource):
            ours = frozenset(Settings.model_fields)
            source.env_vars = {
                name: value
                for name, value in source.env_vars.items()
                if name not in ours or name.startswith(("redis_", "cache_"))
            }
            self._variables = source.env_vars

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # pragma: no cover - unused
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        ttls = {
            name.removeprefix(_TTL): value
            for name, value in self._variables.items()
            if name.startswith(_TTL) and name != _TTL + "seconds"
        }
        for name, value in self._variables.items():
            if (other := _OTHER_TTL.fullmatch(name)) is not None and other[1] != "default":
                ttls.setdefault(other[1], value)
        if ttls:
            found["operation_ttls"] = ttls
        timeout = self._variables.get("redis_socket_timeout")
        if timeout is not None and "cache_op_timeout_ms" not in self._variables:
            found["op_timeout_ms"] = _milliseconds(timeout)
        for name in FROM_FILES:
            path = self._variables.get(f"{name.lower()}_file")
            if path is None:
                continue
            if name.lower() in self._variables:
                raise ConfigurationError(f"{name} and {name}_FILE are both set: only one of them can be meant")
            found[name] = _read(f"{name}_FILE", Path(path)).strip("\r\n")
            if not found[name].strip():
                raise ConfigurationError(f"{name}_FILE names an empty file")
        return found


def _milliseconds(timeout: str) -> float:
    try:
        return float(timeout) * 1000
    except ValueError:
        raise ConfigurationError("REDIS_SOCKET_TIMEOUT must be a number of seconds") from None


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        pass
    raise ConfigurationError(f"{name} must name a file of UTF-8 text that can be read")


def _quietly(convert: Callable[[Any], _T], value: Any) -> _T | None:
    """Convert a value; None where the error would repeat it."""
    try:
        return convert(value)
    except ConfigurationError:
        return None


def _api_keys(parts: Iterable[str]) -> tuple[ApiKey, ...]:
    keys = tuple(_quietly(ApiKey.parse, part) for part in parts)
    if None in keys:
        raise ValueError("is written tenant=sha256:<64 hex digits>, one or more; `nexcache key TENANT` makes one")
    return tuple(key for key in keys if key is not None)


def _segment(tenant: str) -> str:
    return segment(tenant).decode()


def _tenant_and_operation(text: str) -> str:
    """Give the name under which a tenant's duration is found."""
    tenant, found, operation = text.partition("/")
    own = _segment(name_of(tenant.encode()))
    return f"{own}/{_upper(operation)}" if found else own


def _quota(limits: Sequence[str]) -> Quota | None:
    """Read what a tenant may use; None where it says nothing, or what is no limit."""
    found: dict[str, int] = {}
    for limit in limits:
        name, _, text = limit.partition("=")
        number = _quietly(size_in_bytes, text) if name == "bytes" else int(text) if text.isdecimal() else None
        if name not in ("bytes", "entries", "fills") or name in found or number is None:
            return None
        found[name] = number
    if not found or not 1 <= found.get("fills", 1) <= 1_000_000:  # noqa: PLR2004
        return None
    return Quota(**found)


def _upper(operation: str) -> str:
    return "".join(char if char.isalnum() and char.isascii() else "_" for char in operation).upper()


def _is_ipv6(host: str) -> bool:
    try:
        return ip_address(host).version == 6  # noqa: PLR2004
    except ValueError:
        return False


def _url(place: Mapping[str, Any]) -> str:
    """Write down what `parse_redis_url` reads."""
    user, password = quote(place["username"] or "", safe=""), quote(place["password"] or "", safe="")
    credentials = (f"{user}:{password}@" if password else f"{user}@") if user or password else ""
    if "unix_socket" in place:
        return f"unix://{credentials}{place['unix_socket']}?db={place['db']}"
    scheme = "rediss" if place["tls"] else "redis"
    if "nodes" in place:
        nodes = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in place["nodes"])
        if place["master"] is None:
            return f"{scheme}+cluster://{credentials}{nodes}"
        query = "&".join(
            f"{name}={quote(place[name], safe='')}"
            for name in ("sentinel_username", "sentinel_password")
            if place[name]
        )
        return f"{scheme}+sentinel://{credentials}{nodes}/{quote(place['master'], safe='')}/{place['db']}?{query}"
    host = f"[{place['host']}]" if ":" in place["host"] else place["host"]
    return f"{scheme}://{credentials}{host}:{place['port']}/{place['db']}"


def parse_redis_url(url: str) -> dict[str, Any]:
    """Take a Redis URL or connection string apart without ever repeating it; raises ConfigurationError.

    Written here because the usual parsers quote a piece of the password in their message when it holds `#` or `/`.
    """
    scheme, found, rest = url.strip().partition("://")
    if not found and "," in url:
        return _parse_connection_string(url)
    scheme, _, topology = scheme.lower().partition("+")
    if (
        not found
        or scheme not in ("redis", "rediss", "valkey", "valkeys", "unix")
        or topology not in ("", "sentinel", "cluster")
        or (scheme == "unix" and topology)
    ):
        raise ConfigurationError(
            "REDIS_URL must begin with redis://, rediss:// (TLS), redis+sentinel://, redis+cluster:// or unix://, or "
            "be a connection string such as host:6380,password=…,ssl=True"
        )
    credentials, _, place = rest.rpartition("@")
    username, _, password = credentials.partition(":")
    parts = None
    if not any(char in credentials for char in "/#?"):
        parts = _split_several(scheme, topology, place) if topology else _split(scheme, place)
    if parts is None and topology == "sentinel":
        raise ConfigurationError(
            "REDIS_URL must look like redis+sentinel://user:password@host:port,host:port/name?sentinel_username=…, "
            "with the name under which the Sentinels watch the servers; percent-encode characters such as #, / and @ "
            "in passwords"
        )
    if parts is None and topology:
        raise ConfigurationError(
            "REDIS_URL must look like redis+cluster://user:password@host:port,host:port; a cluster has no numbered "
            "databases; percent-encode characters such as #, / and @ in the password"
        )
    if parts is None:
        raise ConfigurationError(
            "REDIS_URL must look like redis://user:password@host:port/db; percent-encode characters such as #, / "
            "and @ in the password"
        )
    return {"username": unquote(username) or None, "password": unquote(password) or None} | parts


def _split(scheme: str, place: str) -> dict[str, Any] | None:
    """Take apart what follows the credentials, or return None; no exception that knows a piece of it gets out."""
    try:
        parts = urlsplit(f"{scheme}://{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
    unix = scheme == "unix"
    database = query.get("db", "") if unix else (parts.path.strip("/") or query.get("db", ""))
    if (database and not (database.isdigit() and database.isascii())) or "#" in place:
        return None
    if unix:
        return {"db": int(database or 0), "unix_socket": parts.path} if parts.path.strip("/") and not host else None
    if host and not (_is_ipv6(host) or _HOST.fullmatch(host)):
        return None
    return {
        "db": int(database or 0),
        "host": host or "localhost",
        "port": port or 6379,
        "tls": scheme in ("rediss", "valkeys"),
    }


def _split_several(scheme: str, topology: str, place: str) -> dict[str, Any] | None:
    """Take apart what follows the credentials where several nodes are named, or return None."""
    if "#" in place:
        return None
    place, _, options = place.partition("?")
    addresses, _, path = place.partition("/")
    nodes = []
    for address in addresses.split(","):
        endpoint = _ENDPOINT.fullmatch(address.strip())
        if endpoint is None:
            return None
        port = int(endpoint["port"] or (26379 if topology == "sentinel" else 6379))
        if not 0 < port < 65536:  # noqa: PLR2004
            return None
        nodes.append((endpoint["host"].strip("[]"), port))
    query = dict(pair.partition("=")[::2] for pair in options.split("&") if pair)
    master, _, database = path.strip("/").partition("/")
    database = database or query.pop("db", "")
    sentinels = {name: unquote(query.pop(name, "")) or None for name in ("sentinel_username", "sentinel_password")}
    common = {"tls": scheme in ("rediss", "valkeys"), "nodes": tuple(nodes)}
    if query:
        return None
    if topology == "cluster":
        return (
            None
            if master not in ("", "0") or database or any(sentinels.values())
            else common
            | {
                "db": 0,
                "master": None,
            }
        )
    if not master or (database and not (database.isdigit() and database.isascii())):
        return None
    return common | sentinels | {"db": int(database or 0), "master": unquote(master)}


def _parse_connection_string(text: str) -> dict[str, Any]:
    """Take a StackExchange.Redis connection string apart, as Azure's portal shows it; unknown options are ignored.

    https://stackexchange.github.io/StackExchange.Redis/Configuration.html
    """
    endpoints, options = [], {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, found, value = part.partition("=")  # a value may hold more of them, as base64 does
        if found:
            options[name.strip().lower()] = value.strip()
        else:
            endpoints.append(part)
    endpoint = _ENDPOINT.fullmatch(endpoints[0]) if len(endpoints) == 1 else None
    ssl = options.get("ssl", "false").lower()
    database = options.get("defaultdatabase", "0")
    port = int(endpoint["port"] or (6380 if ssl in _YES else 6379)) if endpoint is not None else 0
    if endpoint is None or not 0 < port < 65536 or ssl not in _YES | _NO or not database.isdecimal():  # noqa: PLR2004
        raise ConfigurationError(
            "REDIS_URL, as a connection string, must look like host:6380,password=…,ssl=True,defaultDatabase=0, with "
            "one host"
        )
    return {
        "username": options.get("user") or None,
        "password": options.get("password") or None,
        "db": int(database),
        "host": endpoint["host"].strip("[]"),
        "port": port,
        "tls": ssl in _YES,
    }


_PHRASES: Final = (
    ("Value error, ", ""),
    ("Input should be", "must be"),
    ("String should have", "must have"),
    ("Input is not", "is not"),
)


def _sentence(error: ValidationError) -> str:
    """Name every bad setting by its environment name, without its value."""
    parts = []
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        name = str(each["loc"][0]) if each["loc"] else ""
        field = Settings.model_fields.get(name)
        if field is not None and isinstance(field.validation_alias, AliasChoices):
            name = str(field.validation_alias.choices[0])
        message = each["msg"].partition(", unable to")[0]
        for said, better in _PHRASES:
            message = message.replace(said, better, 1)
        parts.append(message if message.startswith(("CACHE_", "REDIS_")) else f"{name} {message}")
    return "; ".join(dict.fromkeys(parts))


def in_workers() -> int:
    """Return how many worker processes the environment announces, as far as it tells."""
    for name in ("WEB_CONCURRENCY", "UVICORN_WORKERS", "GRANIAN_WORKERS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 1:
            return int(value)
    return 1
