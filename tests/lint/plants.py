#!/usr/bin/env python3
"""Fails when docs/model.md does not pair every planted fault of the model with the simulator's.

Each fault of the model stands once in the table of pairs, with plants of the simulator that exist or
with the reason why it has none; and each plant of the simulator stands somewhere in it.
"""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
faults = set()
for source in (root / 'tests/model').glob('*.pml'):
    for line in re.findall(r'^#\s*(?:if|elif|ifdef|ifndef)\b.*$', source.read_text(), re.M):
        faults |= set(re.findall(r'FAULT_([A-Z_]+)', line))
plants = set(re.findall(r'case Plant::k(?!None)\w+:\s*return "([a-z-]+)"',
                        (root / 'tests/simulation/setup.cc').read_text()))
page = (root / 'docs/model.md').read_text()
table = page.partition('### Their twins in the simulator')[2].partition('\n## ')[0]
rows = re.findall(r'^\| (`[^|]+|—) \| ([^|]+) \| ([^|]*)\|$', table, re.M)
bad, paired, used = [], [], set()
for fault, twins, why in rows:
    paired += re.findall(r'`([A-Z_]+)`', fault)
    named = re.findall(r'`([a-z-]+)`', twins)
    used |= set(named)
    bad += [f'no such plant: {name}' for name in named if name not in plants]
    if (not named or fault == '—') and not why.strip():
        bad.append(f'{fault}: no twin, and no reason')
bad += [f'not paired: {fault}' for fault in sorted(faults - set(paired))]
bad += [f'no such fault: {fault}' for fault in sorted(set(paired) - faults)]
bad += [f'paired twice: {fault}' for fault in sorted({one for one in paired if paired.count(one) > 1})]
bad += [f'the plant is not in the table: {plant}' for plant in sorted(plants - used)]
print('\n'.join(bad) or f'plants: {len(faults)} faults of the model, {len(plants)} plants, all paired')
sys.exit(bool(bad) or not faults or not plants)
