#!/usr/bin/env python3
"""Fails when the product steps a gate to KVM_RUN without saying so in the log of the guest's owners.

change_owner() (runtime/owner_log.h) steps and says so; nothing else calls gate().step().
"""
import pathlib
import re
import sys

STEPS = 'runtime/owner_log.cc'

root = pathlib.Path(sys.argv[1])
# Whatever has "gate" for its last name: gate(), gate_, run_gate->, RunGate().
call = re.compile(r'\w*gate_?(?:\(\))?\s*(?:\.|->)\s*step\s*\(', re.I)
bad, found = [], 0
for folder in ('base', 'uffd', 'runtime', 'vmm', 'tools'):
    for source in sorted((root / folder).rglob('*.[hc]*')):
        path, text = source.relative_to(root).as_posix(), source.read_text()
        for step in call.finditer(text):
            line = text.count('\n', 0, step.start()) + 1
            if '//' in text[text.rfind('\n', 0, step.start()) + 1:step.start()]:
                continue
            if path == STEPS:
                found += 1
            else:
                bad.append(f'{path}:{line}: {step[0]}: change_owner() (runtime/owner_log.h) also '
                           'logs who owns the guest')
if found != 1:
    bad.append(f'{STEPS}: gate.step() is called {found} times, not once')
print('\n'.join(bad) or 'owner_steps: ok')
sys.exit(bool(bad))
