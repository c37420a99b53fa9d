"""A link that is lost after the order is tied again, by itself or by hand, and nothing is lost."""
import os
import pathlib
import re
import socket
import unittest

import blackhole
import moves
import relay
import veth
import vm
import waiting
import wire


class RecoveryCase(moves.MoveCase):
    AUTO_RECOVER = True

    def recoveries(self):
        return self.source.qmp.migration()['x-towline']['recoveries']

    def wait_recovered(self, count=1):
        waiting.until(lambda: self.recoveries() >= count, f'{count} recoveries')

    def lanes_replaced(self):
        """At the source and at the target."""
        return tuple(machine.qmp.migration()['x-towline']['lanes-replaced']
                     for machine in (self.source, self.target))

    def wait_replaced(self, count):
        waiting.until(lambda: min(self.lanes_replaced()) >= count, f'{count} replaced lanes')

    def never_paused(self):
        for machine in (self.source, self.target):
            self.assertFalse([line for line in machine.err.snapshot()
                              if 'status=postcopy-paused' in line])

    def in_postcopy(self, **parameters):
        """The guest runs at the target, misses most of its memory and gets it slowly."""
        self.pair(append=moves.STILL)
        self.slowly_in_postcopy(**parameters)

    def finish(self):
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        answer = self.completed()
        self.verdict()
        return answer


