"""A flood of strangers: whoever knows the secret is let in, however many knock beside it."""
import socket
import threading
import unittest

import flood
import moves
import relay
import vm
import waiting
import wire

PLACES = 64  # runtime/link/listener.cc


class Flooded(moves.MoveCase):
    AUTO_RECOVER = True

    def in_postcopy(self, **parameters):
        self.pair(append=moves.STILL)
        self.slowly_in_postcopy(**parameters)

    def attempts(self):
        return self.source.qmp.migration()['x-towline']['epoch'] - 1

    def recoveries(self):
        return self.source.qmp.migration()['x-towline']['recoveries']

    def recovered_within(self, attempts):
        """That it is tied again, though not at the first attempt: a test machine may stall."""
        waiting.until(lambda: self.recoveries() or self.attempts() >= attempts, 'the link again')
        self.assertEqual(self.recoveries(), 1, f'not tied again in {self.attempts()} attempts')

    def fill_every_place(self):
        """When this returns, more strangers than there are places have come after whoever came
        before: the listener takes connections in the order of their coming."""
        for _ in range(2 * PLACES):
            self.kept.append(self.closing(wire.Peer(self.relay.target)))
        last = self.closing(wire.Peer(self.relay.target))
        last.send(wire.frame(wire.HELLO, wire.hello(wire.CONTROL, low=7, high=9)))
        header, _ = last.read_frame()
        self.assertEqual(header.kind, wire.REFUSE)

    def at_each_proof(self, function):
        """Calls it whenever the source stands between a greeting and its proof: on every lane, at
        every attempt, and beside one another."""
        for _ in range(100):
            self.relay.on(relay.ANY, 'target', wire.PROOF, relay.Call(function))

    def finish(self):
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()

    def test_strangers_who_come_between_a_greeting_and_its_proof_shut_nobody_out(self):
        self.in_postcopy()
        self.kept = []

        self.at_each_proof(self.fill_every_place)
        self.relay.cut()
        self.recovered_within(10)
        self.assertGreaterEqual(len(self.kept), 2 * PLACES)
        self.finish()

    def test_a_cut_link_is_tied_again_over_a_distance_while_a_flood_goes_on(self):
        self.in_postcopy()
        self.relay.delay(0.1)
        crowd = self.closing(flood.Flood(self.relay.target, self.relay.recorded('control')))
        before = crowd.wait_for(500)  # All places are held, and go from hand to hand.
        self.relay.cut()
        self.recovered_within(10)
        self.assertGreater(crowd.count(), before)
        crowd.wait_for(crowd.count() + 100)  # It goes on.
        crowd.close()
        self.relay.delay(0)
        self.finish()

    def test_a_greeting_that_is_said_again_takes_the_place_of_no_later_one(self):
        self.in_postcopy()
        replayed = []

        def replay():
            """The source stands between greeting and proof, and all greetings that there ever were are
            said again, by somebody who listened."""
            with self.relay.lock:
                said = [wire.greeting_in(one.pipes[0].first) for one in self.relay.connections
                        if one.pipes[0].first]
            for hello in said:
                peer = self.closing(wire.Peer(self.relay.target))
                peer.send(hello)
                replayed.append(peer.read_frame()[0].kind)

        self.at_each_proof(replay)
        self.relay.cut()
        self.recovered_within(10)
        self.assertIn(wire.REFUSE, replayed)
        self.finish()

    def test_wrong_secrets_and_garbage_leave_a_line_with_counts_and_not_one_each(self):
        self.in_postcopy()
        hello = wire.greeting_in(self.relay.recorded('control'))[wire.HEADER_BYTES:]
        later = hello[:40] + (1 << 40).to_bytes(8, 'little') + hello[48:]
        before = len(self.told())
        for number in range(200):
            peer = wire.Peer(self.relay.target)
            try:
                if number % 2:
                    peer.send(b'GET / HTTP/1.1\r\n' * 10)
                else:
                    peer.send(wire.frame(wire.HELLO, later) + wire.frame(wire.PROOF, bytes(32)))
                peer.wait_closed()
            except OSError:
                pass
            peer.close()
        # What was not told at once is told when the next line is due.
        waiting.until(lambda: sum(counts['garbage'] for counts in self.told()) >= 100 and
                      sum(counts['wrong_secret'] for counts in self.told()) >= 100, 'the counts')
        self.assertLessEqual(len(self.told()) - before, 20)
        self.assertFalse([line for line in self.target.err.snapshot() if 'lane.refused' in line])
        self.finish()

    def told(self):
        """The counts of each line about strangers."""
        lines = [line for line in self.target.err.snapshot() if 'listener.strangers' in line]
        return [{name: int(value) for name, value in
                 (word.split('=') for word in line.split(' last_refusal')[0].split()
                  if word.count('=') == 1 and word.split('=')[1].isdigit())} for line in lines]


class AtAnOpenTarget(moves.MoveCase):
    def test_a_silent_stranger_with_a_lane_does_not_keep_the_source_out(self):
        self.pair(relayed=False)
        address = ('127.0.0.1', int(self.uri.rsplit(':', 1)[1]))
        stranger = self.closing(wire.Peer(address))
        stranger.send(wire.frame(wire.HELLO, wire.hello(wire.CONTROL)))
        self.assertEqual(stranger.read_frame()[0].kind, wire.HELLO_REPLY)
        self.assertEqual(stranger.read_frame()[0].kind, wire.LANE_READY)
        self.move()
        self.verdict()


class FewFiles(moves.MoveCase):
    def test_a_target_that_cannot_open_what_listening_needs_says_so_and_lives(self):
        target = self.run_vm('target', incoming='defer')
        target.qmp.set_capabilities(events=True)
        files = len(vm.os.listdir(f'/proc/{target.pid}/fd'))
        refusals = 0
        for more in range(1, 12):  # What the kernel can do is asked with the first of them.
            limit = files + more
            vm.subprocess.run(['prlimit', '--pid', str(target.pid), f'--nofile={limit}:'], check=True)
            try:
                target.qmp('migrate-incoming', uri='tcp:127.0.0.1:0', exit_on_error=False)
                break
            except moves.qmp.QmpError as refusal:
                refusals += 1
                self.assertRegex(refusal.desc, 'open files')
        self.assertGreater(refusals, 1)
        waiting.until(lambda: target.qmp.migration().get('socket-address'), 'its address')

    def test_a_target_that_may_open_no_more_files_names_the_limit_and_the_remedy_once(self):
        target, address = self.listening('target')
        files = len(vm.os.listdir(f'/proc/{target.pid}/fd'))
        vm.subprocess.run(['prlimit', '--pid', str(target.pid), f'--nofile={files + 2}'], check=True)
        kept = [self.closing(socket.create_connection(address)) for _ in range(20)]
        _, line = target.err.wait_for(lambda line: 'listener.full' in line and line, 'the limit')
        self.assertIn(f'open_files_limit={files + 2}', line)
        self.assertIn('ulimit -n', line)
        # It looks again ten times a second, and says so once in a while.
        for end in kept:
            end.close()
        target.qmp('query-migrate')
        full = [line for line in target.err.snapshot() if 'listener.full' in line]
        self.assertEqual(len(full), 1, full)


if __name__ == '__main__':
    unittest.main()
