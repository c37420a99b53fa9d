#!/usr/bin/env python3
"""Fails when a Python file does not compile, or uses anything but the standard library."""
import ast
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root / 'tests' / 'runner'))
import sources  # noqa: E402

ours = {pathlib.Path(name).stem for name in sources.tracked(root) if name.endswith('.py')}
ours |= {pathlib.Path(name).parts[-2] for name in sources.tracked(root) if '/' in name}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module


def complaints(name):
    text = (root / name).read_text()
    try:
        tree = ast.parse(text, name)
    except SyntaxError as error:
        yield f'{name}:{error.lineno}: {error.msg}'
        return
    for line, module in imports(tree):
        if module.split('.')[0] not in sys.stdlib_module_names | ours:
            yield f'{name}:{line}: {module} is not in the standard library'


def is_python(name):
    return name.endswith('.py') or (root / name).open('rb').readline().endswith(b'python3\n')


files = [name for name in sources.tracked(root) if is_python(name)]
bad = [text for name in files for text in complaints(name)]
print('\n'.join(bad) or f'python: {len(files)} files ok')
sys.exit(bool(bad))