class ByItself(RecoveryCase):
    def test_a_link_cut_in_postcopy_is_tied_again_and_every_page_is_right(self):
        for how in ('rst', 'fin'):
            with self.subTest(how=how):
                self.in_postcopy()
                self.relay.cut(how=how)
                self.wait_recovered()
                waiting.until(lambda: self.target.qmp.migration()['x-towline']['recoveries'],
                              'the target to have gone on')
                answer = self.finish()
                self.assertNotIn('error-desc', answer)
                for machine in (self.source, self.target):
                    machine.close()

    def test_both_ends_go_through_the_states_of_a_recovery(self):
        self.in_postcopy()
        self.relay.cut()
        self.wait_recovered()
        self.finish()
        for machine in (self.source, self.target):
            statuses = [line.split('status=')[1] for line in machine.err.snapshot()
                        if 'migration.status' in line]
            self.assertIn('postcopy-recover', statuses[statuses.index('postcopy-paused'):])
            self.assertEqual(statuses[-2:], ['postcopy-active', 'completed'])

    def test_a_control_lane_that_breaks_alone_is_the_links_loss(self):
        self.in_postcopy()
        self.relay.cut('control')
        self.wait_recovered()
        self.assertEqual(self.lanes_replaced(), (0, 0))
        self.finish()

    def test_a_data_lane_that_breaks_alone_is_replaced_and_nobody_pauses(self):
        self.in_postcopy()
        for count, (lane, how) in enumerate((('urgent', 'rst'), ('bulk0', 'fin'),
                                             ('bulk1', 'rst'), ('urgent', 'fin')), 1):
            self.relay.cut(lane, how)
            self.wait_replaced(count)
        self.finish()
        self.never_paused()
        for machine in (self.source, self.target):
            for lane in ('"the urgent lane"', '"bulk lane 0"', '"bulk lane 1"'):
                machine.err.wait_for(lambda line, lane=lane: 'lane.replaced' in line
                                     and lane in line, lane)

    def test_a_frame_with_a_wrong_bit_costs_its_lane_alone(self):
        self.pair()
        flip = self.relay.on('bulk', 'target', wire.PAGES, relay.Flip(offset=777), nth=5)
        self.begin(x_towline_switch='immediate', max_postcopy_bandwidth=8 * moves.MIB)
        flip.wait()
        self.wait_replaced(1)
        self.finish()
        self.never_paused()
        # The source may see that its lane was reset before it hears why.
        self.target.err.wait_for(lambda line: 'lane.ended' in line and 'checksum' in line,
                                 'the reason')

    def test_a_lane_that_swallows_everything_is_replaced_while_the_link_lives(self):
        for lane in ('urgent', 'bulk0'):
            with self.subTest(lane=lane):
                self.in_postcopy(max_postcopy_bandwidth=1 << 16)
                self.relay.deafen(lane)
                self.wait_replaced(1)
                self.finish()
                self.never_paused()
                for machine in (self.source, self.target):
                    machine.close()

    def test_a_lane_that_cannot_be_replaced_is_the_links_loss(self):
        self.in_postcopy()
        self.relay.refuse()
        self.relay.cut('bulk0')
        for machine in (self.source, self.target):
            machine.qmp.wait_status('postcopy-paused')
        self.assertRegex(self.source.qmp.migration()['error-desc'], 'bulk lane 0 broke')
        self.relay.refuse(False)
        self.wait_recovered()
        self.assertEqual(self.lanes_replaced(), (0, 0))
        self.finish()

    def test_ten_cuts_in_one_move(self):
        self.in_postcopy()
        for count in range(1, 11):
            self.relay.cut(how='rst' if count % 2 else 'fin')
            self.wait_recovered(count)
        self.finish()

    def test_a_recovery_that_is_cut_is_tried_again(self):
        for kind, direction in ((wire.MISSING, 'source'), (wire.MISSING_END, 'source'),
                                (wire.RESUME, 'target'), (wire.PROOF, 'target')):
            with self.subTest(kind=kind):
                self.in_postcopy()
                again = self.relay.on('control', direction, kind, relay.Cut(after=10))
                self.relay.cut()
                again.wait()
                self.wait_recovered()
                self.finish()
                for machine in (self.source, self.target):
                    machine.close()

    def test_how_much_is_left_is_known_while_both_ends_compare(self):
        self.in_postcopy()
        comparing = self.relay.on('control', 'source', wire.MISSING, relay.Hold())
        self.relay.cut()
        comparing.wait()
        self.assertGreater(self.source.qmp.migration()['ram']['remaining'], moves.MIB)
        self.relay.release()
        self.wait_recovered()
        self.finish()

    def test_another_process_at_the_targets_address_is_told_as_that(self):
        self.in_postcopy()
        self.target.kill()
        other, address = self.listening('other')
        self.relay.target = address
        self.relay.cut()
        waiting.until(lambda: "the target's process is another one" in
                      self.source.qmp.migration().get('error-desc', ''), 'the reason')
        self.assertEqual(other.qmp.run_state(), 'inmigrate')
        self.assertNotEqual(self.source.qmp.run_state(), 'running')

    def test_a_page_that_was_asked_for_and_never_came_is_asked_for_again(self):
        self.pair()
        self.stopped_in_postcopy()
        waiting.until(lambda: self.target.qmp.migration()['x-towline']['faults']['outstanding'],
                      'a vCPU to wait')
        self.relay.cut()
        self.relay.release()
        self.wait_recovered()
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.source.qmp.wait_status('completed')
        self.verdict()

    def test_a_target_that_cannot_be_reached_is_waited_for(self):
        self.in_postcopy()
        self.relay.refuse()
        self.relay.cut()
        for machine in (self.source, self.target):
            machine.qmp.wait_status('postcopy-paused')
        waiting.until(lambda: self.source.qmp.migration()['x-towline']['epoch'] >= 5,
                      'some attempts')
        self.assertIn('attempt', self.source.qmp.migration()['error-desc'])
        self.assertEqual(self.target.qmp.run_state(), 'running')
        self.relay.refuse(False)
        self.wait_recovered()
        self.finish()

    def test_a_second_address_is_tried_in_turn(self):
        self.pair(append=moves.STILL)
        second = self.closing(relay.Relay(self.relay.target))
        self.slowly_in_postcopy(x_towline_alternates=[second.uri])
        self.relay.refuse()
        self.relay.cut()
        self.wait_recovered()
        self.assertGreater(second.bytes_through('bulk'), 0)
        self.finish()

    def test_a_deadline_ends_the_attempts_and_the_user_may_go_on(self):
        self.in_postcopy(x_towline_reconnect_deadline_s=1)
        self.relay.refuse()
        self.relay.cut()
        waiting.until(lambda: 'no longer tried' in self.source.qmp.migration().get('error-desc', ''),
                      'the deadline')
        self.relay.refuse(False)
        self.source.qmp('migrate', uri=self.uri, resume=True)
        self.wait_recovered()
        self.finish()


