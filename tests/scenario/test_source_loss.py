"""A target whose source does not come back: it waits, poisons what is missing, or gives up."""
import unittest

import moves
import waiting

QUIET = 'working-set=16M untouched=2M rate=50000 report-ms=100'


class SourceLoss(moves.MoveCase):
    AUTO_RECOVER = True

    def in_postcopy(self, append=QUIET, target_parameters=None, **parameters):
        """The guest runs at the target, and what it does not touch stays at the source."""
        self.pair(append=append, target_options={'parameters': target_parameters or {}})
        self.begin(x_towline_switch='immediate',
                   **{'max_postcopy_bandwidth': 1, **parameters})
        self.target.qmp.wait_status('postcopy-active')
        self.source.qmp.wait_status('postcopy-active')
        self.guest.moved_to(self.target)

    def with_all_it_touches(self, **options):
        """As in_postcopy(); every page that the guest uses is here."""
        self.in_postcopy(**options)
        self.guest.wait_reports(1)
        self.guest.sweep()

    def own(self):
        return self.target.qmp.migration()['x-towline']

    def lose_source(self):
        self.source.kill()
        self.target.qmp.wait_status('postcopy-paused')
        return self.own()['remaining-pages']

    def failed(self):
        return self.target.qmp.wait_status_of_failure()

    def test_by_default_it_waits_and_says_how_much_is_missing(self):
        self.in_postcopy()
        missing = self.lose_source()
        self.assertGreater(missing, 0)
        event = self.target.qmp.wait_event('X_TOWLINE_SOURCE_LOST')['data']
        self.assertGreaterEqual(event['missing-pages'], missing)
        self.assertEqual(event['missing-bytes'], 4096 * event['missing-pages'])
        answer = self.target.qmp.migration()
        self.assertEqual(answer['ram']['remaining'], 4096 * answer['x-towline']['remaining-pages'])
        self.assertEqual(answer['x-towline']['source-loss']['policy'], 'wait')
        self.assertEqual(self.target.qmp.run_state(), 'running')
        said = self.towline('status', self.target.qmp_path, name='status')
        self.assertEqual(said.wait(), 0)
        self.assertRegex(said.out.text(), 'missing +[0-9]+ pages.*stays away: wait')
        self.refused(self.target, 'x-towline-give-up-source', 'poison.*give-up')
        self.refused(self.target, 'quit', 'destroys the guest')

    def test_poisoned_pages_are_exactly_those_that_were_missing(self):
        self.with_all_it_touches()
        missing = self.lose_source()
        self.target.qmp('x-towline-give-up-source', mode='poison')
        answer = self.failed()
        loss = answer['x-towline']['source-loss']
        self.assertLessEqual(loss['poisoned-pages'], missing)
        self.assertGreater(loss['poisoned-pages'], 0)
        self.assertIn(f"{loss['poisoned-pages']} pages", answer['error-desc'])
        # Every page that the guest uses is as it was, and it goes on, also where it had not yet come
        # to: its ring of lines has 64 KiB.
        self.assertEqual(self.target.qmp.run_state(), 'running')
        said = len(self.target.serial.raw())
        while len(self.target.serial.raw()) - said < 4 * 4096:
            at = self.target.serial.count()
            self.guest.tell('H')
            self.guest.wait_for('guest.latency-end', at)
        since = self.guest.wait_reports(1)
        self.guest.sweep()
        self.guest.wait_reports(2)
        self.assertEqual(self.guest.judge(since['uptime_us']), [])
        self.refused(self.target, 'system_reset', 'poisoned')
        self.refused(self.target, 'migrate', 'poisoned', uri='tcp:127.0.0.1:1')
        self.target.qmp('quit')
        self.assertEqual(self.target.wait(), 0)

    def test_a_guest_that_touches_a_poisoned_page_is_stopped_and_the_page_is_named(self):
        self.in_postcopy(append=moves.BUSY, target_parameters={
            'x_towline_source_loss': 'poison', 'x_towline_source_loss_deadline_s': 1})
        self.lose_source()
        self.failed()
        self.target.qmp.wait_run_state('internal-error')
        reason = self.target.qmp('query-status')['x-towline-reason']
        self.assertRegex(reason, 'guest address 0x[0-9a-f]+: .*policy poison')
        self.refused(self.target, 'cont', 'poison')

    def test_a_guest_that_is_given_up_ends_with_its_process(self):
        self.in_postcopy(target_parameters={
            'x_towline_source_loss': 'give-up', 'x_towline_source_loss_deadline_s': 1})
        self.source.kill()
        self.assertEqual(self.target.wait(), 3)
        said = self.target.err.text()
        self.assertRegex(said, 'given up with its source .policy give-up.: [0-9]+ pages')

    def test_a_source_that_comes_back_too_late_is_sent_away(self):
        self.with_all_it_touches()
        self.relay.refuse()
        self.relay.cut()
        self.target.qmp.wait_status('postcopy-paused')
        self.target.qmp('x-towline-give-up-source', mode='poison')
        self.failed()
        self.relay.refuse(False)
        waiting.until(lambda: "given its source up and is 'poisoned'" in
                      self.source.qmp.migration().get('error-desc', ''), 'the refusal')
        self.assertEqual(self.source.qmp.status(), 'postcopy-paused')
        self.refused(self.source, 'x-towline-take-back', 'runs there', target_is_fenced=True)
        self.assertEqual(self.target.qmp.status(), 'failed')
        self.never_both_running()

    def test_a_source_that_is_there_cannot_be_given_up(self):
        self.in_postcopy()
        self.refused(self.target, 'x-towline-give-up-source', "'running'", mode='poison')
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.source.qmp.wait_status('completed')
        self.target.qmp.wait_status('completed')
        self.refused(self.target, 'x-towline-give-up-source', "'completed'", mode='poison')


if __name__ == '__main__':
    unittest.main()
