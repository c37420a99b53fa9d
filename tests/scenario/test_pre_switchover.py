"""A manager that wants to: the guest stands still at its source until it is told to go over."""
import unittest

import moves


class PreSwitchover(moves.MoveCase):
    def waiting(self):
        self.pair(append=moves.BUSY)
        self.source.qmp.set_capabilities(pause_before_switchover=True)
        self.begin(x_towline_switch='after-pass')
        self.source.qmp.wait_status('pre-switchover')

    def statuses(self):
        return [event['data']['status'] for event in self.source.qmp.events('MIGRATION')]

    def go_on(self, state='pre-switchover'):
        self.source.qmp('migrate-continue', state=state)

    def test_the_guest_goes_over_when_it_is_told_to(self):
        self.waiting()
        self.source.qmp.wait_event('STOP')
        self.assertEqual(self.source.qmp.run_state(), 'finish-migrate')
        self.assertEqual(self.target.qmp.status(), 'active')
        self.go_on()
        self.completed()
        self.verdict()
        self.source.qmp.wait_event('MIGRATION', status='completed')
        seen = self.statuses()
        at = seen.index('pre-switchover')
        self.assertEqual(seen[at - 1:at + 3],
                         ['active', 'pre-switchover', 'device', 'postcopy-device'], seen)

    def test_a_cancel_gives_the_guest_back(self):
        self.waiting()
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.source.qmp.wait_run_state('running')
        self.guest.wait_reports(2)
        self.refused(self.source, 'migrate-continue', 'not in expected state: cancelled',
                     state='pre-switchover')

    def test_a_link_that_is_lost_gives_the_guest_back(self):
        self.waiting()
        self.relay.cut()
        self.source.qmp.wait_status('failed')
        self.source.qmp.wait_run_state('running')
        self.guest.wait_reports(2)

    def test_the_word_is_for_the_state_in_which_it_waits(self):
        self.pair(append=moves.BUSY)
        self.refused(self.source, 'migrate-continue', 'not in expected state: none',
                     state='pre-switchover')
        self.source.qmp.set_capabilities(pause_before_switchover=True)
        self.begin(x_towline_switch='after-pass')
        self.source.qmp.wait_status('pre-switchover')
        self.refused(self.source, 'migrate-continue', 'not in expected state: pre-switchover',
                     state='device')
        self.go_on()
        self.completed()
        self.refused(self.source, 'migrate-continue', 'not in expected state: completed',
                     state='pre-switchover')


if __name__ == '__main__':
    unittest.main()
