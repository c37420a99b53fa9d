"""Who may run the guest: one side in every phase, whatever is asked for and whoever dies."""
import os
import signal
import unittest

import moves
import qmp
import relay
import vm
import waiting
import wire


class BeforeTheOrder(moves.MoveCase):
    """Nothing is lost: the guest runs on at the source."""

    STOPS = {'setup': 'stopped_in_setup', 'pass': 'stopped_in_pass', 'sync': 'stopped_in_sync'}

    def cancelled_in(self, phase):
        self.pair()
        getattr(self, self.STOPS[phase])()
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.source_runs_on()

    def test_a_cancel_in_setup_leaves_the_guest_here(self):
        self.cancelled_in('setup')

    def test_a_cancel_while_nobody_answers_leaves_the_guest_here(self):
        # The connection is waited for; that a cancel ends that at once is a unit test's.
        self.pair()
        self.relay.drop()
        self.begin()
        self.source.qmp.wait_status('setup')
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.relay.undrop()
        self.source_runs_on()
        self.move()
        self.verdict()

    def test_a_cancel_in_the_pass_leaves_the_guest_here(self):
        self.cancelled_in('pass')

    def test_a_cancel_in_the_stale_rounds_leaves_the_guest_here(self):
        self.cancelled_in('sync')

    def test_a_cancel_when_nothing_runs_succeeds(self):
        machine = self.run_vm('machine')
        self.assertEqual(machine.qmp('migrate_cancel'), {})

    def target_killed_in(self, phase):
        self.pair()
        getattr(self, self.STOPS[phase])()
        self.target.kill()
        self.relay.cut()
        answer = self.source.qmp.wait_status_of_failure()
        self.assertTrue(answer.get('error-desc'))
        self.source_runs_on()

    def test_a_target_that_dies_in_setup(self):
        self.target_killed_in('setup')

    def test_a_target_that_dies_in_the_pass(self):
        self.target_killed_in('pass')

    def test_a_target_that_dies_in_the_stale_rounds(self):
        self.target_killed_in('sync')

    def source_killed_in(self, phase):
        """The target cleans up, gives back its half of the memory, never runs, and says why."""
        self.pair()
        before = vm.guest_bytes(self.target.pid)
        if phase == 'pass':
            gate = self.relay.on('bulk', 'target', wire.PAGES, relay.Hold(), nth=40)
            self.begin()
            gate.wait()
        else:
            getattr(self, self.STOPS[phase])()
        waiting.until(lambda: vm.guest_bytes(self.target.pid) >= before + moves.MIB,
                      'a part of the guest at the target')
        self.source.kill()
        self.relay.cut()
        self.relay.release()
        answer = self.target.qmp.wait_status_of_failure()
        self.assertTrue(answer.get('error-desc'))
        self.assertNotEqual(self.target.qmp.run_state(), 'running')
        waiting.until(lambda: vm.guest_bytes(self.target.pid) <= before,
                      'the target to give back the memory of its half')

    def test_a_source_that_dies_in_the_pass(self):
        self.source_killed_in('pass')

    def test_a_source_that_dies_in_the_stale_rounds(self):
        self.source_killed_in('sync')

    def test_a_target_whose_source_died_in_setup_waits_for_another(self):
        self.pair()
        self.stopped_in_setup()
        self.source.kill()
        self.relay.cut()
        self.assertEqual(self.target.qmp.run_state(), 'inmigrate')

    def test_a_link_that_breaks_in_the_pass_leaves_the_guest_here(self):
        self.pair()
        self.stopped_in_pass()
        self.relay.cut(how='rst')
        self.source.qmp.wait_status_of_failure()
        self.source_runs_on()

    def test_a_bulk_lane_that_breaks_in_the_pass_loses_nothing(self):
        self.pair()
        self.stopped_in_pass()
        self.relay.cut('bulk', 'rst')
        self.source.qmp.wait_status_of_failure()
        self.source_runs_on()

    def test_a_second_migrate_is_refused_and_changes_nothing(self):
        self.pair()
        self.stopped_in_pass()
        self.refused(self.source, 'migrate', 'migration process in progress', uri=self.uri)
        self.assertEqual(self.source.qmp.status(), 'active')
        self.relay.release()
        self.wait_synced()
        self.source.qmp('migrate-start-postcopy')
        self.completed()
        self.verdict()

    def test_a_target_that_waits_cannot_be_migrated_itself(self):
        self.pair(relayed=False)
        self.refused(self.target, 'migrate', 'waiting for an incoming migration',
                     uri='tcp:127.0.0.1:1')

    def test_a_target_that_waits_does_not_start_by_cont(self):
        self.pair(relayed=False)
        self.target.qmp('cont')
        self.assertNotEqual(self.target.qmp.run_state(), 'running')
        self.move()
        self.verdict()

    def test_the_user_may_stop_and_go_on_in_the_pass(self):
        self.pair()
        self.stopped_in_pass()
        self.source.qmp('stop')
        self.source.qmp.wait_run_state('paused')
        self.source.qmp('cont')
        self.source.qmp.wait_run_state('running')
        self.relay.release()
        self.wait_synced()
        self.source.qmp('migrate-start-postcopy')
        self.completed()
        self.verdict()

    def test_quit_in_the_pass_ends_the_source_as_the_user_wished(self):
        self.pair()
        self.stopped_in_pass()
        self.source.qmp('quit')
        self.assertEqual(self.source.wait(), 0)


