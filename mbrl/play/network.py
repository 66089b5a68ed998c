"""Where the server listens, and which Host headers name it."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from mbrl.errors import UserError


def accepts_host(header: str, host: str) -> bool:
    """Whether a Host header names this server.

    Args:
        header: such as 127.0.0.1:8420. The port does not matter, so that a tunnel may have another one.
        host: address that is listened on. Beyond the loopback, any address is accepted and this machine's name: names
            of others could point here, addresses cannot.
    """
    try:
        name = urlsplit(f"//{header}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    known = {"localhost", "127.0.0.1", "::1", host}
    if not is_loopback(host):
        known |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        with suppress(ValueError):
            known.add(str(ipaddress.ip_address(name)))
    return name in known


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UserError: the port is in use or not allowed, or there is no such address.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use: choose another one, such as --port {port + 1}"
            ) from error
        raise UserError(f"cannot listen on port {port} of {host}: {error.strerror or error}") from error
    listening.listen()
    return listening
