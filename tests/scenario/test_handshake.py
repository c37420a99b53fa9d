"""Strangers, liars and bad links. Time and memory stay bounded, and no other lane is harmed."""
import os
import socket
import threading
import unittest

import moves
import relay
import vm
import waiting
import wire

NOISE = bytes((at * 167 + 13) & 0xff for at in range(4096))
LONG_PAYLOAD = 0xfffffff0


def open_files(pid):
    return len(os.listdir(f'/proc/{pid}/fd'))


class Strangers(moves.MoveCase):
    """Connections to a target's port from somebody who is not the source."""

    def setUp(self):
        super().setUp()
        self.pair(relayed=False)
        self.address = ('127.0.0.1', int(self.uri.rsplit(':', 1)[1]))

    def dial(self, data=b''):
        peer = self.closing(wire.Peer(self.address))
        if data:
            peer.send(data)
        return peer

    def greet(self, role, **fields):
        """A stranger that gets as far as a stranger can."""
        return self.dial(wire.frame(wire.HELLO, wire.hello(role, **fields)))

    def still_takes_its_guest(self):
        self.assertEqual(self.target.qmp.run_state(), 'inmigrate')
        self.move()
        self.verdict()

    def at_every_point(self):
        """A connection at each point of the handshake, on each lane."""
        hello = {role: wire.frame(wire.HELLO, wire.hello(role))
                 for role in (wire.CONTROL, wire.URGENT, wire.BULK)}
        yield self.dial()
        for role, whole in hello.items():
            yield self.dial(whole[:1])
            yield self.dial(whole[:wire.HEADER_BYTES])
            yield self.dial(whole[:-1])
            yield self.dial(whole)

    def test_silence_at_every_point_ends_in_time_and_harms_nobody(self):
        peers = list(self.at_every_point())
        for peer in peers:
            peer.wait_closed()
        self.still_takes_its_guest()

    def test_silent_strangers_keep_the_source_out_for_a_moment_at_most(self):
        # The one that came as far as a lane has its place until its time is over.
        self.assertEqual(len(list(self.at_every_point())), 13)

        def taken():
            self.begin(x_towline_switch='after-pass')
            return waiting.until(lambda: (now := self.source.qmp.status()) in
                                 ('completed', 'failed') and now, 'an end') == 'completed'

        waiting.until(taken, 'the source to be taken')
        self.completed()
        self.verdict()

    def test_noise_at_every_point_ends_it_and_harms_nobody(self):
        for peer in self.at_every_point():
            try:
                peer.send(NOISE)
            except (BrokenPipeError, ConnectionResetError):
                pass  # Refused already: as good.
            peer.wait_closed()
        self.still_takes_its_guest()

    def test_an_http_client_is_dropped(self):
        self.dial(b'GET / HTTP/1.1\r\nHost: example\r\n\r\n' + b'x' * 100).wait_closed()
        self.still_takes_its_guest()

    def test_a_wrong_version_is_told_both_ranges(self):
        peer = self.greet(wire.CONTROL, low=7, high=9)
        header, text = peer.read_frame()
        self.assertEqual(header.kind, wire.REFUSE)
        for number in (b'1', b'7', b'9'):
            self.assertIn(number, text)
        peer.wait_closed()
        self.still_takes_its_guest()

    def test_one_wrong_thing_in_a_hello_is_refused(self):
        good = wire.hello()
        wrong = {
            'magic': wire.frame(wire.HELLO, wire.hello(magic=b'TOWLINE\r')),
            'role': wire.frame(wire.HELLO, wire.hello(role=9)),
            'bulk lane number': wire.frame(wire.HELLO, wire.hello(role=wire.BULK, lane=200)),
            'short': wire.frame(wire.HELLO, good[:-8]),
            'type': wire.frame(wire.RUN),
            'direction': wire.frame(wire.HELLO_REPLY, bytes(wire.HELLO_REPLY_BYTES)),
            'header checksum': wire.Header(wire.HELLO, length=80).pack()[:-1] + b'\0' + good,
            'payload checksum': wire.Header(wire.HELLO, length=80, payload_crc=1).pack() + good,
            'unknown flags': wire.frame(wire.HELLO, good, flags=0x8000),
            'unknown type': wire.frame(999, good),
        }
        for what, data in wrong.items():
            with self.subTest(what=what):
                peer = self.dial(data)
                rest = peer.wait_closed()
                self.assertNotIn(wire.LANE_READY.to_bytes(2, 'little'), [rest[:2]])
        self.still_takes_its_guest()

    def test_a_frame_that_says_it_is_huge_costs_nothing(self):
        before = vm.own_bytes(self.target.pid)
        for role in (wire.CONTROL, wire.URGENT, wire.BULK):
            for kind in (wire.HELLO, wire.DESCRIBE, wire.STATE, wire.PAGES):
                peer = self.greet(role)
                try:
                    peer.send(wire.Header(kind, length=LONG_PAYLOAD, count=1).pack() + NOISE)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                peer.wait_closed()
        self.assertLess(vm.own_bytes(self.target.pid) - before, 32 * moves.MIB)
        self.still_takes_its_guest()

    def test_a_description_of_noise_is_refused_and_the_next_source_taken(self):
        for size in (1, 100, 4000):
            peer = self.greet(wire.CONTROL)
            peer.send(wire.frame(wire.DESCRIBE, NOISE[:size]))
            peer.wait_closed()
        self.still_takes_its_guest()

    def test_a_stranger_cannot_order_a_guest_to_run(self):
        peer = self.greet(wire.CONTROL)
        peer.send(wire.frame(wire.RUN))
        peer.wait_closed()
        self.assertEqual(self.target.qmp.run_state(), 'inmigrate')
        self.still_takes_its_guest()

    def test_lanes_without_a_migration_are_refused(self):
        for role in (wire.URGENT, wire.BULK):
            peer = self.greet(role, identity=bytes(16), epoch=1)
            header, _ = peer.read_frame()
            self.assertEqual(header.kind, wire.REFUSE)
            peer.wait_closed()
        self.still_takes_its_guest()

    def test_thousands_of_connections_stay_bounded(self):
        files, memory = open_files(self.target.pid), vm.own_bytes(self.target.pid)
        peers = []
        for _ in range(2000):
            peers.append(self.dial(b'T'))
            if len(peers) > 400:
                peers.pop(0).close()
        self.assertLess(open_files(self.target.pid) - files, 200)
        self.assertLess(vm.own_bytes(self.target.pid) - memory, 32 * moves.MIB)
        self.still_takes_its_guest()


