"""Ports of loopback for servers that can be told a port, and cannot choose one themselves."""

import os
import random
import socket

# Below the range that the kernel takes ports from for connections (32768 and up): whoever connects
# somewhere, and whoever binds to port 0, cannot take one before its server listens, or while the
# server is dead.
_PORTS = range(18_000, 32_000)
# Each process of the tests its own order, whatever seed a test has set.
_chance = random.Random(os.urandom(16))


def free_port() -> int:
    """Return a port that nobody listens on."""
    while True:
        port = _chance.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
