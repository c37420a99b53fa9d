#!/usr/bin/env python3
"""Fails when docs/kernel-contract.md and the contract tests do not name the same cases."""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
cases = set()
for source in (root / 'tests/contract').glob('*_test.cc'):
    # A long sentence is several literals, one after the other.
    for literals in re.findall(r'TEST_CASE(?:_FIXTURE\(\s*\w+,|\()((?:\s*"[^"]+")+)\)',
                               source.read_text()):
        cases.add(''.join(re.findall(r'"([^"]+)"', literals)))
named = set()
for line in (root / 'docs/kernel-contract.md').read_text().splitlines():
    if line.startswith('| ') and not line.startswith(('| ---', '| relied on')):
        named.add(line.rstrip(' |').rsplit(' | ', 1)[1])
bad = [f'not in docs/kernel-contract.md: {case}' for case in sorted(cases - named)]
bad += [f'no such test: {case}' for case in sorted(named - cases)]
print('\n'.join(bad) or f'kernel-contract: {len(cases)} cases, all named')
sys.exit(bool(bad) or not cases)
