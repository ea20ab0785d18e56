"""Twenty defects that were found in a comparable service, a shell script: none of them is repeated here.

A test that holds the absence of one of them says so by `@pytest.mark.defect(4)`, wherever it is. What stands here is
what can be read off the source and the policy; what must be seen on a wire is in tests/integration.
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
    """The positive control of the tests below: they find what is there."""
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
    """Every string that is no documentation."""
    documentation = {
        node.value for _, node in _walk_source() if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for path, node in _walk_source():
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation:
            yield path, node.value


@pytest.mark.defect(9)
def test_no_public_resolver_is_named_anywhere_but_those_that_are_asked_inside_the_tunnel() -> None:
    """The samples of `simulate` are packets that must not leave, and those of `routing` are asked of the kernel's own
    tables; nothing is sent to them."""
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
    # What diagnoses them only reads: it has no way to write (diagnose/system.py). The drop-in for systemd-resolved is
    # a static file of the installation, there or not there as a whole, and masked as a whole while released: nothing
    # of it has to be restored.
    static = {("system", name) for name in ("files.py", "layout.py", "released.py")}
    # No command of root's and no unit of ours sees nsswitch.conf, in a mount namespace of its own: the file stays.
    static |= {("psiphon_vpn", "local_accounts.py"), ("system", "units.py")}
    found = [(path, text) for path, text in _texts() if words.search(text) and "diagnose" not in path.parts]
    assert [(path.name, text) for path, text in found if path.parts[-2:] not in static] == []


@pytest.mark.defect(10, 17)
def test_the_service_has_nothing_to_download_or_to_call_home_with() -> None:
    """`status` asks the daemon and the kernel, nobody else; only the command `update` fetches, and what it verifies."""
    clients = {"urllib", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "ssl", "xmlrpc", "socketserver"}
    fetching = {"fetch.py", "fetch_errors.py", "partial_download.py", "obtain.py", "update.py"}
    loaded = [
        (path.name, name)
        for path, name in _imported()
        if name.split(".")[0] in clients and not (path.parent.name in {"core", "cli"} and path.name in fetching)
    ]
    assert [entry for entry in loaded if entry[1] != "urllib.parse"] == []
    assert [(path.name, text) for path, text in _texts() if text in {"curl", "wget", "fetch", "aria2c"}] == []


@pytest.mark.defect(15, 20)
def test_a_signal_goes_to_our_own_child_and_never_to_a_name_or_a_number_out_of_a_file() -> None:
    """`kill` and `killpg` take a number that a child's handle or the caller gave, or that is read there and then."""
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
    # One runs in a user's own session, from a user unit, and shows that user what the service says; the other takes the
    # names of users out of a report.
    assert sorted(found) == ["identities.py", "notify.py"]


@pytest.mark.defect(7)
def test_the_service_turns_no_forwarding_on() -> None:
    assert [name for name in {**GLOBAL_SYSCTLS, **TUN_SYSCTLS} if "forward" in name] == []
    # What diagnoses it only reads: it has no way to write (diagnose/system.py).
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
    """What is misspelt, or reaches further than our table, is none of the three statements that we use."""
    ours = "|".join(table.name for table in LAYERS)
    statement = re.compile(rf"(table|delete table) (inet|netdev|bridge|arp) ({ours})( \{{)?")
    lines = [line for line in golden_rulesets()[name].splitlines() if line and line[0] not in "#\t} "]
    assert lines
    assert [line for line in lines if not statement.fullmatch(line)] == []


@pytest.mark.defect(3)
def test_no_error_of_nft_is_thrown_away_but_that_of_removing_what_is_not_there() -> None:
    """Each place where an error is passed over on purpose, for somebody to look at when there is another."""
    quiet: dict[str, int] = {}
    for path, node in _walk_source():
        passed = isinstance(node, ast.ExceptHandler) and all(isinstance(part, ast.Pass) for part in node.body)
        named = ast.unparse(node.type) if isinstance(node, ast.ExceptHandler) and node.type else ""
        suppressed = isinstance(node, ast.Call) and ast.unparse(node.func) == "contextlib.suppress"
        if (passed and "Command" in named) or (suppressed and "Command" in ast.unparse(node)):
            quiet[path.name] = quiet.get(path.name, 0) + 1
        assert not (isinstance(node, ast.Constant) and node.value == "2>/dev/null")
    # Two package managers that are asked whether they know us, where not every system has both.
    assert quiet == {"nft.py": 1, "distribution.py": 2}
