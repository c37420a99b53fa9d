#!/usr/bin/env python3
"""Fails when a room includes a header of a room it may not know about, ours or foreign.

A header that lies directly in runtime/ is public: whoever may see the runtime at all may include it.
"""
import pathlib
import re
import sys

# room: the rooms it sees besides itself. 'runtime' is what lies directly in there.
SEES = {
    'base': '',
    'uffd': 'base',
    'runtime': 'base',
    'runtime/wire': 'runtime base',
    'runtime/core': 'runtime/wire runtime base',
    'runtime/link': 'runtime/wire runtime base',
    'runtime/standby': 'runtime/link runtime/core runtime/wire runtime base',
    'runtime/source': 'runtime/standby runtime/link runtime/core runtime/wire runtime uffd base',
    'runtime/target': 'runtime/link runtime/core runtime/wire runtime uffd base',
    'vmm': 'vmm/kvm vmm/device runtime base',
    'vmm/kvm': 'vmm runtime base',
    'vmm/device': 'vmm vmm/kvm runtime base',
    'vmm/monitor': 'vmm runtime base',
    'tools': 'tools/arguments tools/client tools/page_server vmm/monitor vmm runtime uffd base',
    'tools/arguments': 'tools vmm/monitor vmm runtime base',
    'tools/client': 'tools/arguments tools vmm/monitor runtime base',
    'tools/page_server': 'tools runtime/source runtime/standby vmm/monitor vmm runtime base',
}

# A foreign library enters through these files only.
ENTERS_THROUGH = {
    'event2/': r'base/event_loop\.',
    'cereal/': r'runtime/machine_state\.',
    'nlohmann/': r'vmm/monitor/json\.',
    'CLI/': r'tools/arguments/',
    'spdlog/': r'base/log\.',
    'openssl/': r'runtime/link/secure\.',
    'linux/kvm.h': r'vmm/kvm/kvm\.',
    'linux/userfaultfd.h': r'uffd/',
}


def complaints(path, include):
    room = path.rpartition('/')[0]
    if include[0] == '"' and (named := include[1:].rpartition('/')[0]) not in [room, *SEES[room].split()]:
        yield f'{room} may not include {include[1:]}: it sees {SEES[room] or "nothing else"}, not {named}'
    for foreign, door in ENTERS_THROUGH.items():
        if include[1:].startswith(foreign) and not re.match(door, path):
            yield f'{foreign} enters through {door} only'


root = pathlib.Path(sys.argv[1])
bad = []
for source in sorted(path for top in ('base', 'uffd', 'runtime', 'vmm', 'tools')
                     for path in (root / top).rglob('*.[hc]*')):
    path = source.relative_to(root).as_posix()
    if path.rpartition('/')[0] not in SEES:
        bad.append(f'{path}: a room that tests/lint/layering.py does not know')
        continue
    for number, line in enumerate(source.read_text().splitlines(), 1):
        if found := re.match(r'#include (["<][^">]+)', line):
            bad += [f'{path}:{number}: {text}' for text in complaints(path, found[1])]
print('\n'.join(bad) or 'layering: ok')
sys.exit(bool(bad))
