"""Devices by ssh, through the user's own OpenSSH client: its configuration, agent, jump hosts and known hosts.

Host keys are checked as that configuration says, and nothing is ever asked: a connection that needs a password or an
unknown host fails with what to do.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil

from latency_lab.errors import UsageError
from latency_lab.profiling.remote import Remote

VARIABLE = "LATENCY_LAB_SSH"
"""Environment variable: the client with options of the user's, "ssh -F file"."""
OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3")
"""Nothing is asked, and a dead link is noticed after 15 seconds."""
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.%]+\])(?::(?P<port>[0-9]{1,5}))?/?"
)


def ssh_device(on: str, python: str | None = None) -> Remote:
    """A device by its address.

    Args:
        on: ssh://host, ssh://user@host:port; the host may be a name of the user's ssh configuration.
        python: of the device.

    Raises:
        UsageError: the address is none, or there is no ssh client.
    """
    found = _ADDRESS.fullmatch(on)
    if found is None:
        raise UsageError(f"Expected ssh://user@host or ssh://user@host:port. Received: {on!r}")
    client = shlex.split(os.environ.get(VARIABLE, "ssh"))
    if not client or shutil.which(client[0]) is None:
        raise UsageError(f"There is no ssh client {' '.join(client)!r}. Install OpenSSH, or name it in {VARIABLE}.")
    user, host, port = found.group("user", "host", "port")
    words = [*client, "-T", *(word for option in OPTIONS for word in ("-o", option))]
    words += ["-p", port] if port else []
    target = (f"{user}@" if user else "") + host.strip("[]")
    by_hand = shlex.join([*client, *(["-p", port] if port else []), target])
    advice = f"See that this works without a password or a question: {by_hand} true"
    return Remote(on, (*words, "--", target), python or "python3", advice=advice)
