# SPDX-FileCopyrightText: 2026 The Psiphon Linux VPN Service authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Twenty defects of a comparable service, a shell script: this service has none of them.

A test that shows the absence of a defect has `@pytest.mark.defect(4)`, wherever it is. The tests here read the source
and the policy; what must be seen on a wire is in tests/integration.
"""

import ast
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from tests.policies import golden_rulesets, policies

import psiphon_vpn
from psiphon_vpn.policy import names
from psiphon_vpn.policy.base import build_base_table
from psiphon_vpn.policy.model import Policy
from psiphon_vpn.policy.own_tables import LAYERS
from psiphon_vpn.policy.sysctls import GLOBAL_SYSCTLS, TUN_SYSCTLS
from psiphon_vpn.policy.values import name_by_index

PACKAGE = Path(psiphon_vpn.__file__).parent
TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

DEFECTS = {
    1: "stop, restart and a failed start took the lock away",
    2: "flush ruleset destroyed every other program's table",
    3: "an error of nft was hidden, and what stood afterwards was a matter of luck",
    4: "what was open before the lock went on leaving",
    5: "the service's user could go anywhere, and others through its proxies",
    6: "the firewall came last, after the network and a download",
    7: "input was accepted, any host was forwarded, and the tunnel's addresses were masqueraded onto the wire",
    8: "a route with a better metric, or the loss of the TUN, led around the tunnel",
    9: "a public resolver was written into resolv.conf, and asked in clear",
    10: "a program was downloaded on every start and run as root before it was trusted",
    11: "the service's user could replace what root runs",
    12: "the client had capabilities that can take the lock away",
    13: "files had wrong modes",
    14: "the units could not do what they were for",
    15: "two starts at once got in each other's way",
    16: "readiness was guessed from log lines",
    17: "secrets were logged, and the status was asked outside the tunnel",
    18: "the program said what it did not do",
    19: "a terminal, a log-in and a display were taken for granted",
    20: "a signal went to a process number out of a file",
}

SERVICE = sorted(PACKAGE.rglob("*.py"))
"""What is installed and runs; the laboratory is a test instrument."""


def _read_numbers(path: Path) -> Iterator[tuple[str, int]]:
    """The defects that a module's tests name, each with the test's name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.defect":
                yield from ((node.name, ast.literal_eval(argument)) for argument in decorator.args)


def test_every_known_defect_has_a_test() -> None:
    held = {number for path in TESTS.rglob("test_*.py") for _, number in _read_numbers(path)}
    assert held == set(DEFECTS)
    assert list(DEFECTS) == list(range(1, 21))


def _walk_source() -> Iterator[tuple[Path, ast.AST]]:
    for path in SERVICE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path, node


def test_the_source_of_the_service_is_all_looked_at() -> None:
    """The positive control of the tests below: they look at all of the source."""
    assert {"daemon.py", "base.py", "process.py", "nft.py"} <= {path.name for path in SERVICE}
    assert {name for _, name in _imported()} >= {"asyncio", "psiphon_vpn.config", "click", "tomllib"}
    assert {"nft", "setpriv"} <= {text for _, text in _texts()}


