"""The harness itself: a test that cannot fail is worth nothing, and neither is a wrong count."""
import contextlib
import io
import json
import os
import pathlib
import signal
import socket
import struct
import tempfile
import threading
import time
import unittest

import distance
import excerpts
import qmp
import relay
import run_suites
import vm
import waiting
import wire


class Counting(unittest.TestCase):
    DOCTEST = '[doctest] test cases: {} | {} passed | {} failed | 0 skipped\n'

    def tally(self, status, output):
        tally, complaint = run_suites.read_tally('suite', status, output)
        return tally.passed, tally.failed, len(tally.skips), complaint

    def test_cases_of_a_binary_are_counted_and_not_the_binary(self):
        self.assertEqual(self.tally(0, self.DOCTEST.format(12, 12, 0)), (12, 0, 0, None))

    def test_failed_cases_are_counted(self):
        self.assertEqual(self.tally(1, self.DOCTEST.format(12, 10, 2)), (10, 2, 0, None))

    def test_a_skip_is_not_a_pass(self):
        output = 'SKIP: no huge pages\nSKIPPED: 1\n' + self.DOCTEST.format(12, 12, 0)
        self.assertEqual(self.tally(0, output), (11, 0, 1, None))

    def test_a_binary_without_cases_fails(self):
        self.assertEqual(self.tally(0, self.DOCTEST.format(0, 0, 0))[1:], (1, 0, 'ran no case'))

    def test_a_binary_that_dies_half_way_fails(self):
        _, failed, _, complaint = self.tally(-11, '[doctest] doctest version is "2.4.9"\n')
        self.assertEqual(failed, 1)
        self.assertIn('-11', complaint)

    def test_a_bad_exit_after_good_cases_fails(self):
        _, failed, _, complaint = self.tally(66, self.DOCTEST.format(3, 3, 0))
        self.assertEqual(failed, 1)
        self.assertIn('66', complaint)

    def test_skips_that_are_not_named_fail(self):
        output = 'SKIPPED: 2\nSKIP: one\n' + self.DOCTEST.format(5, 5, 0)
        self.assertEqual(self.tally(0, output)[1], 1)

    def test_a_program_that_takes_too_long_is_asked_where_it_is_and_then_ended(self):
        asked = 'trap "echo in case x; exit 1" TERM; read line < /dev/zero & wait'
        status, output = run_suites.watch(['bash', '-c', asked], {}, limit=1, echo=False)
        self.assertIsNone(status)
        self.assertIn('in case x', output)

    def test_our_own_line_is_read(self):
        output = 'SKIP: x: why\n[cases] 4 passed, 1 failed, 1 skipped\n'
        self.assertEqual(self.tally(1, output), (4, 1, 1, None))

    def test_a_program_without_a_count_is_one_case(self):
        self.assertEqual(self.tally(0, 'layering: ok\n'), (1, 0, 0, None))
        self.assertEqual(self.tally(1, 'bad\n'), (0, 1, 0, None))
        self.assertEqual(self.tally(77, 'SKIP: no clang\n'), (0, 0, 1, None))


class Excerpts(unittest.TestCase):
    """What a failure leaves at the end of a run."""

    RULE = '=' * 79

    def shown(self, *lines):
        found = excerpts.excerpts('\n'.join(lines))
        self.assertTrue(all(line.startswith(excerpts.MARK) for line in found))
        return [line.removeprefix(excerpts.MARK) for line in found]

    def test_of_a_binary_the_case_and_its_errors(self):
        shown = self.shown(
            '[doctest] run with "--help"', self.RULE, '../a_test.cc:3:', 'TEST CASE:  it warns', '',
            '../a_test.cc:5: WARNING: WARN( x ) is NOT correct!', self.RULE, '../a_test.cc:9:',
            'TEST CASE:  it holds', '', '../a_test.cc:12: ERROR: CHECK( 1 == 2 ) is NOT correct!',
            '  values: CHECK( 1 == 2 )', '', self.RULE, '[doctest] test cases: 2 | 1 passed')
        self.assertEqual(shown[0], 'TEST CASE:  it holds')
        self.assertIn('../a_test.cc:12: ERROR: CHECK( 1 == 2 ) is NOT correct!', shown)
        self.assertNotIn('TEST CASE:  it warns', shown)

    def test_of_a_python_program_the_case_and_the_end_of_its_traceback(self):
        trace = [f'  File "x.py", line {number}' for number in range(40)]
        shown = self.shown('  ok        0.1 s  one', '  FAILED    0.2 s  two',
                           'Traceback (most recent call last):', *trace, 'AssertionError: 3 != 4',
                           '', '| vm err: a log', '  ok        0.1 s  three', '[cases] 2 passed')
        self.assertEqual((shown[0], shown[-1], len(shown)),
                         ('FAILED    0.2 s  two', 'AssertionError: 3 != 4', excerpts.LINES))

    def test_of_a_sanitizer_its_report(self):
        shown = self.shown('all is well', '==1==ERROR: AddressSanitizer: heap-use-after-free',
                           '    at f x.cc:3')
        self.assertIn('heap-use-after-free', shown[0])

    def test_of_anything_else_its_end(self):
        self.assertEqual(self.shown('one', '', 'two'), ['one', 'two'])

    def test_of_many_cases_the_first_and_the_names_of_the_others(self):
        output = [line for number in range(9)
                  for line in (f'  FAILED    0.2 s  case {number}', 'Traceback', 'Error')]
        shown = self.shown(*output)
        self.assertEqual(sum('case' in line for line in shown), 9)
        self.assertEqual(sum('Error' in line for line in shown), excerpts.CASES)