class TheAmbiguousMoment(RecoveryCase):
    """The order, or the word that it was obeyed, is lost: one owner, in every case."""

    def cut_at(self, direction, kind, after, how='rst'):
        self.pair()
        order = self.relay.on('control', direction, kind, relay.Cut(after=after, how=how))
        self.begin(x_towline_switch='after-pass')
        order.wait()
        self.relay.cut()

    def test_an_order_that_was_lost_with_the_state_gives_the_guest_back(self):
        self.cut_at('target', wire.STATE, 100)
        answer = self.source.qmp.wait_status_of_failure()
        self.assertRegex(answer['error-desc'], 'target')
        self.source_runs_on()

    def test_a_target_that_ends_with_its_failure_first_tells_the_source(self):
        self.source = self.run_vm('source', append=moves.with_facts(moves.BUSY))
        self.guest = moves.Guest(self.source)
        self.target = self.run_vm('target', incoming='defer')
        self.target.qmp('migrate-incoming', uri='tcp:127.0.0.1:0')  # exit-on-error, as QEMU.
        at = self.target.qmp.migration()['socket-address'][0]
        self.relay = self.closing(relay.Relay((at['host'], int(at['port']))))
        self.guest.wait_for('guest.start')
        order = self.relay.on('control', 'target', wire.STATE, relay.Cut(after=100))
        self.begin(uri=self.relay.uri, x_towline_switch='after-pass')
        order.wait()
        self.relay.cut()
        self.source.qmp.wait_status_of_failure()
        self.assertEqual(self.target.wait(), 1)
        self.source_runs_on()

    def test_an_order_that_was_lost_behind_the_state_is_given_again(self):
        # A source that came back before the target had read the state would be given its guest back.
        self.pair()
        order = self.relay.on('control', 'target', wire.RUN, relay.Cut(after=20, how='fin'))
        self.begin()
        self.wait_synced()
        self.relay.refuse()
        self.source.qmp('migrate-start-postcopy')
        order.wait()
        self.target.qmp.wait_status('postcopy-paused')
        self.relay.refuse(False)
        self.wait_recovered()
        self.completed()
        self.verdict()

    def test_a_word_that_was_lost_is_said_again(self):
        self.cut_at('source', wire.RUNNING, 10)
        self.wait_recovered()
        self.completed()
        self.verdict()

    def test_an_end_that_was_lost_is_told_again(self):
        self.cut_at('source', wire.COMPLETE, 10)
        self.completed()
        self.verdict()

    def test_a_new_process_at_the_targets_address_proves_nothing(self):
        self.pair()
        self.stopped_after_order()
        self.target.kill()
        other, address = self.listening('other')
        self.relay.target = address
        self.relay.release()
        self.relay.cut()
        waiting.until(lambda: self.source.qmp.migration()['x-towline']['epoch'] >= 4, 'attempts')
        self.assertEqual(self.source.qmp.status(), 'postcopy-paused')
        self.assertNotEqual(self.source.qmp.run_state(), 'running')
        self.assertEqual(other.qmp.run_state(), 'inmigrate')

    def test_the_user_takes_the_guest_back_from_a_target_that_is_fenced(self):
        self.pair()
        self.stopped_after_order()
        self.target.kill()
        self.relay.refuse()
        self.relay.cut()
        self.source.qmp.wait_status('postcopy-paused')
        self.refused(self.source, 'x-towline-take-back', 'two running copies', 'fenced')
        self.source.qmp('x-towline-take-back', target_is_fenced=True)
        self.source.qmp.wait_status_of_failure()
        self.source_runs_on()

    def test_a_guest_is_taken_back_at_once_though_an_attempt_is_under_way(self):
        self.pair()
        self.stopped_after_order()
        self.target.freeze()  # Its kernel takes connections, and nobody answers them.
        self.relay.cut()
        self.relay.release()
        self.source.qmp.wait_status('postcopy-paused')
        self.source.qmp('x-towline-take-back', target_is_fenced=True)
        self.assertEqual(self.source.qmp.run_state(), 'running')
        self.assertEqual(self.source.qmp.status(), 'failed')
        self.target.thaw()
        self.target.qmp.wait_status_of_failure()
        self.source_runs_on()

    def test_a_guest_that_ran_at_the_target_is_not_taken_back(self):
        self.in_postcopy()
        self.relay.refuse()
        self.relay.cut()
        self.source.qmp.wait_status('postcopy-paused')
        self.refused(self.source, 'x-towline-take-back', 'runs there', target_is_fenced=True)
        self.relay.refuse(False)
        self.wait_recovered()
        self.finish()


    def test_a_word_that_came_in_a_recovery_which_was_cut_forbids_to_take_the_guest_back(self):
        self.pair()
        self.cut_behind_running_in_a_recovery()
        self.refused(self.source, 'x-towline-take-back', 'runs there', target_is_fenced=True)
        self.assertEqual(self.running_at(), ['target'])
        self.relay.refuse(False)
        self.wait_recovered()
        self.completed()
        self.refused(self.source, 'x-towline-take-back', 'runs there', target_is_fenced=True)
        self.verdict()


