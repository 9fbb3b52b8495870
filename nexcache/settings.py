"""Settings from the environment (and `.env`); a bad one fails at start, named, in one sentence without secrets."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import DotEnvSettingsSource, EnvSettingsSource

from nexcache.errors import ConfigurationError
from nexcache.policy import LONGEST, seconds, size_in_bytes
from nexcache.tenants import ApiKey

_TTL = "cache_ttl_"


class Settings(BaseSettings):
    """Everything that can be set from outside; each field says its environment name and its unit.

    Raises ConfigurationError when a value cannot work. Construct it with keyword arguments (the field names) to
    set values from code; those win over the environment.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
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
    redis_ssl_ca_certs: Path | None = Field(None, validation_alias=AliasChoices("REDIS_SSL_CA_CERTS"))
    redis_db: int = Field(0, ge=0, validation_alias=AliasChoices("REDIS_DB"))

    enabled: bool = Field(default=True, validation_alias=AliasChoices("CACHE_ENABLED"))
    ttl_seconds: float = Field(300.0, gt=0, le=LONGEST, validation_alias=AliasChoices("CACHE_TTL_SECONDS"))
    operation_ttls: dict[str, float] = Field(default_factory=dict)
    """From `CACHE_TTL_<OPERATION>`: seconds or text such as `2m`; names in upper case, other characters as `_`."""
    l1_max_bytes: int = Field(64 * 1024 * 1024, ge=0, validation_alias=AliasChoices("CACHE_L1_MAX_BYTES"))
    l1_max_entries: int = Field(100_000, ge=1, validation_alias=AliasChoices("CACHE_L1_MAX_ENTRIES"))
    l1_enabled: bool = Field(default=True, validation_alias=AliasChoices("CACHE_L1_ENABLED"))
    l1_lease_ms: float = Field(250.0, ge=20, le=1000, validation_alias=AliasChoices("CACHE_L1_LEASE_MS"))
    fallback_ttl_seconds: float = Field(10.0, ge=0, validation_alias=AliasChoices("CACHE_FALLBACK_TTL_SECONDS"))
    failover: Literal["epoch", "trust"] = Field("epoch", validation_alias=AliasChoices("CACHE_FAILOVER"))
    op_timeout_ms: float = Field(50.0, ge=1, le=10_000, validation_alias=AliasChoices("CACHE_OP_TIMEOUT_MS"))
    namespace_version: str = Field("", max_length=64, validation_alias=AliasChoices("CACHE_NAMESPACE_VERSION"))
    namespace_secret: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("CACHE_NAMESPACE_SECRET"))
    signing_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict, validation_alias=AliasChoices("CACHE_SIGNING_KEYS")
    )
    """`id:secret,id:secret`: the first signs, all verify."""
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field((), validation_alias=AliasChoices("CACHE_API_KEYS"))
    """`tenant=sha256:<hex>,…`: hashed API keys."""
    api_keys_file: Path | None = Field(None, validation_alias=AliasChoices("CACHE_API_KEYS_FILE"))
    """One hashed key per line; `#` begins a comment."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError(_sentence(error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add `CACHE_TTL_<OPERATION>` to what the environment and `.env` give."""
        return (
            init_settings,
            env_settings,
            _OperationTtls(settings_cls, env_settings),
            dotenv_settings,
            _OperationTtls(settings_cls, dotenv_settings),
            file_secret_settings,
        )

    @field_validator("operation_ttls", mode="before")
    @classmethod
    def _durations(cls, value: Mapping[str, Any]) -> dict[str, float]:
        durations = {}
        for name, duration in value.items():
            where = f"CACHE_TTL_{_upper(name)}"
            durations[_upper(name)] = seconds(duration, where)
            if not 0 < durations[_upper(name)] <= LONGEST:
                raise ValueError(f"{where} must be more than 0 seconds and at most 30 days")
        return durations

    @field_validator("ttl_seconds", "fallback_ttl_seconds", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> float:
        return seconds(value, "it")

    @field_validator("l1_max_bytes", mode="before")
    @classmethod
    def _size(cls, value: Any) -> int:
        return size_in_bytes(value, "it")

    @field_validator("signing_keys", mode="before")
    @classmethod
    def _ring(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        ring = {}
        for part in filter(None, (part.strip() for part in value.split(","))):
            kid, found, secret = part.partition(":")
            if not found or not kid.isalnum() or len(kid) > 16 or len(secret) < 16:  # noqa: PLR2004
                raise ValueError("it is written id:secret,id:secret, each secret at least 16 characters long")
            ring[kid] = secret
        return ring

    @field_validator("api_keys", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(ApiKey.parse(part) for part in value.split(",") if part.strip())
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("it must name a file that can be read")
        return value

    def model_post_init(self, _context: Any) -> None:
        """Add the keys of the file, and check where the server is."""
        if self.api_keys_file is not None:
            lines = (line.partition("#")[0].strip() for line in self.api_keys_file.read_text().splitlines())
            keys = tuple(ApiKey.parse(line) for line in lines if line)
            object.__setattr__(self, "api_keys", (*self.api_keys, *keys))
        self.get_redis_url()

    def ttl_of(self, operation: str) -> float | None:
        """Return the seconds that `CACHE_TTL_<OPERATION>` sets for an operation, or None."""
        return self.operation_ttls.get(_upper(operation))

    def get_redis_url(self) -> str | None:
        """Return the server's URL, password included, from `REDIS_URL` or its parts; None: no server is set.

        Raises ConfigurationError for a URL that cannot work; the message never repeats it.
        """
        if self.redis_url is not None and self.redis_url.get_secret_value().strip():
            url = self.redis_url.get_secret_value().strip()
            _check_url(url)
            return url
        if not self.redis_host:
            return None
        scheme = "rediss" if self.redis_ssl else "redis"
        password = _quoted(self.redis_password.get_secret_value()) if self.redis_password else ""
        user = _quoted(self.redis_username or "")
        credentials = f"{user}:{password}@" if user or password else ""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        return f"{scheme}://{credentials}{host}:{self.redis_port or 6379}/{self.redis_db}"


class _OperationTtls(PydanticBaseSettingsSource):
    """Collects `CACHE_TTL_<OPERATION>` from another source's variables."""

    def __init__(self, settings_cls: type[BaseSettings], source: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._source = source

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # pragma: no cover - unused
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        if not isinstance(self._source, EnvSettingsSource | DotEnvSettingsSource):
            return {}
        found = {
            name.lower().removeprefix(_TTL): value
            for name, value in self._source.env_vars.items()
            if name.lower().startswith(_TTL) and name.lower() != _TTL + "seconds"
        }
        return {"operation_ttls": found} if found else {}


def _upper(operation: str) -> str:
    return "".join(char if char.isalnum() and char.isascii() else "_" for char in operation).upper()


def _quoted(text: str) -> str:
    from urllib.parse import quote  # noqa: PLC0415 - only where parts are given

    return quote(text, safe="")


def parse_redis_url(url: str) -> dict[str, Any]:
    """Take a Redis URL apart without ever repeating it in an error; raises ConfigurationError.

    Written here because the usual parsers quote a piece of the password in their message when it holds `#` or `/`.
    """
    scheme, found, rest = url.partition("://")
    if scheme not in ("redis", "rediss", "valkey", "valkeys", "unix") or not found:
        raise ConfigurationError("REDIS_URL must begin with redis://, rediss:// (TLS) or unix://")
    credentials, at, place = rest.rpartition("@")
    username, _, password = credentials.partition(":")
    bad = ConfigurationError(
        "REDIS_URL must look like redis://user:password@host:port/db; percent-encode characters such as #, / and @ "
        "in the password"
    )
    if any(char in credentials for char in "/#?"):
        raise bad
    try:
        parts = urlsplit(f"{scheme}://{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise bad from None
    query = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
    database = query.get("db", "") if scheme == "unix" else (parts.path.strip("/") or query.get("db", ""))
    if (database and not database.isdigit()) or parts.fragment:
        raise bad
    found_parts: dict[str, Any] = {
        "username": unquote(username) or None if at else None,
        "password": unquote(password) or None if at else None,
        "db": int(database or 0),
    }
    if scheme == "unix":
        return found_parts | {"unix_socket": parts.path}
    return found_parts | {"host": host or "localhost", "port": port or 6379, "tls": scheme in ("rediss", "valkeys")}


def _check_url(url: str) -> None:
    parse_redis_url(url)


def _sentence(error: ValidationError) -> str:
    """Name every bad setting by its environment name, without its value."""
    parts = []
    for each in error.errors(include_input=False, include_url=False):
        name = str(each["loc"][0]) if each["loc"] else ""
        field = Settings.model_fields.get(name)
        if field is not None and isinstance(field.validation_alias, AliasChoices):
            name = str(field.validation_alias.choices[0])
        message = each["msg"].removeprefix("Value error, ")
        parts.append(message if message.startswith(("CACHE_", "REDIS_")) else f"{name}: {message}")
    return "; ".join(dict.fromkeys(parts))


def in_workers() -> int:
    """Return how many worker processes the environment announces, as far as it tells."""
    for name in ("WEB_CONCURRENCY", "UVICORN_WORKERS", "GRANIAN_WORKERS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 1:
            return int(value)
    return 1
