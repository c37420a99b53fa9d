"""A guest on huge pages of 2 MiB: it moves, its link is tied again, and they may run out."""
import re
import unittest

import huge_pages
import moves
import page_servers
import relay
import vm
import waiting

MEMORY = '64M'
NEEDED = 64 * moves.MIB // huge_pages.SIZE  # At each end.
# Of the guest's pages the push brings few, and those that nobody touches stay at the source.
QUIET = 'working-set=8M fill=32M untouched=2M rate=50000 report-ms=100'


class HugeCase(moves.MoveCase):
    AUTO_RECOVER = True
    EXTRA = ('--memory-backing', 'hugetlb')

    def reserve(self, count):
        """Gives the test so many free huge pages, or skips it."""
        try:
            self.reserved = huge_pages.HugePages(count)
        except OSError as error:
            self.skipTest(f'{count} huge pages cannot be reserved: {error}')
        # Run in the reverse order: the processes end first.
        self.addCleanup(self.reserved.close)
        self.addCleanup(self.close_machines)

    def close_machines(self):
        for process in self._processes:
            process.close() if isinstance(process, vm.Vm) else process.kill()

    def huge_pair(self, append=moves.BUSY, vcpus=1, source_extra=(), target_backing=EXTRA,
                  **target_options):
        self.source = self.run_vm('source', append=moves.with_facts(append, vcpus), memory=MEMORY,
                                  vcpus=vcpus, extra=(*self.EXTRA, *source_extra))
        self.guest = moves.Guest(self.source)
        self.guest.wait_for('guest.start')
        self.target, address = self.listening('target', memory=MEMORY, vcpus=vcpus,
                                              extra=target_backing, **target_options)
        self.relay = self.closing(relay.Relay(address))
        self.uri = self.relay.uri

    def leave_free(self, count):
        """Somebody takes all other huge pages."""
        if huge_pages.free() > count:
            taken = huge_pages.Taken(huge_pages.free() - count)
            self.addCleanup(taken.close)


def huge_bytes(machine):
    """Huge pages that the process has mapped."""
    with open(f'/proc/{machine.pid}/status', encoding='ascii') as status:
        return int(re.search(r'HugetlbPages:\s+(\d+) kB', status.read())[1]) << 10


class Moves(HugeCase):
    def test_a_guest_moves_and_is_right(self):
        self.reserve(2 * NEEDED)
        self.huge_pair()
        self.assertGreater(huge_bytes(self.source), 32 * moves.MIB)
        self.move(x_towline_passes=2)
        answer = self.source.qmp.migration()
        self.assertEqual(answer['ram']['page-size'], huge_pages.SIZE)
        self.assertEqual(answer['ram']['remaining'], 0)
        self.verdict()
        # Untouched pages got theirs too: the guest cannot die of one that there is no room for.
        self.assertNotIn('memory.release_failed', self.target.err.text())
        self.assertGreater(huge_bytes(self.target), 32 * moves.MIB)

    def test_two_vcpus_move_without_a_pass(self):
        self.reserve(2 * NEEDED)
        self.huge_pair(vcpus=2)
        self.begin(x_towline_switch='immediate')
        self.completed()
        self.verdict()

    def test_a_guest_moves_on_from_where_it_moved_to(self):
        self.reserve(2 * NEEDED)
        self.huge_pair()
        self.move()
        self.source.qmp('quit')
        self.assertEqual(self.source.wait(), 0)
        self.source = self.target
        self.target, address = self.listening('other', memory=MEMORY, extra=self.EXTRA)
        self.uri = f'tcp:{address[0]}:{address[1]}'
        self.move()
        self.verdict()

    def test_a_link_that_is_cut_in_postcopy_is_tied_again_and_every_page_is_right(self):
        self.reserve(2 * NEEDED)
        self.huge_pair(append=QUIET)
        self.slowly_in_postcopy()
        self.relay.cut()
        waiting.until(lambda: self.source.qmp.migration()['x-towline']['recoveries'],
                      'the recovery')
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()

    def test_small_pages_at_one_end_are_refused_before_anything_moves(self):
        self.reserve(NEEDED)
        self.huge_pair(target_backing=())
        self.begin()
        reason = self.source.qmp.wait_status_of_failure()['error-desc']
        self.assertRegex(reason, 'pages of 2097152 bytes at the source.*pages of 4096 at the target')
        self.assertEqual(self.source.qmp.migration()['ram']['normal'], 0)
        self.source_runs_on()


