"""Runs unittest modules; tells a run in which everything was skipped from one that passed."""
import sys
import unittest

SKIPPED = 77  # What Meson takes for a skipped test.


def main(names):
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    count = suite.countTestCases()
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    if not result.wasSuccessful() or count == 0:
        return 1
    if len(result.skipped) == result.testsRun or result.testsRun == 0:
        reason = result.skipped[0][1] if result.skipped else 'nothing ran'
        print(f'SKIP: {reason}')
        return SKIPPED
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
