"""An OpenSSH server of one's own on the loopback address, with its own keys: this machine as a device elsewhere."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ["PATH"])
HOST = "board"
"""Its name in the client's configuration: the device is ssh://board."""


class Server:
    """A server that can be killed with its sessions, and started again.

    Args:
        folder: for keys and configuration, made with mode 700; nobody else's server or keys are touched.
        board: TMPDIR of what runs there, which is there already.

    Attributes:
        client: what LATENCY_LAB_SSH has to be: a client that knows the server and has its key.
        port: that it listens on, a free one.
    """

    def __init__(self, folder: Path, board: Path) -> None:
        if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
            raise SystemExit("There is no sshd or no ssh client: apt-get install openssh-server openssh-client")
        folder.mkdir(mode=0o700)
        self.folder, self.board, self.port = folder, board, _free_port()
        self.client = f"ssh -F {shlex.quote(str(folder / 'config'))}"
        self._keys()
        self._configuration()
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it listens."""
        command = [str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise SystemExit(f"{shlex.join(command)} does not listen on port {self.port}")

    def cut(self) -> None:
        """Kills its sessions: the connections are lost, the server goes on."""
        for pid in _descendants(self.process.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends it with its sessions, if it runs."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGSTOP)  # so that it takes no new session meanwhile
            self.cut()
            self.process.kill()
            self.process.wait()

    def _keys(self) -> None:
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        shutil.copy(self.folder / "user.pub", self.folder / "authorized_keys")

    def _configuration(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a server of root's asks for it
        folder, host_key = self.folder, (self.folder / "host.pub").read_text().split()[:2]
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {' '.join(host_key)}\n")
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host\nPidFile none\nStrictModes no\n"
            f"UsePAM no\nAuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\n"
            f"SetEnv TMPDIR={self.board}\n"
        )
        (folder / "config").write_text(
            f"Host {HOST}\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
            "  GlobalKnownHostsFile /dev/null\n"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [*map(int, children), *(deeper for child in children for deeper in _descendants(int(child)))]