class AfterTheOrder(moves.MoveCase):
    """The order may have arrived: the source never runs the guest again by itself."""

    def source_stays_parked(self):
        self.assertNotEqual(self.source.qmp.run_state(), 'running')
        for command in ('cont', 'system_reset'):
            with self.subTest(command=command), self.assertRaises(qmp.QmpError):
                self.source.qmp(command)
        self.assertNotEqual(self.source.qmp.run_state(), 'running')

    def test_cancel_is_refused_when_the_order_is_on_its_way(self):
        self.pair()
        self.stopped_after_order()
        self.refused(self.source, 'migrate_cancel', 'cancel')
        self.source_stays_parked()
        self.relay.release()
        self.completed()
        self.verdict()

    def test_cancel_is_refused_in_postcopy(self):
        self.pair()
        self.stopped_in_postcopy()
        self.refused(self.source, 'migrate_cancel', 'cancel')
        self.relay.release()
        self.finish()

    def test_cont_is_refused_at_the_source_in_postcopy_and_after(self):
        self.pair()
        self.stopped_in_postcopy()
        self.source_stays_parked()
        self.never_both_running()
        self.relay.release()
        self.source.qmp.wait_status('completed')
        self.source_stays_parked()
        self.assertEqual(self.source.qmp.run_state(), 'postmigrate')
        self.verdict()

    def finish(self):
        self.source.qmp.wait_status('completed')
        self.target.qmp.wait_status('completed')
        self.verdict()

    def test_a_second_migrate_is_refused_in_postcopy(self):
        self.pair()
        self.stopped_in_postcopy()
        self.refused(self.source, 'migrate', uri='tcp:127.0.0.1:1')
        self.relay.release()
        self.finish()

    def test_a_target_that_misses_pages_is_not_moved_on(self):
        self.pair()
        self.stopped_in_postcopy()
        self.refused(self.target, 'migrate', uri='tcp:127.0.0.1:1')
        self.relay.release()
        self.finish()

    def test_a_guest_that_left_is_not_moved_again(self):
        self.pair(relayed=False)
        self.move()
        self.refused(self.source, 'migrate', 'previous migration', uri='tcp:127.0.0.1:1')

    def quit_is_refused_at(self, name):
        self.pair()
        self.stopped_in_postcopy()
        machine = getattr(self, name)
        self.refused(machine, 'quit', 'x-force')
        self.assertTrue(machine.alive())
        self.relay.release()
        self.finish()

    def test_quit_is_refused_at_the_source_in_postcopy(self):
        self.quit_is_refused_at('source')

    def test_quit_is_refused_at_the_target_in_postcopy(self):
        self.quit_is_refused_at('target')

    def test_quit_by_force_is_obeyed(self):
        self.pair()
        self.stopped_in_postcopy()
        self.source.qmp('quit', x_force=True)
        self.source.wait()

    def one_signal_is_refused_at(self, name, number):
        self.pair()
        self.stopped_in_postcopy()
        machine = getattr(self, name)
        machine.signal(number)
        machine.err.wait_for(lambda line: 'refus' in line.lower(), 'the danger to be named')
        self.assertTrue(machine.alive())
        self.assertEqual(machine.qmp.status(), 'postcopy-active')
        self.relay.release()
        self.finish()

    def test_sigterm_is_refused_at_the_source_in_postcopy(self):
        self.one_signal_is_refused_at('source', signal.SIGTERM)

    def test_sigterm_is_refused_at_the_target_in_postcopy(self):
        self.one_signal_is_refused_at('target', signal.SIGTERM)

    def test_sigint_is_refused_at_the_source_in_postcopy(self):
        self.one_signal_is_refused_at('source', signal.SIGINT)

    def no_signals_end(self, name):
        self.pair()
        self.stopped_in_postcopy()
        machine = getattr(self, name)
        said = []
        for word in ('SIGINT', 'SIGINT', 'SIGTERM', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGINT'):
            before = machine.err.count()
            machine.signal(getattr(signal, word))
            said.append(machine.err.wait_for(
                lambda line: f'signal_refused signal={word}' in line and line,
                f'{word} to be refused', before)[1])
        for line in said:
            self.assertIn(f'towline qmp {machine.qmp_path} quit x-force=true', line)
            self.assertNotIn('again', line)
        for stray in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPWR, signal.SIGPROF,
                      signal.SIGIO, signal.SIGXFSZ, signal.SIGRTMIN, signal.SIGRTMAX):
            machine.signal(stray)
        self.assertEqual(machine.qmp.status(), 'postcopy-active')
        self.relay.release()
        self.finish()

    def test_no_number_of_signals_ends_the_source_in_postcopy(self):
        self.no_signals_end('source')

    def test_no_number_of_signals_ends_the_target_in_postcopy(self):
        self.no_signals_end('target')

    def test_sigterm_ends_a_machine_that_is_not_on_its_way(self):
        machine = self.run_vm('machine')
        machine.qmp.run_state()
        machine.signal(signal.SIGTERM)
        self.assertEqual(machine.wait(), 0)

    def test_sigquit_ends_a_machine_that_is_not_on_its_way(self):
        machine = self.run_vm('machine')
        machine.qmp.run_state()
        machine.signal(signal.SIGQUIT)
        self.assertEqual(machine.wait(), 0)

    def test_what_a_guest_writes_is_no_signal_where_the_standard_streams_are_closed(self):
        # The next descriptors that the process opens would be its input and output otherwise.
        closed = ('sh', '-c', 'exec "$@" <&- >&- 2>&-', 'sh')
        machine = self.run_vm('machine', append=moves.with_facts(moves.BUSY), prefix=closed)
        machine.qmp.wait_run_state('running')
        for number in range(3):
            self.assertEqual(os.readlink(f'/proc/{machine.pid}/fd/{number}'), '/dev/null')
        machine.signal(signal.SIGTERM)
        self.assertEqual(machine.wait(), 0)

    def test_quit_ends_the_source_when_all_is_done(self):
        self.pair(relayed=False)
        self.move()
        self.source.qmp('quit')
        self.assertEqual(self.source.wait(), 0)
        self.verdict(end_source=False)

    def test_stop_and_cont_work_at_the_target_in_postcopy(self):
        self.pair(append=moves.STILL)
        self.slowly_in_postcopy()
        self.target.qmp('stop')
        self.target.qmp.wait_run_state('paused')
        self.target.qmp('cont')
        self.target.qmp.wait_run_state('running')
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()

    def test_the_users_stop_at_the_target_waits_for_no_page(self):
        self.pair()
        self.stopped_in_postcopy()
        self.target.qmp('stop')
        self.target.qmp.wait_run_state('paused')
        self.relay.release()
        self.source.qmp.wait_status('completed')
        self.target.qmp('cont')
        self.target.qmp.wait_run_state('running')
        self.verdict()


