"""Where a webhook may lead: not to this machine, nor into the network that it stands in."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from service.errors import InvalidInput

LONGEST_URL = 2000
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Refused(Exception):
    """A webhook that is not called; the message says why."""


@dataclass(frozen=True)
class Target:
    """A webhook's URL, taken apart."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @classmethod
    def parse(cls, url: str, *, allow_private: bool) -> Self:
        """Raises InvalidInput for what no webhook may be. Names are not looked up: that is done at each delivery."""
        if len(url) > LONGEST_URL or not re.fullmatch(r"[\x21-\x7e]+", url):
            raise _bad(f"it must be 1 to {LONGEST_URL} printable ASCII characters, other ones escaped")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _bad(str(error)) from error
        if parts.scheme not in ({"http", "https"} if allow_private else {"https"}):
            raise _bad("it must begin with https://")
        if not host or port == 0 or parts.username is not None or parts.password is not None or parts.fragment:
            raise _bad("it must have a host, and neither a user, a password nor a fragment")
        if not allow_private and (literal := _literal(host)) and not is_public(literal):
            raise _bad(f"{host} is not a public address")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme], path)

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system finds them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def address_of(target: Target, resolver: Resolve, *, allow_private: bool) -> str:
    """The one address to connect to: the name is looked up once, and every address that it has must be public.

    Raises Refused, or OSError where the name is not known.
    """
    found = await resolver(target.host, target.port)
    if not found:
        raise Refused(f"{target.host} has no address")
    if not allow_private:
        inside = next((each for each in found if not is_public(ipaddress.ip_address(each.partition("%")[0]))), None)
        if inside is not None:
            raise Refused(f"{target.host} leads to {inside}, which is not a public address")
    return found[0]


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether the address is one of the open Internet, whatever it is wrapped in."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None or address.teredo is not None:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _bad(why: str) -> InvalidInput:
    return InvalidInput(f"A webhook cannot have that URL: {why}.", code="bad_webhook_url")
