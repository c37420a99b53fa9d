"""Runs one file of Python tests: a line per case with its time, and a line that adds them up.

    runner.py FILE [-k TEXT]
"""
import argparse
import importlib.util
import pathlib
import sys
import time
import unittest


class Result(unittest.TestResult):
    """Prints as it goes."""

    def __init__(self):
        super().__init__()
        self.passed = 0
        self.began = 0.0

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def _line(self, word, test):
        title = test.shortDescription() or test.id().split('.')[-1].replace('_', ' ')
        print(f'  {word:<6} {time.monotonic() - self.began:6.1f} s  {title}', flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1
        self._line('ok', test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._line('FAILED', test)
        print(self.failures[-1][1], flush=True)

    def addError(self, test, err):
        super().addError(test, err)
        self._line('FAILED', test)
        print(self.errors[-1][1], flush=True)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self._line('FAILED', subtest)
            print((self.failures + self.errors)[-1][1], flush=True)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._line('skip', test)
        print(f'SKIP: {test.id().split(".")[-1]}: {reason}', flush=True)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('file', type=pathlib.Path)
    parser.add_argument('-k', dest='only')
    arguments = parser.parse_args()
    tests = pathlib.Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(tests / room) for room in ('harness', 'chaos', 'runner')]
    loader = unittest.TestLoader()
    if arguments.only:
        loader.testNamePatterns = [f'*{arguments.only}*']
    result = Result()
    loader.loadTestsFromModule(load(arguments.file.resolve())).run(result)
    failed = len({entry[0] for entry in result.failures + result.errors})
    print(f'[cases] {result.passed} passed, {failed} failed, {len(result.skipped)} skipped')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
