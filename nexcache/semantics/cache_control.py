"""Cache-Control (RFC 9111 §5.2): directives as they are, malformed or repeated ones read the safe way."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from nexcache.semantics.headers import values

# an unquoted argument ends at white space and `;` too, so that no directive hides behind a missing comma
_DIRECTIVE = re.compile(rb'([^\s,;="]+)(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s,;"]*))?', re.DOTALL)


def directives(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes | None]:
    """Parse every Cache-Control field of a message into lower-cased names and their arguments.

    A directive that appears with and without an argument counts as the one without, which is the more
    restrictive reading of `private` and `no-cache`. Never raises.
    """
    found: dict[bytes, bytes | None] = {}
    for value in values(headers, b"cache-control"):
        for match in _DIRECTIVE.finditer(value):
            name, argument = match.group(1).lower(), match.group(2)
            argument = argument.strip(b'" \t') if argument is not None else None
            if name in found and (found[name] is None or argument is None):
                argument = None
            found[name] = argument
    return MappingProxyType(found)