class FailedCase(unittest.TestCase):
    """What the cases about processes print when they fail."""

    def run_case(self, body):
        class Case(vm.ScenarioCase):
            def test(self):
                self.start(vm.Process(['sh', '-c', 'echo a word of it'], self.folder, 'sh')).wait()
                body(self)

        said = io.StringIO()
        result = unittest.TestResult()
        with contextlib.redirect_stdout(said):
            Case('test').run(result)
        return said.getvalue()

    def test_the_logs_of_its_processes_are_printed(self):
        self.assertIn('a word of it', self.run_case(lambda case: case.fail('no')))

    def test_also_when_only_a_part_failed_and_when_it_was_an_error(self):
        def part(case):
            with case.subTest(part=1):
                case.fail('no')

        self.assertIn('a word of it', self.run_case(part))
        self.assertIn('a word of it', self.run_case(lambda case: int('x')))

    def test_a_good_one_prints_nothing(self):
        self.assertEqual(self.run_case(lambda case: None), '')


class Sink:
    """The far end of a relay: keeps what arrives, and may answer."""

    def __init__(self):
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.address = self.listener.getsockname()
        self.data = b''
        self.ended = threading.Event()
        self.changed = threading.Condition()
        self.connection = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        try:
            self.connection, _ = self.listener.accept()
            while piece := self.connection.recv(65536):
                with self.changed:
                    self.data += piece
                    self.changed.notify_all()
            self.how = 'fin'
        except OSError:  # Reset; or the test is over and nobody came.
            self.how = 'rst'
        self.ended.set()

    def wait_bytes(self, count):
        with self.changed:
            return self.changed.wait_for(lambda: len(self.data) >= count, 20)

    def close(self):
        self.listener.close()
        if self.connection:
            self.connection.close()


