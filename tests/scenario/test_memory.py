"""A target that runs out of memory pauses the move, before the switch and after it."""
import os
import subprocess
import unittest

import cgroup
import moves
import relay
import waiting
import wire

BIG = 'working-set=192M untouched=2M rate=50000 report-ms=100'
ROOM = 160 * moves.MIB  # For a guest of 192 MiB and the process itself: not enough.


class PausingCase(moves.MoveCase):
    AUTO_RECOVER = True

    @staticmethod
    def waits_for(machine):
        return machine.qmp.migration()['x-towline'].get('waits-for', '')

    def waiting_for_room(self):
        """Waits until the target waits before the switch; what both ends say of that."""
        reason = waiting.until(lambda: self.waits_for(self.source), 'the target to want room')
        self.assertEqual(self.waits_for(self.target), reason)
        for machine in (self.source, self.target):
            answer = machine.qmp.migration()
            self.assertEqual(answer['status'], 'active')
            self.assertNotIn('error-desc', answer)
        waiting.until(lambda: 'target.no_room' in self.source.err.text(), "the source's line")
        waiting.until(lambda: 'memory.no_room' in self.target.err.text(), "the target's line")
        self.assertEqual(self.source.qmp.run_state(), 'running')
        self.guest.wait_reports(2)
        return reason

    def goes_on(self):
        self.completed()
        self.assertEqual(self.waits_for(self.source), '')
        self.assertNotIn('postcopy-paused', str(self.source.qmp.events('MIGRATION')))
        for machine, line in ((self.source, 'target.room_again'),
                              (self.target, 'memory.room_again')):
            self.assertIn(line, machine.err.text())
        self.verdict()


class LimitedTarget(PausingCase):

    def limited_pair(self):
        try:
            self.group = cgroup.MemoryGroup(ROOM)
        except OSError as error:
            self.skipTest(f'no control group with a memory limit can be made: {error}')
        # Run in the reverse order: the processes end first.
        self.addCleanup(self.group.close)
        self.addCleanup(lambda: self.target.close())
        self.source = self.run_vm('source', append=moves.with_facts(BIG), memory='256M')
        self.guest = moves.Guest(self.source)
        self.target, address = self.listening('target', memory='256M', prefix=self.group.prefix(),
                                              parameters={'x_towline_memory_reserve':
                                                          32 * moves.MIB})
        self.relay = self.closing(relay.Relay(address))
        self.uri = self.relay.uri
        self.guest.wait_for('guest.start')

    def test_in_postcopy_the_move_pauses_and_goes_on_when_there_is_room(self):
        self.limited_pair()
        self.begin(x_towline_switch='immediate')
        reason = self.target.qmp.wait_status('postcopy-paused')['error-desc']
        self.assertRegex(reason, 'memory.*left of.*reserve')
        waiting.until(lambda: 'memory' in self.source.qmp.migration().get('error-desc', ''),
                      'the source to be told why')
        self.assertEqual(self.target.qmp.run_state(), 'running')
        self.assertEqual(self.group.killed(), 0)
        self.group.limit(1 << 30)
        self.completed()
        self.verdict()
        self.assertEqual(self.group.killed(), 0)

    def test_before_the_switch_the_move_waits_and_goes_on_when_there_is_room(self):
        self.limited_pair()
        self.begin(x_towline_switch='after-pass')
        self.assertRegex(self.waiting_for_room(), 'memory.*left of.*reserve')
        self.assertEqual(self.group.killed(), 0)
        self.group.limit(1 << 30)
        self.goes_on()
        self.assertEqual(self.group.killed(), 0)