class ByHand(RecoveryCase):
    AUTO_RECOVER = False

    def both_paused(self):
        for machine in (self.source, self.target):
            machine.qmp.wait_status('postcopy-paused')

    def test_the_flow_of_a_qemu_manager(self):
        self.in_postcopy()
        self.source.qmp('migrate-pause')
        self.both_paused()
        self.target.qmp('migrate-recover', uri='tcp:127.0.0.1:0')
        at = self.target.qmp.migration()['socket-address'][0]
        self.source.qmp('migrate', uri=f'tcp:127.0.0.1:{at["port"]}', resume=True)
        self.wait_recovered()
        self.finish()

    def test_a_pause_at_the_target_holds_until_it_is_lifted_there(self):
        self.in_postcopy(x_towline_auto_recover=True)
        self.target.qmp('migrate-pause')
        self.both_paused()
        waiting.until(lambda: 'migrate-recover' in self.source.qmp.migration().get('error-desc', ''),
                      'the reason')
        at = self.target.qmp.migration()['socket-address'][0]
        self.target.qmp('migrate-recover', uri=f'tcp:127.0.0.1:{at["port"]}')
        self.wait_recovered()
        self.finish()

    def test_a_pause_at_the_source_holds_though_recovery_is_automatic(self):
        self.in_postcopy(x_towline_auto_recover=True)
        self.source.qmp('migrate-pause')
        self.both_paused()
        epoch = self.source.qmp.migration()['x-towline']['epoch']
        self.guest.moved_to(self.target)
        self.source.qmp('migrate', uri=self.uri, resume=True)
        self.wait_recovered()
        self.assertEqual(self.source.qmp.migration()['x-towline']['epoch'], epoch + 1)
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.source.qmp.wait_status('completed')
        self.verdict()

    def test_an_attempt_that_fails_goes_back_to_paused(self):
        self.in_postcopy()
        self.source.qmp('migrate-pause')
        self.both_paused()
        seen = self.source.err.count()
        self.source.qmp('migrate', uri='tcp:127.0.0.1:1', resume=True)
        self.source.err.wait_for(lambda line: 'status=postcopy-recover-setup' in line, 'setup',
                                 seen)
        self.source.qmp.wait_status('postcopy-paused')
        self.source.qmp('migrate', uri=self.uri, resume=True)
        self.wait_recovered()
        self.finish()

    def test_recovery_addresses_take_the_place_of_one_another(self):
        self.in_postcopy()
        self.source.qmp('migrate-pause')
        self.both_paused()
        self.target.qmp('migrate-recover', uri='tcp:127.0.0.1:0')
        open_files = vm.open_files(self.target.pid)
        for _ in range(20):
            self.target.qmp('migrate-recover', uri='tcp:127.0.0.1:0')
        # The one before is closed by the thread that listens, when its turn comes.
        waiting.until(lambda: vm.open_files(self.target.pid) <= open_files + 1, 'the others to close')
        self.source.qmp('migrate', uri=self.uri, resume=True)  # The first one stays.
        self.wait_recovered()
        self.finish()

    def test_what_is_not_paused_is_neither_resumed_nor_recovered(self):
        self.in_postcopy()
        self.refused(self.source, 'migrate', 'no paused migration', uri=self.uri, resume=True)
        self.refused(self.target, 'migrate-recover', 'postcopy is paused', uri='tcp:127.0.0.1:0')
        self.finish()
        self.refused(self.target, 'migrate-pause', 'postcopy-active')

    def test_a_recovery_address_beyond_this_host_needs_a_secret_too(self):
        self.in_postcopy()
        self.source.qmp('migrate-pause')
        self.both_paused()
        self.refused(self.target, 'migrate-recover', '--secret', 'allow-unprotected',
                     uri='tcp:0.0.0.0:0')
        self.source.qmp('migrate', uri=self.uri, resume=True)
        self.wait_recovered()
        self.finish()


