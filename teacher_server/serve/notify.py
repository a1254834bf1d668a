"""What a supervisor is told (systemd's Type=notify): that the daemon serves or stops, and what it is doing.

The protocol is one datagram of lines NAME=VALUE to the Unix-domain socket that the environment's NOTIFY_SOCKET names.
"""

from __future__ import annotations

import logging
import os
import socket

from teacher_server.serve.lifecycle import State

log = logging.getLogger(__name__)

VARIABLE = "NOTIFY_SOCKET"
ABSTRACT = "@"
"""Begins the name of a socket that has no file; the kernel writes a zero byte there."""
MESSAGES = {
    State.LOADING: "STATUS=loading the teacher",
    State.SERVING: "READY=1\nSTATUS=serving",
    State.DRAINING: "STOPPING=1\nSTATUS=draining: answering what was accepted",
    State.STOPPED: "STOPPING=1\nSTATUS=stopped",
}


def tell(state: State) -> None:
    """Tells the supervisor, if there is one that listens; never raises."""
    name = os.environ.get(VARIABLE, "")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith(ABSTRACT) else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.sendto(MESSAGES[state].encode(), address)
    except OSError as error:
        log.warning("cannot tell the supervisor at %s=%s that the daemon is %s: %s", VARIABLE, name, state.value, error)
