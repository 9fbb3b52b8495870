"""From a call's arguments to its key: every argument by its place in the signature, whichever way it was passed. Pure.

`f(1, b=2)`, `f(1, 2)` and `f(a=1, b=2)` are one call; defaults count as if they had been passed.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nexcache.errors import CannotKey, ConfigurationError
from nexcache.value_codec import NotEncodable, encode_key

_MISSING: Final = object()


class Parameters:
    """The parameters of one function.

    `exclude` names those that make no difference to the result; `tenant` the one that carries the tenant, which has a
    place of its own in the key. Raises ConfigurationError for a name that is no parameter.
    """

    def __init__(self, function: Callable[..., Any], *, exclude: Sequence[str] = (), tenant: str | None = None) -> None:
        self.function: str = getattr(function, "__qualname__", repr(function))
        self._signature = inspect.signature(function)
        if isinstance(exclude, str):
            raise ConfigurationError(f'{self.function}: exclude takes a list, such as ["{exclude}"]')
        parameters = self._signature.parameters
        for name in (*exclude, *([tenant] if tenant is not None else ())):
            if name not in parameters:
                raise ConfigurationError(f"{self.function} has no parameter {name!a}")
        self.names: tuple[str, ...] = tuple(parameters)
        left_out = {*exclude, tenant}
        self._kept = tuple(place for place, name in enumerate(self.names) if name not in left_out)
        self._all = len(self._kept) == len(self.names)
        self._tenant = self.names.index(tenant) if tenant is not None else None
        kinds = inspect.Parameter
        self._positional = tuple(
            name
            for name, each in parameters.items()
            if each.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        )
        self._by_name = {
            name: _MISSING if each.default is kinds.empty else each.default
            for name, each in parameters.items()
            if each.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        }
        self._simple = len(self._positional) == len(self.names)
        self._collecting = any(each.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) for each in parameters.values())

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        """Return the arguments in the order of the signature; raises TypeError as the call itself would."""
        given = len(args)
        if self._simple and given == len(self._positional) and not kwargs:
            return args
        if self._collecting or given > len(self._positional):
            return self._slowly(args, kwargs)
        values, used = list(args), 0
        for name in self.names[given:]:
            value = kwargs.get(name, _MISSING)
            if value is _MISSING:
                value = self._by_name.get(name, _MISSING)
                if value is _MISSING:
                    return self._slowly(args, kwargs)
            else:
                used += 1
            values.append(value)
        if used != len(kwargs):  # unknown, or given twice
            return self._slowly(args, kwargs)
        return values

    def key(self, values: Sequence[Any]) -> bytes:
        """Write down the arguments that make a difference; raises CannotKey naming one that cannot be keyed."""
        parts = list(values) if self._all else [values[place] for place in self._kept]
        try:
            return encode_key(parts)
        except NotEncodable:
            for place in self._kept:
                try:
                    encode_key([values[place]])
                except NotEncodable as error:
                    raise CannotKey(self.function, self.names[place], error.kind) from error
            raise

    def tenant(self, values: Sequence[Any]) -> Any:
        """Return the argument that carries the tenant, None if there is none."""
        return values[self._tenant] if self._tenant is not None else None

    def by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the arguments by name."""
        return dict(zip(self.names, values, strict=True))

    def _slowly(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values: list[Any] = []
        for name, value in bound.arguments.items():
            collected = self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            values.append(dict(sorted(value.items())) if collected else value)
        return values