class SizedFileSystem(PausingCase):
    """Guest memory in a file system with a size, which somebody else fills up."""

    def mounted(self, size):
        folder = self.folder / 'ram'
        folder.mkdir()
        if os.geteuid() != 0 or subprocess.run(
                ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder],
                stderr=subprocess.DEVNULL, check=False).returncode:
            self.skipTest('a tmpfs cannot be mounted here')
        self.addCleanup(subprocess.run, ['umount', '--lazy', folder], check=True)
        return folder

    def full_pair(self, size, taken, **parameters):
        """The target's file system has `size` bytes, of which somebody has `taken`."""
        self.ram = self.mounted(size)
        with open(self.ram / 'other', 'wb') as other:
            os.posix_fallocate(other.fileno(), 0, taken)
        self.pair(append=moves.BUSY, memory='64M',
                  target_options={'extra': ('--memory-path', self.ram), **parameters})

    def make_room(self):
        (self.ram / 'other').unlink()

    def test_in_postcopy_the_move_pauses_and_goes_on_when_there_is_room(self):
        self.full_pair(72 * moves.MIB, 60 * moves.MIB)
        self.begin(x_towline_switch='immediate')
        reason = self.target.qmp.wait_status('postcopy-paused')['error-desc']
        self.assertRegex(reason, f"memory: the file system of '{self.ram}.* free of 72 MiB")
        waiting.until(lambda: str(self.ram) in self.source.qmp.migration().get('error-desc', ''),
                      'the source to be told why')
        self.assertEqual(self.target.qmp.run_state(), 'running')
        self.make_room()
        self.completed()
        self.verdict()

    def test_a_lane_that_is_replaced_while_it_fills_up_costs_a_pause_and_nothing_else(self):
        # What is missing is told for the lane while the others give up pages: the map moves.
        self.full_pair(72 * moves.MIB, 60 * moves.MIB)
        broken = self.relay.on('bulk0', 'target', wire.PAGES, relay.Cut(), nth=30)
        self.begin(x_towline_switch='immediate')
        broken.wait()
        self.target.qmp.wait_status('postcopy-paused')
        self.assertEqual(self.target.qmp.run_state(), 'running')
        self.make_room()
        self.completed()
        self.verdict()

    def waiting_pair(self, **parameters):
        """A move that waits for room before its switch."""
        self.full_pair(72 * moves.MIB, 60 * moves.MIB)
        self.begin(**parameters)
        return self.waiting_for_room()

    def test_before_the_switch_the_move_waits_and_goes_on_when_there_is_room(self):
        reason = self.waiting_pair(x_towline_switch='after-pass')
        self.assertRegex(reason, f"memory: the file system of '{self.ram}.* free of 72 MiB")
        shown = self.towline('status', self.source.qmp_path)
        self.assertEqual(shown.wait(), 0)
        self.assertIn(reason, shown.out.text())
        self.make_room()
        self.goes_on()

    def test_a_file_system_that_is_made_larger_is_room_too(self):
        self.waiting_pair(x_towline_switch='after-pass')
        subprocess.run(['mount', '-o', 'remount,size=160M', self.ram], check=True)
        self.goes_on()

    def test_the_word_to_switch_and_a_stop_during_the_wait_take_effect(self):
        self.waiting_pair()
        self.source.qmp('migrate-start-postcopy')
        self.source.qmp('stop')
        self.source.qmp.wait_run_state('paused')
        self.source.qmp('cont')
        self.guest.wait_reports(1)
        self.assertNotEqual(self.waits_for(self.source), '')
        self.make_room()
        self.goes_on()

    def test_a_move_cancelled_during_the_wait_can_be_made_again(self):
        self.waiting_pair()
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.target.qmp.wait_status('failed')
        self.source_runs_on()
        self.target, address = self.listening('again', memory='64M')
        self.begin(f'tcp:127.0.0.1:{address[1]}', x_towline_switch='after-pass')
        self.completed()
        self.verdict()

    def test_a_source_that_is_ended_during_the_wait_leaves_nothing_behind(self):
        self.waiting_pair()
        self.source.qmp('quit')
        self.assertEqual(self.source.wait(), 0)
        self.target.qmp.wait_status('failed')

    def test_a_target_that_dies_during_the_wait_costs_nothing(self):
        self.waiting_pair()
        self.target.kill()
        self.source.qmp.wait_status_of_failure()
        self.source_runs_on()

    def test_a_source_that_dies_during_the_wait_is_noticed(self):
        self.waiting_pair()
        self.source.kill()
        self.target.qmp.wait_status('failed')
        self.assertNotEqual(self.target.qmp.run_state(), 'running')

    def test_a_link_that_is_lost_during_the_wait_costs_nothing(self):
        self.waiting_pair()
        self.relay.cut(how='rst')
        self.source.qmp.wait_status_of_failure()
        self.target.qmp.wait_status('failed')
        self.source_runs_on()

    def test_one_lane_that_is_lost_during_the_wait_is_noticed(self):
        self.waiting_pair()
        self.relay.cut('bulk0', how='rst')
        self.source.qmp.wait_status_of_failure()
        self.source_runs_on()

    def test_with_a_peer_that_cannot_wait_the_move_fails_and_says_why(self):
        self.full_pair(72 * moves.MIB, 60 * moves.MIB)
        self.relay.features = 1
        self.begin(x_towline_switch='after-pass')
        answer = self.source.qmp.wait_status_of_failure()
        self.assertRegex(answer['error-desc'], f"the file system of '{self.ram}")
        self.source_runs_on()

    def test_a_guest_whose_holes_have_no_room_is_right_and_stays_guarded(self):
        # All that the guest has written fits; its 64 MiB do not.
        self.full_pair(56 * moves.MIB, 4096)
        self.move()
        self.verdict()
        self.assertIn('memory.release_failed', self.target.err.text())

    def test_the_command_says_what_is_waited_for(self):
        self.full_pair(72 * moves.MIB, 60 * moves.MIB)
        moving = self.towline('migrate', self.source.qmp_path, self.target.qmp_path)
        moving.err.wait_for(lambda line: str(self.ram) in line, 'the reason')
        moving.err.wait_for(lambda line: 'waits for room at the target' in line, 'progress')
        self.make_room()
        self.assertEqual(moving.wait(), 0)
        self.completed()
        self.verdict()

    def test_a_machine_takes_all_its_memory_when_it_starts(self):
        ram = self.mounted(32 * moves.MIB)
        machine = self.run_vm('big', append=moves.with_facts(moves.BUSY), memory='64M',
                              extra=('--memory-path', ram))
        self.assertEqual(machine.wait(), 1)
        self.assertRegex(machine.err.text(), 'memory of 64 MiB has no room at .* of 32 MiB')


