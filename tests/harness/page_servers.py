"""Page servers as a user has them: processes that are looked at through their control sockets."""
import os
import pathlib
import signal
import socket
import struct
import threading

import qmp
import waiting


class Server:
    """A page server that a source started: nobody's child, looked at through its control socket."""

    def __init__(self, pid, path):
        self.pid = pid
        self.path = path
        self._qmp = None

    @property
    def qmp(self):
        if self._qmp is None:
            self._qmp = qmp.Qmp(self.path, self.alive)
        return self._qmp

    def alive(self):
        try:
            with open(f'/proc/{self.pid}/stat', encoding='ascii') as stat:
                return stat.read().rsplit(')', 1)[1].split()[0] != 'Z'
        except (FileNotFoundError, ProcessLookupError):
            return False

    def ledger(self):
        """A path of the file in which the source leaves its words."""
        folder = pathlib.Path(f'/proc/{self.pid}/fd')
        return next(one for one in folder.iterdir() if 'towline-ledger' in os.readlink(one))

    def wait_end(self):
        waiting.until(lambda: not self.alive(), f'the end of page server {self.pid}')

    def kill(self):
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.wait_end()

    def close(self):
        if self._qmp:
            self._qmp.close()
        self.kill()


class OlderServer:
    """Takes what a source gives, and answers as before there were pings."""

    MAGIC = 0x3156484c57544c54

    def __init__(self, path):
        self.path = path
        self._heard = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        source, _ = self._listener.accept()
        with source:
            _, fds, _, _ = socket.recv_fds(source, 64, 70)
            source.send(struct.pack('<QQq', self.MAGIC, 1, os.getpid()))
            self._heard = source.recv(64)
        for fd in fds:
            os.close(fd)

    def heard(self):
        """What the source said behind its handover; nothing: it closed."""
        self._thread.join(waiting.LIMIT_S)
        return self._heard

    def close(self):
        self._listener.close()
