"""Builds, runs the suites one after another and counts their cases. Called by tests/run.

Which tests there are is Meson's knowledge (`meson introspect --tests`); how many cases each ran is
read from what it prints:
  * doctest's summary line, with a `SKIP: reason` line for each case that could not run here;
  * the line `[cases] N passed, N failed, N skipped` (the Python suites print it);
  * otherwise the program is one case, and its exit status the outcome (77: skipped).
A program that ran no case, or died before its summary, is a failure.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import excerpts

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ALL_SUITES = ('unit', 'contract', 'simulation', 'model', 'moves', 'fuzz', 'scenario', 'lint')
QUICK_SUITES = ('unit', 'contract', 'lint')
SANITIZED_SUITES = ('unit', 'contract', 'simulation', 'moves')
SLOW_LINT = ('clang_tidy.py',)
SANITIZERS = {'address': 'address,undefined', 'thread': 'thread'}
SKIP_STATUS = 77
TAIL_LINES = 60
GRACE_S = 10  # For a program that took too long to say where it is.

DOCTEST = re.compile(r'\[doctest\] test cases: +(\d+) \| +(\d+) passed \| +(\d+) failed')
OWN = re.compile(r'^\[cases\] (\d+) passed, (\d+) failed, (\d+) skipped$', re.M)
SKIP = re.compile(r'\bSKIP: (.+)')
SKIPPED = re.compile(r'^SKIPPED: (\d+)$', re.M)


@dataclasses.dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skips: list = dataclasses.field(default_factory=list)  # "test: reason"

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skips += other.skips

    def __str__(self):
        return f'{self.passed} passed, {self.failed} failed, {len(self.skips)} skipped'


def read_tally(name, status, output):
    """What a finished program's output says. The second value: why it is wrong, or None."""
    reasons = [found.strip() for found in SKIP.findall(output)]
    if found := DOCTEST.search(output):
        total, passed, failed = map(int, found.groups())
        stated = SKIPPED.findall(output)
        if stated and int(stated[-1]) != len(reasons):
            return Tally(passed, failed + 1), f'says {stated[-1]} skipped, names {len(reasons)}'
        if len(reasons) > passed:
            return Tally(0, failed + 1), 'names more skips than cases that passed'
        tally = Tally(passed - len(reasons), failed, [f'{name}: {reason}' for reason in reasons])
        if total == 0:
            return Tally(0, 1), 'ran no case'
    elif found := OWN.search(output):
        passed, failed, skipped = map(int, found.groups())
        if skipped != len(reasons):
            return Tally(passed, failed + 1), f'says {skipped} skipped, names {len(reasons)}'
        tally = Tally(passed, failed, [f'{name}: {reason}' for reason in reasons])
        if passed + failed + skipped == 0:
            return Tally(0, 1), 'ran no case'
    elif status == SKIP_STATUS:
        return Tally(skips=[f'{name}: {reasons[0] if reasons else "no reason given"}']), None
    elif '[doctest]' in output or status not in (0, 1):
        return Tally(0, 1), f'ended with status {status} before it counted its cases'
    else:
        tally = Tally(int(status == 0), int(status != 0))
    if status != 0 and tally.failed == 0:
        tally.failed = 1
        return tally, f'all cases passed, and yet its status is {status}'
    return tally, None


