#!/usr/bin/env python3
"""Fails when a shell script does not parse, or starts without saying what happens on an error."""
import pathlib
import subprocess
import sys

root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root / 'tests' / 'runner'))
import sources  # noqa: E402

bad = []
count = 0
for name in sources.tracked(root):
    path = root / name
    first = path.open('rb').readline()
    script = first.startswith(b'#!') and (b'bash' in first or b'/sh' in first)
    if not script and not name.endswith('.sh'):
        continue
    count += 1
    done = subprocess.run(['bash', '-n', str(path)], stderr=subprocess.PIPE, text=True)
    bad += done.stderr.splitlines()
    if script and 'set -' not in path.read_text():
        bad.append(f'{name}: no "set -euo pipefail" (or a reasoned part of it)')
print('\n'.join(bad) or f'shell: {count} scripts ok')
sys.exit(bool(bad))
