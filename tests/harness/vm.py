"""Virtual machines as a user has them: `towline run` processes, looked at through QMP and serial."""
import ctypes
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

import qmp
import waiting

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get('TOWLINE_BUILD', ROOT / 'build' / 'plain'))
TOWLINE = BUILD / 'tools' / 'towline'
BARE_GUEST = BUILD / 'tests' / 'guest' / 'bare_guest.elf'


LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


AUTOGROUP = pathlib.Path('/proc/self/autogroup')


def group_priority():
    """What the kernel grants our session as a whole, as it takes it back; empty: the usual."""
    try:
        return AUTOGROUP.read_text().rpartition('nice ')[2].strip()
    except OSError:
        return ''


def die_with_parent(priority=''):
    """A test runner that is killed leaves no machine behind, and one that was given little of the
    processors takes no more by a session of its own. (Between fork and exec.)"""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if priority not in ('', '0'):
        try:
            AUTOGROUP.write_text(priority)
        except OSError:
            pass
    # A run in a shell's background ignores it, and its children would inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Process:
    """A program under test with its output collected, killed by the test's clean-up."""

    def __init__(self, command, folder, name, environment=None, **options):
        self.name = name
        self.command = [str(word) for word in command]
        priority = group_priority()
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True, preexec_fn=lambda: die_with_parent(priority),
            env={**os.environ, **(environment or {})}, **options)
        self.out = waiting.Lines(self._process.stdout, folder / f'{name}.out')
        self.err = waiting.Lines(self._process.stderr, folder / f'{name}.err')

    @property
    def pid(self):
        return self._process.pid

    def alive(self):
        return self._process.poll() is None

    def wait(self, limit=None):
        """The exit status; negative: the signal that ended it. All of its output has been read."""
        status = self.wait_status(limit)
        self.out.join()
        self.err.join()
        return status

    def wait_status(self, limit=None):
        """As wait(), but its output may be read later, or never."""
        try:
            return self._process.wait(limit or waiting.LIMIT_S)
        except subprocess.TimeoutExpired:
            raise waiting.NeverHappened(f'{self.name} does not end; it said:\n{self.err.text()}') \
                from None

    def signal(self, number):
        self._process.send_signal(number)

    def kill(self):
        """Ends it as a crash would, at once."""
        if self.alive():
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)


class Vm(Process):
    """One `towline run`. Its serial port is its standard input and output."""

    def __init__(self, folder, name, kernel=BARE_GUEST, append='', memory='128M', vcpus=1,
                 incoming=None, extra=(), prefix=(), environment=None):
        self.qmp_path = folder / f'{name}.qmp'
        command = [*prefix, TOWLINE, 'run', '--name', name, '--kernel', kernel,
                   '--memory', memory, '--vcpus', vcpus, '--serial', 'stdio',
                   '--qmp', f'unix:{self.qmp_path}']
        if append:
            command += ['--append', append]
        if incoming:
            command += ['--incoming', incoming]
        super().__init__([*command, *extra], folder, name, environment)
        self._qmp = None

    @property
    def qmp(self):
        if self._qmp is None:
            self._qmp = self.new_client()
        return self._qmp

    @property
    def serial(self):
        return self.out

    def write_serial(self, data):
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def new_client(self, negotiate=True):
        return qmp.Qmp(self.qmp_path, self.alive, negotiate)

    def close(self):
        if self._qmp:
            self._qmp.close()
        self.kill()


def memory_of(pid, *kinds):
    """Bytes of the given kinds that are resident: RssAnon, RssFile, RssShmem."""
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
    found = dict(re.findall(r'^(Rss\w+):\s+(\d+) kB$', status, re.M))
    return sum(int(found[kind]) for kind in kinds) * 1024


def own_bytes(pid):
    """Memory of the process itself, the guest's apart."""
    return memory_of(pid, 'RssAnon')


def open_files(pid):
    return len(os.listdir(f'/proc/{pid}/fd'))


def threads(pid):
    return len(os.listdir(f'/proc/{pid}/task'))


def userfault_waiters(pid):
    """Threads that wait for a page, of all userfaultfds of the process, as its kernel counts them."""
    total = 0
    for name in os.listdir(f'/proc/{pid}/fd'):
        try:
            if os.readlink(f'/proc/{pid}/fd/{name}') == 'anon_inode:[userfaultfd]':
                info = pathlib.Path(f'/proc/{pid}/fdinfo/{name}').read_text()
                total = max(total, int(re.search(r'^total:\s+(\d+)$', info, re.M)[1]))
        except FileNotFoundError:
            pass
    return total


def guest_bytes(pid):
    """Memory that the process holds in memory files, mapped or not."""
    total = 0
    for name in os.listdir(f'/proc/{pid}/fd'):
        link = f'/proc/{pid}/fd/{name}'
        try:
            if 'memfd:' in os.readlink(link):
                total += os.stat(link).st_blocks * 512
        except FileNotFoundError:
            pass
    return total


class ScenarioCase(unittest.TestCase):
    """A temp folder for sockets and logs, processes that end with the test, logs if it fails."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix='towline-'))
        self._processes = []
        self.addCleanup(self._clean_up)

    def run(self, result=None):
        self._result = self.defaultTestResult() if result is None else result
        return super().run(self._result)

    def _failed(self):
        """Asked while the test is being cleaned up: the outcome of unittest is the clean-up's own
        then, and always good."""
        cases = (entry[0] for entry in self._result.failures + self._result.errors)
        return any(self in (case, getattr(case, 'test_case', None)) for case in cases)

    def _clean_up(self):
        for process in self._processes:
            process.close() if isinstance(process, Vm) else process.kill()
        if self._failed():
            self._print_logs()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _print_logs(self):
        for process in self._processes:
            print(f'| {process.name}: {" ".join(process.command)}')
            for stream, lines in (('err', process.err), ('out', process.out)):
                for line in lines.snapshot()[-25:]:
                    print(f'| {process.name} {stream}: {line}')

    def start(self, process):
        self._processes.append(process)
        return process

    def run_vm(self, name='vm', **options):
        return self.start(Vm(self.folder, name, **options))

    def towline(self, *arguments, name=None, **options):
        """Any other subcommand, as a process."""
        return self.start(Process([TOWLINE, *arguments], self.folder,
                                  name or f'towline-{len(self._processes)}', **options))

    def closing(self, thing):
        """Closes a relay, client or peer with the test."""
        self.addCleanup(thing.close)
        return thing
