"""Which tags a response names: what the three fields say, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache.errors import InvalidName
from nexcache.semantics.groups import LONGEST, named_groups, tags_in

Headers = tuple[tuple[bytes, bytes], ...]


@pytest.mark.parametrize(
    ("headers", "tags"),
    [
        ((), ()),
        (((b"cache-groups", b'"b", "a"'),), ("a", "b")),
        (((b"cache-groups", b'"a"'), (b"Cache-Groups", b'"b";x=1, "a"')), ("a", "b")),
        (((b"cache-groups", b'"with, comma", "and \\"quotes\\""'),), ('and "quotes"', "with, comma")),
        (((b"surrogate-key", b"service:cart  user:7"),), ("service:cart", "user:7")),
        (((b"cache-tag", b"one, two words,,three"),), ("one", "three", "two words")),
        (((b"cache-tag", b"a"), (b"surrogate-key", b"a b"), (b"cache-groups", b'"c"')), ("a", "b", "c")),
        (((b"cache-tag", "größe".encode()),), ("größe",)),
        (((b"cache-tag", b" "),), ()),
    ],
)
def test_the_tags_of_a_response(headers: Headers, tags: tuple[str, ...]) -> None:
    assert tags_in(headers) == tags


@pytest.mark.parametrize(
    "headers",
    [
        ((b"cache-groups", b"token"),),
        ((b"cache-groups", b'"open'),),
        ((b"cache-groups", b'("a" "b")'),),
        ((b"cache-groups", b"1"),),
        ((b"cache-groups", b'"a"'), (b"cache-groups", b",")),
        ((b"cache-groups", b'""'),),
        ((b"cache-groups", b'"' + b"x" * LONGEST + b'"'),),
        ((b"surrogate-key", b"x" * 300),),
        ((b"surrogate-key", b"x " * LONGEST),),
        ((b"cache-tag", b"\xff"),),
        ((b"cache-tag", b"a\x00b"),),
    ],
)
def test_what_could_not_be_invalidated_by_its_name_is_refused(headers: Headers) -> None:
    with pytest.raises(InvalidName):
        tags_in(headers)


@given(st.lists(st.tuples(st.sampled_from([b"cache-groups", b"surrogate-key", b"cache-tag"]), st.binary(max_size=60))))
def test_no_bytes_raise_anything_else(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        tags_in(tuple(headers))
    except InvalidName:
        pass
    named_groups(tuple(headers))
