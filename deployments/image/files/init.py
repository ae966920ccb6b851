"""PID 1 of the image: mounts, drivers, network, firewall; then the agent, and nothing else.

It runs no program but those of the image, and reads nothing that came from outside but DHCP's
answer. When the agent ends, the machine ends.
"""

import ctypes
import fcntl
import os
import secrets
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

AGENT = [
    "/usr/bin/python3.13", "-I", "-B", "-m", "aicert.agent",
    "--state", "/var/aicert", "--listen", "0.0.0.0:8443", "--tpm", "device:/dev/tpmrm0",
    "--engine", "podman", "--platform", "auto",
]  # fmt: skip
ENVIRONMENT = {
    "PATH": "/usr/bin:/usr/sbin",
    "HOME": "/var",
    "LANG": "C.UTF-8",
    "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
    "AICERT_CONTAINERS_CONF": "/usr/lib/aicert/containers.conf",
    "PYTHON_COLORS": "0",
}
MOUNTS = (
    ("proc", "/proc", "proc", 14, ""),
    ("sysfs", "/sys", "sysfs", 14, ""),
    ("securityfs", "/sys/kernel/security", "securityfs", 14, ""),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", 14, ""),
    ("devtmpfs", "/dev", "devtmpfs", 2, ""),
    ("devpts", "/dev/pts", "devpts", 10, "mode=600,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", 14, "mode=1777"),  # noqa: S108
    ("tmpfs", "/run", "tmpfs", 6, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", 14, "mode=1777"),  # noqa: S108
    ("tmpfs", "/var", "tmpfs", 6, "mode=755,size=90%"),
)
SETTINGS = {
    "kernel/kexec_load_disabled": "1",
    "kernel/core_pattern": "|/nothing",
    "kernel/dmesg_restrict": "1",
    "kernel/kptr_restrict": "2",
    "kernel/unprivileged_bpf_disabled": "1",
    "kernel/sysrq": "0",
    "fs/suid_dumpable": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv6/conf/all/accept_ra": "0",
}
# Of the kernel's levels: with `quiet` on the command line, what is above 3 stays off the console.
WARNING, ERROR = 4, 3
libc = ctypes.CDLL(None, use_errno=True)


def say(text: str, level: int = WARNING) -> None:
    """Write a line to the kernel's log; what is an error stands on the console, too."""
    with open("/dev/kmsg", "w", encoding="ascii", errors="replace") as log:
        log.write(f"<{level}>aicert: {text}\n")


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """Mount a file system; that it is mounted already is no error."""
    Path(target).mkdir(exist_ok=True, parents=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        number = ctypes.get_errno()
        if number != 16:  # EBUSY: it is there
            raise OSError(number, f"{os.strerror(number)}: mount {target}")


def load_modules() -> None:
    """Load the image's drivers, in order; then no more can be loaded."""
    for path in sorted(Path("/usr/lib/aicert/modules").iterdir()):
        with path.open("rb") as file:
            libc.syscall(313, file.fileno(), b"", 0)  # finit_module
    Path("/proc/sys/kernel/modules_disabled").write_text("1")


def _interface(control: socket.socket, name: str, request: int, *values: bytes) -> bytes:
    packed = struct.pack("16s24s", name.encode(), b"".join(values))
    return fcntl.ioctl(control, request, packed)


def _address(text: bytes) -> bytes:
    return struct.pack("<HH4s8x", socket.AF_INET, 0, text)


def bring_up_network() -> None:
    """Bring up the loopback and the first network card, by DHCP (RFC 2131)."""
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    _interface(control, "lo", 0x8914, struct.pack("<H", 0x49))  # SIOCSIFFLAGS: up, running
    deadline = time.monotonic() + 20
    cards: list[str] = []
    while not cards and time.monotonic() < deadline:
        cards = sorted(name for name in os.listdir("/sys/class/net") if name != "lo")
        time.sleep(0 if cards else 0.1)
    if not cards:
        say("there is no network card", ERROR)
        return
    card = cards[0]
    _interface(control, card, 0x8914, struct.pack("<H", 0x43))
    lease = dhcp(card)
    _interface(control, card, 0x8916, _address(lease["address"]))  # SIOCSIFADDR
    _interface(control, card, 0x891C, _address(lease.get("mask", b"\xff\xff\xff\0")))
    if "router" in lease:
        nothing = _address(bytes(4))
        # struct rtentry: destination, gateway, mask, flags (up, gateway)
        route = struct.pack("<Q16s16s16sH54x", 0, nothing, _address(lease["router"]), nothing, 3)
        fcntl.ioctl(control, 0x890B, route)  # SIOCADDRT
    servers = lease.get("servers", b"")
    Path("/run/resolv.conf").write_text(
        "".join(
            f"nameserver {socket.inet_ntoa(servers[n : n + 4])}\n"
            for n in range(0, len(servers), 4)
        )
    )
    say(f"network {card} {socket.inet_ntoa(lease['address'])}")


def dhcp(card: str) -> dict[str, bytes]:
    """Ask for an address: discover, offer, request, acknowledgement."""
    hardware = bytes.fromhex(Path(f"/sys/class/net/{card}/address").read_text().replace(":", ""))
    number = secrets.token_bytes(4)
    head = struct.pack(
        ">BBBB4sHH16x16s192x4s", 1, 1, 6, 0, number, 0, 0x8000, hardware, b"\x63\x82\x53\x63"
    )
    names = {1: "mask", 3: "router", 6: "servers", 53: "type", 54: "server"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        link.setsockopt(socket.SOL_SOCKET, 25, card.encode() + b"\0")  # SO_BINDTODEVICE
        link.bind(("0.0.0.0", 68))  # noqa: S104
        link.settimeout(2)
        options = b"\x35\x01\x01\x37\x03\x01\x03\x06\xff"
        for _ in range(20):
            # Some relays drop what is shorter than BOOTP's 300 bytes (RFC 1542, 2.1).
            link.sendto((head + options).ljust(300, b"\0"), ("255.255.255.255", 67))
            try:
                data = link.recv(2048)
            except TimeoutError:
                continue
            if data[4:8] != number:
                continue
            found = {"address": data[16:20]}
            at = 240
            while at + 1 < len(data) and data[at] != 255:
                if data[at] == 0:
                    at += 1
                    continue
                size = data[at + 1]
                if data[at] in names:
                    found[names[data[at]]] = data[at + 2 : at + 2 + size]
                at += 2 + size
            found["router"] = found.get("router", b"")[:4]
            if found.get("type") == b"\x05":
                return {name: value for name, value in found.items() if value}
            options = (
                b"\x35\x01\x03\x32\x04" + found["address"]
                + b"\x36\x04" + found.get("server", bytes(4)) + b"\x37\x03\x01\x03\x06\xff"
            )  # fmt: skip
    raise OSError("no DHCP server answers")


def main() -> None:
    """Make the machine ready and run the agent on it."""
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    for each in MOUNTS:
        mount(*each)
    for name, value in SETTINGS.items():
        Path("/proc/sys", name).write_text(value)
    load_modules()
    socket.sethostname("aicert")
    for pcr in range(16):
        value = Path(f"/sys/class/tpm/tpm0/pcr-sha256/{pcr}").read_text().strip().lower()
        say(f"PCR {pcr} {value}")
    # First the firewall: nothing is reachable before it stands.
    subprocess.run(["/usr/sbin/nft", "-f", "/usr/lib/aicert/firewall.nft"], check=True)
    bring_up_network()
    say("the agent starts")
    if Path("/usr/lib/aicert/debug").exists():  # the debug image, which says so in its name
        terminal = open("/dev/console", "r+b", buffering=0)  # noqa: SIM115
        subprocess.Popen(
            ["/usr/bin/busybox", "sh"], stdin=terminal, stdout=terminal, stderr=terminal
        )
    with open("/dev/console", "wb") as console:
        agent = subprocess.Popen(AGENT, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    while True:
        child, status = os.wait()
        if child == agent.pid:
            say(f"the agent ended: {status}", ERROR)
            return


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        say(f"{type(error).__name__}: {error}", ERROR)
    sys.stdout.flush()
    time.sleep(0.5)
    libc.reboot(0x4321FEDC)  # power off
