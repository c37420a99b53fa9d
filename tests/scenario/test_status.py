"""A status is a promise: a link that heals by itself is no failure, and what needs a hand is told."""
import unittest

import moves
import qmp
import waiting

# Longer than any case: what is told sooner is told for a reason, not because the time is over.
FOR_EVER = 3_600_000


class StatusCase(moves.MoveCase):
    AUTO_RECOVER = True

    def in_postcopy(self, **parameters):
        self.pair(append=moves.STILL)
        self.slowly_in_postcopy(**parameters)

    def own(self, machine):
        return machine.qmp.migration()['x-towline']

    def wait_link(self, *states):
        for machine in (self.source, self.target):
            waiting.until(lambda machine=machine: self.own(machine)['link'] in states,
                          f'the link to be {states}')

    def statuses(self, machine):
        return [event['data']['status'] for event in machine.qmp.events('MIGRATION')]

    def finish(self):
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()


class Promised(StatusCase):
    PAUSED_AFTER_MS = FOR_EVER

    def answer_to_resume(self, uri):
        try:
            return self.source.qmp('migrate', uri=uri, resume=True) or {}
        except qmp.QmpError as refused:
            return {'error': refused}

    def test_a_link_that_heals_never_shows_in_the_status(self):
        self.in_postcopy()
        for count in range(1, 6):
            self.relay.cut(how='rst' if count % 2 else 'fin')
            waiting.until(lambda count=count: self.own(self.source)['recoveries'] >= count,
                          f'{count} recoveries')
            self.wait_link('up')
        self.finish()
        for machine in (self.source, self.target):
            machine.qmp.wait_event('MIGRATION', status='completed')
            seen = self.statuses(machine)
            self.assertEqual(seen[-2:], ['postcopy-active', 'completed'], seen)
            self.assertFalse({'postcopy-paused', 'postcopy-recover', 'postcopy-recover-setup'} &
                             set(seen), seen)
            told = [event['data']['state'] for event in machine.qmp.events('X_TOWLINE_LINK')]
            self.assertGreaterEqual(told.count('lost'), 5, told)
            self.assertEqual(told[-1], 'up', told)

    def test_a_move_that_nothing_disturbs_has_no_loss(self):
        self.in_postcopy()
        self.finish()
        for machine in (self.source, self.target):
            machine.qmp.wait_event('MIGRATION', status='completed')
            self.assertEqual(machine.qmp.events('X_TOWLINE_LINK'), [])

    def test_a_loss_is_told_at_once_beside_a_status_that_stays(self):
        self.in_postcopy()
        self.relay.refuse()
        self.relay.cut()
        self.wait_link('lost')
        for machine in (self.source, self.target):
            machine.qmp.wait_event('X_TOWLINE_LINK', state='lost')
            answer = machine.qmp.migration()
            self.assertEqual(answer['status'], 'postcopy-active')
            self.assertNotIn('error-desc', answer)
            self.assertTrue(answer['x-towline']['link-desc'])
        self.relay.refuse(False)
        self.wait_link('up')
        self.finish()

    def test_both_ends_can_be_led_by_hand_from_the_loss_on(self):
        self.in_postcopy()
        self.relay.refuse()
        self.relay.cut()
        self.wait_link('lost')
        self.target.qmp('migrate-recover', uri='tcp:127.0.0.1:0')
        at = self.target.qmp.migration()['socket-address'][0]
        uri = f'tcp:127.0.0.1:{at["port"]}'
        waiting.until(lambda: 'error' not in self.answer_to_resume(uri), 'a pause between attempts')
        waiting.until(lambda: self.own(self.source)['recoveries'], 'a recovery')
        self.finish()

    def test_who_pauses_by_hand_sees_it_at_once(self):
        for pauses in ('source', 'target'):
            with self.subTest(pauses=pauses):
                self.in_postcopy()
                machine = getattr(self, pauses)
                machine.qmp('migrate-pause')
                machine.qmp.wait_status('postcopy-paused')
                self.assertIn('paused by the user', machine.qmp.migration()['error-desc'])
                for one in (self.source, self.target):
                    one.close()

    def test_a_source_that_does_not_try_again_says_so_at_once(self):
        self.in_postcopy(x_towline_auto_recover=False)
        self.relay.cut()
        self.source.qmp.wait_status('postcopy-paused')
        self.assertEqual(self.target.qmp.status(), 'postcopy-active')  # It cannot know.

    def test_a_source_that_is_turned_away_says_so_at_once(self):
        self.in_postcopy()
        self.target.qmp('migrate-pause')
        self.source.qmp.wait_status('postcopy-paused')
        self.assertIn('migrate-recover', self.source.qmp.migration()['error-desc'])


class InTime(StatusCase):
    PAUSED_AFTER_MS = 300

    def test_a_link_that_stays_away_is_a_pause_after_its_time(self):
        self.in_postcopy()
        self.relay.refuse()
        self.relay.cut()
        for machine in (self.source, self.target):
            machine.qmp.wait_status('postcopy-paused')
            machine.qmp.wait_event('MIGRATION', status='postcopy-paused')
            self.assertTrue(machine.qmp.migration()['error-desc'])
            names = [(event['event'], event['data'].get('status') or event['data'].get('state'))
                     for event in machine.qmp.events()
                     if event['event'] in ('MIGRATION', 'X_TOWLINE_LINK')]
            self.assertLess(names.index(('X_TOWLINE_LINK', 'lost')),
                            names.index(('MIGRATION', 'postcopy-paused')))
        self.relay.refuse(False)
        self.finish()


if __name__ == '__main__':
    unittest.main()
