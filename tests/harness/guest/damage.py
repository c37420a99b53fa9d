"""Damages a running guest's memory from outside, through /proc/PID/fd.

Nothing of the product is asked: the memfd is found by its name, the page by its own header. So a
test can prove that the guest would notice what a faulty migration does.
"""
import argparse
import contextlib
import os
import pathlib
import random
import re
import signal
import struct
import sys
import time

from tests.harness.guest import page
from tests.harness.guest.reports import Transcript

GIB4 = 4 << 30


class NotFound(Exception):
    """No such process, memfd or page."""


def open_memfd(pid, name):
    """Opens, to read and write, the memfd of a process whose name contains `name`.

    Several of that name: the largest. The caller closes the descriptor.
    """
    found = []
    for link in pathlib.Path(f'/proc/{pid}/fd').iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if re.match(r'/memfd:', target) and name in target:
                found.append((os.stat(link).st_size, str(link)))
    if not found:
        raise NotFound(f'process {pid} has no memfd named {name}')
    return os.open(max(found)[1], os.O_RDWR | os.O_CLOEXEC)


def thread_states(pid):
    for stat in pathlib.Path(f'/proc/{pid}/task').glob('*/stat'):
        with contextlib.suppress(OSError):
            yield stat.read_text().rsplit(')', 1)[1].split()[0]


@contextlib.contextmanager
def frozen(pid):
    """Stops every thread of a process, vCPUs too, so that no access is cut in half."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while any(state not in 'Tt' for state in thread_states(pid)):
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class GuestMemory:
    """The guest's physical memory in the memfd, with its pages and its table.

    `transcript` must hold the guest's layout lines. Reads and writes go through pread and pwrite:
    looking at a hole does not allocate it.
    """

    def __init__(self, fd, transcript):
        hello = transcript.last('guest.hello')
        self.seed = hello['seed']
        self.working_set_pages = hello['working_set_pages']
        self._fd = fd
        layout = transcript.all('guest.layout')
        self._ram = [event for event in layout if event['what'] == 'ram']
        self._ranges = [event for event in layout if event['what'] == 'pages']
        self._table = next(event for event in layout if event['what'] == 'table')['address']
        self.free = [event for event in layout if event['what'] == 'free']
        self._shift = self._find_shift()

    def _find_shift(self):
        """How much lower in the file RAM above 4 GiB lies than in guest memory."""
        high = [event for event in self._ram if event['address'] >= GIB4]
        if not high:
            return 0
        low_end = max(event['address'] + event['bytes']
                      for event in self._ram if event['address'] < GIB4)
        size = os.fstat(self._fd).st_size
        end = max(event['address'] + event['bytes'] for event in high)
        return 0 if size >= end else GIB4 - low_end

    def offset(self, address):
        """Where a guest physical address is in the file."""
        return address - self._shift if address >= GIB4 else address

    def address(self, number):
        for event in self._ranges:
            pages = event['bytes'] // page.PAGE_BYTES
            if number < pages:
                return event['address'] + number * page.PAGE_BYTES
            number -= pages
        raise NotFound(f'the guest has no page {number}')

    def read(self, address, size=page.PAGE_BYTES):
        return os.pread(self._fd, size, self.offset(address))

    def write(self, address, content):
        assert os.pwrite(self._fd, content, self.offset(address)) == len(content)

    def read_page(self, number):
        return self.read(self.address(number))

    def write_page(self, number, content):
        self.write(self.address(number), content)

    def generation(self, number):
        """What the guest's table expects."""
        return struct.unpack('<I', self.read(self._table + 4 * number, 4))[0]

    def set_generation(self, number, generation):
        self.write(self._table + 4 * number, struct.pack('<I', generation))

    def is_settled(self, number):
        """True if the page is whole and as old as the table says: nobody is writing it now."""
        content = self.read_page(number)
        identity = page.identify(content, self.seed)
        return (identity is not None and identity.number == number
                and identity.generation == self.generation(number)
                and page.is_whole(content, self.seed))

    def choose(self, chooser=random, written_again=True):
        """A settled page of the working set, if asked one written after the fill."""
        for _ in range(100000):
            number = chooser.randrange(self.working_set_pages)
            if self.generation(number) > (1 if written_again else 0) and self.is_settled(number):
                return number
        raise NotFound('no page that fits')


def flip_bit(memory, number, bit=None):
    bit = random.randrange(page.PAGE_BYTES * 8) if bit is None else bit
    content = bytearray(memory.read_page(number))
    content[bit // 8] ^= 1 << bit % 8
    memory.write_page(number, bytes(content))


def zero_page(memory, number):
    memory.write_page(number, bytes(page.PAGE_BYTES))


def older_page(memory, number):
    """The page one generation ago, as the guest wrote it then."""
    now = page.identify(memory.read_page(number), memory.seed)
    return page.page_bytes(memory.seed,
                           page.Identity(number, now.generation - 1, now.owner))


def stale_page(memory, number):
    memory.write_page(number, older_page(memory, number))


def torn_page(memory, number):
    content = memory.read_page(number)[:2048] + older_page(memory, number)[2048:]
    memory.write_page(number, content)


def swap_pages(memory, number):
    other = number
    while other == number:
        other = memory.choose()
    first, later = memory.read_page(number), memory.read_page(other)
    memory.write_page(number, later)
    memory.write_page(other, first)


def stale_table(memory, number):
    memory.set_generation(number, memory.generation(number) - 1)


def stale_together(memory, number):
    stale_page(memory, number)
    stale_table(memory, number)


def touch_free(memory, _number):
    """One bit in the middle of the memory that must stay zero."""
    middle = max(memory.free, key=lambda event: event['bytes'])
    memory.write(middle['address'], b'\x01')


def patch_image(memory, _number):
    """The first byte of the image: start-up code, never run again."""
    memory.write(0x100000, bytes([memory.read(0x100000, 1)[0] ^ 1]))


# What is planted → what the guest calls it in guest.corrupt; None: only the verdict tells.
KINDS = {
    'flipped': (flip_bit, 'flipped'),
    'zero': (zero_page, 'zero'),
    'stale': (stale_page, 'stale'),
    'torn': (torn_page, 'torn'),
    'swapped': (swap_pages, 'foreign'),
    'stale-table': (stale_table, 'future'),
    'stale-together': (stale_together, 'table'),
    'untouched': (touch_free, None),
    'image': (patch_image, None),
}


def plant(kind, pid, transcript, memfd_name):
    """Plants one damage in a guest whose transcript holds its layout; returns the page hit."""
    fd = open_memfd(pid, memfd_name)
    try:
        with frozen(pid):
            memory = GuestMemory(fd, transcript)
            number = memory.choose()
            KINDS[kind][0](memory, number)
            return number
    finally:
        os.close(fd)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('kind', choices=KINDS)
    parser.add_argument('--pid', type=int, required=True, help='the process that holds the guest')
    parser.add_argument('--console', type=pathlib.Path, required=True,
                        help='file with what the guest wrote from its start')
    parser.add_argument('--memfd', default='', help='part of the memfd\'s name')
    arguments = parser.parse_args()
    transcript = Transcript(arguments.console.read_bytes())
    try:
        number = plant(arguments.kind, arguments.pid, transcript, arguments.memfd)
    except (NotFound, OSError) as error:
        print(f'damage: {error}', file=sys.stderr)
        return 1
    print(f'damage.planted kind={arguments.kind} page={number}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
