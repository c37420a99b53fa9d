#!/usr/bin/env python3
"""Fails when a component includes a header it may not know about, ours or foreign."""
import pathlib
import re
import sys

PUBLIC_RUNTIME = ('runtime/ports.h', 'runtime/options.h', 'runtime/migration.h',
                  'runtime/machine_state.h', 'runtime/run_gate.h')
MAY_INCLUDE = {
    'base': ('base/',),
    'uffd': ('uffd/', 'base/'),
    'runtime': ('runtime/', 'uffd/', 'base/'),
    'vmm': ('vmm/', 'base/') + PUBLIC_RUNTIME,
    'vmm/monitor': ('vmm/', 'base/', 'runtime/event_loop.h') + PUBLIC_RUNTIME,
    'tools': ('tools/', 'vmm/', 'runtime/', 'uffd/', 'base/'),
}

# A foreign library enters through these files only.
ENTERS_THROUGH = {
    'event2/': r'runtime/event_loop\.',
    'cereal/': r'runtime/machine_state\.',
    'nlohmann/': r'vmm/monitor/json\.',
    'CLI/': r'tools/argument(s|_checks|s_migrate|s_run)\.',
    'spdlog/': r'base/log\.',
    'openssl/': r'runtime/secure\.',
    'linux/kvm.h': r'vmm/kvm\.',
    'linux/userfaultfd.h': r'uffd/',
}


def complaints(path, component, include):
    if include[0] == '"' and not include[1:].startswith(MAY_INCLUDE[component]):
        yield f'{component} may not include {include[1:]}'
    for foreign, door in ENTERS_THROUGH.items():
        if include[1:].startswith(foreign) and not re.match(door, path):
            yield f'{foreign} enters through {door} only'


root = pathlib.Path(sys.argv[1])
bad = []
for component in MAY_INCLUDE:
    for source in sorted((root / component).rglob('*.[hc]*')):
        path = source.relative_to(root).as_posix()
        if any(path.startswith(other + '/') for other in MAY_INCLUDE if len(other) > len(component)):
            continue  # A component of its own, further down.
        for number, line in enumerate(source.read_text().splitlines(), 1):
            if found := re.match(r'#include (["<][^">]+)', line):
                bad += [f'{path}:{number}: {text}' for text in complaints(path, component, found[1])]
print('\n'.join(bad) or 'layering: ok')
sys.exit(bool(bad))
