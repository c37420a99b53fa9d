"""Strangers who knock at a port without a pause, of every kind that there is."""
import socket
import threading
import time

import waiting
import wire

KEPT = 256  # Connections that one thread holds open: more than a listener has places.


class Flood:
    """Connects again and again, `per_second` times if that is given, until it is closed.

    `recorded`: what a source's control lane once said, to be said again.
    """

    def __init__(self, address, recorded, per_second=None, threads=2):
        self.address, self.per_second, self.threads = address, per_second, threads
        hello = wire.greeting_in(recorded)
        later = hello[wire.HEADER_BYTES:]
        later = later[:40] + (1 << 40).to_bytes(8, 'little') + later[48:]
        greeting = wire.frame(wire.HELLO, later)
        # Most of them keep their place for as long as they can.
        self.kinds = [b'', b'T', greeting, greeting, b'', bytes(range(256)) * 4, b'T', greeting,
                      hello, b'', greeting + wire.frame(wire.PROOF, bytes(32))]
        self._changed = threading.Condition()
        self._count = 0
        self._over = False
        self._workers = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for worker in self._workers:
            worker.start()

    def count(self):
        """Connections so far."""
        with self._changed:
            return self._count

    def wait_for(self, count):
        with self._changed:
            if not self._changed.wait_for(lambda: self._count >= count, waiting.LIMIT_S):
                raise waiting.NeverHappened(f'{count} strangers; there were {self._count}')
            return self._count

    def close(self):
        self._over = True
        for worker in self._workers:
            worker.join()

    def _run(self):
        kept = []
        began, made = time.monotonic(), 0
        while not self._over:
            if self.per_second:
                early = began + made * self.threads / self.per_second - time.monotonic()
                if early > 0:
                    time.sleep(early)
            try:
                end = socket.socket()
                kept.append(end)
                end.settimeout(5)
                end.connect(self.address)
                end.sendall(self.kinds[made % len(self.kinds)])
            except OSError:
                pass  # Sent away already: as good.
            made += 1
            with self._changed:
                self._count += 1
                self._changed.notify_all()
            if len(kept) > KEPT:
                kept.pop(0).close()
        for end in kept:
            end.close()