class Runner:
    """One build directory and the tests in it."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.sanitize = arguments.sanitize
        self.build = ROOT / 'build' / (self.sanitize or 'plain')
        self.logs = self.build / 'logs'
        self.total = Tally()
        self.failures = []  # Of each a line, or several: what failed, and why.

    def run(self):
        began = time.monotonic()
        suites = self.suites()
        if self.stage('configure', self.configure) and self.stage('build', self.compile, suites):
            self.logs.mkdir(exist_ok=True)
            for suite in suites:
                self.run_suite(suite)
        print(f'{"all":<12} {time.monotonic() - began:7.1f} s')
        for skip in self.total.skips:
            print(f'SKIPPED {skip}')
        for failure in self.failures:
            print(f'FAILED {failure}')
        if self.total.passed + self.total.failed == 0:
            print('FAILED nothing ran')
            self.total.failed = 1
        print(self.total)
        return 1 if self.total.failed else 0

    def suites(self):
        if self.arguments.suite:
            return self.arguments.suite
        if self.sanitize:
            return list(SANITIZED_SUITES)
        if self.arguments.only:
            return ['unit', 'contract', 'simulation', 'scenario']
        return list(QUICK_SUITES if self.arguments.quick else ALL_SUITES)

    # ---- building ---------------------------------------------------------------------------

    def stage(self, name, work, *arguments):
        """Runs a step that is no test but may fail."""
        began = time.monotonic()
        try:
            work(*arguments)
        except StepFailed as failure:
            self.total.failed += 1
            self.failures.append('\n'.join([name, *excerpts.first_lines(failure.lines)]))
            return False
        finally:
            print(f'{name:<12} {time.monotonic() - began:7.1f} s', flush=True)
        return True

    def configure(self):
        if (self.build / 'build.ninja').exists():
            return
        environment = dict(os.environ)
        if shutil.which('ccache'):
            environment.setdefault('CC', 'ccache gcc')
            environment.setdefault('CXX', 'ccache g++')
        else:
            environment.setdefault('CC', 'gcc')
            environment.setdefault('CXX', 'g++')
        options = []
        if self.sanitize:
            # b_lundef: a sanitizer's symbols are found in the run time, not at link time. At -O2
            # the checks take GCC 12 three times as long to compile, for nothing that is looked at.
            options = [f'-Db_sanitize={SANITIZERS[self.sanitize]}', '-Db_lundef=false',
                       '-Doptimization=1', '-Dcpp_args=-g1', '-Dunity_size=8']
        run_loud(['meson', 'setup', *options, str(self.build), str(ROOT)], environment)

    def compile(self, suites):
        ninja = ['ninja', '-C', str(self.build), f'-j{self.arguments.jobs}']
        if not self.sanitize and not self.arguments.suite:
            run_loud(ninja)
            return
        # Meson's list needs an up-to-date build.ninja, which this target regenerates.
        run_loud([*ninja, 'build.ninja'])
        targets = {self.target_of(path) for test in self.tests(suites)
                   for path in (*test['cmd'], *self.depends(test))}
        targets.discard(None)
        if 'scenario' in suites or 'lint' in suites:
            run_loud(ninja)
        elif targets:
            run_loud([*ninja, *sorted(targets)])

    def target_of(self, path):
        """The Ninja target of a file that the build makes; None for any other."""
        # Some versions of Meson name a source on the way through the build's folder.
        path = pathlib.Path(os.path.normpath(path))
        if not path.is_absolute() or not path.is_relative_to(self.build):
            return None
        return str(path.relative_to(self.build))

    def depends(self, test):
        names = set(test['depends'])
        for target in self.introspect('--targets'):
            if target['id'] in names:
                yield from target['filename']

    def introspect(self, what):
        return json.loads(subprocess.run(['meson', 'introspect', what, str(self.build)], check=True,
                                         capture_output=True, text=True).stdout)

    def tests(self, suites):
        return [test for test in self.introspect('--tests')
                if {name.split(':')[-1] for name in test['suite']} & set(suites)]

    # ---- running ----------------------------------------------------------------------------

    def run_suite(self, suite):
        began = time.monotonic()
        tally = Tally()
        ran = False
        for name, command, environment, limit in self.programs(suite):
            ran = True
            tally.add(self.run_program(suite, name, command, environment, limit))
        if not ran and self.arguments.suite:
            self.failures.append(f'{suite}: there is no such test')
            tally.failed += 1
        if ran or self.arguments.suite:
            print(f'{suite:<12} {time.monotonic() - began:7.1f} s   {tally}', flush=True)
        else:
            print(f'{suite:<12} has no tests', flush=True)
        self.total.add(tally)

    def programs(self, suite):
        """(name, command, environment, seconds) of each program of the suite."""
        if suite == 'lint':
            for script in sorted((ROOT / 'tests' / 'lint').glob('*.py')):
                if not (self.arguments.quick and script.name in SLOW_LINT):
                    yield (script.stem, [sys.executable, str(script), str(ROOT), str(self.build)],
                           {}, 1800)
            return
        factor = 6 if self.sanitize else 2
        for test in self.tests([suite]):
            yield test['name'], self.command(test), test['env'], test['timeout'] * factor

    def command(self, test):
        command = list(test['cmd'])
        only = self.arguments.only
        if only and command[0].startswith(str(self.build)):
            command.append(f'--test-case=*{only}*')
        elif only:
            command += ['-k', only]
        if self.sanitize == 'thread' and mmap_randomness() > 28:
            # The run time of GCC 12 has no place for mappings moved that far.
            command = ['setarch', '-R', *command]
        return command

    def environment(self, extra):
        environment = {**os.environ, **extra}
        environment.setdefault('ASAN_OPTIONS', 'detect_stack_use_after_return=1')
        environment.setdefault('UBSAN_OPTIONS', 'print_stacktrace=1:halt_on_error=1')
        environment.setdefault('TSAN_OPTIONS', 'halt_on_error=0:second_deadlock_stack=1')
        environment['TOWLINE_BUILD'] = str(self.build)
        return environment

    def run_program(self, suite, name, command, extra, limit):
        status, output = watch(command, self.environment(extra), limit, echo=suite == 'scenario')
        (self.logs / f'{suite}-{name}.log').write_text(output)
        if status is None:
            tally, complaint = Tally(0, 1), f'did not end within {limit} s'
        else:
            tally, complaint = read_tally(name, status, output)
        if self.arguments.only and complaint == 'ran no case':
            return Tally()
        if complaint or tally.failed:
            self.failures.append('\n'.join(
                [f'{suite}/{name}: {complaint or f"{tally.failed} failed"}',
                 *excerpts.excerpts(output)]))
            lines = output.splitlines()
            print(f'---- {suite}/{name}, the last of {len(lines)} lines '
                  f'({self.logs.relative_to(ROOT)}/{suite}-{name}.log)')
            print('\n'.join(lines[-TAIL_LINES:]))
            print('----', flush=True)
        return tally


def mmap_randomness():
    try:
        return int(pathlib.Path('/proc/sys/vm/mmap_rnd_bits').read_text())
    except OSError:
        return 0


class StepFailed(Exception):
    def __init__(self, lines):
        super().__init__('a build step failed')
        self.lines = lines


def run_loud(command, environment=None):
    """Runs a build step; its output is shown only when it fails. Raises StepFailed."""
    try:
        done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, errors='replace')
    except FileNotFoundError as missing:
        print(f'{missing.filename} is missing')
        raise StepFailed([f'{missing.filename} is missing']) from None
    if done.returncode != 0:
        lines = done.stdout.splitlines()
        failed = [at for at, line in enumerate(lines) if line.startswith('FAILED')]
        lines = lines[failed[0] if failed else max(0, len(lines) - TAIL_LINES):]
        print('\n'.join(lines))
        raise StepFailed(lines)


def watch(command, environment, limit, echo):
    """Runs a test program in a session of its own. Returns (status, output); no status: too long.

    Whatever it leaves behind in its session is ended with it.
    """
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors='replace',
                               start_new_session=True, cwd=ROOT)
    expired = []

    def expire(*_):
        if expired:
            end_session(process)
        else:
            process.terminate()  # doctest answers this with the name of the case.
        expired.append(True)
        signal.alarm(GRACE_S)

    signal.signal(signal.SIGALRM, expire)
    signal.alarm(int(limit))
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if echo and line.startswith('  '):
                print(line, end='', flush=True)
        # Not reaped yet, so that its number still names its session and nothing else.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    finally:
        signal.alarm(0)
        end_session(process)
    status = process.wait()
    return None if expired else status, ''.join(lines)


def end_session(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog='tests/run', description='Builds Towline and runs its tests and lint.',
        epilog='The last line is "N passed, N failed, N skipped", N counting test cases.')
    parser.add_argument('--quick', action='store_true',
                        help='the inner loop: unit, contract, lint without clang-tidy')
    parser.add_argument('--sanitize', choices=sorted(SANITIZERS),
                        help=f'{", ".join(SANITIZED_SUITES)} under ASan and UBSan (address), or '
                             'under TSan (thread); --suite chooses among them')
    parser.add_argument('--suite', action='append', choices=ALL_SUITES, metavar='NAME',
                        help=f'only this suite ({", ".join(ALL_SUITES)}); may be repeated')
    parser.add_argument('--only', metavar='TEXT', help='only the cases whose name contains TEXT')
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 2, metavar='N',
                        help='parallel compilers (default: one for each processor)')
    return parser.parse_args()


if __name__ == '__main__':
    sys.exit(Runner(parse_arguments()).run())
