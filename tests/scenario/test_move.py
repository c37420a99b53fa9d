"""Whole moves that go well: the guest itself confirms every page, in its new process."""
import json
import signal
import subprocess
import socket
import unittest

import moves
import qmp
import relay
import vm
import waiting
import wire


class Moves(moves.MoveCase):
    def moved(self, append, **options):
        """One move under this load, and the guest's word for it."""
        self.pair(append=append, relayed=False, **options)
        self.move()
        return self.verdict()

    def test_a_guest_that_writes_at_random_is_moved_whole(self):
        self.moved('working-set=96M pattern=random write-percent=100 report-ms=100', memory='256M')

    def test_a_guest_that_writes_in_sequence_is_moved_whole(self):
        self.moved('working-set=96M pattern=sequential report-ms=100', memory='256M')

    def test_a_guest_with_a_hot_set_is_moved_whole(self):
        self.moved('working-set=96M pattern=zipf report-ms=100', memory='256M')

    def test_a_guest_that_writes_in_strides_is_moved_whole(self):
        self.moved('working-set=96M pattern=strided report-ms=100', memory='256M')

    def test_two_vcpus_are_moved_whole(self):
        self.moved('working-set=96M report-ms=100', memory='256M', vcpus=2)

    def test_a_guest_that_only_reads_is_moved_whole(self):
        self.moved('working-set=64M write-percent=0 report-ms=100')

    def test_a_sparse_guest_of_64_gib_costs_what_it_touches(self):
        found = self.moved('working-set=64M placement=spread report-ms=100', memory='64G')
        self.assertGreater(found['untouched'], 0)
        self.assertLess(vm.guest_bytes(self.target.pid) + vm.own_bytes(self.target.pid), 1 << 30)

    def test_a_switch_before_any_page_was_sent_moves_everything_on_demand(self):
        self.pair(relayed=False)
        self.begin(x_towline_switch='immediate')
        self.completed()
        self.verdict()

    def test_several_passes_before_the_switch(self):
        self.pair(relayed=False)
        self.move(x_towline_passes=3)
        self.verdict()

    def test_one_bulk_lane_is_enough(self):
        self.pair(relayed=False)
        self.move(x_towline_bulk_lanes=1)
        self.verdict()

    def test_the_most_bulk_lanes_that_there_may_be(self):
        self.pair(relayed=False)
        self.move(x_towline_bulk_lanes=16)
        self.verdict()

    def test_a_unix_socket_carries_a_move(self):
        self.source = self.run_vm('source', append=moves.with_facts(moves.BUSY))
        self.guest = moves.Guest(self.source)
        self.target = self.run_vm('target', incoming=f'unix:{self.folder}/lane')
        self.guest.wait_for('guest.start')
        self.uri = f'unix:{self.folder}/lane'
        self.target.qmp.run_state()
        self.move()
        self.verdict()

    def test_ipv6_carries_a_move(self):
        if not has_ipv6():
            self.skipTest('no IPv6 loopback here')
        self.source = self.run_vm('source', append=moves.with_facts(moves.BUSY))
        self.guest = moves.Guest(self.source)
        self.target = self.run_vm('target', incoming='tcp:[::1]:0')
        self.guest.wait_for('guest.start')
        at = self.target.qmp.migration()['socket-address'][0]
        self.uri = f'tcp:[::1]:{at["port"]}'
        self.move()
        self.verdict()

    def test_a_guest_that_was_stopped_by_its_user_arrives_stopped(self):
        self.pair(relayed=False)
        self.source.qmp('stop')
        self.move()
        self.assertEqual(self.target.qmp.run_state(), 'paused')
        self.target.qmp('cont')
        self.target.qmp.wait_run_state('running')
        self.verdict()

    def test_pages_cross_after_the_switch_and_are_counted(self):
        self.pair(relayed=False)
        self.begin(x_towline_switch='immediate')
        answer = self.completed()
        self.assertGreater(answer['ram']['postcopy-bytes'], 30 * moves.MIB)
        self.assertEqual(answer['ram']['remaining'], 0)

    def test_the_blackout_is_told_and_is_no_longer_than_what_the_guest_saw(self):
        self.pair(relayed=False)
        self.move()
        answer = self.source.qmp.migration()
        blackout, error = (answer['x-towline'][name] for name in ('blackout-ms',
                                                                  'blackout-error-ms'))
        seen = self.guest.wait_reports(1)['gap_max_us'] / 1000
        self.assertGreater(answer['downtime'], 0)
        # The guest's gap holds the blackout and whatever else happened around it. The two ends'
        # clocks are known to each other within an error that is told.
        self.assertLess(blackout - error, seen)

    def test_without_a_pass_the_word_to_switch_is_waited_for_too(self):
        self.pair(relayed=False)
        self.begin(x_towline_passes=0)
        self.source.qmp.wait_status('active')
        self.guest.wait_reports(2)
        self.assertEqual(self.source.qmp.status(), 'active')
        self.assertEqual(self.source.qmp.run_state(), 'running')
        self.source.qmp('migrate-start-postcopy')
        self.completed()
        self.verdict()

    def test_a_limited_rate_is_kept(self):
        self.pair(relayed=False)
        elapsed = moves.stopwatch()
        self.begin(max_bandwidth=16 * moves.MIB)
        self.wait_synced()
        # 32 MiB of pages at 16 MiB/s cannot be faster; slower is nobody's promise.
        self.assertGreater(elapsed(), 1.5)
        self.source.qmp('migrate-start-postcopy')
        self.completed()


