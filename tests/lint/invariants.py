#!/usr/bin/env python3
"""Fails when docs/invariants.md does not go through every ENSURE of the product.

A row of its tables: the file, the words of the ENSURE, why no peer, full disk or signal reaches it.
"""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
found = set()
for folder in ('base', 'uffd', 'runtime', 'vmm', 'tools'):
    for source in sorted((root / folder).rglob('*')):
        if source.suffix not in ('.cc', '.h') or source.name == 'ensure.h':
            continue
        for condition, words in re.findall(r'\bENSURE\((.*?)"((?:[^"\\]|\\.)*)"\);',
                                           source.read_text(), re.S):
            assert 'ENSURE' not in condition, f'{source}: an ENSURE that this lint cannot read'
            found.add((str(source.relative_to(root)), words))
rows, bad = set(), []
for row in re.findall(r'^\| (\S+\.(?:cc|h)) \| (.+?) \| (.*) \|$',
                      (root / 'docs/invariants.md').read_text(), re.M):
    where, words, why = row
    if not why.strip():
        bad.append(f'no reason: {where}: {words}')
    if (where, words) in rows:
        bad.append(f'twice in docs/invariants.md: {where}: {words}')
    rows.add((where, words))
bad += [f'not in docs/invariants.md: {where}: {words}' for where, words in sorted(found - rows)]
bad += [f'no such ENSURE: {where}: {words}' for where, words in sorted(rows - found)]
print('\n'.join(bad) or f'invariants: {len(found)} of them, all explained')
sys.exit(bool(bad) or not found)
