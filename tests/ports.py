"""A port for a server that a test starts in another process."""

import random
import socket


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens at, below those that systems give to connections of their own.

    One of those, found by binding to port 0, may belong to some connection by the time a server
    has started.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
