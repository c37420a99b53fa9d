#!/usr/bin/env python3
"""Fails when a line of the log is no event with fields: `lane.closed lane={} reason={}`.

Texts among the fields are quoted where they need it (base/log.h), so that free words beside them, or
quotes of one's own around them, make a line that no program can take apart.
"""
import pathlib
import re
import sys

CALL = re.compile(r'\blog(?:_owner)?\(\s*(?:base::)?LogLevel::\w+,\s*((?:"(?:[^"\\]|\\.)*"\s*)+)')
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
EVENT = re.compile(r'[\w.-]+( [\w-]+=(\{[^}]*\}|[\w.:-]+(\{[^}]*\})?))*')

root = pathlib.Path(sys.argv[1])
bad = []
count = 0
for room in ('base', 'uffd', 'runtime', 'vmm', 'tools'):
    for source in sorted((root / room).rglob('*.[hc]*')):
        text = source.read_text()
        for found in CALL.finditer(text):
            count += 1
            line = ''.join(LITERAL.findall(found[1]))
            if not EVENT.fullmatch(line):
                number = text.count('\n', 0, found.start()) + 1
                bad.append(f'{source.relative_to(root)}:{number}: no event with fields: {line}')
print('\n'.join(bad) or f'log_lines: {count} ok')
sys.exit(bool(bad) or not count)
