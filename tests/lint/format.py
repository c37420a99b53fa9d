#!/usr/bin/env python3
"""Fails when clang-format 14 would write a file differently."""
import pathlib
import shutil
import subprocess
import sys

root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root / 'tests' / 'runner'))
import sources  # noqa: E402

if not shutil.which('clang-format-14'):
    print('SKIP: clang-format-14 is not installed')
    sys.exit(77)
files = sources.code(root)
done = subprocess.run(['clang-format-14', '--dry-run', '-Werror', '--ferror-limit=3', *files],
                      cwd=root, stderr=subprocess.PIPE, text=True)
print(done.stderr or f'format: {len(files)} files ok')
sys.exit(bool(done.returncode))
