"""Which files are ours: shared by the lint."""
import json
import pathlib
import subprocess

COMPONENTS = ('base', 'uffd', 'runtime', 'vmm', 'tools')
CODE_FOLDERS = COMPONENTS + ('tests', 'demos')


def tracked(root):
    """Paths, relative to the root, of all files of the project that are present."""
    listing = subprocess.run(['git', '-C', str(root), 'ls-files', '-z', '--cached', '--others',
                              '--exclude-standard'], capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        names = sorted(set(listing.stdout.split('\0')) - {''})
    else:  # An unpacked archive.
        names = sorted(path.relative_to(root).as_posix() for path in pathlib.Path(root).rglob('*')
                       if path.is_file() and not path.relative_to(root).parts[0] == 'build')
    return [name for name in names if (pathlib.Path(root) / name).is_file()]


def code(root, endings=('.h', '.cc', '.c')):
    return [name for name in tracked(root)
            if name.endswith(endings) and name.split('/')[0] in CODE_FOLDERS]


def compile_commands(root, build):
    """{path relative to the root: argument string} of what Meson compiles, ours only."""
    root = pathlib.Path(root).resolve()
    found = {}
    for entry in json.loads((pathlib.Path(build) / 'compile_commands.json').read_text()):
        path = (pathlib.Path(entry['directory']) / entry['file']).resolve()
        if path.is_relative_to(root):
            found[path.relative_to(root).as_posix()] = entry
    return found
