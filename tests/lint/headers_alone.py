#!/usr/bin/env python3
"""Fails when a header does not compile alone.

A header that some compiled source includes before anything else was proven by the build; only the
others are compiled here, each behind an empty line of its own.
"""
import concurrent.futures
import os
import pathlib
import re
import shlex
import subprocess
import sys

root, build = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path.insert(0, str(root / 'tests' / 'runner'))
import sources  # noqa: E402

FIRST_INCLUDE = re.compile(r'^#include "([^"]+)"', re.M)
ANY_INCLUDE = re.compile(r'^#include .*$', re.M)


def proven_by_the_build(commands):
    for name in commands:
        first = ANY_INCLUDE.search((root / name).read_text())
        if first and (found := FIRST_INCLUDE.match(first[0])):
            yield found[1]


def flags(commands, header):
    """The flags of the source that lies nearest. The guest's are for no other code."""
    def nearness(name):
        return len(os.path.commonpath([os.path.dirname(name), os.path.dirname(header)]))
    ours = [name for name in commands if not name.startswith('tests/guest')]
    name = max(ours, key=nearness)
    words = shlex.split(commands[name]['command'])
    kept = [word for word in words if re.match(r'-(I|isystem|std|D|W|f|m)', word)]
    return [word for word in kept if not word.startswith(('-fdiagnostics', '-MF', '-MQ'))]


def check(header):
    text = f'#include "{header}"\n'
    command = ['g++', *flags(commands, header), '-I', str(root), '-fsyntax-only', '-x', 'c++', '-']
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=build)
    return f'{header} does not compile alone:\n{done.stderr}' if done.returncode else None


commands = {name: entry for name, entry in sources.compile_commands(root, build).items()
            if name.endswith('.cc')}
proven = set(proven_by_the_build(commands))
headers = [name for name in sources.code(root, ('.h',)) if not name.startswith('tests/guest')]
left = [name for name in headers if name not in proven]
with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    bad = [text for text in pool.map(check, left) if text]
print('\n'.join(bad) or f'headers: {len(headers)} ok, {len(left)} of them compiled here')
sys.exit(bool(bad))