class StrangersInPostcopy(moves.MoveCase):
    """The same while a guest depends on its lanes."""

    def test_strangers_in_postcopy_change_nothing(self):
        self.pair()
        self.stopped_in_postcopy()
        for role in (wire.CONTROL, wire.URGENT, wire.BULK):
            for data in (b'', NOISE, wire.frame(wire.RUN), wire.frame(wire.CANCEL, b'no')):
                peer = self.closing(wire.Peer(self.relay.target))
                try:
                    peer.send(wire.frame(wire.HELLO, wire.hello(role)) + data)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                if data:
                    peer.wait_closed()
        self.assertEqual(self.target.qmp.status(), 'postcopy-active')
        self.assertEqual(self.source.qmp.status(), 'postcopy-active')
        self.relay.release()
        self.source.qmp.wait_status('completed')
        self.verdict()

    def test_a_second_source_is_refused_and_told_why(self):
        self.pair()
        self.stopped_in_postcopy()
        second = self.run_vm('second')
        second.qmp.set_capabilities(postcopy_ram=True)
        second.qmp('migrate', uri=f'tcp:127.0.0.1:{self.relay.target[1]}')
        answer = second.qmp.wait_status_of_failure()
        self.assertTrue(answer.get('error-desc'))
        self.assertEqual(second.qmp.run_state(), 'running')
        self.relay.release()
        self.source.qmp.wait_status('completed')
        self.verdict()

    def test_a_recorded_proof_opens_no_second_lane(self):
        self.pair()
        self.stopped_in_postcopy()
        for lane in ('urgent', 'bulk0'):
            with self.subTest(lane=lane):
                record = self.relay.recorded(lane)
                hello = len(wire.greeting_in(record))
                peer = self.closing(wire.Peer(self.relay.target))
                peer.send(record[:hello])
                header, _ = peer.read_frame()
                if header.kind != wire.REFUSE:
                    peer.send(record[hello:hello + wire.HEADER_BYTES + 32])
                    header, _ = peer.read_frame()
                self.assertEqual(header.kind, wire.REFUSE)
        self.relay.release()
        self.source.qmp.wait_status('completed')
        self.verdict()


