"""Under which permission set a request acts."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexcache import principals, tenants
from nexcache.errors import ConfigurationError

Fields = Sequence[tuple[bytes, bytes]]


def named(headers: Fields, *names: str) -> str:
    found = principals.per_credential(*names)({"headers": headers})
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([], id="nobody"),
        pytest.param([(b"authorization", b"Bearer b")], id="another token"),
        pytest.param([(b"authorization", b"")], id="an empty token"),
        pytest.param([(b"cookie", b"Bearer a")], id="another field"),
        pytest.param([(b"authorization", b"Bearer a")] * 2, id="twice"),
        pytest.param([(b"authorization", b"Bearer a"), (b"cookie", b"x")], id="one more"),
        pytest.param([(b"authorization", b"Bearer a"), (b"x_api_key", b"x")], id="one more, spelled oddly"),
    ],
)
def test_another_credential_is_another_principal(other: Fields) -> None:
    assert named(other) != named([(b"authorization", b"Bearer a")])


def test_the_same_credential_is_the_same_principal_whatever_else_is_sent() -> None:
    credential = (b"authorization", b"Bearer a")
    assert named([(b"accept", b"x"), credential, (b"x-y", b"z")]) == named([credential])


def test_the_credential_itself_is_not_in_the_name() -> None:
    assert "hunter2" not in named([(b"authorization", b"hunter2")])
    assert len(named([])) == 32


def test_the_fields_can_be_chosen() -> None:
    first, second = [(b"x-token", b"a")], [(b"x-token", b"b")]
    assert named(first) == named(second)
    assert named(first, "X-Token") != named(second, "X-Token")


@pytest.mark.parametrize("border", [b"", b"0:cookie0:", b"6:cookie1:", b"cookie", b":"])
def test_two_credentials_are_not_one_that_looks_like_both(border: bytes) -> None:
    assert named([(b"cookie", b"a"), (b"cookie", b"b")]) != named([(b"cookie", b"a" + border + b"b")])


FIELDS = st.lists(
    st.tuples(st.sampled_from([b"authorization", b"cookie"]), st.sampled_from([b"", b"6:cookie", b"a", b"1:a"])),
    max_size=3,
)


@given(FIELDS, FIELDS)
def test_two_lists_of_credentials_never_give_one_name(first: Fields, second: Fields) -> None:
    assert (named(first) == named(second)) is (first == second)


@pytest.mark.parametrize("names", [("",), ("a", ""), (["authorization"],), (None,)])
def test_the_fields_are_names(names: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigurationError, match="names of header fields"):
        principals.per_credential(*names)


def test_the_other_resolvers_are_those_of_tenants() -> None:
    assert (principals.scope, principals.first_of, principals.fixed) == (tenants.scope, tenants.first_of, tenants.fixed)
