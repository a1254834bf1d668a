"""Section `peers`: what a user would otherwise serve a teacher with, same model, same rows, by turns.

    rows.py            a request's rows as one array, and the obvious way to score them
    *_server.py        one server a peer, a few lines each
    client.py          a process of clients; runs in the peer's environment
    environments.py    virtual environments for peers that cannot share ours
    section.py         arms, rounds, tables

Importing this package imports nothing: servers and clients run where our dependencies are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.common import Options, Result


def run(options: Options) -> Result:
    """See `section.run`."""
    from benchmarks.peers import section

    return section.run(options)