class Limits(moves.MoveCase):
    """By order: under a limit of a byte a second nothing is pushed before it is lifted."""

    def wait_pushed(self, beyond):
        waiting.until(lambda: self.relay.bytes_through('bulk', 'target') > beyond, 'pages')

    def test_a_limit_that_is_lifted_and_set_in_postcopy_takes_effect_each_time(self):
        self.pair(append=moves.STILL)
        # No pass: the bulk lanes carry nothing but the push.
        self.slowly_in_postcopy(max_postcopy_bandwidth=1, x_towline_passes=0)
        self.guest.moved_to(self.target)
        self.guest.wait_reports(2)
        still = self.relay.bytes_through('bulk', 'target')
        # One frame of each lane is on credit, and no second one follows.
        self.assertLess(still, 4 * moves.MIB)
        missing = self.target.qmp.migration()['ram']['remaining']
        self.assertGreater(missing, 24 * moves.MIB)
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=moves.MIB)
        self.wait_pushed(still)
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=1)
        self.guest.wait_reports(2)
        self.assertEqual(self.source.qmp.status(), 'postcopy-active')
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.source.qmp.wait_status('completed')
        self.target.qmp.wait_status('completed')
        self.verdict()


class Again(moves.MoveCase):
    def test_a_chain_of_three_moves_brings_the_guest_home(self):
        self.pair(relayed=False)
        self.move()
        for name in ('third', 'home'):
            self.end_source_and_go_on(name)
            self.move()
        self.verdict()

    def end_source_and_go_on(self, name):
        """The target becomes the source of the next move."""
        self.source.qmp('quit')
        self.assertEqual(self.source.wait(), 0)
        self.source = self.target
        self.target, address = self.listening(name)
        self.uri = f'tcp:{address[0]}:{address[1]}'

    def test_a_cancelled_move_can_be_begun_again_to_another_target(self):
        self.pair()
        self.stopped_in_pass()
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.relay.release()
        self.source_runs_on()
        self.target, address = self.listening('second')
        self.uri = f'tcp:{address[0]}:{address[1]}'
        self.move()
        self.verdict()

    def test_a_target_whose_move_was_cancelled_takes_no_other(self):
        # It holds half a guest of the past; managers start a fresh one, as with QEMU.
        self.pair()
        self.stopped_in_pass()
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.relay.release()
        self.begin()
        self.assertTrue(self.source.qmp.wait_status_of_failure()['error-desc'])
        self.source_runs_on()

    def test_a_move_after_a_failed_connection(self):
        self.pair(relayed=False)
        self.begin('tcp:127.0.0.1:1')
        self.source.qmp.wait_status_of_failure()
        self.source_runs_on()
        self.move()
        self.verdict()


