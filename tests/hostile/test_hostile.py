"""Every hostile input is refused by every server, and every class is shown to leak where its safeguard is missing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nexcache import Settings
from tests.frameworks.servers import SERVERS
from tests.hostile import weakened
from tests.hostile.attacks import ATTACKS, IN_PROCESS, NOT_TRIED, Target, run, settings
from tests.hostile.inputs import Group, Input, read
from tests.hostile.listener import Listener
from tests.hostile.suite import serving
from tests.servers import Valkey

GROUPS = read()
SERVED = [group for group in GROUPS if group.attack != IN_PROCESS]
NEVER_HIT = {"not-stored", "endless"}
"""Attacks with which nothing is ever stored."""


def test_there_are_enough_inputs_in_enough_classes_and_none_is_most_of_them() -> None:
    number = sum(len(group.inputs) for group in GROUPS)
    assert number >= 600
    assert len(GROUPS) >= 20
    assert max(len(group.inputs) for group in GROUPS) <= number / 10


def test_every_class_is_tried_somehow_and_has_a_build_without_its_safeguard() -> None:
    assert {group.attack for group in GROUPS} == {*ATTACKS, IN_PROCESS}
    assert {group.weakened for group in GROUPS} == set(weakened.BUILDS)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_no_input_is_there_twice(group: Group) -> None:
    sent = [repr({name: value for name, value in each.sends.items() if name != "name"}) for each in group.inputs]
    assert len(set(sent)) == len(sent)


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    with Listener() as made:
        yield made


@pytest.fixture(scope="module")
def hostile_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("hostile-valkey")) as server:
        yield server


@pytest.fixture(scope="module", params=SERVERS)
def target(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    hostile_valkey: Valkey,
    listener: Listener,
) -> Iterator[Target]:
    """One server at a time."""
    with serving(request.param, tmp_path_factory.mktemp("hostile"), hostile_valkey, listener) as made:
        yield made


@pytest.mark.parametrize("group", SERVED, ids=lambda group: group.name)
def test_every_input_is_refused(target: Target, group: Group, request: pytest.FixtureRequest) -> None:
    """Each input at one tier for each server; `make hostile` tries it at every tier."""
    tiers, shift = group.tiers, SERVERS.index(request.node.callspec.params["target"])
    target.hits = 0
    for number, tier in enumerate(tiers):
        mine = [each for each in group.inputs if (each.number + shift) % len(tiers) == number]
        leaks = run(target, mine, tier)
        assert not leaks, "\n".join(f"{tier} {given.name}: {leak}" for given, leak in leaks)
    assert (target.hits > 0) is (group.attack not in NEVER_HIT)


@pytest.mark.parametrize(
    "given",
    [each for group in GROUPS if group.attack == IN_PROCESS for each in group.inputs],
    ids=lambda each: each.name,
)
def test_a_malformed_setting_is_named_and_never_quoted(given: Input) -> None:
    assert settings(given) is None


@pytest.mark.parametrize("group", SERVED, ids=lambda group: group.name)
def test_a_build_without_the_safeguard_leaks(
    group: Group,
    tmp_path: Path,
    hostile_valkey: Valkey,
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weakened.BUILDS[group.weakened](monkeypatch)
    with weakened.serving(tmp_path, hostile_valkey, listener) as broken:
        assert any(_leaks(broken, each) for each in group.inputs)


def _leaks(broken: Target, given: Input) -> bool:
    """Whether an input gets what it is after; what could not be tried shows nothing."""
    found = [leak for tier in given.group.tiers for _, leak in run(broken, [given], tier)]
    return any(not leak.startswith(NOT_TRIED) for leak in found)


def test_a_parser_that_quotes_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    weakened.BUILDS["quoting"](monkeypatch)
    parse: Callable[..., object] = Settings
    assert any(settings(each, parse) for group in GROUPS if group.attack == IN_PROCESS for each in group.inputs)
