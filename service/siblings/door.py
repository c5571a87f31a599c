"""Hands a client's connection to another process, with what was read of it: the kernel carries the socket over."""

from __future__ import annotations

import array
import os
import socket

FDS = 2
NOTE = b"connection"


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep messages apart and never block."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def hand_over(door: socket.socket, connection: int, read: bytes) -> bool:
    """The descriptor of a connection, and the bytes that came over it. False where the other side takes no more."""
    aside = os.memfd_create("winnow-read")
    try:
        _write_all(aside, read)
        descriptors = array.array("i", (connection, aside))
        door.sendmsg([NOTE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    except (BlockingIOError, ConnectionError):
        return False
    finally:
        os.close(aside)
    return True


def take_over(door: socket.socket) -> tuple[socket.socket, bytes] | None:
    """None where nothing is there, or nobody will send any more. Raises OSError where descriptors have run out."""
    try:
        note, descriptors, _, _ = socket.recv_fds(door, len(NOTE), FDS)
    except (BlockingIOError, ConnectionError):
        return None
    if not note:
        return None
    if len(descriptors) < FDS:
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError("a connection was lost on its way: this process may open no more files")
    connection, aside = descriptors
    with os.fdopen(aside, "rb") as file:
        file.seek(0)
        read = file.read()
    return socket.socket(fileno=connection), read


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
