"""Plays the service manager that keeps descriptors over a restart: sd_notify(3), sd_listen_fds(3).

Run as a program it starts another one with what is kept: fd_store.py STORE COMMAND [ARGUMENT…]
"""
import json
import os
import socket
import sys
import threading


class Store:
    """Holds what a service sends with FDSTORE=1 until the test ends."""

    def __init__(self, folder):
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
        return {'NOTIFY_SOCKET': self.notify_path}

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
                    self.kept[told['FDNAME']] = fds.pop()
                elif told.get('FDSTOREREMOVE') == '1':
                    self._drop(told['FDNAME'])
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
    os.execv(command[0], command)


if __name__ == '__main__':
    start(sys.argv[1], sys.argv[2:])
