# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A list fetched in the open: which hosts are asked in which order, whose answer counts, and the final error."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.https_site import Site, make_certificate, run_site
from tests.server_lists import make_key, make_list, make_test_profile

from psiphon_vpn.core.fetch import Limits
from psiphon_vpn.core.fetch_errors import FetchProblem
from psiphon_vpn.servers.errors import ListError, ListFlaw
from psiphon_vpn.servers.fetch import FetchedList, ListFetchError, fetch_list
from psiphon_vpn.servers.signed_list import MAX_SIGNED

KEY = make_key()
LIST, OTHER = make_list(5, KEY), make_list(5, make_key(1))
QUICK = Limits(connect=2, stall=0.4, total=10, pause=0.01, idle_attempts=1)
Open = Callable[..., Site]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """The trusted certificate, and an untrusted one with another name."""
    right, wrong = (make_certificate(tmp_path_factory.mktemp("tls"), name=name) for name in ("IP:127.0.0.1", "DNS:x"))
    return right, wrong


@pytest.fixture
def open_site(certificates: tuple[tuple[Path, Path], tuple[Path, Path]]) -> Iterator[Open]:
    """A function that makes a host with a given content, and the trusted or the other certificate."""
    with contextlib.ExitStack() as stack:

        def call(content: bytes, *, proves: bool = True, script: str = "ok") -> Site:
            site = stack.enter_context(run_site(content, certificates[0 if proves else 1]))
            site.script = [script]
            return site

        yield call


@pytest.fixture
def fetch(tmp_path: Path, certificates: tuple[tuple[Path, Path], tuple[Path, Path]]) -> Callable[..., FetchedList]:
    """Fetch from sites: the main address and its mirrors."""
    directory = tmp_path / "room"
    directory.mkdir()
    tls = ssl.create_default_context(cafile=str(certificates[0][0]))

    def call(*sites: Site) -> FetchedList:
        profile = make_test_profile(KEY, urls=tuple(site.url for site in sites))
        try:
            return fetch_list(profile, directory, tls=tls, limits=QUICK)
        finally:
            assert [path.name for path in directory.iterdir() if path.suffix == ".part" and path.stat().st_size] == []

    return call


def test_the_main_address_gives_it_and_no_mirror_is_asked(open_site: Open, fetch: Callable[..., FetchedList]) -> None:
    main, mirror = open_site(LIST), open_site(LIST, proves=False)
    found = fetch(main, mirror)
    assert (found.content, found.source) == (LIST, main.url)
    assert (len(main.requests), mirror.requests) == (1, [])


@pytest.mark.parametrize("script", ["503", "404", "cut:20", "hang", "redirect:http://127.0.0.1/"])
def test_the_main_address_is_asked_twice_and_then_a_mirror_without_a_certificate(
    script: str, open_site: Open, fetch: Callable[..., FetchedList]
) -> None:
    main, mirror = open_site(LIST, script=script), open_site(LIST, proves=False)
    if script == "cut:20":
        main.etag = None  # so that a second attempt does not get the rest
    found = fetch(main, mirror)
    assert (found.content, found.source) == (LIST, mirror.url)
    assert (len(main.requests) >= 2, len(mirror.requests)) == (True, 1)


@pytest.mark.requirement("R13")
def test_a_main_address_that_cannot_prove_its_name_is_asked_for_nothing(
    open_site: Open, fetch: Callable[..., FetchedList]
) -> None:
    main, mirror = open_site(LIST, proves=False), open_site(LIST, proves=False)
    assert fetch(main, mirror).source == mirror.url
    assert main.requests == []


@pytest.mark.requirement("R13")
@pytest.mark.parametrize("content", [OTHER, b"<html>sign in</html>", b"", LIST[:-40]])
def test_a_mirrors_false_answer_costs_one_attempt(
    content: bytes, open_site: Open, fetch: Callable[..., FetchedList]
) -> None:
    main, false, mirror = open_site(b"", script="503"), open_site(content, proves=False), open_site(LIST, proves=False)
    assert fetch(main, false, mirror).source == mirror.url
    assert len(false.requests) == 1


@pytest.mark.requirement("R13")
def test_a_list_that_nobody_we_trust_has_signed_is_refused_wherever_it_comes_from(
    open_site: Open, fetch: Callable[..., FetchedList]
) -> None:
    with pytest.raises(ListError) as caught:
        fetch(open_site(OTHER), open_site(OTHER, proves=False))
    assert caught.value.flaw is ListFlaw.WRONG_KEY


@pytest.mark.parametrize(
    ("script", "problem", "words"),
    [
        ("404", FetchProblem.NOT_FOUND, "no such file"),
        ("503", FetchProblem.SERVER, "trouble"),
        (f"claim:{MAX_SIGNED + 1}", FetchProblem.TOO_LARGE, "larger than a list can be"),
        ("hang", FetchProblem.STALLED, "no more data"),
    ],
)
def test_when_nobody_gives_it_the_error_is_about_the_list_and_names_a_way_for_lists(
    script: str, problem: FetchProblem, words: str, open_site: Open, fetch: Callable[..., FetchedList]
) -> None:
    with pytest.raises(ListFetchError) as caught:
        fetch(open_site(LIST, script=script), open_site(LIST, proves=False, script="404"))
    error = caught.value
    assert (error.flaw, error.problem) == (ListFlaw.NOT_FETCHED, problem)
    assert words in error.why
    assert "setup --bundle FILE" in error.next_step
    assert "core" not in str(error)


@pytest.mark.requirement("R13")
def test_a_wrong_certificate_is_said_as_that_with_the_clock_as_a_cause(
    open_site: Open, fetch: Callable[..., FetchedList]
) -> None:
    with pytest.raises(ListFetchError) as caught:
        fetch(open_site(LIST, proves=False))
    assert caught.value.problem is FetchProblem.TLS
    assert "clock" in caught.value.next_step
