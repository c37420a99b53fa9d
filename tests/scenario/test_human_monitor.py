"""Machines that are driven by typed lines alone, as scripts written for QEMU's monitor do it."""
import re
import socket

import moves
import waiting

PROMPT = '(qemu) '


class Terminal:
    """A client of the human monitor: a line is typed, and its answer ends at the next prompt."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(waiting.LIMIT_S)
        self._socket.connect(str(path))
        self.banner = self.read_to_prompt()

    def read_to_prompt(self):
        heard = ''
        while not heard.endswith(PROMPT):
            part = self._socket.recv(65536).decode()
            if not part:
                raise EOFError(f'the monitor closed the connection behind {heard!r}')
            heard += part
        return heard[:-len(PROMPT)]

    def write(self, text):
        self._socket.sendall(text.encode())

    def __call__(self, line):
        self.write(line + '\n')
        return self.read_to_prompt()

    def close(self):
        self._socket.close()


class HumanMonitor(moves.MoveCase):
    def terminal(self, machine):
        waiting.until(lambda: (self.folder / f'{machine.name}.monitor').exists(), 'the monitor')
        return self.closing(Terminal(self.folder / f'{machine.name}.monitor'))

    def with_monitor(self, name):
        return {'extra': ('--monitor', f'unix:{self.folder}/{name}.monitor')}

    def two(self):
        self.source = self.run_vm('source', append=moves.with_facts(moves.BUSY, 1),
                                  **self.with_monitor('source'))
        self.guest = moves.Guest(self.source)
        self.target = self.run_vm('target', incoming='defer', **self.with_monitor('target'))
        self.guest.wait_for('guest.start')
        return self.terminal(self.source), self.terminal(self.target)

    def listening_at(self, there):
        self.assertEqual(there('migrate_incoming tcp:127.0.0.1:0'), '')
        return re.search(r'^\ttcp:127\.0\.0\.1:(\d+)\r$', there('info migrate'), re.M)[1]

    def test_the_tutorials_way_through_a_post_copy(self):
        here, there = self.two()
        self.assertIn("type 'help' for more information", here.banner)
        for terminal in (here, there):
            self.assertEqual(terminal('migrate_set_capability postcopy-ram on'), '')
        port = self.listening_at(there)
        self.assertIn('VM status: paused (inmigrate)', there('info status'))
        self.assertEqual(here('migrate_set_parameter max-bandwidth 1G'), '')
        self.assertIn('max-bandwidth: 1073741824 bytes/second', here('info migrate_parameters'))
        self.assertEqual(here(f'migrate -d tcp:127.0.0.1:{port}'), '')
        waiting.until(lambda: 'Migration status: active' in here('info migrate'), 'the pass')
        self.assertEqual(here('migrate_start_postcopy'), '')
        waiting.until(lambda: 'Migration status: completed' in here('info migrate'), 'the end')
        self.assertRegex(here('info migrate'), r'remaining ram: 0 kbytes\r\ntotal ram: \d+ kbytes')
        self.assertIn('Error: The guest was moved away', here('cont'))
        self.assertIn('VM status: running', there('info status'))
        self.guest.moved_to(self.target)
        here.write('quit\n')
        self.assertEqual(self.source.wait(), 0)
        self.verdict(end_source=False)

    def test_migrate_without_d_returns_the_prompt_when_the_guest_is_there(self):
        here, there = self.two()
        here('migrate_set_capability postcopy-ram on')
        here('migrate_set_parameter x-towline-switch after-pass')
        port = self.listening_at(there)
        self.assertEqual(here(f'migrate tcp:127.0.0.1:{port}'), 'Migration status: completed\r\n')
        self.assertIn('VM status: running', there('info status'))
        self.guest.moved_to(self.target)
        self.verdict()

    def test_a_terminal_that_goes_while_it_waits_harms_nothing(self):
        here, there = self.two()
        here('migrate_set_capability postcopy-ram on')
        port = self.listening_at(there)
        here.write(f'migrate tcp:127.0.0.1:{port}\n')
        waiting.until(lambda: self.source.qmp.status() == 'active', 'the pass')
        here.close()
        self.source.qmp('migrate-start-postcopy')
        self.source.qmp.wait_status('completed')
        self.guest.moved_to(self.target)
        self.verdict()

    def test_qmp_takes_the_same_lines(self):
        here, _ = self.two()
        answer = self.source.qmp('human-monitor-command', command_line='info migrate_parameters')
        self.assertEqual(answer, here('info migrate_parameters'))
        threads = [one['thread-id'] for one in self.source.qmp('query-cpus-fast')]
        with open(f'/proc/{self.source.pid}/task/{threads[0]}/comm', encoding='ascii') as name:
            self.assertEqual(name.read(), 'vcpu-0\n')

    def test_garbage_is_answered_in_lines_and_the_next_line_is_read(self):
        here, _ = self.two()
        self.assertIn('Error: ', here('\x00\xff"'))
        here.write('x' * 100_000)
        self.assertIn('more than 4096 bytes', here.read_to_prompt())
        self.assertEqual(here('\nstop'), '')
        self.source.qmp.wait_run_state('paused')