class RelayRules(unittest.TestCase):
    def setUp(self):
        self.sink = Sink()
        self.relay = relay.Relay(self.sink.address)
        self.addCleanup(self.relay.close)
        self.addCleanup(self.sink.close)

    def dial(self, role=wire.CONTROL, lane=0):
        peer = wire.Peer(('127.0.0.1', self.relay.port), 20)
        self.addCleanup(peer.close)
        peer.send(wire.frame(wire.HELLO, wire.hello(role, lane)))
        self.relay.wait_lanes(1)
        return peer

    HELLO = wire.HEADER_BYTES + wire.HELLO_BYTES

    def test_lanes_are_known_by_their_hello(self):
        self.dial(wire.BULK, 3)
        self.assertEqual(self.relay.wait_lanes(1), ['bulk3'])

    def test_bytes_pass_unchanged_however_they_are_cut(self):
        peer = self.dial()
        sent = wire.frame(wire.STATE, bytes(range(256)) * 20)
        for at in range(0, len(sent), 7):
            peer.send(sent[at:at + 7])
        self.assertTrue(self.sink.wait_bytes(self.HELLO + len(sent)))
        self.assertEqual(self.sink.data[self.HELLO:], sent)

    def test_a_frame_is_held_from_its_first_byte_until_released(self):
        rule = self.relay.on('control', 'target', wire.RUN, relay.Hold())
        peer = self.dial()
        ping = wire.frame(wire.PING, b'12345678')
        peer.send(ping + wire.frame(wire.RUN))
        rule.wait(20)
        self.assertTrue(self.sink.wait_bytes(self.HELLO + len(ping)))
        self.assertEqual(len(self.sink.data), self.HELLO + len(ping))
        self.relay.release()
        self.assertTrue(self.sink.wait_bytes(self.HELLO + len(ping) + wire.HEADER_BYTES))

    def test_a_frame_is_cut_in_its_middle_by_a_reset(self):
        rule = self.relay.on('control', 'target', wire.RUN, relay.Cut(after=20, how='rst'))
        peer = self.dial()
        peer.send(wire.frame(wire.RUN))
        rule.wait(20)
        self.assertTrue(self.sink.ended.wait(20))
        self.assertEqual(self.sink.how, 'rst')
        self.assertLessEqual(len(self.sink.data), self.HELLO + 20)

    def test_a_frame_is_cut_in_its_middle_by_an_orderly_end(self):
        self.relay.on('control', 'target', wire.RUN, relay.Cut(after=20, how='fin'))
        peer = self.dial()
        peer.send(wire.frame(wire.RUN))
        self.assertTrue(self.sink.ended.wait(20))
        self.assertEqual((self.sink.how, len(self.sink.data)), ('fin', self.HELLO + 20))
        self.assertEqual(peer.wait_closed(), b'')

    def test_a_frame_is_swallowed_whole_and_nothing_behind_it(self):
        rule = self.relay.on('control', 'target', wire.STATE, relay.Swallow())
        peer = self.dial()
        run, state = wire.frame(wire.RUN), wire.frame(wire.STATE, bytes(5000))
        for piece in (run, state[:100], state[100:], run, run[:7], run[7:]):
            peer.send(piece)
        rule.wait(20)
        self.assertTrue(self.sink.wait_bytes(self.HELLO + 3 * len(run)))
        self.assertEqual(self.sink.data[self.HELLO:], 3 * run)

    def test_one_bit_of_one_frame_is_flipped(self):
        self.relay.on('control', 'target', wire.STATE, relay.Flip(wire.HEADER_BYTES + 5, 3), nth=2)
        peer = self.dial()
        state = wire.frame(wire.STATE, bytes(64))
        peer.send(state + state)
        self.assertTrue(self.sink.wait_bytes(self.HELLO + 2 * len(state)))
        first, second = (self.sink.data[self.HELLO + at * len(state):][:len(state)]
                         for at in (0, 1))
        self.assertEqual(first, state)
        self.assertEqual([at for at in range(len(state)) if second[at] != state[at]],
                         [wire.HEADER_BYTES + 5])

    def test_a_delay_keeps_the_order_and_narrows_nothing(self):
        self.relay.delay(0.05)
        peer = self.dial()
        sent = wire.frame(wire.STATE, bytes(range(256)) * 4)
        began = time.monotonic()
        for _ in range(400):  # One after another they would take 20 seconds.
            peer.send(sent)
        self.assertTrue(self.sink.wait_bytes(self.HELLO + 400 * len(sent)))
        self.assertGreaterEqual(time.monotonic() - began, 0.05)
        self.assertEqual(self.sink.data[self.HELLO:], 400 * sent)

    def test_what_a_lossy_network_drops_is_sent_again_and_arrives_as_it_was(self):
        peer = self.dial()
        self.relay.lose(0.1)
        sent = b''
        while not retransmitted(peer.socket):  # Something was lost.
            piece = wire.frame(wire.STATE, bytes(range(256)) * 4)
            peer.send(piece)
            sent += piece
        self.assertTrue(self.sink.wait_bytes(self.HELLO + len(sent)))
        self.assertEqual(self.sink.data[self.HELLO:], sent)

    def test_a_dead_network_is_no_more_than_lossy_when_it_lives_again(self):
        peer = self.dial()
        self.assertTrue(self.sink.wait_bytes(self.HELLO))
        self.relay.lose(0.05)
        self.relay.drop()
        piece = wire.frame(wire.STATE, bytes(1000))
        peer.send(piece)
        waiting.until(lambda: retransmitted(peer.socket), 'a packet to be lost')
        self.assertEqual(len(self.sink.data), self.HELLO)
        self.relay.undrop()
        self.assertTrue(self.sink.wait_bytes(self.HELLO + len(piece)))
        before = retransmitted(peer.socket)
        while retransmitted(peer.socket) == before:
            peer.send(piece)

    def test_an_orderly_end_waits_for_what_is_on_its_way(self):
        self.relay.delay(0.05)
        peer = self.dial()
        peer.send(wire.frame(wire.STATE, bytes(5000)))
        peer.socket.shutdown(socket.SHUT_WR)
        self.assertTrue(self.sink.ended.wait(20))
        self.assertEqual((self.sink.how, len(self.sink.data)),
                         ('fin', self.HELLO + wire.HEADER_BYTES + 5000))

    def test_a_cut_in_the_middle_of_a_frame_lets_the_part_before_it_arrive(self):
        self.relay.delay(0.05)
        self.relay.on('control', 'target', wire.RUN, relay.Cut(after=20, how='fin'))
        peer = self.dial()
        peer.send(wire.frame(wire.RUN))
        self.assertTrue(self.sink.ended.wait(20))
        self.assertEqual((self.sink.how, len(self.sink.data)), ('fin', self.HELLO + 20))

    def test_a_wire_is_shared_by_its_lanes(self):
        pace = distance.Pace(1 << 20)
        began = time.monotonic()
        threads = [threading.Thread(target=pace.wait, args=(64 << 10,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertGreaterEqual(time.monotonic() - began, 0.25 - distance.BURST_S - 0.001)

    def test_what_is_not_our_protocol_passes_as_it_is(self):
        peer = wire.Peer(('127.0.0.1', self.relay.port), 20)
        self.addCleanup(peer.close)
        noise = b'GET / HTTP/1.1\r\n\r\n' * 20
        peer.send(noise)
        self.assertTrue(self.sink.wait_bytes(len(noise)))
        self.assertEqual(self.sink.data, noise)

    def test_an_end_that_dies_hard_is_seen_at_the_other_end(self):
        peer = self.dial()
        relay.reset(peer.socket)
        self.assertTrue(self.sink.ended.wait(20))
        self.assertEqual(self.sink.how, 'rst')


def retransmitted(end):
    """Packets that the kernel sent again on a socket: tcpi_total_retrans of linux/tcp.h."""
    return struct.unpack_from('=I', end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192), 100)[0]


class ManyRelays(unittest.TestCase):
    """A chaos run makes a relay, or two, for each of a thousand moves."""

    @staticmethod
    def kept():
        return len(os.listdir('/proc/self/fd')), threading.active_count()

    def use(self, how):
        with socket.create_server(('127.0.0.1', 0)) as listener:
            one = relay.Relay(listener.getsockname())
            with socket.create_connection(('127.0.0.1', one.port)) as near:
                far, _ = listener.accept()
                with far:
                    near.sendall(b'x' * 80)
                    self.assertEqual(far.recv(1), b'x')
                    if how != 'left':
                        one.cut(how=how)
                    one.close()

    def test_nothing_is_left_of_one_that_was_closed(self):
        before = self.kept()
        for how in ('rst', 'fin', 'left') * 5:
            self.use(how)
        # What other cases left may go meanwhile.
        waiting.until(lambda: all(now <= was for now, was in zip(self.kept(), before)),
                      'its descriptors and threads to go')


class FakeMonitor(threading.Thread):
    """Answers with a script of lines, one for each line it reads."""

    def __init__(self, path, answers):
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.answers = answers

    def run(self):
        connection, _ = self.listener.accept()
        connection.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        with connection, connection.makefile('rb') as lines:
            for answer in self.answers:
                lines.readline()
                connection.sendall(answer)


class Monitors(unittest.TestCase):
    def test_events_between_command_and_reply_are_kept_apart(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name) / 'qmp'
        event = json.dumps({'event': 'STOP', 'data': {}}).encode() + b'\r\n'
        fake = FakeMonitor(path, [b'{"return": {}}\r\n',
                                  event + b'{"return": {"status": "paused"}}\r\n',
                                  b'{"error": {"class": "GenericError", "desc": "no"}}\r\n'])
        fake.start()
        client = qmp.Qmp(path)
        self.addCleanup(client.close)
        self.assertEqual(client.run_state(), 'paused')
        client.wait_event('STOP')
        with self.assertRaisesRegex(qmp.QmpError, 'no'):
            client('quit')
        client.wait_closed()


class Processes(vm.ScenarioCase):
    def test_lines_are_waited_for_and_an_end_is_told(self):
        process = self.start(vm.Process(['sh', '-c', 'echo one; echo two; exit 3'], self.folder,
                                        'sh'))
        self.assertEqual(process.out.wait_for(lambda line: line == 'two', 'two'), (1, True))
        with self.assertRaisesRegex(waiting.NeverHappened, 'ended'):
            process.out.wait_for(lambda line: line == 'three', 'three')
        self.assertEqual(process.wait(), 3)

    def test_a_killed_process_says_by_what(self):
        process = self.start(vm.Process(['sleep', '1000'], self.folder, 'sleep'))
        process.kill()
        self.assertEqual(process.wait(), -signal.SIGKILL)

    def test_processes_that_have_ended_leave_no_descriptor_open(self):
        before = set(os.listdir('/proc/self/fd'))
        for number in range(3):
            process = self.start(vm.Process(['echo', 'one'], self.folder, f'echo-{number}'))
            process.out.wait_for(lambda line: line == 'one', 'one')
            self.assertEqual(process.wait(), 0)
            process.kill()  # Its standard input is ours to close.
        self.assertEqual(set(os.listdir('/proc/self/fd')) - before, set())


if __name__ == '__main__':
    unittest.main()
