# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fetching a core from a real server over real TLS: every way in which it can fail, and what is left then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cores import list_tree, make_elf, make_manifest, make_store, pin, sha256
from tests.https_site import Site, make_certificate, run_site

from psiphon_lab.standin_socks import serve_socks
from psiphon_vpn.core.fetch import Limits, check_url, describe_source, fetch_core
from psiphon_vpn.core.fetch_errors import FetchError, FetchProblem
from psiphon_vpn.core.flaws import CoreFlaw, CoreFlawError
from psiphon_vpn.core.obtain import CoreRequest, obtain
from psiphon_vpn.core.store import CoreStore
from psiphon_vpn.errors import UserError
from psiphon_vpn.system.layout import Layout

ROOT = Path(__file__).parents[2]
OLD, NEW = make_elf(b"old"), make_elf(os.urandom(300_000))
QUICK = Limits(connect=2, stall=0.4, total=10, pause=0.01)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def site(certificate: tuple[Path, Path]) -> Iterator[Site]:
    with run_site(NEW, certificate) as made:
        yield made


@pytest.fixture
def tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "downloads"
    made.mkdir()
    return made


def fails(site: Site, directory: Path, tls: ssl.SSLContext | None, *, limits: Limits = QUICK) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch_core(site.url, directory, tls=tls, limits=limits)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_arrives_is_what_was_sent_and_the_progress_is_reported(
    site: Site, directory: Path, tls: ssl.SSLContext
) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch_core(site.url, directory, tls=tls, limits=QUICK, progress=lambda *news: seen.append(news))
    assert path.read_bytes() == NEW
    assert path.stat().st_mode & 0o777 == 0o600
    assert seen[-1] == (len(NEW), len(NEW))
    assert site.requests[0]["accept-encoding"] == "identity"


FAILURES = {
    "says 404": (["404"], FetchProblem.NOT_FOUND, "no such file"),
    "says 410": (["410"], FetchProblem.NOT_FOUND, "no such file"),
    "says 403": (["403"], FetchProblem.REFUSED, "refuses"),
    "says 204": (["204"], FetchProblem.REFUSED, "refuses"),
    "says 503 again and again": (["503"], FetchProblem.SERVER, "503"),
    "says 429 again and again": (["429"], FetchProblem.SERVER, "429"),
    "breaks off at once, again and again": (["cut:0"], FetchProblem.TRUNCATED, "broke off"),
    "says nothing": (["hang"], FetchProblem.STALLED, "no more data"),
    "stops in the middle, again and again": (["stall:100", "stall:0"], FetchProblem.STALLED, "no more data"),
    "never ends": (["endless"], FetchProblem.TOO_LARGE, "larger than"),
    "claims a huge size": ([f"claim:{1 << 40}"], FetchProblem.TOO_LARGE, "larger than"),
    "sends it packed": (["gzip"], FetchProblem.REFUSED, "another form"),
    "leads to http": (["redirect:http://127.0.0.1/core"], FetchProblem.REDIRECT, "not https"),
    "leads to a file": (["redirect:file:///etc/passwd"], FetchProblem.REDIRECT, "not https"),
    "leads in circles": (["redirect:/core"], FetchProblem.REDIRECT, "too often"),
}


@pytest.mark.requirement("R14")
@pytest.mark.parametrize("what", FAILURES)
def test_a_download_fails_with_a_reason_and_a_next_step_when_the_server(
    what: str, site: Site, directory: Path, tls: ssl.SSLContext
) -> None:
    site.script, problem, words = list(FAILURES[what][0]), *FAILURES[what][1:]
    limits = Limits(connect=2, stall=0.4, total=10, pause=0.01, size=1 << 20)
    error = fails(site, directory, tls, limits=limits)
    assert error.problem is problem
    assert words in str(error)
    assert len(site.requests) <= 6


def test_a_trickle_ends_at_the_limit_of_time(site: Site, directory: Path, tls: ssl.SSLContext) -> None:
    site.script = ["trickle"]
    error = fails(site, directory, tls, limits=Limits(connect=2, stall=5, total=0.3, pause=0.01))
    assert error.problem is FetchProblem.STALLED
    assert "too long" in str(error)


