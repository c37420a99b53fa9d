"""A frame that is lost on a link that lives is missed, said, and made good; a recovery that hangs is
seen and can be interrupted."""
import unittest

import moves
import relay
import waiting
import wire


class LostFrames(moves.MoveCase):
    AUTO_RECOVER = True

    def swallowed(self, lane, direction, kind, nth=1):
        return self.relay.on(lane, direction, kind, relay.Swallow(), nth)

    def overdue(self, machine):
        """What it says that it missed."""
        return waiting.until(lambda: machine.qmp.migration()['x-towline'].get('overdue'),
                             f'{machine.name} to miss it')

    def warned(self, machine, answer):
        machine.err.wait_for(lambda line: 'warning progress.overdue' in line and
                             f'answer={answer}' in line, f'the warning about {answer}')

    def tied_again_and_whole(self):
        self.completed()
        self.assertEqual(self.source.qmp.migration()['x-towline']['recoveries'], 1)
        self.verdict()

    def fails_and_the_guest_stays(self, *words):
        answer = self.source.qmp.wait_status_of_failure()
        for word in words:
            self.assertIn(word, answer['error-desc'])
        self.source_runs_on()

    def test_a_run_order_that_is_swallowed_is_given_again(self):
        self.pair()
        lost = self.swallowed('control', 'target', wire.RUN)
        self.begin(x_towline_switch='after-pass')
        lost.wait()
        self.warned(self.target, 'run')
        self.tied_again_and_whole()
        self.assertIn('a frame was lost', self.overdue(self.target))

    def test_the_word_that_the_guest_runs_is_said_again(self):
        self.pair()
        lost = self.swallowed('control', 'source', wire.RUNNING)
        self.begin(x_towline_switch='after-pass')
        lost.wait()
        self.warned(self.source, 'running')
        self.assertIn('running', self.overdue(self.source))
        self.tied_again_and_whole()

    def test_a_completion_that_is_swallowed_is_told_again(self):
        self.pair()
        lost = self.swallowed('control', 'source', wire.COMPLETE)
        self.begin(x_towline_switch='after-pass')
        lost.wait()
        self.warned(self.source, 'complete')
        self.completed()
        self.verdict()

    def test_the_end_of_a_round_that_is_swallowed_fails_the_move_and_the_guest_stays(self):
        self.pair()
        lost = self.swallowed('control', 'target', wire.ROUND_END)
        self.begin(x_towline_switch='after-pass')
        lost.wait()
        self.warned(self.target, 'round-end')
        self.fails_and_the_guest_stays('a frame was lost on a link that lives')

    def test_an_applied_round_that_is_never_heard_of_fails_the_move_and_the_guest_stays(self):
        self.pair()
        lost = self.swallowed('control', 'source', wire.STALE_APPLIED)
        self.begin(x_towline_switch='after-pass')
        lost.wait()
        self.warned(self.source, 'stale-applied')
        self.fails_and_the_guest_stays('a frame was lost on a link that lives')

    def test_a_marker_that_is_swallowed_fails_the_move_and_the_guest_stays(self):
        self.pair(target_options={'parameters': {'x_towline_frozen_patience_ms': 1000}})
        lost = self.swallowed('bulk0', 'target', wire.MARKER)
        self.begin(x_towline_switch='after-pass')
        lost.wait()
        self.warned(self.target, 'marker')
        self.fails_and_the_guest_stays('bulk lane 0', 'the marker of pass 1 is due')

    def test_a_last_marker_and_pages_that_are_swallowed_are_fetched_in_a_new_epoch(self):
        self.pair(append=moves.STILL)
        # Of the middle of memory, which this guest does not touch: it would fetch what it misses.
        pages = self.swallowed('bulk0', 'target', wire.PAGES, nth=300)
        lost = self.swallowed('bulk0', 'target', wire.MARKER)
        self.begin(x_towline_switch='immediate', x_towline_frozen_patience_ms=1000,
                   x_towline_bulk_lanes=1)
        pages.wait()
        lost.wait()
        self.warned(self.source, 'complete')
        self.tied_again_and_whole()

    def test_a_last_word_of_what_is_missing_that_is_swallowed_is_asked_for_in_a_new_epoch(self):
        self.pair(append=moves.STILL)
        self.slowly_in_postcopy()
        lost = self.swallowed('control', 'source', wire.MISSING_END)
        self.relay.cut()
        lost.wait()
        self.warned(self.source, 'missing-end')
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.tied_again_and_whole()

    def test_a_pass_that_stands_still_is_not_overdue(self):
        # No marker comes for as long as the lane stands still, and nobody has said that one is due.
        self.pair(target_options={'parameters': {'x_towline_frozen_patience_ms': 400}})
        held = self.relay.on('bulk0', 'target', wire.PAGES, relay.Hold(), nth=2)
        self.begin(x_towline_switch='after-pass')
        held.wait()
        signs = self.source.err.count()
        waiting.until(lambda: self.relay.bytes_through('control', 'target') > 0, 'the control lane')
        before = self.relay.bytes_through('control', 'source')
        # Twenty pongs are more than its patience.
        waiting.until(lambda: self.relay.bytes_through('control', 'source') - before > 20 * 56,
                      'signs of life')
        self.relay.release()
        self.completed()
        self.assertFalse([line for machine in (self.source, self.target)
                          for line in machine.err.snapshot() if 'progress.overdue' in line])
        self.assertGreaterEqual(self.source.err.count(), signs)
        self.verdict()

    def test_ends_of_which_one_is_older_count_nothing(self):
        self.pair()
        self.relay.features = 3
        self.move()
        self.verdict()
        self.assertNotIn('overdue', self.target.qmp.migration()['x-towline'])


