"""A target that runs out of memory pauses the move before the kernel kills it."""
import os
import subprocess
import unittest

import cgroup
import moves
import relay
import waiting

BIG = 'working-set=192M untouched=2M rate=50000 report-ms=100'
ROOM = 160 * moves.MIB  # For a guest of 192 MiB and the process itself: not enough.


class LimitedTarget(moves.MoveCase):
    AUTO_RECOVER = True

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

    def test_before_the_switch_the_move_fails_and_says_why(self):
        self.limited_pair()
        self.begin(x_towline_switch='after-pass')
        answer = self.source.qmp.wait_status_of_failure()
        self.assertRegex(answer['error-desc'], 'memory.*left of.*reserve')
        self.assertEqual(self.group.killed(), 0)
        self.source_runs_on()


class SizedFileSystem(moves.MoveCase):
    """Guest memory in a file system with a size, which somebody else fills up."""
    AUTO_RECOVER = True

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

    def test_before_the_switch_the_move_fails_and_says_why(self):
        self.full_pair(72 * moves.MIB, 60 * moves.MIB)
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

    def test_a_machine_takes_all_its_memory_when_it_starts(self):
        ram = self.mounted(32 * moves.MIB)
        machine = self.run_vm('big', append=moves.with_facts(moves.BUSY), memory='64M',
                              extra=('--memory-path', ram))
        self.assertEqual(machine.wait(), 1)
        self.assertRegex(machine.err.text(), 'memory of 64 MiB has no room at .* of 32 MiB')


if __name__ == '__main__':
    unittest.main()