class LyingTarget:
    """Listens, and answers each connection with the same bytes."""

    def __init__(self, answer, hang_up):
        self.answer, self.hang_up = answer, hang_up
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.uri = f'tcp:127.0.0.1:{self.listener.getsockname()[1]}'
        self.kept = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            try:
                if self.answer:
                    connection.sendall(self.answer)
                if self.hang_up:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            self.kept.append(connection)

    def close(self):
        self.listener.close()
        for connection in self.kept:
            connection.close()


def reply(version=1, phase=0):
    """The payload of a target's answer to a hello."""
    head = wire.MAGIC + version.to_bytes(2, 'little') + bytes([phase])
    return head.ljust(wire.HELLO_REPLY_BYTES, b'\0')


class Liars(moves.MoveCase):
    """A target that lies: the source's guest runs on, and its user is told."""

    def setUp(self):
        super().setUp()
        self.source = self.run_vm('source', append=moves.with_facts(moves.BUSY))
        self.guest = moves.Guest(self.source)
        self.guest.wait_for('guest.start')

    def lied_to(self, answer, hang_up=True):
        target = self.closing(LyingTarget(answer, hang_up))
        self.source.qmp.set_capabilities(postcopy_ram=True)
        self.source.qmp('migrate', uri=target.uri)
        found = self.source.qmp.wait_status_of_failure()
        self.assertTrue(found.get('error-desc'))
        self.assertEqual(self.source.qmp.run_state(), 'running')
        self.guest.wait_reports(1)
        return found['error-desc']

    def test_a_target_that_hangs_up_at_once(self):
        self.lied_to(b'')

    def test_a_target_that_says_nothing(self):
        self.lied_to(b'', hang_up=False)

    def test_a_target_that_speaks_something_else(self):
        self.lied_to(b'SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n' * 10)

    def test_a_target_that_refuses_is_quoted(self):
        self.assertIn('the tide is out', self.lied_to(wire.frame(wire.REFUSE, b'the tide is out')))

    def test_a_refusal_cannot_write_to_the_users_terminal(self):
        text = self.lied_to(wire.frame(wire.REFUSE, b'bad \x1b[2J\x07 words'))
        self.assertNotIn('\x1b', text)
        self.assertNotIn('\x07', text)

    def test_a_target_of_another_version(self):
        # It does not hang up: the answer alone has to be enough.
        said = self.lied_to(wire.frame(wire.HELLO_REPLY, reply(version=99)) +
                            wire.frame(wire.LANE_READY), hang_up=False)
        for words in ('speaks wire versions 1 to 1', 'wire version 99, where 1 to 1 were offered',
                      'the same version of Towline at both ends'):
            self.assertIn(words, said)

    def test_a_target_that_answers_out_of_turn(self):
        for kind in (wire.LANE_READY, wire.RUNNING, wire.COMPLETE, wire.ACCEPT):
            with self.subTest(kind=kind):
                self.lied_to(wire.frame(kind, bytes(8) if kind == wire.RUNNING else b''))

    def test_a_target_that_is_ready_and_then_silent(self):
        self.lied_to(wire.frame(wire.HELLO_REPLY, reply()) + wire.frame(wire.LANE_READY),
                     hang_up=False)

    def test_a_target_that_claims_to_run_the_guest_before_it_was_sent(self):
        self.lied_to(wire.frame(wire.HELLO_REPLY, reply()) + wire.frame(wire.LANE_READY) +
                     wire.frame(wire.RUNNING, bytes(8)), hang_up=False)

    def test_a_target_whose_answer_says_it_is_huge(self):
        before = vm.own_bytes(self.source.pid)
        self.lied_to(wire.Header(wire.REFUSE, length=LONG_PAYLOAD).pack() + NOISE)
        self.assertLess(vm.own_bytes(self.source.pid) - before, 32 * moves.MIB)


