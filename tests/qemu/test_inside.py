"""What is in the image, and what somebody inside could do: tried with the debug image's shell.

The debug image is the released one with a shell besides, which the first test here shows.
"""

import http.server
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aicert.agent import qemu
from deployments.image import build
from tests.support import vm
from tests.support.console import Shell
from tests.support.vm import MARKS, Vm

pytestmark = MARKS

BOX = "/usr/bin/busybox"
SHELLS = {"sh", "bash", "dash", "ash", "busybox", "zsh", "ksh", "login", "getty", "agetty", "sshd"}


def listing(image: qemu.Image) -> dict[str, str]:
    """Return what is in an image's root: path to mode and owner."""
    command = ["unsquashfs", "-lls", "-d", "", "-o", str(vm.root_at(image.disk)), str(image.disk)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines():
        if line[:1] in ("-", "d", "l", "c", "b", "p", "s") and "/" in line:
            mode, owner = line.split()[:2]
            found[line.partition(":")[2][3:].partition(" -> ")[0]] = f"{mode} {owner}"
    return found


def test_only_the_programs_that_are_named_can_be_executed(image: qemu.Image) -> None:
    held = listing(image)
    programs = {
        path for path, mode in held.items() if mode.startswith("-") and "x" in mode.split()[0]
    }
    named = {f"/{path}" for path in (*build.RECIPE["programs"], build.LOADER)}
    assert programs == {path for path in named if not held[path].startswith("l")}
    assert not {Path(path).name for path in held} & SHELLS
    # Nothing gives rights to whoever starts it, and there are no devices.
    assert {mode for mode in held.values() if set("sS") & set(mode.split()[0][1:])} == set()
    assert {mode[0] for mode in held.values()} == {"-", "d", "l"}
    assert {mode.split()[1] for mode in held.values()} == {"root/root"}


def test_a_debug_image_has_a_shell_and_is_recognisably_another(
    image: qemu.Image, debug: qemu.Image
) -> None:
    more = listing(debug).keys() ^ listing(image).keys()
    assert more == {"/usr/bin/busybox", "/usr/lib/aicert/debug"}
    assert debug.name != image.name
    differ = {pcr for pcr in image.pcrs if debug.pcrs[pcr] != image.pcrs[pcr]}
    assert {4, 9, 11} <= differ <= {4, 5, 9, 11}


@pytest.fixture(scope="module")
def inside(debug: qemu.Image) -> Iterator[tuple[Vm, Shell]]:
    """A machine that may reach the internet, as far as QEMU is concerned, and its shell."""
    shape = qemu.Shape(2048, 2)
    with vm.booting(debug.disk, shape=shape, terminal=True, internet=True) as machine:
        machine.find()
        yield machine, Shell(machine.folder / qemu.TERMINAL)


Inside = tuple[Vm, Shell]


def test_a_debug_boot_is_foretold_and_refused(
    inside: Inside, debug: qemu.Image, signed: bytes
) -> None:
    answer = inside[0].attest()
    assert [pcr for pcr in debug.pcrs if answer.pcrs[pcr] not in debug.foretold(pcr)] == []
    assert {4, 9, 11} <= set(vm.problems(signed, answer))


def test_no_module_can_be_loaded_and_no_memory_read(inside: Inside) -> None:
    shell = inside[1]
    status, said = shell.run(f"{BOX} insmod /usr/lib/aicert/modules/000-*.ko")
    assert status != 0 and "not permitted" in said, said
    assert shell.run("echo 0 > /proc/sys/kernel/modules_disabled")[0] != 0
    assert "[integrity]" in shell.run(f"{BOX} cat /sys/kernel/security/lockdown")[1]
    assert shell.run(f"{BOX} dd if=/dev/mem of=/dev/null bs=4096 count=1 skip=256")[0] != 0
    for name, value in (("modules_disabled", 1), ("kexec_load_disabled", 1), ("sysrq", 0)):
        assert shell.run(f"{BOX} cat /proc/sys/kernel/{name}")[1].strip() == str(value)
    assert shell.run("echo 0 > /proc/sys/kernel/kexec_load_disabled")[0] != 0


def test_nothing_can_be_written_but_memory(inside: Inside) -> None:
    _, shell = inside
    kinds = {}
    for line in shell.run(f"{BOX} cat /proc/mounts")[1].splitlines():
        source, target, kind, options = line.split()[:4]
        if source.startswith("/dev/") or "rw" in options.split(","):
            kinds[target] = kind
    assert kinds.pop("/") == "squashfs"
    virtual = {"proc", "sysfs", "securityfs", "cgroup2", "devtmpfs", "devpts", "tmpfs"}
    assert set(kinds.values()) <= virtual, kinds
    assert len(shell.run(f"{BOX} cat /proc/swaps")[1].splitlines()) == 1
    assert shell.run("echo x > /usr/x")[0] != 0
    for disk in ("/dev/vda", "/dev/dm-0"):
        status, said = shell.run(f"{BOX} dd if=/dev/zero of={disk} bs=4096 count=1 conv=fsync")
        assert status != 0, said


def test_nobody_listens_but_the_agent(inside: Inside) -> None:
    _, shell = inside
    said = shell.run(f"{BOX} cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6")[1]
    rows = [line.split() for line in said.splitlines() if ":" in line.partition(":")[2]]
    listening = {row[1].partition(":")[2] for row in rows if row[3] in ("0A", "07")}
    assert listening == {f"{qemu.AGENT_PORT:04X}"}


# -- the firewall ----------------------------------------------------------------------------------


class Greeter(http.server.BaseHTTPRequestHandler):
    """A service of the host's own."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"greetings")

    def log_message(self, *_: Any) -> None:
        pass


def reaches_host(shell: Shell) -> bool:
    """Tell whether the machine gets at a service on the host's loopback interface, by HTTP."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greeter) as server:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(server.serve_forever)
            url = f"http://192.0.2.2:{server.server_port}/"
            said = shell.run(f"{BOX} wget -q -T 4 -O - {url}")[1]
            server.shutdown()
    return "greetings" in said


def reached_by_host(port: int, shell: Shell) -> bool:
    """Tell whether the host gets at a port of the machine that is not the agent's."""
    serve = f"echo greetings | {BOX} nc -l -p 9999 > /dev/null 2>&1 &"
    shell.run(f"({serve}) ; {BOX} sleep 1")
    with closing(socket.create_connection(("127.0.0.1", port), 5)) as client:
        client.settimeout(4)
        try:
            found = b"greetings" in client.recv(100)
        except (TimeoutError, ConnectionError):
            found = False
    shell.run(f"{BOX} killall nc")
    return found


def test_the_firewall_shuts_off_the_host_and_every_port_but_the_agents(inside: Inside) -> None:
    machine, shell = inside
    port = machine.forward(9999)
    assert not reaches_host(shell)
    assert not reached_by_host(port, shell)
    # It is the firewall that does: without it, both work.
    assert shell.run("/usr/sbin/nft flush ruleset")[0] == 0
    try:
        assert any(reaches_host(shell) for _ in range(10))
        # The connection that was dropped may still be knocking, and take the one place there is.
        assert any(reached_by_host(port, shell) for _ in range(10))
    finally:
        assert shell.run("/usr/sbin/nft -f /usr/lib/aicert/firewall.nft")[0] == 0
    assert not reaches_host(shell)
