"""Huge pages of 2 MiB of this host, reserved for a test and given back after it."""
import pathlib
import subprocess
import sys

FOLDER = pathlib.Path('/sys/kernel/mm/hugepages/hugepages-2048kB')
SIZE = 2 << 20


def number(name):
    return int((FOLDER / name).read_text())


def free():
    """Those that nobody has, and that were promised to nobody."""
    return number('free_hugepages') - number('resv_hugepages')


class HugePages:
    """At least so many free ones, until close(). Raises OSError where they cannot be had."""

    def __init__(self, wanted):
        self._added = 0
        self.add(max(0, wanted - free()))

    def add(self, count):
        """Reserves further ones."""
        before = number('nr_hugepages')
        (FOLDER / 'nr_hugepages').write_text(str(before + count))
        got = number('nr_hugepages') - before
        self._added += got
        if got < count:
            self.close()
            raise OSError(f'{count} huge pages of 2 MiB cannot be reserved, only {got}')

    def close(self):
        # Others may have changed the number meanwhile: only what was added here goes.
        (FOLDER / 'nr_hugepages').write_text(str(max(0, number('nr_hugepages') - self._added)))
        self._added = 0


TAKE = '''
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.memfd_create(b"taken", 4 | 21 << 26)  # MFD_HUGETLB, MFD_HUGE_2MB
size = int(sys.argv[1]) * (2 << 20)
os.ftruncate(fd, size)
os.posix_fallocate(fd, 0, size)
print("taken", flush=True)
sys.stdin.read()
'''


class Taken:
    """Somebody else's huge pages: free until now, and again after close()."""

    def __init__(self, count):
        self._process = subprocess.Popen([sys.executable, '-c', TAKE, str(count)],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._process.stdout.readline() != 'taken\n':
            self.close()
            raise OSError(f'{count} huge pages cannot be taken')

    def close(self):
        self._process.communicate()
