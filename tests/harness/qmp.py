"""A QMP client. A thread reads; replies, greetings and events are told apart here."""
import json
import os
import socket
import threading
import time

import waiting


class QmpError(Exception):
    """The monitor answered with an error."""

    def __init__(self, command, error):
        super().__init__(f'{command}: {error.get("class")}: {error.get("desc")}')
        self.kind = error.get('class')
        self.desc = error.get('desc', '')


class QmpClosed(Exception):
    """The monitor's process closed the connection."""


def dial(path):
    """Connects to a socket that is about to appear; None while nobody listens."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
        return connection
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None


class Qmp:
    """One client of one monitor. Usable from one thread at a time."""

    def __init__(self, path, alive=lambda: True, negotiate=True):
        """`alive` ends the wait for the socket early when its process has died."""
        def attempt():
            if not os.path.exists(path) and not alive():
                raise QmpClosed(f'{path}: the process ended before it listened')
            return dial(path)

        self._socket = waiting.until(attempt, f'a monitor at {path}')
        self._changed = threading.Condition()
        self._replies = []
        self._events = []
        self._closed = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.greeting = self._next_reply('greeting')['QMP']
        if negotiate:
            self('qmp_capabilities')

    def _read(self):
        try:
            with self._socket.makefile('rb') as lines:
                for line in lines:
                    message = json.loads(line)
                    with self._changed:
                        (self._events if 'event' in message else self._replies).append(message)
                        self._changed.notify_all()
        except (OSError, ValueError):
            pass
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next_reply(self, what, limit=None):
        deadline = time.monotonic() + (limit or waiting.LIMIT_S)
        with self._changed:
            while not self._replies:
                if self._closed:
                    raise QmpClosed(f'{what}: the monitor closed the connection')
                left = deadline - time.monotonic()
                if left <= 0:
                    raise waiting.NeverHappened(f'{what}: the monitor does not answer')
                self._changed.wait(left)
            return self._replies.pop(0)

    def __call__(self, command, limit=None, **arguments):
        """Executes a command; underscores in the names of arguments stand for hyphens."""
        message = {'execute': command}
        if arguments:
            message['arguments'] = {name.replace('_', '-'): value
                                    for name, value in arguments.items()}
        return self.raw(json.dumps(message), command, limit)

    def raw(self, text, what='raw', limit=None):
        """Sends one line as it is and returns the reply's value."""
        try:
            self._socket.sendall(text.encode() + b'\n')
        except OSError:
            raise QmpClosed(f'{what}: the connection is gone') from None
        reply = self._next_reply(what, limit)
        if 'error' in reply:
            raise QmpError(what, reply['error'])
        return reply['return']

    def events(self, name=None):
        with self._changed:
            return [event for event in self._events if name in (None, event['event'])]

    def wait_event(self, name, limit=None, **data):
        """The first event so far, or to come, of this name whose data has these values."""
        def fits(event):
            return event['event'] == name and all(
                event.get('data', {}).get(key) == value for key, value in data.items())

        deadline = time.monotonic() + (limit or waiting.LIMIT_S)
        with self._changed:
            while True:
                for event in self._events:
                    if fits(event):
                        return event
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    seen = [(event['event'], event.get('data')) for event in self._events]
                    raise waiting.NeverHappened(f'event {name} {data}; seen: {seen}')
                self._changed.wait(left)

    def migration(self):
        return self('query-migrate')

    def status(self):
        """The migration's, not the guest's."""
        return self.migration().get('status')

    def wait_status(self, *wanted, limit=None):
        """Waits until the migration has one of these statuses; returns the whole answer."""
        def ask():
            answer = self.migration()
            if answer.get('status') in wanted:
                return answer
            if answer.get('status') in ('failed', 'cancelled', 'completed'):
                raise AssertionError(f'waited for {wanted}, and it is {answer}')
            return None

        return waiting.until(ask, f'migration status {wanted}', limit)

    def wait_status_of_failure(self, limit=None):
        """Waits until the migration has failed; returns the whole answer."""
        def ask():
            answer = self.migration()
            if answer.get('status') in ('completed', 'cancelled'):
                raise AssertionError(f'was to fail, and it is {answer}')
            return answer if answer.get('status') == 'failed' else None

        return waiting.until(ask, 'the migration to fail', limit)

    def run_state(self):
        return self('query-status')['status']

    def wait_run_state(self, *wanted, limit=None):
        return waiting.until(lambda: self.run_state() in wanted, f'run state {wanted}', limit)

    def set_capabilities(self, **states):
        self('migrate-set-capabilities',
             capabilities=[{'capability': name.replace('_', '-'), 'state': state}
                           for name, state in states.items()])

    def wait_closed(self, limit=None):
        deadline = time.monotonic() + (limit or waiting.LIMIT_S)
        with self._changed:
            while not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise waiting.NeverHappened('the monitor does not close the connection')
                self._changed.wait(left)

    def close(self):
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
