"""The demo behind demos/first-move.

Exit status: 0 when the guest itself confirms that all is right and runs on; 1 when not; 2 when
it was asked wrongly or this machine lacks something.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / 'build' / 'plain'
os.environ['TOWLINE_BUILD'] = str(BUILD)
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'harness')]
import journey  # noqa: E402
import qmp  # noqa: E402

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LARGEST_DEFAULT = 4 * GIB
SMALLEST = 64 * MIB
PAGE = 4096


class Problem(Exception):
    """What to tell the user, and how to end."""

    def __init__(self, text, status=1):
        super().__init__(text)
        self.status = status


# ---- what the user asked for ---------------------------------------------------------------------


def size(text):
    found = re.fullmatch(r'(\d+)([KMGT]?)(i?B)?', text.strip(), re.I)
    if not found:
        raise argparse.ArgumentTypeError(f'{text!r} is no size; write 512M or 4G')
    value = int(found[1]) * {'': 1, 'K': KIB, 'M': MIB, 'G': GIB, 'T': 1 << 40}[found[2].upper()]
    if value < SMALLEST or value % MIB:
        raise argparse.ArgumentTypeError(f'{text!r}: at least {SMALLEST // MIB}M, in whole MiB')
    return value


def default_memory():
    """A quarter of what is available, at most 4 GiB: the guest is there twice for a while."""
    available = int(re.search(r'MemAvailable: +(\d+)',
                              pathlib.Path('/proc/meminfo').read_text())[1]) * KIB
    quarter = min(available // 4, LARGEST_DEFAULT)
    return max(quarter // (64 * MIB) * 64 * MIB, SMALLEST)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='demos/first-move',
        description='Moves a running guest, busy writing its memory, into another process, '
                    'and lets the guest itself confirm every page.')
    parser.add_argument('--memory', type=size, metavar='SIZE', help='guest memory '
                        '(default: a quarter of what is available, at most 4G)')
    parser.add_argument('--pattern', default='random',
                        choices=('random', 'sequential', 'zipf', 'strided'),
                        help='how the guest walks its memory (default: random)')
    parser.add_argument('--vcpus', type=int, default=1, metavar='N', choices=range(1, 17),
                        help='virtual processors, 1 to 16 (default: 1)')
    parser.add_argument('--json', action='store_true',
                        help='print the summary as JSON, progress on standard error')
    parser.add_argument('--keep-logs', action='store_true',
                        help='keep consoles and logs, and say where')
    return parser.parse_args()


# ---- telling what happens --------------------------------------------------------------------------


class Teller:
    """A line that rewrites itself on a terminal; a plain line a second elsewhere."""

    def __init__(self, stream):
        self.stream = stream
        self.live = stream.isatty()
        self.told = 0.0

    def step(self, text):
        self.clear()
        print(text, file=self.stream, flush=True)

    def progress(self, text):
        now = time.monotonic()
        if now - self.told < (0.1 if self.live else 1.0):
            return
        self.told = now
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            print(f'\r\x1b[K{text[:width]}', end='', file=self.stream, flush=True)
        else:
            print(text, file=self.stream, flush=True)

    def clear(self):
        if self.live:
            print('\r\x1b[K', end='', file=self.stream, flush=True)


def human(count):
    for unit, limit in (('KiB', MIB), ('MiB', GIB)):
        if count < limit:
            return f'{count / limit * KIB:.0f} {unit}'
    return f'{count / GIB:.2f} GiB'


def milliseconds(microseconds):
    value = microseconds / 1000
    return f'{value:.0f} ms' if value >= 100 else f'{value:.2g} ms' if value < 10 else \
        f'{value:.1f} ms'


def grouped(number):
    return f'{number:,}'.replace(',', ' ')


# ---- the move ---------------------------------------------------------------------------------------


def build(teller):
    """Only what is needed to move a guest."""
    began = time.monotonic()
    teller.step('building (the first time takes a minute or two)')
    environment = dict(os.environ)
    launcher = 'ccache ' if shutil.which('ccache') else ''
    environment.setdefault('CC', launcher + 'gcc')
    environment.setdefault('CXX', launcher + 'g++')
    commands = [['ninja', '-C', str(BUILD), 'tools/towline', 'tests/guest/bare_guest.elf']]
    if not (BUILD / 'build.ninja').exists():
        commands.insert(0, ['meson', 'setup', str(BUILD), str(ROOT)])
    for command in commands:
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        except FileNotFoundError:
            raise Problem(f'{command[0]} is missing: apt-get install meson ninja-build g++', 2) \
                from None
        if done.returncode:
            raise Problem(f'{done.stdout[-4000:]}{done.stderr}\nthe build failed', 2)
    if time.monotonic() - began > 5:
        teller.step(f'built in {time.monotonic() - began:.0f} s')


def check_machine():
    if not os.path.exists('/dev/kvm'):
        raise Problem('/dev/kvm is not there: this machine (or its BIOS) offers no virtualisation',
                      2)
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        raise Problem('/dev/kvm may not be opened: run as root, or join the group kvm', 2)


class Show:
    """The journey of one guest, told to a person."""

    def __init__(self, arguments, folder, teller):
        self.teller = teller
        self.memory = arguments.memory or default_memory()
        # The rest stays untouched, and must be found so.
        self.working_set = self.memory * 3 // 4 // PAGE * PAGE
        self.pattern, self.vcpus = arguments.pattern, arguments.vcpus
        self.journey = journey.Journey(
            folder, self.memory, self.vcpus, progress=self.progress,
            working_set=self.working_set, pattern=self.pattern)

    def run(self):
        self.teller.step(f'starting a guest of {human(self.memory)} that writes '
                         f'{human(self.working_set)} of it ({self.pattern})')
        self.journey.start()
        before = self.journey.speed(reports=20)
        self.journey.prepare_target('target')
        self.teller.step(
            f'the guest writes {human(before)}/s in process {self.journey.source.pid}; '
            f'moving it into process {self.journey.target.pid}')
        self.journey.move()
        facts = self.journey.settle()
        self.teller.step('moved; the source process has ended; the guest checks all its memory')
        facts.update(self.journey.confirm())
        if facts['pages_after_switch'] == 0:
            facts['complaints'].append(
                'no page crossed after the switch: this was no post-copy move')
        facts.update(ok=not facts['complaints'], speed_before=before,
                     speed_after=self.journey.speed(), memory_bytes=self.memory,
                     working_set_bytes=self.working_set, pattern=self.pattern, vcpus=self.vcpus)
        return facts

    def progress(self, phase, source=None, target=None):
        if phase != 'moving':
            words = {'filling': 'the guest fills its memory',
                     'checking': 'the guest reads every page it owns'}
            self.teller.progress(words[phase])
            return
        over = target.get('status') in ('postcopy-active', 'completed')
        left = (target if over else source).get('ram', {}).get('remaining', 0)
        ram = source.get('ram', {})
        faults = target.get('x-towline', {}).get('faults', {})
        self.teller.progress(
            f'{source.get("status", "starting"):<16} guest at the '
            f'{"target" if over else "source"}   {human(ram.get("transferred", 0))} sent, '
            f'{human(left)} to go   {ram.get("mbps", 0) / 8:.0f} MB/s   '
            f'{grouped(faults.get("served", 0))} faults')


# ---- the end ------------------------------------------------------------------------------------------


def summary(facts):
    faults = facts['faults']
    rate = facts['transferred_bytes'] / max(facts['total_ms'], 1) * 1000
    blackout = facts['blackout_ms']
    rows = [
        ('blackout', 'not known' if blackout is None else milliseconds(blackout * 1000),
         'the guest ran nowhere'),
        ('longest gap', milliseconds(facts['longest_guest_gap_ms'] * 1000),
         'the guest\'s own clock, over the whole move'),
        ('faults served', grouped(faults['served']),
         f'p50 {milliseconds(faults["p50-us"])}, p99 {milliseconds(faults["p99-us"])}, '
         f'max {milliseconds(faults["max-us"])}'),
        ('sent', human(facts['transferred_bytes']),
         f'{human(facts["bytes_before_switch"])} before the switch, '
         f'{human(facts["bytes_after_switch"])} after'),
        ('time', f'{facts["total_ms"] / 1000:.2f} s', f'{human(rate)}/s'),
        ('guest speed', f'{human(facts["speed_after"])}/s',
         f'{human(facts["speed_before"])}/s before the move'),
        ('pages verified', grouped(facts['pages_verified']),
         'by the guest, after the source had ended'),
        ('corrupt pages', grouped(facts['corrupt_pages']), ''),
    ]
    lines = [f'  {name:<16}{value:>14}   {remark}'.rstrip() for name, value, remark in rows]
    if facts['ok']:
        head = 'The guest moved while it ran, and confirms every page.'
    else:
        head = 'The move is NOT right:\n' + '\n'.join(f'  {one}' for one in facts['complaints'])
    return '\n'.join(['', head, '', *lines, ''])


def main():
    arguments = parse_arguments()
    teller = Teller(sys.stderr if arguments.json else sys.stdout)
    folder = pathlib.Path(tempfile.mkdtemp(prefix='towline-first-move-'))
    show = Show(arguments, folder, teller)
    try:
        build(teller)
        check_machine()
        facts = show.run()
        teller.clear()
        print(json.dumps(facts, indent=2) if arguments.json else summary(facts))
        return 0 if facts['ok'] else 1
    except Problem as problem:
        teller.clear()
        print(f'demos/first-move: {problem}', file=sys.stderr)
        return problem.status
    except (AssertionError, journey.JourneyFailed, qmp.QmpError, qmp.QmpClosed) as trouble:
        teller.clear()
        print(f'demos/first-move: {trouble}', file=sys.stderr)
        for process in show.journey.processes:
            print(f'  {process.name} said: {process.err.text()[-1000:]}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        teller.clear()
        print('demos/first-move: interrupted; both machines are ended', file=sys.stderr)
        return 130
    finally:
        show.journey.close()
        if arguments.keep_logs:
            print(f'logs: {folder}', file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    sys.exit(main())