def _imported() -> Iterator[tuple[Path, str]]:
    for path, node in _walk_source():
        if isinstance(node, ast.Import):
            yield from ((path, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield path, node.module or ""


def _texts() -> Iterator[tuple[Path, str]]:
    """Every string that is not a docstring."""
    documentation = {
        node.value for _, node in _walk_source() if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for path, node in _walk_source():
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield path, node.value


@pytest.mark.defect(9)
def test_no_public_resolver_is_named_anywhere_but_those_that_are_asked_inside_the_tunnel() -> None:
    """Those in `simulate` are samples of packets that must not leave, and those in `routing` are looked up in the
    kernel's own tables. Nothing is sent to them."""
    found: set[tuple[str, str]] = set()
    for path, text in _texts():
        for word in re.findall(r"[0-9A-Fa-f:.]{6,}(?:/\d+)?", text):
            try:
                address = ipaddress.ip_address(word)
            except ValueError:
                continue
            if address.is_global and not address.is_multicast:
                found.add((path.name, word))
    assert found == {
        ("config.py", "2001:503:ba3e::2:30"), ("config.py", "2001:7fd::1"),
        ("simulate.py", "9.9.9.9"), ("simulate.py", "2620:fe::fe"),
        ("routing.py", "9.9.9.9"), ("routing.py", "198.41.0.4"), ("routing.py", "2001:503:ba3e::2:30"),
    }  # fmt: skip


@pytest.mark.defect(9)
def test_the_service_does_not_know_how_to_change_the_machines_resolvers() -> None:
    words = re.compile(r"/resolv\.conf|resolvectl|resolvconf|resolved\.conf|nsswitch|DNSOverTLS|DNSSEC", re.IGNORECASE)
    # Their diagnosis only reads: it has no way to write (diagnose/system.py). The drop-in for systemd-resolved is a
    # static file of the installation, present or absent as a whole, and masked as a whole while released: nothing in it
    # must be restored.
    static = {("system", name) for name in ("files.py", "layout.py", "released.py")}
    # Commands of root and our units do not see nsswitch.conf, in their own mount namespace; the file itself stays.
    static |= {("psiphon_vpn", "local_accounts.py"), ("system", "units.py")}
    found = [(path, text) for path, text in _texts() if words.search(text) and "diagnose" not in path.parts]
    assert [(path.name, text) for path, text in found if path.parts[-2:] not in static] == []


@pytest.mark.defect(10, 17)
def test_the_service_has_nothing_to_download_or_to_call_home_with() -> None:
    """`status` asks only the daemon and the kernel.

    `update` and the set-up before the lock download, and verify what they get. The refresh of the server list through
    the tunnel and the rescue use a process that can open nothing (`direct_fetch.py`); their list is signed.
    """
    clients = {"urllib", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "ssl", "xmlrpc", "socketserver"}
    fetching = {("core", name) for name in ("fetch.py", "fetch_errors.py", "partial_download.py", "obtain.py")}
    fetching |= {("cli", "update.py"), ("cli", "provisions.py")}
    fetching |= {("servers", "fetch.py"), ("servers", "direct_fetch.py")}
    loaded = [
        (path.name, name)
        for path, name in _imported()
        if name.split(".")[0] in clients and path.parts[-2:] not in fetching
    ]
    assert [entry for entry in loaded if entry[1] != "urllib.parse"] == []
    assert [(path.name, text) for path, text in _texts() if text in {"curl", "wget", "fetch", "aria2c"}] == []


@pytest.mark.defect(15, 20)
def test_a_signal_goes_to_our_own_child_and_never_to_a_name_or_a_number_out_of_a_file() -> None:
    """`kill` and `killpg` take a number from a child's handle or the caller, or one that has just been read."""
    for path, node in _walk_source():
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "os.kill",
            "os.killpg",
            "signal.pidfd_send_signal",
        }:
            number = ast.unparse(node.args[0])
            assert number in {"process.pid", "child.pid", "pid", "leader"}, f"{path.name}: {ast.unparse(node)}"
    assert [text for _, text in _texts() if re.search(r"\b(pkill|killall|pgrep|pidof)\b|\.pid$", text)] == []


@pytest.mark.defect(19)
def test_no_terminal_log_in_or_display_is_asked_for_by_the_service_or_its_set_up() -> None:
    words = re.compile(r"DISPLAY|logname|LOGNAME|SUDO_USER|getlogin|DBUS_SESSION|notify-send|XAUTHORITY")
    files = [*SERVICE, *ROOT.glob("*.sh"), ROOT / ".ci" / "run"]
    assert len(files) > len(SERVICE) + 1
    found = [path.name for path in files if words.search(path.read_text(encoding="utf-8"))]
    # One module runs in a user's own session, from a user unit, and shows that user the service's messages. Another
    # removes user names from a report. `config edit` runs an editor as the user who called sudo.
    assert sorted(found) == ["editor.py", "identities.py", "notify.py"]


@pytest.mark.defect(7)
def test_the_service_turns_no_forwarding_on() -> None:
    assert [name for name in {**GLOBAL_SYSCTLS, **TUN_SYSCTLS} if "forward" in name] == []
    # Its diagnosis only reads: it has no way to write (diagnose/system.py).
    found = [(path, text) for path, text in _texts() if re.search(r"ip_forward|/forwarding", text)]
    assert [text for path, text in found if "diagnose" not in path.parts] == []


@pytest.mark.defect(7)
@given(policies)
def test_addresses_are_translated_on_the_way_into_the_tunnel_and_never_onto_a_wire(policy: Policy) -> None:
    for chain in build_base_table(policy).chains:
        for rule in chain.rules:
            if re.search(r"\b(snat|masquerade)\b(?! accept)", rule.text):
                index = name_by_index(policy.links.tun_index or 0)
                assert rule.text.startswith(f'oifname "{names.TUN_NAME}" oif {index} ')
                assert rule.text.endswith((f" snat ip to {names.TUN_IPV4}", f" snat ip6 to {names.TUN_IPV6}"))


@pytest.mark.defect(7)
@given(policies)
def test_what_comes_from_a_wire_is_forwarded_nowhere_before_anything_else_is_asked(policy: Policy) -> None:
    chain = next(chain for chain in build_base_table(policy).chains if chain.name == "forward")
    accepting = [index for index, rule in enumerate(chain.rules) if rule.text.endswith(" accept")]
    if accepting:
        links = policy.links
        by_name = ", ".join(f'"{wire}"' for wire in links.wires)
        first = [rule.text for rule in chain.rules[: accepting[0]]]
        for side in ("iif", "oif"):
            assert f"{side}name {{ {by_name} }} counter drop" in first
            inner = ", ".join(f'"{name}"' for name in (names.TUN_NAME, *(links.container_interfaces or ())))
            assert links.container_interfaces is None or f"{side}name != {{ {inner} }} counter drop" in first


@pytest.mark.defect(2, 3)
@pytest.mark.parametrize("name", golden_rulesets())
def test_every_statement_of_a_ruleset_names_one_of_our_own_tables(name: str) -> None:
    """A misspelt statement, or one that reaches beyond our table, is none of the three that we use."""
    ours = "|".join(table.name for table in LAYERS)
    statement = re.compile(rf"(table|delete table) (inet|netdev|bridge|arp) ({ours})( \{{)?")
    lines = [line for line in golden_rulesets()[name].splitlines() if line and line[0] not in "#\t} "]
    assert lines
    assert [line for line in lines if not statement.fullmatch(line)] == []


@pytest.mark.defect(3)
def test_no_error_of_nft_is_thrown_away_but_that_of_removing_what_is_not_there() -> None:
    """Lists each place that ignores an error on purpose, so that a person looks at a new one."""
    quiet: dict[str, int] = {}
    for path, node in _walk_source():
        passed = isinstance(node, ast.ExceptHandler) and all(isinstance(part, ast.Pass) for part in node.body)
        named = ast.unparse(node.type) if isinstance(node, ast.ExceptHandler) and node.type else ""
        suppressed = isinstance(node, ast.Call) and ast.unparse(node.func) == "contextlib.suppress"
        if (passed and "Command" in named) or (suppressed and "Command" in ast.unparse(node)):
            quiet[path.name] = quiet.get(path.name, 0) + 1
        assert not (isinstance(node, ast.Constant) and node.value == "2>/dev/null")
    # Asks two package managers whether they know the service; not every system has both.
    assert quiet == {"nft.py": 1, "distribution.py": 2}
