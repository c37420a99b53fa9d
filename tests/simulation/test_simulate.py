"""The simulator's command line: a hunt that looked at less than it seems to says so."""
import os
import pathlib
import subprocess
import unittest

SIMULATE = pathlib.Path(os.environ['TOWLINE_BUILD']) / 'tests' / 'simulation' / 'simulate'


class CommandLine(unittest.TestCase):
    def simulate(self, *arguments):
        done = subprocess.run([SIMULATE, *arguments], capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    def refused(self, *arguments):
        status, out, err = self.simulate(*arguments)
        self.assertEqual((status, out), (2, ''))
        return err

    def test_a_trouble_that_does_not_exist_is_named_and_those_that_do_are_listed(self):
        said = self.refused('--runs', '1', '--trouble', 'strom')
        for word in ("'strom'", ' storm', ' none', ' lanes'):
            self.assertIn(word, said)

    def test_a_plant_that_does_not_exist_is_named_and_those_that_do_are_listed(self):
        said = self.refused('--runs', '1', '--plant', 'holds')
        for word in ("'holds'", ' none', ' run-twice', ' lane-not-asked'):
            self.assertIn(word, said)

    def test_what_is_no_number_and_what_is_no_option_are_named(self):
        self.assertIn("'10k'", self.refused('--runs', '10k'))
        self.assertIn("'-1'", self.refused('--seed', '-1'))
        self.assertIn("'--plants'", self.refused('--plants', 'none'))
        self.assertIn("'--troubles'", self.refused('--troubles'))

    def test_a_planted_mistake_that_is_found_is_a_failure(self):
        status, out, _ = self.simulate('--runs', '20', '--trouble', 'none',
                                       '--plant', 'installed-overwritten', '--stop')
        self.assertEqual(status, 1)
        self.assertIn('a write without a claim', out)

    def test_a_rule_that_was_never_taken_is_a_failure_where_every_rule_is_wanted(self):
        status, out, _ = self.simulate('--runs', '1', '--every-rule')
        self.assertEqual(status, 1)
        self.assertRegex(out, 'never: source .*\n')
        self.assertRegex(out, 'every rule was wanted, and [0-9]+ were never taken')

    def test_a_run_that_takes_every_rule_is_good(self):
        # These seeds are those of the suite.
        status, out, _ = self.simulate('--seed', '190000', '--runs', '6000', '--every-rule')
        self.assertEqual(status, 0, out)
        self.assertNotIn('never: ', out)

    def test_a_short_run_need_not_take_every_rule(self):
        status, out, _ = self.simulate('--runs', '1')
        self.assertEqual(status, 0)
        self.assertIn('never: ', out)
        self.assertNotIn('every rule', out)

    def wants_every_rule(self, *arguments):
        """Looked at from outside while it runs: it says so first, if it does."""
        with subprocess.Popen([SIMULATE, *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True) as running:
            first = running.stdout.readline()
            running.kill()
        return 'every rule is wanted' in first

    def test_a_long_run_wants_every_rule_without_being_asked(self):
        self.assertTrue(self.wants_every_rule('--runs', '50000'))
        # Ended by what is planted, at once.
        planted = ('--runs', '50000', '--plant', 'installed-overwritten', '--stop')
        self.assertFalse(self.wants_every_rule(*planted))
        self.assertFalse(self.wants_every_rule(*planted, '--trouble', 'none'))


if __name__ == '__main__':
    unittest.main()
