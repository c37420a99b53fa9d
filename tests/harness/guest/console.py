"""Talks to a running guest over its serial port: a pair of file descriptors."""
import os
import select
import time

from tests.harness.guest.reports import Transcript


class GuestSilent(Exception):
    """The guest did not say in time what it should have."""


class Console:
    """Reads a guest's console and sends it commands.

    `read_fd` and `write_fd` may be the same socket; both are borrowed. `transcript` can be handed
    on from console to console along the moves of one guest. `log` is called with each event.
    """

    def __init__(self, read_fd, write_fd, transcript=None, log=None):
        self.transcript = transcript or Transcript()
        self.log = log
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._ended = False

    def read_more(self, timeout):
        """Waits at most that many seconds for output; returns the events it completed."""
        ready, _, _ = select.select([self._read_fd], [], [], max(timeout, 0))
        if not ready:
            return []
        content = os.read(self._read_fd, 65536)
        self._ended = not content
        events = self.transcript.feed(content)
        for event in events:
            if self.log:
                self.log(event)
        return events

    def wait_for(self, name, timeout=60, where=lambda event: True):
        """The next event of that name (a prefix counts not) that satisfies `where`."""
        deadline = time.monotonic() + timeout
        while not self._ended and time.monotonic() < deadline:
            for event in self.read_more(deadline - time.monotonic()):
                if event.name == name and where(event):
                    return event
                if event.name == 'guest.error':
                    raise GuestSilent(f'the guest stopped: {event.fields}')
        said = [event.name for event in self.transcript.events[-5:]]
        raise GuestSilent(f'no {name}; {"closed" if self._ended else "timeout"} after {said}')

    def send(self, command):
        os.write(self._write_fd, command.encode())

    def sweep(self, timeout=300):
        """Has the guest read everything; returns its verdict."""
        self.send('S')
        return self.wait_for('guest.verdict', timeout)

    def reset_statistics(self, timeout=60):
        self.send('G')
        return self.wait_for('guest.reset', timeout)

    def report(self, timeout=60):
        """The next report."""
        return self.wait_for('guest.report', timeout)

    def latency(self, timeout=60):
        """The histogram and the gap log: two lists of events and the closing line."""
        begin = len(self.transcript.events)
        self.send('H')
        end = self.wait_for('guest.latency-end', timeout)
        new = self.transcript.events[begin:]
        return ([event for event in new if event.name == 'guest.latency'],
                [event for event in new if event.name == 'guest.gap-log'], end)

    def drain(self):
        """Reads to the end of the stream."""
        while not self._ended:
            self.read_more(1)
