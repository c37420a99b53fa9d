#!/usr/bin/env python3
"""Fails on words that do not belong into the project's text: it speaks of the project alone.

Machine paths, issue numbers, package registries, a TODO that does not say of what kind it is,
trailing blanks, tabs in code, files without a final newline, links to files that are not there.
"""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root / 'tests' / 'runner'))
import sources  # noqa: E402

RULES = [
    (r'/work/|/home/\w|/root/\w', 'a path of one machine'),
    (r'(?i)\bissues? #?\d|\s#\d+\b(?!\.)', 'an issue number'),
    (r'\bTODO\b(?!\((cleanup|perf|later)\): )', 'TODO(cleanup|perf|later): what'),
    (r'\b(FIXME|XXX)\b', 'say what is wrong, or TODO(cleanup|perf|later): what'),
    (r'(?i)(pypi|crates|npmjs)\.(org|io|com)|artifactory|proxy\.golang', 'a registry host'),
    (r'[ \t]+$', 'blanks at the end of the line'),
]
NO_TABS = ('.cc', '.h', '.c', '.py', '.build', '.S')
TEXT = ('.md', '.txt', '.yml', '.sh', '.svg', '.ld', '.S') + NO_TABS
EXEMPT = {'LICENSE', 'tests/lint/text.py'}  # This file names what it forbids.


def is_text(name):
    path = root / name
    if name in EXEMPT or name.startswith(('tests/golden/', 'tests/fuzz/corpus/')):
        return False
    return name.endswith(TEXT) or path.open('rb').read(2) == b'#!'


def dead_links(name, text):
    for target in re.findall(r'\]\(([^)#\s]+)', text):
        if '://' not in target and not (root / name).parent.joinpath(target).exists():
            yield f'{name}: links to {target}, which is not there'


def complaints(name):
    text = (root / name).read_text()
    for number, line in enumerate(text.split('\n'), 1):
        for pattern, reason in RULES:
            if found := re.search(pattern, line):
                yield f'{name}:{number}: {reason}: {found[0].strip()!r}'
        if name.endswith(NO_TABS) and '\t' in line:
            yield f'{name}:{number}: a tab'
    if name.endswith('.md'):
        yield from dead_links(name, text)
    if text and not text.endswith('\n'):
        yield f'{name}: no newline at the end'


files = [name for name in sources.tracked(root) if is_text(name)]
bad = [text for name in files for text in complaints(name)]
print('\n'.join(bad) or f'text: {len(files)} files ok')
sys.exit(bool(bad))