class WhatIsSeen(RecoveryCase):
    """The message tells what happened to the link."""

    def reason(self, machine):
        return machine.qmp.wait_status('postcopy-paused')['error-desc']

    def test_a_link_that_swallows_everything_is_dead_and_tied_again_when_it_lives(self):
        self.pair(append=moves.STILL, relayed=False)
        self.slowly_in_postcopy()
        try:
            hole = blackhole.Blackhole(int(self.uri.rsplit(':', 1)[1]))
        except blackhole.Unavailable as reason:
            self.skipTest(str(reason))
        self.addCleanup(hole.close)
        for machine in (self.source, self.target):
            self.assertIn('dead', self.reason(machine))
        self.assertEqual(self.target.qmp.run_state(), 'running')
        hole.close()
        self.wait_recovered()
        self.finish()

    def test_a_cable_that_is_pulled_is_named_at_both_ends(self):
        try:
            cable = veth.Cable()
        except veth.Unavailable as reason:
            self.skipTest(str(reason))
        # Run in the reverse order: the processes end first.
        self.addCleanup(cable.close)
        self.addCleanup(lambda: self.target.close())
        self.source = self.run_vm('source', append=moves.with_facts(moves.STILL))
        self.guest = moves.Guest(self.source)
        self.target, address = self.listening('target', at=cable.there, prefix=cable.prefix(),
                                              extra=['--allow-unprotected'])
        self.guest.wait_for('guest.start')
        self.uri = f'tcp:{address[0]}:{address[1]}'
        self.slowly_in_postcopy()
        cable.pull()
        self.assertRegex(self.reason(self.source), f'{cable.device} .* is down')
        self.assertRegex(self.reason(self.target), 'no carrier')
        self.assertEqual(self.target.qmp.run_state(), 'running')
        cable.plug()
        self.wait_recovered()
        self.finish()

    def test_a_frozen_target_is_told_from_a_dead_link(self):
        self.in_postcopy(x_towline_frozen_patience_ms=400)
        self.target.freeze()
        self.assertIn('frozen', self.reason(self.source))
        self.target.thaw()
        self.wait_recovered()
        self.finish()

    def test_a_frozen_source_is_recovered_from_when_it_wakes(self):
        self.pair(append=moves.STILL,
                  target_options={'parameters': {'x_towline_frozen_patience_ms': 400}})
        self.slowly_in_postcopy()
        self.source.freeze()
        self.assertIn('frozen', self.reason(self.target))
        self.assertEqual(self.target.qmp.run_state(), 'running')
        self.source.thaw()
        self.wait_recovered()
        self.finish()

    def test_a_reset_and_a_close_are_told_apart(self):
        for how in ('rst', 'fin'):
            with self.subTest(how=how):
                self.in_postcopy(x_towline_auto_recover=False)
                self.relay.cut(how=how)
                # What one end does about it, the other sees as a close: the first one knows.
                reasons = self.reason(self.source) + self.reason(self.target)
                self.assertEqual('reset' in reasons, how == 'rst', reasons)
                for machine in (self.source, self.target):
                    machine.close()


def listening_ports(pid):
    """TCP ports at which a process listens on the IPv4 loopback."""
    inodes = set()
    for name in os.listdir(f'/proc/{pid}/fd'):
        try:
            inodes |= set(re.findall(r'^socket:\[(\d+)\]$', os.readlink(f'/proc/{pid}/fd/{name}')))
        except FileNotFoundError:
            pass
    rows = [line.split() for line in
            pathlib.Path(f'/proc/{pid}/net/tcp').read_text().splitlines()[1:]]
    return [int(row[1].rpartition(':')[2], 16) for row in rows
            if row[3] == '0A' and row[9] in inodes]


