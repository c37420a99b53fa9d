#!/usr/bin/env python3
"""Fails when a fuzz target has no corpus or is not built, or a parser of foreign bytes has no target.

A parser is a function of a header whose name begins with decode, parse or receive and which may
fail. It stands in the source of some target, or here with the reason why it need not.
"""
import pathlib
import re
import sys

EXCUSED = {
    'parse_arguments': 'the command line, of whoever may do all that it can say',
    'parse_size': 'the command line; its cases are in tests/unit/tools',
    'parse_qmp': 'the command line',
    'receive_payload': 'view_payload(), copied',
}

root = pathlib.Path(sys.argv[1])
folder = root / 'tests/fuzz'
targets = {source.name[:-len('_fuzz.cc')]: source.read_text()
           for source in folder.glob('*_fuzz.cc')}
built = set(re.findall(r"^  '(\w+)': \w+_dep,$", (folder / 'meson.build').read_text(), re.M))
bad = [f'tests/fuzz/meson.build does not build {name}_fuzz.cc' for name in set(targets) - built]
bad += [f'there is no tests/fuzz/{name}_fuzz.cc' for name in built - set(targets)]
for name in sorted(targets):
    corpus = folder / 'corpus' / name
    if not corpus.is_dir() or not any(corpus.iterdir()):
        bad.append(f'tests/fuzz/corpus/{name} is empty')
parsers = {}
for component in ('runtime', 'vmm', 'tools'):
    for header in (root / component).rglob('*.h'):
        for name in re.findall(
                r'^\s*(?:static )?(?:\[\[nodiscard\]\] )?(?:base::)?(?:Expected|Result)<.*>\s+'
                r'((?:decode|parse|receive)\w*)\(', header.read_text(), re.M):
            parsers[name] = header.relative_to(root)
sources = '\n'.join(targets.values())
for name, header in sorted(parsers.items()):
    if name not in EXCUSED and not re.search(rf'\b{name}\(', sources):
        bad.append(f'{header}: {name}() takes foreign bytes and is in no fuzz target')
print('\n'.join(sorted(bad)) or
      f'fuzz_targets: {len(targets)} targets, {len(parsers)} parsers, all of them fuzzed or excused')
sys.exit(bool(bad) or not targets or not parsers)
