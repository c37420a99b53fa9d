#!/usr/bin/env python3
"""Runs clang-tidy 14, with clang's thread-safety analysis, over every source of the product.

Most of its time goes into headers, again for every source. So sources of one folder are first
analysed together, one after the other in one file: what is clean together is clean. (Not by
#include: the analyzer looks only at what stands in the main file.) Sources that cannot stand in one
file, and those of a file with findings, are looked at alone; only that is reported.

The path-sensitive analyzer takes longer than all other checks together, so it is left to
`clang_tidy.py ROOT BUILD --analyzer`, on demand.

A finding depends on the source, what it includes, its flags and .clang-tidy: what was clean with the
same four is not analysed again. The list is in the build directory, so a fresh build analyses all.
"""
import collections
import concurrent.futures
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

root, build = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
sys.path.insert(0, str(root / 'tests' / 'runner'))
import sources  # noqa: E402

TIDY = 'clang-tidy-14'
MORE = ['--checks=clang-analyzer-*'] if '--analyzer' in sys.argv else []
SAFETY = '-Wthread-safety'
TOGETHER = 10


def flags_of(entry):
    """What the compiler is told about a source, the source and the output apart."""
    words = shlex.split(entry['command'])
    while not re.search(r'(g|c|clang)\+\+', words[0]):
        words = words[1:]  # ccache
    kept = []
    skip = False
    for word in words[1:]:
        if skip or word in ('-o', '-MF', '-MQ'):
            skip = not skip
        elif word not in ('-c', '-MD') and not word.endswith('.cc'):
            kept.append(word)
    return tuple(kept)


def dependencies():
    """{object: files that it was made of}, as Ninja noted them."""
    found = {}
    listing = subprocess.run(['ninja', '-C', str(build), '-t', 'deps'], capture_output=True,
                             text=True).stdout
    for block in listing.split('\n\n'):
        head, *files = block.strip().splitlines() or ['']
        if '(VALID)' in head:
            found[head.split(':')[0].replace('ninja', '').strip()] = [file.strip()
                                                                      for file in files]
    return found


class Fingerprints:
    """Names for everything that a result depends on."""

    def __init__(self):
        self.made_of = dependencies()
        self.common = hashlib.sha256((root / '.clang-tidy').read_bytes() + SAFETY.encode() +
                                     ''.join(MORE).encode())
        self.seen = {}

    def of_file(self, name):
        if name not in self.seen:
            path = build / name
            if path.is_relative_to(root) or '..' in name:
                content = path.read_bytes()
            else:  # The system's: when it changes, so does this.
                stat = path.stat()
                content = f'{name} {stat.st_size} {stat.st_mtime_ns}'.encode()
            self.seen[name] = hashlib.sha256(content).digest()
        return self.seen[name]

    def of(self, entry):
        """None: not built, so unknown."""
        files = self.made_of.get(entry.get('output', ''))
        if not files:
            return None
        whole = self.common.copy()
        whole.update('\0'.join(flags_of(entry)).encode())
        for name in files:
            whole.update(self.of_file(name))
        return whole.hexdigest()


def run(command):
    return subprocess.run(command, cwd=build, capture_output=True, text=True)


def fits_together(path, flags):
    return run(['clang++-14', '-fsyntax-only', '-w', *flags, '-Wno-everything',
                str(path)]).returncode == 0


def clean_together(names, flags):
    """The sources of `names` that are clean; the others must be looked at alone."""
    if len(names) < 2:
        return []
    with tempfile.NamedTemporaryFile('w', suffix='.cc', dir=build) as joined:
        for name in names:
            joined.write((root / name).read_text())
        joined.flush()
        if fits_together(joined.name, flags):
            done = run([TIDY, '--quiet', *MORE, f'--config-file={root}/.clang-tidy', joined.name, '--',
                        *flags, SAFETY])
            return names if done.returncode == 0 else []
    half = len(names) // 2
    return clean_together(names[:half], flags) + clean_together(names[half:], flags)


def alone(name):
    """What clang-tidy says about one source; empty if nothing."""
    done = run([TIDY, '--quiet', *MORE, '-p', str(build), f'--extra-arg={SAFETY}', str(root / name)])
    return '' if done.returncode == 0 else done.stdout or done.stderr


def unused_using(name):
    """Joined sources hide this one finding from each other; it is found by words."""
    text = (root / name).read_text()
    for found in re.finditer(r'^\s*using (?:\w+::)+(\w+);$', text, re.M):
        if len(re.findall(rf'\b{found[1]}\b', text)) < 2:
            yield f'{name}: using {found[1]}, and never used'


def batches(commands):
    groups = collections.defaultdict(list)
    for name, entry in commands:
        groups[name.rsplit('/', 1)[0], flags_of(entry)].append(name)
    for (_, flags), names in groups.items():
        for at in range(0, len(names), TOGETHER):
            yield names[at:at + TOGETHER], flags


def main():
    if not shutil.which(TIDY):
        print(f'SKIP: {TIDY} is not installed')
        return 77
    began = time.monotonic()
    record = build / 'clang-tidy.clean'
    known = set(record.read_text().split()) if record.exists() else set()
    prints = Fingerprints()
    commands = sorted((name, entry) for name, entry in sources.compile_commands(root, build).items()
                      if name.endswith('.cc') and not name.startswith('tests/'))
    stamps = {name: prints.of(entry) for name, entry in commands}
    new = [(name, entry) for name, entry in commands if stamps[name] not in known]
    findings = {}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        joined = pool.map(lambda batch: clean_together(*batch), batches(new))
        clean = {name for names in joined for name in names}
        rest = [name for name, _ in new if name not in clean]
        findings = {name: text for name, text in zip(rest, pool.map(alone, rest)) if text}
    for name, _ in new:
        if hidden := list(unused_using(name)):
            findings[name] = '\n'.join([findings.get(name, ''), *hidden])
    good = {stamp for name, stamp in stamps.items() if stamp and name not in findings}
    record.write_text('\n'.join(sorted(good)) + '\n')
    for name in findings:
        print(findings[name].strip())
    print(f'clang-tidy: {len(commands)} files, {len(new)} analysed ({len(rest)} alone) in '
          f'{time.monotonic() - began:.0f} s, findings in {len(findings)}')
    return 1 if findings else 0


if __name__ == '__main__':
    sys.exit(main())
