"""A log that nobody reads stops nothing: standard error is a full pipe whose reader has stopped."""
import os
import pty
import re
import select
import signal
import subprocess
import unittest

import moves
import page_servers
import qmp
import relay
import vm
import waiting

DEBUG = ('--log-level', 'debug')


def kept(machine):
    """The lines that are to be read when standard error is not."""
    return [line['text'] for line in machine.qmp.migration()['x-towline']['log']]


class LogCase(moves.MoveCase):
    AUTO_RECOVER = True

    def pair(self, *source_options):
        self.source = self.run_vm('source', append=moves.with_facts(moves.STILL),
                                  extra=(*DEBUG, *source_options))
        self.guest = moves.Guest(self.source)
        self.target, address = self.listening('target', extra=DEBUG)
        self.relay = self.closing(relay.Relay(address))
        self.uri = self.relay.uri
        self.guest.wait_for('guest.start')

    def recovered(self, *machines, count=1):
        for machine in machines:
            waiting.until(lambda m=machine: m.qmp.migration().get('x-towline', {}).get('recoveries', 0) >= count,
                          f'recovery {count}')

    def finish(self):
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()

    def is_whole(self):
        since = self.guest.wait_reports(1)
        self.guest.sweep()
        self.guest.wait_reports(2)
        self.assertEqual(self.guest.judge_after_kill(since['uptime_us']), [])

    def keeps(self, machine, *words):
        texts = kept(machine)
        for word in words:
            self.assertTrue([text for text in texts if word in text], f'{word}: {texts}')


class AtOneEnd(LogCase):
    def moved_with_a_cut(self):
        """From the switch to the end, with one lost link on the way."""
        self.slowly_in_postcopy()
        self.relay.cut()
        self.recovered(self.source, self.target)
        self.finish()

    def test_a_source_whose_log_is_stuck_moves_its_guest_and_ties_a_cut_link_again(self):
        self.pair()
        self.source.err.stop()
        self.moved_with_a_cut()
        self.keeps(self.source, 'link.lost', 'to=ordered', 'to=gone')
        self.source.qmp('quit')
        self.assertEqual(self.source.wait_status(), 0)
        self.is_whole()

    def test_a_target_whose_log_is_stuck_runs_the_guest_and_ties_a_cut_link_again(self):
        self.pair()
        self.target.err.stop()
        self.moved_with_a_cut()
        self.keeps(self.target, 'link.lost', 'to=here')
        self.source.qmp('quit')
        self.is_whole()
        self.target.signal(signal.SIGTERM)
        self.assertEqual(self.target.wait_status(), 0)

    def test_logs_that_get_stuck_after_the_switch_cost_nothing_and_are_read_later(self):
        self.pair()
        self.slowly_in_postcopy()
        for machine in (self.source, self.target):
            machine.err.stop()
        for count in (1, 2):
            self.relay.cut()
            self.recovered(self.source, self.target, count=count)
        self.finish()
        for machine in (self.source, self.target):
            machine.err.go_on()
            machine.err.wait_for(lambda line: 'migration.status' in line and 'completed' in line,
                                 'the end of the move')
        self.is_whole()

    def test_a_machine_whose_log_is_stuck_answers_and_obeys_a_signal(self):
        self.source = self.run_vm('source', append=moves.with_facts(moves.STILL), extra=DEBUG)
        self.source.err.stop()
        self.source.qmp.set_capabilities(postcopy_ram=True)
        self.source.qmp('migrate', uri='tcp:127.0.0.1:1')
        self.assertIn('refused', self.source.qmp.wait_status_of_failure()['error-desc'])
        self.source.signal(signal.SIGTERM)
        self.assertEqual(self.source.wait_status(), 0)


class WhatItSays(LogCase):
    def lost(self, machine):
        return [line for line in machine.err.snapshot() if 'link.lost' in line]

    def test_a_move_that_comes_to_its_end_has_lost_no_link(self):
        self.pair()
        self.move()
        self.source.qmp('quit')
        self.assertEqual(self.source.wait(), 0)
        self.target.err.wait_for(lambda line: 'control.ended' in line, 'the end of the control lane')
        self.assertEqual(self.lost(self.source) + self.lost(self.target), [])

    def test_a_link_that_was_cut_is_a_warning_at_both_ends(self):
        self.pair()
        self.slowly_in_postcopy()
        self.relay.cut()
        self.recovered(self.source, self.target)
        for machine in (self.source, self.target):
            machine.err.wait_for(lambda line: ' warning link.lost reason="' in line, 'the loss')
        self.finish()

    def test_an_event_is_one_line_in_utc_with_its_values_in_quotes(self):
        self.pair()
        self.source.qmp.set_capabilities(postcopy_ram=True)
        self.source.qmp('migrate', uri=f'unix:{self.folder}/no "place" here')
        self.source.qmp.wait_status_of_failure()
        head = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z source info source.ends .* reason="')
        self.source.err.wait_for(
            lambda line: head.match(line) and r'no \"place\" here' in line,
            'one line')


class AtTheHeir(LogCase):
    def heir(self):
        found = waiting.until(lambda: self.source.qmp.migration()['x-towline'].get('page-server', {}).get('pid'),
                              'a page server')
        return self.closing(page_servers.Server(found, f'{self.source.qmp_path}.pages'))

    def goes_on(self, server):
        self.source.kill()
        self.relay.cut()
        self.recovered(server)
        self.relay.cut()
        self.recovered(server, count=2)
        self.keeps(server, 'source.heir')
        server.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.target.qmp.wait_status('completed')
        self.guest.moved_to(self.target)
        server.wait_end()
        self.is_whole()

    def test_an_heir_that_inherited_a_stuck_log_goes_on(self):
        self.pair('--page-server', 'own')
        self.source.err.stop()
        self.slowly_in_postcopy()
        self.goes_on(self.heir())

    def test_an_heir_whose_log_gets_stuck_after_the_switch_goes_on(self):
        self.pair('--page-server', 'own')
        self.slowly_in_postcopy()
        server = self.heir()
        self.source.err.stop()
        self.goes_on(server)


class TheTerminal(LogCase):
    def test_a_machine_on_a_terminal_that_is_paused_answers_and_ends(self):
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        path = self.folder / 'qmp'
        machine = subprocess.Popen(
            [vm.TOWLINE, 'run', '--kernel', vm.BARE_GUEST, '--memory', '64M', '--serial', 'stdio', '--qmp',
             f'unix:{path}', '--append', moves.with_facts(moves.BUSY), *DEBUG],
            stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=vm.die_with_parent)
        self.addCleanup(machine.wait)
        self.addCleanup(machine.kill)
        control = self.closing(qmp.Qmp(path, lambda: machine.poll() is None))
        waiting.until(lambda: not select.select([], [slave], [], 0)[1], 'a terminal that is full')
        os.close(slave)
        self.assertEqual(control.run_state(), 'running')
        control('quit')
        self.assertEqual(machine.wait(waiting.LIMIT_S), 0)


class TheSerialPort(LogCase):
    def test_a_guest_whose_output_nobody_reads_is_moved_and_its_machine_ends(self):
        self.pair()
        self.source.serial.stop()
        self.slowly_in_postcopy()
        self.relay.cut()
        self.recovered(self.source, self.target)
        self.finish()
        self.source.qmp('quit')
        self.assertEqual(self.source.wait_status(), 0)
        self.is_whole()


if __name__ == '__main__':
    unittest.main()