class TheyRunOut(HugeCase):
    FEW = 6

    def few_at_the_target(self, few=FEW):
        self.reserve(NEEDED + few)
        self.huge_pair()
        self.leave_free(few)

    def test_a_guest_whose_holes_have_none_is_right_and_stays_guarded(self):
        # All that the guest has written fits; its 32 pages do not.
        self.few_at_the_target(26)
        self.move()
        self.verdict()
        self.assertRegex(self.target.err.text(), 'memory.release_failed .*huge pages of 2 MiB')

    def test_in_postcopy_the_move_pauses_and_goes_on_when_there_are_more(self):
        self.few_at_the_target()
        self.begin(x_towline_switch='immediate')
        reason = self.target.qmp.wait_status('postcopy-paused')['error-desc']
        self.assertRegex(reason, 'memory: [0-9]+ huge pages of 2 MiB are needed and 0 of [0-9]+ are '
                                 'free; reserve more .sysctl vm.nr_hugepages=[0-9]+')
        waiting.until(lambda: 'huge pages' in self.source.qmp.migration().get('error-desc', ''),
                      'the source to be told why')
        self.assertEqual(self.source.qmp.status(), 'postcopy-paused')
        self.assertEqual(self.target.qmp.run_state(), 'running')
        self.reserved.add(NEEDED)
        self.completed()
        self.verdict()

    def test_before_the_switch_the_move_waits_and_goes_on_when_there_are_more(self):
        self.few_at_the_target()
        self.begin(x_towline_switch='after-pass')
        waiting.until(lambda: 'huge pages of 2 MiB are needed and 0 of' in
                      self.source.qmp.migration()['x-towline'].get('waits-for', ''), 'the wait')
        self.assertEqual(self.source.qmp.status(), 'active')
        self.assertEqual(self.source.qmp.run_state(), 'running')
        self.reserved.add(NEEDED)
        self.completed()
        self.verdict()

    def test_a_machine_takes_all_its_huge_pages_when_it_starts(self):
        self.reserve(self.FEW)
        self.leave_free(self.FEW)
        machine = self.run_vm('big', append=moves.with_facts(moves.BUSY), memory=MEMORY,
                              extra=self.EXTRA)
        self.assertEqual(machine.wait(), 1)
        self.assertRegex(machine.err.text(), f'memory of 64 MiB has no room: {NEEDED} huge pages of '
                                             f'2 MiB are needed and {self.FEW} of [0-9]+ are free; '
                                             r'reserve more \(sysctl vm.nr_hugepages=[0-9]+\)')
        self.assertEqual(huge_pages.free(), self.FEW)


class TheSourceIsLost(HugeCase):
    def test_its_page_server_goes_on_in_its_place(self):
        self.reserve(2 * NEEDED)
        self.huge_pair(append=QUIET, source_extra=('--page-server', 'own'))
        self.slowly_in_postcopy()
        found = waiting.until(
            lambda: self.source.qmp.migration()['x-towline'].get('page-server', {}).get('pid'),
            'a page server')
        server = self.closing(page_servers.Server(found, f'{self.source.qmp_path}.pages'))
        self.source.kill()
        self.relay.cut()
        waiting.until(lambda: server.qmp.migration().get('x-towline', {}).get('recoveries'),
                      'the heir')
        server.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.target.qmp.wait_status('completed')
        self.guest.moved_to(self.target)
        since = self.guest.wait_reports(1)
        self.guest.sweep()
        self.guest.wait_reports(2)
        self.assertEqual(self.guest.judge_after_kill(since['uptime_us']), [])
        server.wait_end()

    def test_pages_that_are_given_up_are_errors_to_touch(self):
        self.reserve(2 * NEEDED)
        self.huge_pair(append=QUIET, parameters={'x_towline_source_loss': 'poison',
                                                 'x_towline_source_loss_deadline_s': 1})
        self.slowly_in_postcopy()
        self.guest.moved_to(self.target)
        self.guest.wait_reports(1)
        self.source.kill()
        self.relay.cut()
        answer = self.target.qmp.wait_status_of_failure()
        loss = answer['x-towline']['source-loss']
        self.assertGreater(loss['poisoned-pages'], 0)
        self.assertEqual(loss['poisoned-bytes'], loss['poisoned-pages'] * huge_pages.SIZE)
        self.guest.tell('S')  # It reads all of its memory.
        self.target.qmp.wait_run_state('internal-error')
        self.assertRegex(self.target.qmp('query-status')['x-towline-reason'],
                         '(guest address 0x[0-9a-f]+|triple fault).*: .*policy poison')

    def test_a_guest_whose_page_tables_are_given_up_is_stopped_and_told_from_one_that_ends(self):
        self.reserve(2 * NEEDED)
        self.huge_pair(parameters={'x_towline_source_loss': 'poison',
                                   'x_towline_source_loss_deadline_s': 1})
        self.stopped_in_postcopy()  # Nothing at all is at the target.
        self.source.kill()
        self.relay.cut()
        self.target.qmp.wait_status_of_failure()
        self.target.qmp.wait_run_state('internal-error')
        self.assertIn('policy poison', self.target.qmp('query-status')['x-towline-reason'])


if __name__ == '__main__':
    unittest.main()
