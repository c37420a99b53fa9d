"""From what a test program printed: each case that failed, and the lines that say why.

Whoever looks at a run in CI sees its last lines only; these are what belongs there.
"""
import re

LINES = 15   # Of a case.
CASES = 4    # Of a program; the others are named.
MARK = '    | '

DOCTEST_RULE = re.compile(r'^={70,}$')
DOCTEST_ERROR = re.compile(r'(FATAL ERROR|ERROR): ')
PYTHON_FAILED = re.compile(r'^  FAILED +[\d.]+ s  ')
PYTHON_OTHER = re.compile(r'^(  (ok|FAILED|skip) +[\d.]+ s  |SKIP: |\[cases\] |\| )')
SANITIZER = re.compile(r'(ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|: runtime error: )')


def of_doctest(lines):
    """Blocks between rules of equal signs that hold an error. The first line: the case's name."""
    rules = [at for at, line in enumerate(lines) if DOCTEST_RULE.match(line)] + [len(lines)]
    for begin, end in zip(rules, rules[1:]):
        block = [line for line in lines[begin + 1:end] if line.strip()]
        name = next((line for line in block if line.startswith('TEST CASE:')), None)
        if name and any(DOCTEST_ERROR.search(line) for line in block):
            yield [name, *(line for line in block if line is not name)][:LINES]


def of_python(lines):
    """The line of the case, and the end of its traceback."""
    for begin, line in enumerate(lines):
        if not PYTHON_FAILED.match(line):
            continue
        end = begin + 1
        while end < len(lines) and not PYTHON_OTHER.match(lines[end]):
            end += 1
        trace = [one for one in lines[begin + 1:end] if one.strip()]
        yield [line.strip(), *trace[-(LINES - 1):]]


def of_sanitizer(lines):
    found = [at for at, line in enumerate(lines) if SANITIZER.search(line)]
    if found:
        yield [line for line in lines[found[0]:found[0] + LINES] if line.strip()]


def first_lines(lines):
    return [MARK + line for line in lines[:LINES]]


def excerpts(output):
    """Lines, marked, of what failed in this output; of an output of no known kind its end."""
    lines = output.splitlines()
    cases = [*of_doctest(lines), *of_python(lines)] + [*of_sanitizer(lines)]
    if not cases:
        cases = [[line for line in lines if line.strip()][-LINES:]]
    shown = [line for case in cases[:CASES] for line in case]
    return [MARK + line for line in shown + [case[0] for case in cases[CASES:]]]
