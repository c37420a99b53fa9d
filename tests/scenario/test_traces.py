"""A log of the debug level is a trace: the brain that ships, fed with it, asks for the same again."""
import os
import pathlib
import subprocess
import unittest

import moves
import waiting

REPLAY = pathlib.Path(os.environ['TOWLINE_BUILD']) / 'tests' / 'simulation' / 'replay'
DEBUG = ('--log-level', 'debug')


class Traced(moves.MoveCase):
    AUTO_RECOVER = True

    def traced_pair(self, append=moves.BUSY):
        self.source = self.run_vm('source', append=moves.with_facts(append), extra=DEBUG)
        self.guest = moves.Guest(self.source)
        self.target, address = self.listening('target', extra=DEBUG)
        self.relay = self.closing(moves.relay.Relay(address))
        self.uri = self.relay.uri
        self.guest.wait_for('guest.start')

    def trace(self, machine, end):
        """Its log, once the last line of the move is there."""
        machine.err.wait_for(lambda line: f'{end}.effect kind=show' in line and
                             any(f'status={status}' in line
                                 for status in ('completed', 'cancelled', 'failed')),
                             'the end in the trace')
        machine.close()
        return machine.err.snapshot()

    def replay(self, lines):
        done = subprocess.run([REPLAY], input='\n'.join(lines), capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def same(self, lines):
        status, said = self.replay(lines)
        self.assertEqual(status, 0, said)
        self.assertRegex(said, '[0-9]+ inputs, [0-9]+ effects and tasks: the same')

    def test_a_move_whose_link_was_cut_is_decided_alike_when_it_is_replayed(self):
        self.traced_pair(append=moves.STILL)
        self.slowly_in_postcopy()
        self.relay.cut('bulk0')
        waiting.until(lambda: self.source.qmp.migration()['x-towline']['lanes-replaced'],
                      'a replaced lane')
        self.relay.cut()
        waiting.until(lambda: self.source.qmp.migration()['x-towline']['recoveries'], 'a recovery')
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        here, there = self.trace(self.source, 'source'), self.trace(self.target, 'target')
        self.same(here)
        self.same(there)
        # What each was told of the guest makes the difference.
        for lines, told in ((here, 'source.input kind=running'),
                            (there, 'target.input kind=guest-entered')):
            status, said = self.replay([line for line in lines if told not in line])
            self.assertEqual(status, 1, said)
            self.assertIn('it differs', said)

    def test_a_move_that_was_cancelled_is_decided_alike_when_it_is_replayed(self):
        self.traced_pair()
        self.begin(max_bandwidth=1 << 20)
        waiting.until(lambda: self.source.qmp.status() == 'active', 'the pass')
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.target.qmp.wait_status('failed')
        self.same(self.trace(self.source, 'source'))
        self.same(self.trace(self.target, 'target'))

    def test_a_log_that_is_no_trace_is_refused(self):
        status, said = self.replay(['nothing of the kind'])
        self.assertEqual(status, 2)
        self.assertIn("no line 'source.brain'", said)


if __name__ == '__main__':
    unittest.main()