@pytest.mark.requirement("R13")
def test_a_server_that_cannot_prove_who_it_is_gets_no_request(
    site: Site, directory: Path, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    assert fails(site, directory, None).problem is FetchProblem.TLS, "not one of the system's authorities"
    (tmp_path / "tls").mkdir()
    other = make_certificate(tmp_path / "tls", name="DNS:elsewhere.example")
    with run_site(NEW, other) as wrong_name:
        context = ssl.create_default_context(cafile=str(other[0]))
        error = fails(wrong_name, directory, context)
        assert wrong_name.requests == []
    assert error.problem is FetchProblem.TLS
    assert "prove" in str(error)
    assert site.requests == []


def test_a_port_that_nobody_listens_on_is_no_network_and_the_ways_out_are_named(
    site: Site, directory: Path, tls: ssl.SSLContext
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        site.port = taken.getsockname()[1]
        error = fails(site, directory, tls)
    assert error.problem is FetchProblem.NO_NETWORK
    assert "--via-tunnel" in error.next_step
    assert "--core-file PATH --sha256 HEX" in error.next_step


NOWHERE = """
import sys
from pathlib import Path
from psiphon_vpn.core.fetch import fetch_core
from psiphon_vpn.core.fetch_errors import FetchError
for url in ("https://192.0.2.1/core", "https://[2001:db8::1]/core", "https://core.example/core"):
    try:
        fetch_core(url, Path(sys.argv[1]))
    except FetchError as error:
        print(error.problem, error)
"""


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a network namespace")
@pytest.mark.requirement("R14")
def test_without_a_network_and_without_names_that_is_said_at_once(directory: Path) -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", NOWHERE, directory],
        capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    first, second, third = done.stdout.splitlines()
    for line in (first, second):
        assert line.startswith("no_network The tunnel program was not downloaded:")
        assert "cannot be reached" in line
    assert third.startswith("dns ")
    assert "core.example cannot be resolved" in third


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/core",
        "file:///core",
        "ftp://example.org/core",
        "core",
        "https://",
        "https://a:b@example.org/",
    ],
)
def test_only_https_without_a_password_is_fetched(address: str) -> None:
    with pytest.raises(FetchError) as caught:
        check_url(address)
    assert caught.value.problem is FetchProblem.ADDRESS


def test_what_may_be_secret_in_an_address_is_not_recorded() -> None:
    assert describe_source("https://example.org/a/core?token=x#y") == "https://example.org/a/core"


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validator", ["etag", "last_modified"])
def test_what_broke_off_is_gone_on_with_and_not_begun_again(
    validator: str, site: Site, directory: Path, tls: ssl.SSLContext
) -> None:
    if validator == "last_modified":
        site.etag, site.last_modified = None, "Wed, 21 Oct 2015 07:28:00 GMT"
    site.script = ["cut:1000", "503", "stall:2000", "ok"]
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == NEW
    assert [request.get("range") for request in site.requests] == [None, "bytes=1000-", "bytes=1000-", "bytes=3000-"]
    assert site.requests[-1]["if-range"] == (site.etag or site.last_modified)


def test_another_run_goes_on_too(site: Site, directory: Path, tls: ssl.SSLContext) -> None:
    site.script = ["cut:1000", "404"]
    fails(site, directory, tls)
    site.script = ["ok"]
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == NEW
    assert site.requests[-1]["range"] == "bytes=1000-"
    # Complete but still a partial file, as after a crash: the server says that nothing is missing.
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == NEW
    assert site.requests[-1]["range"] == f"bytes={len(NEW)}-"


def test_what_has_changed_meanwhile_is_begun_again(site: Site, directory: Path, tls: ssl.SSLContext) -> None:
    site.script = ["cut:1000", "404"]
    fails(site, directory, tls)
    site.content, site.etag, site.script = make_elf(b"other" * 1000), '"v2"', ["ok"]
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == site.content


@pytest.mark.parametrize("etag", ['W/"weak"', None])
def test_without_a_strong_validator_it_begins_again(
    etag: str | None, site: Site, directory: Path, tls: ssl.SSLContext
) -> None:
    site.etag, site.script = etag, ["cut:1000", "ok"]
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == NEW
    assert "range" not in site.requests[-1]


@pytest.mark.parametrize("behaviour", ["whole", "shifted"])
def test_a_server_that_sends_another_part_spoils_nothing(
    behaviour: str, site: Site, directory: Path, tls: ssl.SSLContext
) -> None:
    site.script = ["cut:1000", behaviour, "ok"]
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == NEW


def test_a_file_that_became_shorter_is_begun_again(site: Site, directory: Path, tls: ssl.SSLContext) -> None:
    site.script = ["cut:1000", "404"]
    fails(site, directory, tls)
    site.content, site.script = make_elf(b"short"), ["ok"]
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == site.content


def test_what_was_begun_for_another_address_is_removed(site: Site, directory: Path, tls: ssl.SSLContext) -> None:
    site.script = ["cut:1000", "404"]
    fails(site, directory, tls)
    assert len(list(directory.iterdir())) == 2
    site.script = ["404"]
    with pytest.raises(FetchError):
        fetch_core(site.url + "/other", directory, tls=tls, limits=QUICK)
    assert list(directory.iterdir()) == []


