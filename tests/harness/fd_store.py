"""Plays the service manager that keeps descriptors over a restart: sd_notify(3), sd_listen_fds(3).

Run as a program it starts another one with what is kept: fd_store.py STORE COMMAND [ARGUMENT…]
"""
import json
import os
import socket
import sys
import threading


BUSCTL = """#!/bin/sh
case "$*" in
  *GetUnitByPID*) echo 'o "/org/freedesktop/systemd1/unit/pages_2eservice"' ;;
  *NFileDescriptorStore*) echo "u $(cat {})" ;;
  *) exit 1 ;;
esac
"""


class Store:
    """Holds what a service sends with FDSTORE=1 until the test ends.

    `room`: FileDescriptorStoreMax. `says_room`: as systemd 254 does, in $FDSTORE; an older one is
    asked over the bus. `confirms`: it closes what comes with BARRIER=1.
    """

    def __init__(self, folder, room=66, says_room=True, confirms=True):
        self.room, self.says_room, self.confirms = room, says_room, confirms
        self._unconfirmed = []
        self._count = folder / 'kept'
        self._count.write_text('0')
        self._tools = folder / 'manager'
        self._tools.mkdir()
        (self._tools / 'busctl').write_text(BUSCTL.format(self._count))
        (self._tools / 'busctl').chmod(0o755)
        self.notify_path = str(folder / 'notify')
        self.store_path = str(folder / 'store')
        self.kept = {}
        self._lock = threading.Lock()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(self.notify_path)
        self._store = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._store.bind(self.store_path)
        self._store.listen()
        for work in (self._listen, self._give):
            threading.Thread(target=work, daemon=True).start()

    def command(self, *words):
        """What to execute instead of `words`, so that they find what is kept."""
        return ['/usr/bin/python3', os.path.abspath(__file__), self.store_path, *words]

    def environment(self):
        """Of a process that is started with command(), which adds what only that one can know."""
        said = {'FDSTORE': str(self.room)} if self.says_room and self.room else {}
        return {'NOTIFY_SOCKET': self.notify_path, 'PATH': f'{self._tools}:{os.environ["PATH"]}', **said}

    def names(self):
        with self._lock:
            return sorted(self.kept)

    def _listen(self):
        while True:
            try:
                text, fds, _, _ = socket.recv_fds(self._notify, 4096, 16)
            except OSError:
                return
            told = dict(line.split('=', 1) for line in text.decode().splitlines())
            with self._lock:
                if told.get('FDSTORE') == '1':
                    self._drop(told['FDNAME'])
                    if len(self.kept) < self.room:
                        self.kept[told['FDNAME']] = fds.pop()
                elif told.get('FDSTOREREMOVE') == '1':
                    self._drop(told['FDNAME'])
                elif told.get('BARRIER') == '1' and not self.confirms:
                    self._unconfirmed += fds
                    fds = []
                self._count.write_text(str(len(self.kept)))
            for fd in fds:
                os.close(fd)

    def _drop(self, name):
        if name in self.kept:
            os.close(self.kept.pop(name))

    def _give(self):
        while True:
            try:
                visitor, _ = self._store.accept()
            except OSError:
                return
            with visitor, self._lock:
                # In no order that anybody could rely on.
                names = sorted(self.kept, reverse=True)
                socket.send_fds(visitor, [json.dumps(names).encode()],
                                [self.kept[name] for name in names])

    def close(self):
        self._notify.close()
        self._store.close()
        with self._lock:
            for name in list(self.kept):
                self._drop(name)
            for fd in self._unconfirmed:
                os.close(fd)


class DeafManager:
    """A notify socket that nobody reads, and that takes nothing more."""

    def __init__(self, folder):
        self.notify_path = str(folder / 'deaf')
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.notify_path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as teller:
            try:
                while True:
                    teller.sendto(b'READY=1', self.notify_path)
            except BlockingIOError:
                pass

    def environment(self):
        return {'NOTIFY_SOCKET': self.notify_path}

    def close(self):
        self._socket.close()


def start(store_path, command):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as store:
        store.connect(store_path)
        text, fds, _, _ = socket.recv_fds(store, 65536, 128)
    names = json.loads(text)
    # Out of the way first: the wanted numbers may be among those that came.
    high = [os.dup2(fd, 500 + number) for number, fd in enumerate(fds)]
    for number, fd in enumerate(high):
        os.dup2(fd, 3 + number, inheritable=True)
    os.closerange(3 + len(fds), 1000)
    if names:
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)),
                          LISTEN_FDNAMES=':'.join(names))
    os.environ['SYSTEMD_EXEC_PID'] = str(os.getpid())
    os.execv(command[0], command)


if __name__ == '__main__':
    start(sys.argv[1], sys.argv[2:])
