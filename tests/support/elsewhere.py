"""Another host, as far as a network goes: a namespace that reaches the server by one cable."""

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.installation import Installation

RELAY = """
import asyncio, sys
async def carry(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
async def accept(reader, writer):
    try:
        far = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    except OSError:
        return writer.close()
    await asyncio.gather(carry(reader, far[1]), carry(far[0], writer))
async def main():
    server = await asyncio.start_server(accept, sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@dataclass
class Elsewhere:
    """A network namespace: it has a loopback of its own, and the cable, and nothing else."""

    name: str
    address: str

    def enter(self) -> tuple[str, ...]:
        """Return the words that start a command there. Nothing but the network is another."""
        return ("nsenter", f"--net=/run/netns/{self.name}", "--")

    def cut(self) -> None:
        """Pull the cable: packets are lost, and nobody is told."""
        _ip("link", "set", f"{self.name}-h", "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip("link", "set", f"{self.name}-h", "up")


@contextmanager
def elsewhere(held: Installation) -> Iterator[Elsewhere]:
    """Make another host, from which the installation's server is reached by an address."""
    number = secrets.randbelow(1 << 14) * 4
    network = f"10.213.{number >> 8}"
    here, there = (f"{network}.{(number & 255) + host}" for host in (1, 2))
    name = f"ac{secrets.token_hex(4)}"
    _ip("netns", "add", name)
    relay = None
    try:
        ends = ("type", "veth", "peer", "name", "cable", "netns", name)
        _ip("link", "add", f"{name}-h", *ends)
        _ip("address", "add", f"{here}/30", "dev", f"{name}-h")
        _ip("link", "set", f"{name}-h", "up")
        _ip("-n", name, "address", "add", f"{there}/30", "dev", "cable")
        _ip("-n", name, "link", "set", "cable", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        # The server listens on this host's loopback alone.
        command = [sys.executable, "-c", RELAY, here, str(held.port)]
        relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert relay.stdout is not None and relay.stdout.readline() == "ready\n"
        yield Elsewhere(name, here)
    finally:
        if relay is not None:
            relay.kill()
            relay.communicate()
        _ip("netns", "delete", name)  # and the cable with it


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