def test_a_redirect_within_https_is_followed(site: Site, directory: Path, tls: ssl.SSLContext) -> None:
    site.script = ["redirect:/elsewhere", "cut:1000", "redirect:/elsewhere", "ok"]
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == NEW
    assert site.paths == ["/core", "/elsewhere", "/core", "/elsewhere"]


# -- proxies -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def run_socks(asked: list[tuple[str, int]]) -> Iterator[int]:
    """The stand-in core's SOCKS proxy, which connects directly here; `asked` records its requests."""
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), [0]

    async def connect(host: str, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        asked.append((host, number))
        return await asyncio.open_connection("127.0.0.1", number)

    async def work() -> None:
        server = await asyncio.start_server(lambda reader, writer: serve_socks(reader, writer, connect), "127.0.0.1", 0)
        port[0] = server.sockets[0].getsockname()[1]
        ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()

    task = loop.create_task(work())
    thread = threading.Thread(target=lambda: loop.run_until_complete(task))
    thread.start()
    ready.wait(5)
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        for rest in asyncio.all_tasks(loop):
            rest.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(rest)
        loop.close()


@pytest.mark.requirement("R11", "R14")
def test_through_the_socks_proxy_even_the_name_is_resolved_at_the_far_end(
    site: Site, directory: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    real = socket.getaddrinfo

    def only_addresses(host: str, *args: object, **options: object) -> object:
        assert host in {"127.0.0.1", b"127.0.0.1"}, "a name was asked for on this machine"
        return real(host, *args, **options)  # type: ignore[arg-type]

    with run_socks(asked) as port:
        monkeypatch.setattr(socket, "getaddrinfo", only_addresses)
        path = fetch_core(
            f"https://localhost:{site.port}/core", directory, proxy=f"socks5://127.0.0.1:{port}", tls=tls, limits=QUICK
        )
    assert path.read_bytes() == NEW
    assert asked == [("localhost", site.port)]


@pytest.mark.parametrize("kind", ["socks5", "http"])
def test_a_proxy_that_is_not_there_is_named_as_the_reason(
    kind: str, site: Site, directory: Path, tls: ssl.SSLContext
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"{kind}://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FetchError) as caught:
            fetch_core(site.url, directory, proxy=proxy, tls=tls, limits=QUICK)
    assert caught.value.problem is FetchProblem.PROXY
    assert "secret" not in str(caught.value)
    assert site.requests == []


@pytest.mark.parametrize("proxy", ["gopher://127.0.0.1:1", "127.0.0.1:1080", "http://[", ""])
def test_a_malformed_proxy_address_is_refused(proxy: str, site: Site, directory: Path, tls: ssl.SSLContext) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_core(site.url, directory, proxy=proxy, tls=tls, limits=QUICK)
    assert caught.value.problem is FetchProblem.PROXY


def test_the_environment_chooses_no_proxy(
    site: Site, directory: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch_core(site.url, directory, tls=tls, limits=QUICK).read_bytes() == NEW


# -- into the store ----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, site: Site) -> CoreStore:
    """OLD is in use; the manifest pins NEW, at the site."""
    made = make_store(tmp_path / "root")
    made.manifest = make_manifest(
        pin(OLD, order=1), pin(NEW, order=2), url=f"https://127.0.0.1:{site.port}/{{repository}}/{{commit}}/{{path}}"
    )
    (tmp_path / "old").write_bytes(OLD)
    made.install_file(tmp_path / "old")
    return made


@pytest.mark.requirement("R13", "R14")
def test_the_pinned_core_is_fetched_by_commit_verified_and_put_into_use(
    store: CoreStore, site: Site, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    with obtain(store, CoreRequest(), tls=tls, limits=QUICK) as staged:
        assert staged.old is not None
        assert (staged.old.sha256, staged.record.sha256) == (sha256(OLD), sha256(NEW))
        assert store.check_current().sha256 == sha256(OLD), "not before it is activated"
        store.activate(staged)
    assert store.check_current().sha256 == sha256(NEW)
    assert site.paths == [f"/owner/name/{pin(NEW, order=2).commit}/linux/core"]
    names = {path.name for path in Layout(root=tmp_path / "root").core_dir.iterdir()}
    assert names == {".lock", "current", "previous", sha256(OLD), sha256(NEW)}


WRONG_CONTENT = {
    "an error page with code 200": (b"<html>not found</html>", CoreFlaw.NOT_ELF),
    "nothing": (b"", CoreFlaw.NOT_ELF),
    "another program": (make_elf(b"evil"), CoreFlaw.MISMATCH),
    "the right program with one byte more": (NEW + b"\0", CoreFlaw.MISMATCH),
    "the older program": (OLD, CoreFlaw.MISMATCH),
    "a program for another processor": (make_elf(machine="riscv64"), CoreFlaw.WRONG_ARCHITECTURE),
}


@pytest.mark.defect(10)
@pytest.mark.requirement("R13", "R14")
@pytest.mark.parametrize("what", WRONG_CONTENT)
def test_the_core_in_use_is_untouched_and_the_download_thrown_away_when_the_server_sends(
    what: str, store: CoreStore, site: Site, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    site.content, flaw = WRONG_CONTENT[what]
    before = list_tree(tmp_path / "root")
    with pytest.raises(CoreFlawError) as caught, obtain(store, CoreRequest(), tls=tls, limits=QUICK):
        pytest.fail("the file was accepted")
    assert caught.value.flaw is flaw
    assert list_tree(tmp_path / "root") == before
    assert store.check_current().sha256 == sha256(OLD)


@pytest.mark.requirement("R14")
@pytest.mark.parametrize("what", FAILURES)
def test_the_core_in_use_is_untouched_when_the_server(
    what: str, store: CoreStore, site: Site, tls: ssl.SSLContext, tmp_path: Path
) -> None:
    site.script = list(FAILURES[what][0])
    before = list_tree(tmp_path / "root")
    limits = Limits(connect=2, stall=0.2, total=10, pause=0.01, size=1 << 20)
    with pytest.raises(FetchError), obtain(store, CoreRequest(), tls=tls, limits=limits):
        pytest.fail("the file was accepted")
    after = {name: value for name, value in list_tree(tmp_path / "root").items() if "/.downloads/" not in name}
    assert after == before
    assert store.check_current().sha256 == sha256(OLD)
    # The next run, with a server that works, succeeds.
    site.script = ["ok"]
    with obtain(store, CoreRequest(), tls=tls, limits=QUICK) as staged:
        assert store.activate(staged).new.sha256 == sha256(NEW)


FULL_DISK = """
import os, ssl, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tests.cores import make_elf, make_store, pin, sha256
from psiphon_vpn.core.fetch_errors import FetchError
from psiphon_vpn.core.obtain import CoreRequest, obtain
root, url, cert = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(root)], check=True)
old = make_elf(b"old")
store = make_store(root, pin(old))
(root / "old").write_bytes(old)
store.install_file(root / "old")
try:
    with obtain(store, CoreRequest(url=url, sha256="0" * 64), tls=ssl.create_default_context(cafile=cert)):
        pass
except FetchError as error:
    print(error.problem, error)
print(store.check_current().sha256 == sha256(old))
"""


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system in a namespace of its own")
@pytest.mark.requirement("R14")
def test_a_download_on_a_disk_that_is_full_says_so_and_leaves_the_core_in_use(
    site: Site, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    (tmp_path / "root").mkdir()
    argv = ["unshare", "--mount", sys.executable, "-c", FULL_DISK]
    argv += [str(tmp_path / "root"), site.url, str(certificate[0]), str(ROOT)]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("disk The tunnel program was not downloaded:")
    assert "No space left" in first
    assert second == "True"


@pytest.mark.requirement("R14")
def test_a_mirror_is_as_good_as_the_origin_if_the_content_is_pinned_or_its_sha256_is_given(
    store: CoreStore, site: Site, tls: ssl.SSLContext
) -> None:
    with obtain(store, CoreRequest(url=f"{site.url}?token=secret"), tls=tls, limits=QUICK) as staged:
        assert staged.record.revision == "0000000002"
        assert staged.record.source == site.url
    site.content = make_elf(b"own build")
    with pytest.raises(CoreFlawError) as caught, obtain(store, CoreRequest(url=site.url), tls=tls, limits=QUICK):
        pytest.fail("the file was accepted")
    assert caught.value.flaw is CoreFlaw.UNPINNED
    request = CoreRequest(url=site.url, sha256=sha256(site.content))
    with obtain(store, request, tls=tls, limits=QUICK) as staged:
        assert staged.record.revision is None


def test_where_the_manifest_has_nothing_for_this_processor_nothing_is_fetched_and_the_way_is_named(
    store: CoreStore, site: Site, tls: ssl.SSLContext
) -> None:
    store.machine = "aarch64"
    with pytest.raises(CoreFlawError) as caught, obtain(store, CoreRequest(), tls=tls, limits=QUICK):
        pytest.fail("the file was accepted")
    assert caught.value.flaw is CoreFlaw.UNSUPPORTED
    assert "--core-file PATH --sha256 HEX" in caught.value.next_step
    assert site.requests == []


def test_without_the_service_user_nothing_is_fetched(site: Site, tls: ssl.SSLContext, tmp_path: Path) -> None:
    store = CoreStore(Layout(root=tmp_path), root_uid=os.geteuid())
    request = CoreRequest(url=site.url, sha256=sha256(NEW))
    with pytest.raises(UserError, match="no user psiphon-user"), obtain(store, request, tls=tls, limits=QUICK):
        pytest.fail("the file was accepted")
    assert site.requests == []
