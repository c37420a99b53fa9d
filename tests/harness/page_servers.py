"""Page servers as a user has them: processes that are looked at through their control sockets."""
import os
import pathlib
import signal

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
