"""Every setting in its order, with secrets masked, and where each comes from."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values
from pydantic import SecretStr

from nexcache.settings import FROM_FILES, Settings

_MASK: Final = "********"
_TTL: Final = "CACHE_TTL_"
_SHOWN: Final = 8
"""Characters of a digest that tell it from others."""


@dataclass(frozen=True, slots=True)
class Row:
    """One setting."""

    name: str
    value: str
    origin: str
    """`default`, `environment`, `.env`, or the variable that names the file."""


def rows(settings: Settings) -> Iterator[Row]:
    """Give every setting in its order, secrets masked."""
    given = _given()
    for field_name in Settings.model_fields:
        value = getattr(settings, field_name)
        if field_name == "operation_ttls":
            for operation, ttl in sorted(value.items()):
                variable = f"{_TTL}{operation}"
                yield Row(variable, _shown(variable, ttl), given.get(variable, "default"))
            continue
        variable = variable_of(field_name)
        yield Row(variable, _shown(variable, value), given.get(variable, "default"))


def variable_of(field_name: str) -> str:
    """Return the environment's name for a setting."""
    alias: Any = Settings.model_fields[field_name].validation_alias
    return str(alias.choices[0]) if alias is not None else field_name.upper()


def _given() -> Mapping[str, str]:
    """Say of every variable that is set where that was done; the environment wins."""
    found: dict[str, str] = {}
    file = {key.upper(): value for key, value in dotenv_values(".env").items()} if Path(".env").is_file() else {}
    for origin, variables in ((".env", file), ("environment", {key.upper(): each for key, each in os.environ.items()})):
        for variable, value in variables.items():
            if value:
                found[variable] = origin
    for secret in FROM_FILES:
        if f"{secret}_FILE" in found:
            found[secret] = f"{secret}_FILE"
    return found


def _shown(variable: str, value: Any) -> str:
    """Write a value down without what is secret in it."""
    match value:
        case None | () | "":
            return ""
        case SecretStr():
            return _MASK if value.get_secret_value() else ""
        case dict():
            return ", ".join(f"{kid}:{_MASK}" for kid in value)
        case tuple():
            return ", ".join(
                f"{key.tenant}=sha256:{key.digest[:_SHOWN]}…{' (operator)' if key.operator else ''}" for key in value
            )
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return _MASK if "PASSWORD" in variable and not variable.endswith("_FILE") else str(value)