class Managers(moves.MoveCase):
    """Programs that were written for QEMU."""

    def test_the_flow_of_a_qemu_manager_that_asks_for_postcopy_works_unchanged(self):
        self.source = self.run_vm('source', append=moves.with_facts(moves.BUSY))
        self.guest = moves.Guest(self.source)
        self.target = self.run_vm('target', incoming='defer')
        self.guest.wait_for('guest.start')
        source, target = self.source.qmp, self.target.qmp
        for side in (source, target):
            side.set_capabilities(events=True, postcopy_ram=True, postcopy_preempt=True,
                                  return_path=True)
        target('migrate-incoming', uri='tcp:127.0.0.1:0')
        at = target.migration()['socket-address'][0]
        source('migrate', uri=f'tcp:127.0.0.1:{at["port"]}')
        waiting.until(lambda: source.migration().get('ram', {}).get('dirty-sync-count', 0) >= 2
                      and source.status() == 'active', 'dirty-sync-count')
        source('migrate-start-postcopy')
        source.wait_event('MIGRATION', status='postcopy-active')
        source.wait_event('MIGRATION', status='completed')
        target.wait_event('MIGRATION', status='completed')
        source.wait_event('STOP')
        target.wait_event('RESUME')
        self.assertGreaterEqual(source.wait_event('MIGRATION_PASS')['data']['pass'], 1)
        self.assertEqual(source.run_state(), 'postmigrate')
        self.assertEqual(target.run_state(), 'running')
        seen = [event['data']['status'] for event in source.events('MIGRATION')]
        self.assertEqual([one for one in seen if one in ('setup', 'active', 'postcopy-active',
                                                         'completed')],
                         ['setup', 'active', 'postcopy-active', 'completed'])
        self.guest.moved_to(self.target)
        self.verdict()

    def test_a_manager_that_never_asked_for_postcopy_never_sees_it(self):
        # What a manager for pre-copy does with a status that it does not know: it cancels, and stops
        # the target, where the guest would run by then.
        self.pair(relayed=False)
        source, target = self.source.qmp, self.target.qmp
        for side in (source, target):
            side.set_capabilities(events=True, postcopy_ram=False, postcopy_preempt=False)
        source('migrate-set-parameters', max_bandwidth=0, downtime_limit=300)
        try:
            source('migrate', uri=self.uri)
        except qmp.QmpError as error:
            refusal = error
        else:
            source.wait_event('MIGRATION', status='completed')
            self.fail(f'nobody called it post-copy: '
                      f'{[one["data"]["status"] for one in source.events("MIGRATION")]}')
        self.assertEqual(refusal.kind, 'GenericError')
        for word in ("'postcopy-ram'", 'migrate-set-capabilities', 'x-towline-switch'):
            self.assertIn(word, refusal.desc)
        # Nothing was begun; the manager's cancel and stop meet a guest that is where it was.
        source('migrate_cancel')
        self.assertEqual(source.run_state(), 'running')
        self.assertEqual(target.run_state(), 'inmigrate')
        self.assertEqual(source.events('MIGRATION'), [])
        self.assertNotIn('status', source.migration())
        # The remedy that it names is one.
        source.set_capabilities(postcopy_ram=True)
        source('migrate', uri=self.uri)
        self.wait_synced()
        source('migrate-start-postcopy')
        self.completed()
        self.verdict()

    def test_a_switch_that_was_set_by_hand_needs_no_capability(self):
        self.pair(relayed=False)
        self.source.qmp('migrate-set-parameters', max_bandwidth=0, x_towline_switch='after-pass')
        self.source.qmp('migrate', uri=self.uri)
        self.completed()
        self.verdict()

    def test_a_target_in_postcopy_takes_its_capabilities_again_and_no_others(self):
        self.pair()
        self.stopped_in_postcopy()
        self.refused(self.target, 'migrate-set-capabilities', 'before incoming starts',
                     capabilities=[{'capability': 'postcopy-ram', 'state': True},
                                   {'capability': 'postcopy-preempt', 'state': True}])
        self.refused(self.target, 'migrate-set-capabilities', 'before a guest is received',
                     capabilities=[{'capability': 'postcopy-ram', 'state': True}])
        self.target.qmp.set_capabilities(events=True, postcopy_ram=False, postcopy_preempt=False)
        self.refused(self.source, 'migrate-set-capabilities', 'in progress',
                     capabilities=[{'capability': 'postcopy-ram', 'state': True}])
        self.relay.release()
        self.source.qmp.wait_status('completed')
        self.verdict()

    def test_a_script_with_one_recv_for_each_reply_works(self):
        quiet = self.folder / 'quiet'
        machine = self.run_vm('scripted', append=moves.with_facts(moves.BUSY),
                              extra=['--qmp', f'unix:{quiet},events=off'])
        guest = moves.Guest(machine)
        guest.wait_for('guest.start')
        target, address = self.listening('target')
        script = waiting.until(lambda: qmp.dial(quiet), 'the second monitor')
        self.addCleanup(script.close)

        def ask(command, **arguments):
            message = {'execute': command, **({'arguments': arguments} if arguments else {})}
            script.sendall(json.dumps(message).encode() + b'\n')
            return json.loads(script.recv(65536))['return']

        self.assertIn('QMP', json.loads(script.recv(65536)))
        self.assertEqual(ask('qmp_capabilities'), {})
        # Its one word about post-copy: without it or the capability, 'migrate' is refused.
        self.assertEqual(ask('migrate-set-parameters', **{'x-towline-switch': 'after-pass'}), {})
        self.assertEqual(ask('migrate', uri=f'tcp:127.0.0.1:{address[1]}'), {})

        def poll():
            answer = ask('query-migrate')
            return answer if answer['status'] in ('completed', 'failed') else None

        answer = waiting.until(poll, 'completed')
        self.assertEqual(answer['status'], 'completed')
        for name in ('total', 'transferred', 'remaining', 'duplicate', 'skipped', 'normal',
                     'dirty-sync-count'):
            self.assertIn(name, answer['ram'])
        self.assertEqual(target.qmp.run_state(), 'running')

    def test_towline_migrate_moves_and_sums_up(self):
        self.source = self.run_vm('source', append=moves.with_facts(moves.BUSY))
        self.guest = moves.Guest(self.source)
        self.target = self.run_vm('target', incoming='defer')
        self.guest.wait_for('guest.start')
        self.target.qmp.run_state()
        mover = self.towline('migrate', self.source.qmp_path, self.target.qmp_path, '--json')
        self.assertEqual(mover.wait(), 0, mover.err.text())
        summary = json.loads(mover.out.text())
        self.assertEqual(summary['status'], 'completed')
        self.guest.moved_to(self.target)
        self.verdict()

    def test_towline_migrate_whose_words_go_nowhere_moves_all_the_same(self):
        self.pair(relayed=False)
        with open('/dev/full', 'w', encoding='utf-8') as full:
            done = subprocess.run(
                [vm.TOWLINE, 'migrate', self.source.qmp_path, self.target.qmp_path, '--via',
                 self.uri, '--json'], stdout=full, stderr=full, check=False,
                stdin=subprocess.DEVNULL, timeout=waiting.LIMIT_S)
        self.assertEqual(done.returncode, 0)
        self.guest.moved_to(self.target)
        self.verdict()

    def test_a_source_that_is_stopped_is_not_called_dead(self):
        # A pass of minutes, of which nothing stands in a socket: TCP, too, loses patience with a
        # connection that is full for as long as this command waits.
        self.pair()
        mover = self.mover('--max-bandwidth', '256K')
        self.source.qmp.wait_status('active')
        self.source.signal(signal.SIGSTOP)
        mover.err.wait_for(lambda line: 'does not answer' in line, 'a silent source')
        mover.signal(signal.SIGINT)
        self.assertEqual(mover.wait(), 4, mover.out.text()[:600])
        self.assertIn('whether it obeys the cancel', mover.out.text())
        self.source.signal(signal.SIGCONT)
        self.source.qmp.wait_status('cancelled')
        self.source_runs_on()

    def test_towline_migrate_that_is_interrupted_before_the_switch_cancels(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(signal=number):
                self.pair()
                gate = self.relay.on('bulk', 'target', wire.PAGES, relay.Hold())
                mover = self.mover()
                gate.wait()
                self.source.qmp.wait_status('active')
                mover.signal(number)
                self.assertEqual(mover.wait(), 3, mover.err.text())
                self.assertEqual(json.loads(mover.out.text())['status'], 'cancelled')
                self.assertIn('the guest stays at the source', mover.err.text())
                self.assertEqual(self.source.qmp.status(), 'cancelled')
                self.source_runs_on()
                for machine in (self.source, self.target):
                    machine.close()

    def test_towline_migrate_that_is_interrupted_in_postcopy_leaves_the_move_alone(self):
        self.pair()
        self.relay.on('control', 'target', wire.RUN, relay.Call(
            lambda: self.relay.hold('urgent', 'target')))
        gate = self.relay.on('control', 'source', wire.RUNNING, relay.Call(self.starve))
        mover = self.mover('--switch', 'immediate')
        gate.wait()
        for machine in (self.source, self.target):
            machine.qmp.wait_status('postcopy-active')
        mover.signal(signal.SIGINT)
        self.assertEqual(mover.wait(), 4, mover.err.text())
        summary = json.loads(mover.out.text())
        self.assertEqual(summary['status'], 'undecided')
        self.assertIn('goes on without this command', mover.out.text())
        for machine in (self.source, self.target):
            self.assertEqual(machine.qmp.status(), 'postcopy-active')
        self.relay.release()
        self.completed()
        self.verdict()

    def mover(self, *options):
        """`towline migrate`, by way of the relay."""
        return self.towline('migrate', self.source.qmp_path, self.target.qmp_path, '--via',
                            self.uri, '--json', *options)

    def test_towline_status_and_qmp_answer(self):
        machine = self.run_vm('machine')
        machine.qmp.run_state()
        status = self.towline('status', machine.qmp_path)
        self.assertEqual(status.wait(), 0, status.err.text())
        self.assertIn('running', status.out.text())
        asked = self.towline('qmp', machine.qmp_path, 'query-status')
        self.assertEqual(asked.wait(), 0, asked.err.text())
        self.assertIn('running', asked.out.text())

    def test_a_target_given_its_address_on_the_command_line_is_ready(self):
        self.source = self.run_vm('source', append=moves.with_facts(moves.BUSY))
        self.guest = moves.Guest(self.source)
        self.target = self.run_vm('target', incoming='tcp:127.0.0.1:0')
        at = self.target.qmp.migration()['socket-address'][0]
        self.uri = f'tcp:127.0.0.1:{at["port"]}'
        self.guest.wait_for('guest.start')
        self.assertEqual(self.target.qmp.run_state(), 'inmigrate')
        self.move()
        self.verdict()


def has_ipv6():
    try:
        with socket.create_server(('::1', 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


if __name__ == '__main__':
    unittest.main()
