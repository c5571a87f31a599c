"""Hands a client's connection to another process, with what was read of it: the kernel carries the socket over."""

from __future__ import annotations

import array
import os
import socket

FDS = 2
ROOM = socket.CMSG_LEN(FDS * array.array("i").itemsize)
NOTE = b"connection"


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep messages apart and never block."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def hand_over(door: socket.socket, connection: int, read: bytes) -> bool:
    """The descriptor of a connection, and the bytes that came over it. False where the other side takes no more."""
    try:
        with os.fdopen(os.memfd_create("winnow-read"), "wb") as aside:
            aside.write(read)
            aside.flush()
            descriptors = array.array("i", (connection, aside.fileno()))
            door.sendmsg([NOTE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    except OSError:  # it has ended, or is behind; or descriptors have run out: who has the connection keeps it
        return False
    return True


def take_over(door: socket.socket) -> tuple[socket.socket, bytes] | None:
    """None where nothing is there. Raises ConnectionError where nothing will come any more, and OSError where a
    connection was lost for want of descriptors.
    """
    try:
        note, carried, _, _ = door.recvmsg(len(NOTE), ROOM, socket.MSG_CMSG_CLOEXEC)  # recv_fds drops flags
    except BlockingIOError:
        return None
    if not note:
        raise ConnectionResetError("the other process has ended")
    descriptors = array.array("i")
    for _, _, data in carried:
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if len(descriptors) < FDS:
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError("a connection was lost on its way: this process may open no more files")
    connection, aside = descriptors
    with os.fdopen(aside, "rb") as file:
        file.seek(0)
        read = file.read()
    return socket.socket(fileno=connection), read