class Strangers(RecoveryCase):
    """Whoever knocks while a move is paused changes nothing."""

    def paused(self):
        self.in_postcopy()
        self.relay.refuse()
        self.relay.cut()
        self.source.qmp.wait_status('postcopy-paused')
        self.target.qmp.wait_status('postcopy-paused')

    def go_on(self):
        self.assertEqual(self.target.qmp.status(), 'postcopy-paused')
        self.relay.refuse(False)
        self.wait_recovered()
        self.finish()

    def test_garbage_and_silence_on_the_port(self):
        self.paused()
        open_ends = [socket.create_connection(self.relay.target) for _ in range(200)]
        for number, end in enumerate(open_ends):
            self.addCleanup(end.close)
            if number % 2:
                try:
                    end.sendall(bytes(range(256)) * 4)
                except OSError:
                    pass
        self.go_on()

    def knock(self, number, port):
        """One connection of one of four kinds. It stays open."""
        hello = wire.greeting_in(self.relay.recorded('control'))
        later = bytearray(hello[wire.HEADER_BYTES:])
        later[40:48] = ((1 << 40) + number).to_bytes(8, 'little')  # The epoch.
        kinds = {
            'garbage': bytes(range(256)) * 4,
            'silence': b'T' * (number // 4 % 2),
            'a replayed greeting': hello,
            'a wrong secret': wire.frame(wire.HELLO, bytes(later)) +
                              wire.frame(wire.PROOF, bytes(32)),
        }
        end = socket.create_connection(('127.0.0.1', port), waiting.LIMIT_S)
        try:
            end.sendall(list(kinds.values())[number % 4])
        except OSError:
            pass  # Sent away already.
        return end

    def test_thousands_on_both_ports_stay_bounded_and_the_move_goes_on_at_either(self):
        self.paused()
        first = self.relay.target[1]
        self.target.qmp('migrate-recover', uri='tcp:127.0.0.1:0')
        ports = listening_ports(self.target.pid)
        self.assertEqual(len(ports), 2)
        self.assertIn(first, ports)
        files, memory = vm.open_files(self.target.pid), vm.own_bytes(self.target.pid)
        threads = vm.threads(self.target.pid)
        kept = []
        for number in range(2000):
            kept.append(self.knock(number, ports[number // 4 % 2]))
            if len(kept) > 400:
                kept.pop(0).close()
        self.assertLess(vm.open_files(self.target.pid) - files, 200)
        self.assertLess(vm.own_bytes(self.target.pid) - memory, 32 * moves.MIB)
        self.assertLessEqual(vm.threads(self.target.pid), threads)
        self.assertEqual(self.source.qmp.status(), 'postcopy-paused')
        self.assertEqual(self.target.qmp.run_state(), 'running')
        for end in kept:
            end.close()
        ports.remove(first)
        self.relay.target = ('127.0.0.1', ports.pop())
        self.go_on()

    def test_a_replayed_greeting_of_an_old_epoch(self):
        self.paused()
        hello = self.relay.recorded('control')
        for _ in range(3):
            with socket.create_connection(self.relay.target) as end:
                end.settimeout(vm.waiting.LIMIT_S)
                end.sendall(wire.greeting_in(hello))
                answer = end.recv(4096)
                self.assertEqual(wire.Header.read(answer[:wire.HEADER_BYTES]).kind, wire.REFUSE)
        self.go_on()

    def test_a_greeting_of_a_greater_epoch_without_the_secret(self):
        self.paused()
        hello = bytearray(self.relay.recorded('control')[wire.HEADER_BYTES:][:wire.HELLO_BYTES])
        hello[40:48] = (1 << 40).to_bytes(8, 'little')
        with socket.create_connection(self.relay.target) as end:
            end.settimeout(vm.waiting.LIMIT_S)
            end.sendall(wire.frame(wire.HELLO, bytes(hello)))
            answer = end.recv(4096)
            self.assertEqual(wire.Header.read(answer[:wire.HEADER_BYTES]).kind, wire.HELLO_REPLY)
            end.sendall(wire.frame(wire.PROOF, bytes(32)))
            while end.recv(4096):
                pass
        self.go_on()


if __name__ == '__main__':
    unittest.main()
