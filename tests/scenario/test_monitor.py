"""The monitor answers, whoever asks and whatever state the guest is in."""
import json
import socket
import unittest

import moves
import qmp
import vm
import waiting

LARGEST_MESSAGE = 1 << 20
DEEPEST = 64


class Raw:
    """A client without manners."""

    def __init__(self, path):
        self.socket = waiting.until(lambda: qmp.dial(path), 'the monitor')
        self.socket.settimeout(waiting.LIMIT_S)
        self.lines = self.socket.makefile('rb')

    def send(self, data):
        self.socket.sendall(data)

    def read(self):
        return json.loads(self.lines.readline())

    def ready(self):
        self.read()
        self.send(b'{"execute": "qmp_capabilities"}\n')
        self.read()
        return self

    def close(self):
        self.lines.close()
        self.socket.close()


class Conversation(vm.ScenarioCase):
    def setUp(self):
        super().setUp()
        self.machine = self.run_vm('machine')
        self.machine.qmp.run_state()

    def raw(self):
        return self.closing(Raw(self.machine.qmp_path))

    def still_answers(self, client=None):
        """This client and every other."""
        if client:
            client.send(b'{"execute": "query-status", "id": "after"}\n')
            while (answer := client.read()).get('id') != 'after':
                self.assertIn('error', answer)
            self.assertEqual(answer['return']['status'], 'running')
        self.assertEqual(self.machine.qmp.run_state(), 'running')

    def test_the_greeting_is_qemus_with_our_package(self):
        greeting = self.raw().read()['QMP']
        self.assertEqual(greeting['version']['qemu'], {'micro': 0, 'minor': 2, 'major': 10})
        self.assertRegex(greeting['version']['package'], '(?i)towline')

    def test_every_message_is_one_line_that_ends_in_crlf(self):
        client = self.raw()
        self.assertTrue(client.lines.readline().endswith(b'}\r\n'))
        client.send(b'{"execute": "qmp_capabilities"}\n')
        self.assertEqual(client.lines.readline(), b'{"return": {}}\r\n')

    def test_commands_before_the_negotiation_are_refused(self):
        client = self.raw()
        client.read()
        client.send(b'{"execute": "query-status"}\n')
        self.assertEqual(client.read()['error']['class'], 'CommandNotFound')

    def test_garbage_is_answered_with_an_error_each_and_ends_nothing(self):
        for garbage in (b'hello\n', b'\x00\x01\x02\xfe\n', b'{"execute": \n}\n', b'}}}\n', b'[1,2]\n',
                        b'"text"\n', b'{"execute": 7}\n', b'{}\n', b'{"execute": ""}\n',
                        b'{"execute": "query-status", "arguments": []}\n', b'\xff\xff\xff\n',
                        '{"execute": "übung"}\n'.encode()):
            with self.subTest(garbage=garbage):
                client = self.raw().ready()
                client.send(garbage)
                self.assertIn('error', client.read())
                self.still_answers(client)

    def test_an_unknown_command_is_named(self):
        with self.assertRaises(qmp.QmpError) as caught:
            self.machine.qmp('make-coffee')
        self.assertEqual(caught.exception.kind, 'CommandNotFound')
        self.assertIn('make-coffee', caught.exception.desc)

    def test_a_message_beyond_the_limit_is_refused_and_not_kept(self):
        client = self.raw().ready()
        client.send(b'{"execute": "' + b'x' * (4 * LARGEST_MESSAGE) + b'"}\n')
        self.assertIn('error', client.read())
        self.still_answers(client)

    def test_a_message_without_an_end_costs_no_more_than_the_limit(self):
        client = self.raw().ready()
        before = vm.own_bytes(self.machine.pid)
        try:
            for _ in range(64):
                client.send(b'[' + b'"x",' * (LARGEST_MESSAGE // 4))
        except (BrokenPipeError, ConnectionResetError):
            pass  # To hang up is an answer too.
        self.assertLess(vm.own_bytes(self.machine.pid) - before, 16 * LARGEST_MESSAGE)
        self.still_answers()

    def test_nesting_beyond_the_limit_is_refused(self):
        client = self.raw().ready()
        deep = b'{"execute": "query-status", "arguments": ' + b'{"a": ' * (DEEPEST * 20) + \
            b'1' + b'}' * (DEEPEST * 20) + b'}\n'
        client.send(deep)
        self.assertIn('error', client.read())
        self.still_answers(client)

    def test_nesting_of_a_million_does_not_end_the_process(self):
        client = self.raw().ready()
        client.send(b'[' * 900_000 + b'\n')
        self.assertIn('error', client.read())
        self.still_answers()

    def test_a_client_that_goes_in_the_middle_of_a_message_harms_nobody(self):
        for data in (b'', b'{"execu', b'{"execute": "query-status"}\n'):
            client = Raw(self.machine.qmp_path).ready()
            client.send(data)
            client.close()
        self.still_answers()

    def test_a_client_that_never_reads_harms_nobody(self):
        client = self.raw().ready()
        client.socket.settimeout(1)
        before = vm.own_bytes(self.machine.pid)
        try:
            for _ in range(2000):
                client.send(b'{"execute": "query-commands"}\n' * 10)
        except (socket.timeout, BrokenPipeError, ConnectionResetError):
            pass
        self.assertLess(vm.own_bytes(self.machine.pid) - before, 64 * LARGEST_MESSAGE)
        self.still_answers()

    def test_many_clients_are_answered(self):
        clients = [self.raw() for _ in range(16)]
        for client in clients:
            client.ready()
        for client in clients:
            self.still_answers(client)

    def test_commands_sent_at_once_are_answered_in_order(self):
        client = self.raw().ready()
        client.send(b''.join(b'{"execute": "query-status", "id": %d}' % at for at in range(200)))
        self.assertEqual([client.read()['id'] for _ in range(200)], list(range(200)))

    def test_every_command_that_is_listed_answers(self):
        listed = self.machine.qmp('query-commands')
        self.assertIn('qmp_capabilities', [command['name'] for command in listed])
        for command in listed:
            name = command['name']
            if name.startswith('query-') or name in ('stop', 'cont'):
                with self.subTest(command=name):
                    self.machine.qmp(name)

    def test_stop_and_cont_are_told_to_every_client(self):
        other = self.machine.new_client()
        self.machine.qmp('stop')
        other.wait_event('STOP')
        self.machine.qmp('cont')
        other.wait_event('RESUME')

    def test_quit_ends_the_process_after_its_answer(self):
        self.assertEqual(self.machine.qmp('quit'), {})
        self.assertEqual(self.machine.wait(), 0)


class NotBuilt(vm.ScenarioCase):
    """What is not built is refused, never accepted and ignored."""

    def setUp(self):
        super().setUp()
        self.machine = self.run_vm('machine')

    def test_capabilities_listed_are_exactly_those_that_can_be_set(self):
        listed = {one['capability'] for one in self.machine.qmp('query-migrate-capabilities')}
        self.assertEqual(listed, {'events', 'postcopy-ram', 'postcopy-preempt', 'multifd',
                                  'pause-before-switchover', 'return-path'})
        self.machine.qmp('migrate-set-capabilities',
                         capabilities=[{'capability': name, 'state': True} for name in listed])
        for name in ('xbzrle', 'mapped-ram', 'x-colo', 'no-such'):
            with self.subTest(capability=name), self.assertRaises(qmp.QmpError) as caught:
                self.machine.qmp('migrate-set-capabilities',
                                 capabilities=[{'capability': name, 'state': True}])
            self.assertIn(name, caught.exception.desc)

    def test_a_manager_may_turn_off_whatever_it_did_not_ask_for(self):
        before = self.machine.qmp('query-migrate-capabilities')
        self.machine.qmp.set_capabilities(**{name: False for name in (
            'xbzrle', 'auto_converge', 'release_ram', 'multifd', 'postcopy_blocktime',
            'background_snapshot', 'mapped_ram', 'events', 'postcopy_ram')})
        self.assertEqual(self.machine.qmp('query-migrate-capabilities'), before)

    def test_a_list_with_one_bad_capability_changes_none(self):
        with self.assertRaises(qmp.QmpError):
            self.machine.qmp('migrate-set-capabilities', capabilities=[
                {'capability': 'events', 'state': True}, {'capability': 'xbzrle', 'state': True}])
        states = {one['capability']: one['state']
                  for one in self.machine.qmp('query-migrate-capabilities')}
        self.assertFalse(states['events'])

    def test_parameters_that_are_set_are_told_back(self):
        self.machine.qmp('migrate-set-parameters', max_bandwidth=12345678,
                         max_postcopy_bandwidth=87654321)
        found = self.machine.qmp('query-migrate-parameters')
        self.assertEqual(found['max-bandwidth'], 12345678)
        self.assertEqual(found['max-postcopy-bandwidth'], 87654321)

    def test_parameters_that_do_not_exist_are_named(self):
        for name, value in (('multifd-channels', 17), ('tls-creds', 'tls0'), ('warp-factor', 3)):
            with self.subTest(parameter=name), self.assertRaises(qmp.QmpError) as caught:
                self.machine.qmp('migrate-set-parameters', **{name: value})
            self.assertIn(name, caught.exception.desc)

    def test_what_a_manager_always_sets_is_taken_and_all_that_is_told_can_be_set_again(self):
        # The list that Proxmox sends before each move, and QEMU's own defaults.
        self.machine.qmp('migrate-set-parameters', **{
            'xbzrle-cache-size': 67108864, 'max-bandwidth': 1 << 30, 'downtime-limit': 100,
            'tls-creds': '', 'tls-hostname': '', 'multifd-channels': 2})
        told = self.machine.qmp('query-migrate-parameters')
        self.assertEqual(told['xbzrle-cache-size'], 67108864)
        self.machine.qmp('migrate-set-parameters', **told)
        self.assertEqual(self.machine.qmp('query-migrate-parameters'), told)

    def test_a_bad_uri_is_refused(self):
        for uri in ('exec:cat', 'fd:3', 'rdma:host:1', 'tcp:', 'nonsense'):
            with self.subTest(uri=uri), self.assertRaises(qmp.QmpError):
                self.machine.qmp('migrate', uri=uri)
        self.assertNotIn('status', self.machine.qmp.migration())

    def test_incoming_is_refused_on_a_machine_that_runs(self):
        with self.assertRaises(qmp.QmpError):
            self.machine.qmp('migrate-incoming', uri='tcp:127.0.0.1:0')

    def test_incoming_twice_is_refused(self):
        target = self.run_vm('target', incoming='defer')
        target.qmp('migrate-incoming', uri='tcp:127.0.0.1:0')
        with self.assertRaisesRegex(qmp.QmpError, 'already'):
            target.qmp('migrate-incoming', uri='tcp:127.0.0.1:0')

    def test_postcopy_is_not_started_before_migrate(self):
        self.machine.qmp.set_capabilities(postcopy_ram=True)
        with self.assertRaisesRegex(qmp.QmpError, 'after migration has been started'):
            self.machine.qmp('migrate-start-postcopy')

    def test_postcopy_is_not_started_without_its_capability(self):
        with self.assertRaisesRegex(qmp.QmpError, 'migrate_set_capability'):
            self.machine.qmp('migrate-start-postcopy')


class WhileEveryVcpuWaits(moves.MoveCase):
    """The supply of pages is held shut until the monitor has answered: order, and not time."""

    def test_the_monitor_answers_while_every_vcpu_waits_for_a_page(self):
        # One vCPU: of several, two may wait for the same page, or one for another's lock.
        self.pair()
        self.stopped_in_postcopy()
        waiting.until(lambda: self.outstanding() >= 1, 'the vCPU to wait')
        for command in ('query-status', 'query-migrate', 'query-commands',
                        'query-migrate-parameters', 'query-migrate-capabilities', 'stop', 'cont'):
            with self.subTest(command=command):
                self.target.qmp(command)
        other = self.target.new_client()
        self.assertEqual(other.status(), 'postcopy-active')
        # Nothing came meanwhile: it still waits for the very same page.
        self.assertGreaterEqual(self.outstanding(), 1)
        self.relay.release()
        self.source.qmp.wait_status('completed')
        self.verdict()

    def test_every_query_is_answered_while_two_vcpus_wait_and_the_source_is_dead(self):
        self.pair(vcpus=2)
        self.stopped_in_postcopy()
        # Of the kernel, because both may wait for one page, which is asked for once.
        waiting.until(lambda: vm.userfault_waiters(self.target.pid) >= 2, 'both vCPUs to wait')
        self.source.kill()
        self.relay.cut()
        self.target.qmp.wait_status('postcopy-paused')
        queries = [command['name'] for command in self.target.qmp('query-commands')
                   if command['name'].startswith('query-')]
        self.assertIn('query-migrate', queries)
        for client in (self.target.qmp, self.target.new_client()):
            for command in [*queries, 'stop', 'cont']:
                with self.subTest(command=command):
                    client(command)
        self.assertEqual(self.target.qmp.run_state(), 'running')
        said = self.towline('status', self.target.qmp_path)
        self.assertEqual(said.wait(), 0, said.err.text())
        # Nothing came meanwhile: they wait for the very same pages.
        self.assertGreaterEqual(vm.userfault_waiters(self.target.pid), 2)

    def test_before_the_first_byte_everything_remains(self):
        self.pair()
        self.stopped_in_setup()
        answer = self.source.qmp.migration()
        self.assertEqual(answer['status'], 'setup')
        self.assertEqual(answer['ram']['remaining'], answer['ram']['total'])
        self.assertGreaterEqual(answer['ram']['total'], 128 * moves.MIB)
        self.source.qmp('migrate-set-parameters', downtime_limit=0)  # Managers do, while one runs.
        self.source.qmp('migrate_cancel')
        self.relay.release()
        self.source.qmp.wait_status('cancelled')
        self.source_runs_on()

    def outstanding(self):
        return self.target.qmp.migration()['x-towline']['faults']['outstanding']

    def test_the_target_tells_its_progress_in_postcopy(self):
        self.pair(append=moves.STILL)
        self.slowly_in_postcopy()
        first = self.target.qmp.migration()['ram']['remaining']
        self.assertGreater(first, 16 * moves.MIB)
        waiting.until(lambda: self.target.qmp.migration()['ram']['remaining'] < first,
                      'less that remains')
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()


if __name__ == '__main__':
    unittest.main()
