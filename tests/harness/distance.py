"""What a real network has and a loopback has not: a rate, and time that passes on the way."""
import collections
import threading
import time

UNDER_WAY = 32 << 20  # Bytes of one direction that may be on their way at once.
BURST_S = 0.02        # What a limited rate may send at once, after a pause.


class Pace:
    """A rate that several may share. Somebody who was late makes up for it, a moment's worth."""

    def __init__(self, bytes_per_second):
        self.rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, count):
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - BURST_S) + count / self.rate
            late = self._free_at - now
        if late > 0:
            time.sleep(late)


class Distance:
    """What is on its way to one end: each piece arrives when its time has come, in order."""

    def __init__(self, connection, writer):
        self._connection, self._writer = connection, writer
        self._pieces = collections.deque()
        self._bytes = 0  # Those on the writer's hands among them.
        self._over = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, data, delay_s):
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._bytes < UNDER_WAY)
            if self._over:
                raise OSError('the connection has ended')
            self._pieces.append((time.monotonic() + delay_s, bytes(data)))
            self._bytes += len(data)
            self._changed.notify_all()

    def is_empty(self):
        with self._changed:
            return not self._bytes

    def drain(self):
        """Until all that was put in has arrived, or never will."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._bytes)

    def end(self):
        """What is on its way is lost."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _next(self):
        """The first piece, when its time has come; None: over."""
        with self._changed:
            while not self._over:
                left = self._pieces[0][0] - time.monotonic() if self._pieces else None
                if left is not None and left <= 0:
                    return self._pieces.popleft()[1]
                self._changed.wait(left)
            return None

    def _run(self):
        while (data := self._next()) is not None:
            try:
                self._writer.sendall(data)
            except OSError:
                self.end()
                self._connection.end('rst')
                return
            with self._changed:
                self._bytes -= len(data)
                self._changed.notify_all()