# Lane, direction, frame: what a move consists of.
STEPS = {
    'greeting': ('control', 'target', wire.HELLO),
    'answer': ('control', 'source', wire.HELLO_REPLY),
    'readiness': ('control', 'source', wire.LANE_READY),
    'description': ('control', 'target', wire.DESCRIBE),
    'acceptance': ('control', 'source', wire.ACCEPT),
    'urgent lane': ('urgent', 'target', wire.HELLO),
    'bulk lane': ('bulk0', 'target', wire.HELLO),
    'pages of the pass': ('bulk', 'target', wire.PAGES),  # Whichever lane has its turn first.
    'stale set': ('control', 'target', wire.ROUND_END),
    'acknowledged set': ('control', 'source', wire.STALE_APPLIED),
    'state': ('control', 'target', wire.STATE),
    'run order': ('control', 'target', wire.RUN),
    'running': ('control', 'source', wire.RUNNING),
    'request': ('urgent', 'source', wire.REQUEST),
    'demanded pages': ('urgent', 'target', wire.PAGES),
    'completion': ('control', 'source', wire.COMPLETE),
}
HARMS = {
    'link reset before the {}': relay.Cut(after=0, how='rst'),
    'link ended in the middle of the {}': relay.Cut(after=21, how='fin'),
    'bit flipped in the head of the {}': relay.Flip(offset=9, bit=4),
    'bit flipped at the end of the {}': relay.Flip(offset=-1, bit=7),
}


class BadLinks(moves.MoveCase):
    """The link breaks, or bits do, at every step of a move. Never two guests, never a wrong page."""

    def settled(self):
        """Waits for the end, whatever it is, and checks that it is a good one."""
        final = ('failed', 'completed', 'postcopy-paused')
        status = waiting.until(lambda: (now := self.source.qmp.status()) in final and now,
                               'the source to settle')
        if status == 'failed':
            self.source_runs_on()
        elif status == 'completed':
            self.target.qmp.wait_status('completed')
            self.guest.moved_to(self.target)
            self.verdict()
        else:
            self.assertNotEqual(self.source.qmp.run_state(), 'running')
            with self.assertRaises(moves.qmp.QmpError):
                self.source.qmp('cont')
            self.assertEqual(self.complaints_anywhere(), [])
        return status

    def complaints_anywhere(self):
        return [line for machine in (self.source, self.target)
                for line in machine.serial.snapshot() if line.startswith('guest.corrupt')]

    def broken_at(self, step, action):
        lane, direction, kind = step
        self.pair(append='working-set=16M untouched=2M rate=50000 report-ms=100')
        rule = self.relay.on(lane, direction, kind, action)
        # A guest that got no time may have dirtied nothing that it could wait for: where a request
        # must come, all of its memory goes after it.
        switch = 'immediate' if lane == 'urgent' else 'after-pass'
        self.begin(x_towline_switch=switch, max_postcopy_bandwidth=16 * moves.MIB)
        rule.wait()
        return self.settled()

    def test_a_slow_link_only_takes_longer(self):
        self.pair(append='working-set=8M untouched=2M rate=50000 report-ms=100')
        self.relay.delay(0.005)
        self.relay.limit(16 * moves.MIB, 'bulk')
        self.begin(x_towline_switch='after-pass')
        self.completed()
        self.verdict()

    def test_a_link_that_loses_packets_only_takes_longer(self):
        # What is lost twice takes TCP longer than a short patience, which is another test's matter.
        patience = {'x_towline_patience_ms': 60_000, 'x_towline_frozen_patience_ms': 60_000}
        self.pair(append='working-set=8M untouched=2M rate=50000 report-ms=100',
                  target_options={'parameters': patience})
        self.relay.lose(0.02)
        self.begin(x_towline_switch='after-pass', **patience)
        self.completed()
        self.assertEqual(self.source.qmp.migration()['x-towline']['recoveries'], 0)
        self.verdict()


def add_cases():
    """A case for each harm at each step."""
    for harm, action in HARMS.items():
        for name, step in STEPS.items():
            title = 'test_a_' + harm.format(name).replace(' ', '_')
            setattr(BadLinks, title,
                    lambda self, step=step, action=action: self.broken_at(step, action))


add_cases()

if __name__ == '__main__':
    unittest.main()
