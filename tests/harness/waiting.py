"""Waiting for things to happen, with an outer limit that only a hang reaches."""
import os
import select
import threading
import time

# No test measures with it. It is long because test machines stall for whole seconds.
LIMIT_S = float(os.environ.get('TOWLINE_TEST_LIMIT_S', '120'))


class NeverHappened(AssertionError):
    """What was waited for did not come within the limit."""


def until(condition, what, limit=None, pause=0.02):
    """Asks `condition` again and again; returns its first true value."""
    deadline = time.monotonic() + (limit or LIMIT_S)
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise NeverHappened(f'{what}: not within {limit or LIMIT_S} s')
        time.sleep(pause)


class Lines:
    """Collects the lines of a pipe on a thread of its own, and wakes who waits for one.

    stop() is a reader that stopped: a paused terminal, a journal that stalls. The pipe is full from
    then on, until go_on().
    """

    def __init__(self, stream, log_path):
        self._stream = stream
        self._log = open(log_path, 'wb')
        self._changed = threading.Condition()
        self._lines = []
        self._raw = bytearray()
        self._ended = False
        self._may_read = threading.Event()
        self._may_read.set()
        self._stopped = threading.Event()
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _next(self):
        """What is there to read, once there is something and it may be read."""
        waiting = select.poll()  # select() takes no descriptor above 1023.
        waiting.register(self._stream, select.POLLIN)
        waiting.register(self._wake[0], select.POLLIN)
        while True:
            waiting.poll()
            if self._may_read.is_set():
                return os.read(self._stream.fileno(), 65536)
            self._stopped.set()
            self._may_read.wait()
            os.read(self._wake[0], 1)

    def _collect(self):
        rest = b''
        while chunk := self._next():
            self._log.write(chunk)
            self._log.flush()
            *whole, rest = (rest + chunk).split(b'\n')
            with self._changed:
                self._raw += chunk
                self._add(whole)
        with self._changed:
            self._add([rest] if rest else [])
            self._ended = True
            self._changed.notify_all()
            for end in self._wake:
                os.close(end)
        self._log.close()
        self._stream.close()

    def _add(self, lines):
        self._lines += [line.decode(errors='replace').rstrip('\r') for line in lines]
        self._changed.notify_all()

    def stop(self):
        """Reads no more, and fills the pipe: whoever writes into it waits from now on."""
        with self._changed:
            assert not self._ended, 'whoever wrote it has ended'
            self._may_read.clear()
            os.write(self._wake[1], b'.')
        self._stopped.wait()
        # An open file of our own: what is set here is not set for those who inherited the other.
        filler = os.open(f'/proc/self/fd/{self._stream.fileno()}', os.O_WRONLY | os.O_NONBLOCK)
        try:
            for junk in (b'\n' * 4096, b'\n'):
                while True:
                    os.write(filler, junk)
        except BlockingIOError:
            pass
        finally:
            os.close(filler)

    def go_on(self):
        self._stopped.clear()
        self._may_read.set()

    def raw(self):
        """Every byte so far, half lines included."""
        with self._changed:
            return bytes(self._raw)

    def join(self):
        self._thread.join(LIMIT_S)

    def snapshot(self):
        with self._changed:
            return list(self._lines)

    def count(self):
        with self._changed:
            return len(self._lines)

    def text(self):
        return '\n'.join(self.snapshot())

    def wait_for(self, accept, what, first=0, limit=None):
        """The first line from number `first` on that `accept` takes. Returns (number, value)."""
        deadline = time.monotonic() + (limit or LIMIT_S)
        at = first
        with self._changed:
            while True:
                while at < len(self._lines):
                    if value := accept(self._lines[at]):
                        return at, value
                    at += 1
                left = deadline - time.monotonic()
                if self._ended:
                    raise NeverHappened(f'{what}: the output ended; its last lines:\n' +
                                        '\n'.join(self._lines[-10:]))
                if left <= 0:
                    raise NeverHappened(f'{what}: not within the limit; its last lines:\n' +
                                        '\n'.join(self._lines[-10:]))
                self._changed.wait(left)