class HangingRecoveries(moves.MoveCase):
    AUTO_RECOVER = True

    def in_postcopy(self, **parameters):
        self.pair(append=moves.STILL)
        self.slowly_in_postcopy(**parameters)

    def recoveries(self):
        return self.source.qmp.migration()['x-towline']['recoveries']

    def hangs_at(self, lane, direction, kind):
        """The first recovery comes so far, and that lane is a black hole from there on."""
        hole = self.relay.on(lane, direction, kind, relay.Hold())
        self.relay.cut()
        hole.wait()
        return hole

    def finish(self):
        self.relay.release()
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()

    def test_a_recovery_that_hangs_at_any_step_is_given_up_and_tried_again(self):
        steps = {'comparison': ('control', 'source', wire.MISSING),
                 'last word of it': ('control', 'source', wire.MISSING_END),
                 'greeting of a data lane': ('urgent', 'target', wire.HELLO),
                 'answer to it': ('bulk0', 'source', wire.HELLO_REPLY),
                 'its proof': ('bulk1', 'target', wire.PROOF),
                 'resume': ('control', 'target', wire.RESUME)}
        for name, (lane, direction, kind) in steps.items():
            with self.subTest(step=name):
                self.in_postcopy(x_towline_frozen_patience_ms=1000)
                self.hangs_at(lane, direction, kind)
                waiting.until(self.recoveries, 'the link again, with another attempt')
                self.finish()
                for machine in (self.source, self.target):
                    machine.close()

    def test_a_link_that_dies_in_a_recovery_is_seen_as_soon_as_in_post_copy(self):
        # The patience for a frozen peer is longer than this test: only acknowledgements tell.
        self.in_postcopy(x_towline_frozen_patience_ms=600_000)
        self.relay.on('control', 'source', wire.MISSING, relay.Call(self.relay.drop))
        seen = self.source.err.count()
        self.relay.cut()
        self.source.err.wait_for(lambda line: 'link.lost' in line and 'the link is dead' in line,
                                 'the loss of the new link', seen)
        self.relay.undrop()
        waiting.until(self.recoveries, 'the link again')
        self.finish()

    STEPS = {'comparison': ('control', 'source', wire.MISSING),
             'data lane': ('urgent', 'target', wire.HELLO)}

    def pause(self, machine):
        """Until it is taken: an attempt that ended by itself a moment ago is followed by the next."""
        def taken():
            try:
                machine.qmp('migrate-pause')
                return True
            except moves.qmp.QmpError:
                return False
        waiting.until(taken, f'{machine.name} to be paused')

    def goes_on_at(self, uri, before=None):
        before = self.recoveries() if before is None else before
        try:
            self.source.qmp('migrate', uri=uri, resume=True)
        except moves.qmp.QmpError:
            pass  # It found the target by itself, at its first address, a moment ago.
        waiting.until(lambda: self.recoveries() > before, 'the link again')
        self.finish()

    def test_a_pause_by_hand_interrupts_a_recovery_that_hangs(self):
        for name, step in self.STEPS.items():
            with self.subTest(step=name):
                self.in_postcopy()
                self.hangs_at(*step)
                self.pause(self.source)
                self.source.qmp.wait_status('postcopy-paused')
                self.relay.release()
                self.target.qmp.wait_status('postcopy-paused')
                self.goes_on_at(self.uri)
                for machine in (self.source, self.target):
                    machine.close()

    def test_a_pause_at_the_target_interrupts_it_and_another_address_can_be_given(self):
        self.in_postcopy()
        self.hangs_at('control', 'source', wire.MISSING)
        self.pause(self.target)
        self.target.qmp.wait_status('postcopy-paused')
        waiting.until(lambda: self.source.qmp.status() == 'postcopy-paused' or
                      self.pause(self.source), 'the source to be paused')
        before = self.recoveries()
        self.target.qmp('migrate-recover', uri='tcp:127.0.0.1:0')
        at = self.target.qmp.migration()['socket-address'][0]
        self.goes_on_at(f'tcp:127.0.0.1:{at["port"]}', before)

    def test_a_source_that_is_told_to_end_does_so_while_a_recovery_hangs(self):
        for name, step in self.STEPS.items():
            with self.subTest(step=name):
                self.in_postcopy()
                self.hangs_at(*step)
                self.source.qmp('quit', x_force=True)
                self.source.wait()
                for machine in (self.source, self.target):
                    machine.close()

    def test_a_cancel_interrupts_data_lanes_that_hang_before_the_switch(self):
        self.pair()
        hole = self.relay.on('urgent', 'target', wire.HELLO, relay.Hold())
        self.begin(x_towline_switch='after-pass')
        hole.wait()
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.source_runs_on()


if __name__ == '__main__':
    unittest.main()