class LyingTarget(moves.MoveCase):
    """Words about room that are not due: the guest stays where it is."""

    def refused_at(self, kind, *frames):
        """The frames come before the target's frame of this kind."""
        self.pair(memory='64M')
        self.relay.on('control', 'source', kind, relay.Call(
            lambda: self.relay.say('control', 'source', b''.join(frames))))
        self.begin(x_towline_switch='after-pass')
        answer = self.source.qmp.wait_status_of_failure()
        self.assertIn('is not due now', answer['error-desc'])
        self.source_runs_on()

    def test_room_again_that_nobody_waited_for_is_refused(self):
        self.refused_at(wire.STALE_APPLIED, wire.frame(wire.ROOM_AGAIN))

    def test_room_again_that_is_said_twice_is_refused(self):
        self.refused_at(wire.STALE_APPLIED, wire.frame(wire.NO_ROOM, b'none'),
                        wire.frame(wire.ROOM_AGAIN), wire.frame(wire.ROOM_AGAIN))

    def test_no_room_that_is_said_twice_is_refused(self):
        self.refused_at(wire.STALE_APPLIED, wire.frame(wire.NO_ROOM, b'none'),
                        wire.frame(wire.NO_ROOM, b'none'))

    def test_no_room_before_any_page_is_refused(self):
        self.refused_at(wire.ACCEPT, wire.frame(wire.NO_ROOM, b'none'))

    def test_a_switch_does_not_begin_while_the_target_says_that_it_waits(self):
        self.pair(memory='64M')
        self.relay.features = 3  # Ends that count their frames miss at once that this one is too many.
        self.relay.on('control', 'source', wire.STALE_APPLIED, relay.Call(
            lambda: self.relay.say('control', 'source', wire.frame(wire.NO_ROOM, b'a lie'))))
        self.begin(x_towline_switch='after-pass')
        waiting.until(lambda: self.source.qmp.migration()['x-towline'].get('waits-for') == 'a lie',
                      'the lie')
        self.guest.wait_reports(3)
        self.assertEqual(self.source.qmp.status(), 'active')
        self.source.qmp('migrate_cancel')
        self.source.qmp.wait_status('cancelled')
        self.source_runs_on()


if __name__ == '__main__':
    unittest.main()