class SomebodyDies(moves.MoveCase):
    """After the order. What is lost is said; nobody frees anything or starts a second copy."""

    def paused(self, machine):
        answer = machine.qmp.wait_status('postcopy-paused')
        self.assertTrue(answer.get('error-desc'), answer)
        return answer

    def test_a_run_order_whose_sender_dies_in_the_middle_is_no_order(self):
        self.pair()
        order = self.relay.on('control', 'target', wire.RUN, relay.Cut(after=20, how='fin'))
        self.begin(x_towline_switch='after-pass')
        order.wait()
        self.paused(self.target)
        self.source.kill()
        self.relay.cut()
        self.assertEqual(self.target.qmp.status(), 'postcopy-paused')
        self.assertNotEqual(self.target.qmp.run_state(), 'running')

    def test_a_source_that_dies_with_its_order_half_sent_never_makes_the_target_run(self):
        # All lanes end at once: the target may have begun to load, or not.
        self.pair()
        order = self.relay.on('control', 'target', wire.RUN, relay.Hold())
        self.begin(x_towline_switch='after-pass')
        order.wait()
        self.source.kill()
        self.relay.cut()
        waiting.until(lambda: self.target.qmp.status() in ('postcopy-paused', 'failed'),
                      'the target to settle')
        self.assertNotEqual(self.target.qmp.run_state(), 'running')
        self.assertTrue(self.target.qmp.migration()['error-desc'])

    def test_a_run_order_that_arrived_before_the_link_broke_is_obeyed(self):
        # A receiver reads to the end before it acts on an error of its socket.
        self.pair()
        after = wire.HEADER_BYTES
        order = self.relay.on('control', 'target', wire.RUN, relay.Cut(after=after, how='fin'))
        self.begin(x_towline_switch='after-pass')
        order.wait()
        self.target.qmp.wait_run_state('running')
        self.assertNotEqual(self.source.qmp.run_state(), 'running')

    def test_a_source_whose_order_may_have_arrived_stays_parked(self):
        self.pair()
        order = self.relay.on('control', 'target', wire.STATE, relay.Cut(after=100, how='rst'))
        self.begin(x_towline_switch='after-pass')
        order.wait()
        self.relay.cut()
        self.paused(self.source)
        self.assertNotEqual(self.source.qmp.run_state(), 'running')
        with self.assertRaises(qmp.QmpError):
            self.source.qmp('cont')

    def test_a_source_whose_target_died_with_the_order_stays_parked(self):
        self.pair()
        self.stopped_after_order()
        self.target.kill()
        self.relay.cut()
        self.paused(self.source)
        with self.assertRaises(qmp.QmpError):
            self.source.qmp('cont')

    def test_a_link_lost_in_postcopy_pauses_both_and_the_guest_runs_on(self):
        self.pair(append=moves.STILL)
        self.slowly_in_postcopy()
        self.relay.cut(how='rst')
        self.paused(self.source)
        self.paused(self.target)
        self.assertEqual(self.target.qmp.run_state(), 'running')
        self.assertNotEqual(self.source.qmp.run_state(), 'running')
        with self.assertRaises(qmp.QmpError):
            self.source.qmp('cont')

    def test_a_source_killed_in_postcopy_leaves_the_target_waiting_and_alive(self):
        self.pair()
        self.stopped_in_postcopy()
        self.source.kill()
        self.relay.cut()
        answer = self.paused(self.target)
        self.assertGreater(answer['ram']['remaining'], 0)
        self.assertTrue(self.target.alive())

    def test_a_target_killed_in_postcopy_leaves_the_source_parked_with_its_memory(self):
        self.pair()
        self.stopped_in_postcopy()
        self.target.kill()
        self.relay.cut()
        self.paused(self.source)
        self.assertNotEqual(self.source.qmp.run_state(), 'running')
        self.assertGreater(vm.guest_bytes(self.source.pid), 30 * moves.MIB)

    def test_a_guest_that_only_needs_what_it_has_runs_on_without_a_link(self):
        # What it uses is small and comes on demand; what nobody touches stays at the source.
        self.pair(append='working-set=1M fill=32M untouched=2M pattern=sequential write-percent=0 '
                         'report-ms=100')
        self.slowly_in_postcopy()
        self.guest.moved_to(self.target)
        self.uses_all_that_it_needs(working_set_pages=256)
        self.relay.cut(how='rst')
        self.paused(self.source)
        answer = self.paused(self.target)
        self.guest.wait_reports(3)
        self.assertEqual(self.guest.complaints(), [])
        self.assertGreater(answer['ram']['remaining'], 20 * moves.MIB)
        self.assertEqual(self.target.qmp.run_state(), 'running')

    def uses_all_that_it_needs(self, working_set_pages):
        """Until the guest has come to every page of its work, its statistics and its ring of lines,
        which has 64 KiB."""
        first = self.guest.wait_reports(1)['accesses']
        while len(self.target.serial.raw()) < 72 << 10:
            at = self.target.serial.count()
            self.guest.tell('H')
            self.guest.wait_for('guest.latency-end', at)
        waiting.until(lambda: self.guest.wait_reports(1)['accesses'] > first + 2 * working_set_pages,
                      'the guest to come to every page of its working set')


if __name__ == '__main__':
    unittest.main()
