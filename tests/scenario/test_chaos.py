"""A short chaos run; and that the harness would notice what it is there to notice."""
import contextlib
import importlib.machinery
import importlib.util
import io
import json
import pathlib
import socket
import struct
import tempfile
import unittest
from unittest import mock

import chaos_chain
import chaos_faults
import chaos_plan
import chaos_report
import moves
import relay
import vm
import waiting
import wire
from tests.harness.guest import damage

SMALL = ['--memory', '128M', '--working-set', '32M']


def load_program():
    loader = importlib.machinery.SourceFileLoader('chaos', str(vm.ROOT / 'tests' / 'chaos' / 'run'))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader('chaos', loader))
    loader.exec_module(module)
    return module


chaos = load_program()


class ChaosCase(unittest.TestCase):
    def chaos(self, *words, chain=chaos_chain.Chain):
        """Exit status, what was printed, the JSON."""
        class Run(chaos.Run):
            make_chain = chain

        with tempfile.TemporaryDirectory() as folder:
            found = pathlib.Path(folder) / 'all.json'
            said = io.StringIO()
            # Logs of what is not right stay, and here that is most of it.
            with contextlib.redirect_stdout(said), mock.patch('tempfile.tempdir', folder):
                status = chaos.main([*SMALL, *words, '--json', str(found)], Run)
            return status, said.getvalue(), json.loads(found.read_text())


class AShortRun(ChaosCase):
    def test_25_moves_under_faults_lose_nothing(self):
        status, said, everything = self.chaos('--moves', '25', '--faults', '1-2', '--seed', '3')
        self.assertEqual(status, 0, said)
        self.assertEqual(everything['sums']['moves'], 25)
        self.assertEqual(everything['sums']['verified_pages'], 25 * 8192)
        self.assertGreater(everything['sums']['recoveries'], 0)
        # A fault whose phase went by is missed, so that which cells are met depends on the machine;
        # that there is a variety does not.
        met = [cell.split('×') for cell, count in everything['table'].items() if count]
        self.assertGreater(len({phase for phase, _ in met}), len(chaos_plan.PHASES) // 2, said)
        self.assertGreater(len({kind for _, kind in met}), len(chaos_plan.FAULTS) // 2, said)


class Noticing(ChaosCase):
    """Damage that is planted must be found. The moves themselves meet nothing but one fault."""

    ONE = ('--moves', '1', '--faults', '1')

    def planted(self, plant, *words):
        class Chain(chaos_chain.Chain):
            before_verdict = plant

        return self.chaos(*(words or self.ONE), chain=Chain)

    def test_a_flipped_bit_in_the_guests_memory(self):
        def flip(chain):
            damage.plant('flipped', chain.source.pid, chain.guest.transcript(), '')

        status, said, everything = self.planted(flip)
        self.assertEqual(status, 1)
        self.assertGreater(everything['sums']['corrupt'], 0)
        self.assertIn('guest.corrupt', said)

    def test_a_page_that_went_back_to_an_older_content(self):
        def age(chain):
            damage.plant('stale', chain.source.pid, chain.guest.transcript(), '')

        status, _, everything = self.planted(age)
        self.assertEqual(status, 1)
        self.assertGreater(everything['sums']['corrupt'], 0)

    def test_a_guest_that_says_a_report_twice(self):
        def repeat(chain):
            transcript = chain.guest.transcript()
            transcript.events.append(transcript.last('guest.report'))

        status, _, everything = self.planted(repeat)
        self.assertEqual(status, 1)
        self.assertGreater(everything['sums']['double'], 0)

    def test_a_guest_whose_process_dies_and_the_next_move_has_a_new_guest(self):
        def kill(chain):
            if chain.names <= 3:
                chain.source.kill()

        status, said, everything = self.planted(kill, '--moves', '2', '--faults', '1')
        self.assertEqual(status, 1)
        self.assertEqual(everything['sums']['lost'], 1, said)
        self.assertEqual([row['verified'] for row in everything['moves']], [0, 8192], said)

    def test_two_machines_that_both_run_the_guest(self):
        def always_running(_):
            return {'status': 'running'}

        owner = chaos_faults.OneOwner(always_running, always_running)
        owner.look()
        self.assertEqual(len(owner.double), 1)

    def test_a_guest_that_is_handed_over_while_one_looks_is_not_two(self):
        order = []

        def target(_):
            order.append('target')
            return {'status': 'inmigrate'}

        def source(_):
            order.append('source')
            return {'status': 'running'}

        owner = chaos_faults.OneOwner(source, target)
        owner.look()
        self.assertEqual((order, owner.double), (['target', 'source'], []))

    def test_runs_are_added_up_and_one_that_was_not_right_is_not_forgotten(self):
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder) / f'{number}.json' for number in range(2)]
            for number, found in enumerate(files):
                counts = {cell: 1 + number for cell in chaos_plan.CELLS}
                row = {'seed': '1.1', 'met': ['setup×rst'], 'missed': [], 'attempts': 2,
                       'times': [], 'verified': 10, 'corrupt': number, 'lost': 0, 'double': 0,
                       'complaints': []}
                found.write_text(json.dumps(chaos_report.everything(counts, [row])))
            status, said, everything = self.chaos('--sum', *map(str, files))
        self.assertEqual(status, 1, said)
        self.assertEqual(everything['sums']['verified_pages'], 20)
        self.assertEqual(everything['sums']['corrupt'], 1)
        self.assertEqual(set(everything['table'].values()), {3})

    def test_a_run_without_a_move_is_no_success(self):
        run = chaos.Run(chaos.parse_arguments(SMALL), pathlib.Path('.'))
        self.assertFalse(run.good())


class Plans(unittest.TestCase):
    def test_a_seed_makes_the_same_plan_again(self):
        self.assertEqual(chaos_plan.draw(77, 9), chaos_plan.draw(77, 9))
        self.assertNotEqual(chaos_plan.draw(77, 9), chaos_plan.draw(78, 9))

    def test_each_background_is_that_of_some_moves_and_not_of_most(self):
        words = [' '.join(chaos_plan.draw(seed, 3).background()) for seed in range(400)]
        for background in ('two-addresses', 'delay=', 'rate=', 'loss='):
            count = sum(background in said for said in words)
            self.assertTrue(20 < count < 200, f'{background}: {count} of 400')

    def test_every_cell_is_met_when_every_fault_is(self):
        planner = chaos_plan.Planner(1, (1, 10), 40)
        for _ in range(60):
            for cell in planner.next().cells():
                planner.count(cell)
        self.assertGreater(planner.least(), 0)

    def test_faults_come_in_the_order_of_the_phases(self):
        for seed in range(200):
            places = [chaos_plan.when(fault) for fault in chaos_plan.draw(seed, 8).faults]
            self.assertEqual(places, sorted(places))

    def test_a_fault_while_recovering_has_something_to_recover_from(self):
        for seed in range(200):
            for fault in chaos_plan.draw(seed, 6).faults:
                self.assertEqual(fault.phase == 'recovering', fault.opener is not None)


class Injections(unittest.TestCase):
    HEADER = wire.Header(wire.PAGES, length=4096, round=chaos_plan.PAST)

    def injection(self, in_phase, phase='postcopy-mid', kind='flip'):
        fault = chaos_plan.Fault(phase, kind, chaos_plan.ANYWHERE)
        return chaos_faults.Injection(fault, None, {}, lambda: in_phase)

    def test_a_fault_whose_phase_is_not_there_waits_and_does_not_count(self):
        injection = self.injection(in_phase=False)
        self.assertIs(injection.at_frame(None, 'bulk0', 'target', self.HEADER), relay.MISSED)
        self.assertFalse(injection.met.is_set())

    def test_pages_of_the_pass_are_not_pages_of_post_copy(self):
        injection = self.injection(in_phase=True, phase='pass')
        self.assertIs(injection.at_frame(None, 'bulk0', 'target', self.HEADER), relay.MISSED)

    def test_a_fault_begins_once(self):
        injection = chaos_faults.Injection(
            chaos_plan.Fault('pass', 'flip', chaos_plan.ANYWHERE, offset=3), chaos_faults.Link(
                ('127.0.0.1', 1), False), {}, lambda: True)
        self.addCleanup(injection.link.close)
        header = wire.Header(wire.PAGES, length=4096, round=1)
        self.assertEqual(injection.at_frame(None, 'bulk0', 'target', header), relay.Flip(3, 0))
        self.assertIsNone(injection.at_frame(None, 'bulk1', 'target', header))
        injection.finish()


class Times(unittest.TestCase):
    """A recovery belongs to the fault that it is from."""

    class Met:
        def __init__(self, kind, began, ended):
            self.fault = chaos_plan.Fault('postcopy-mid', kind, chaos_plan.ANYWHERE)
            self.began, self.ended = began, ended

    class Move:
        def __init__(self, met, recoveries):
            self.met, self.recoveries = met, recoveries

    def times(self, met, tied_at, ms):
        return chaos_report.times_of(self.Move(met, [(tied_at, ms)]))[0]

    def test_of_a_cut(self):
        row = self.times([self.Met('rst', 10.0, 10.0)], 10.021, 20)
        self.assertEqual((row['group'], round(row['free_ms'])), ('hard', 20))

    def test_of_a_silence_that_ended_before_the_link_was_tied(self):
        row = self.times([self.Met('blackhole', 10.0, 11.0)], 11.030, 700)
        self.assertEqual((row['group'], round(row['free_ms'])), (chaos_report.DEAD, 30))

    def test_of_nothing_that_was_done(self):
        row = self.times([self.Met('rst', 10.0, 10.0)], 20.02, 20)
        self.assertEqual(row['group'], chaos_report.LATE)

    def test_of_a_cut_that_met_another_one(self):
        row = self.times([self.Met('rst', 10.0, 10.0), self.Met('fin', 10.1, 10.1)], 10.2, 199)
        self.assertEqual((row['group'], round(row['free_ms'])), ('under a further fault', 100))


class DeadNetworks(unittest.TestCase):
    """The relay as a network that loses every packet."""

    def setUp(self):
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(self.listener.close)
        self.relay = relay.Relay(self.listener.getsockname())
        self.addCleanup(self.relay.close)
        self.near = socket.create_connection(('127.0.0.1', self.relay.port))
        self.addCleanup(self.near.close)
        self.far, _ = self.listener.accept()
        self.addCleanup(self.far.close)
        waiting.until(lambda: self.relay.connections, 'the relay to know of the connection')

    def unacknowledged(self):
        info = self.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        return struct.unpack_from('=I', info, 24)[0]

    def test_nothing_is_acknowledged_and_in_the_end_everything_arrives(self):
        self.relay.drop()
        self.near.sendall(b'x' * 80)
        waiting.until(self.unacknowledged, 'data that nobody acknowledges')
        self.relay.undrop()
        self.far.settimeout(waiting.LIMIT_S)
        self.assertEqual(self.far.recv(4096), b'x' * 80)

    def test_the_other_direction_lives(self):
        self.relay.drop('target')
        self.far.sendall(b'y' * 80)
        self.near.settimeout(waiting.LIMIT_S)
        self.assertEqual(self.near.recv(4096), b'y' * 80)

    def test_nobody_connects(self):
        self.relay.drop()
        with self.assertRaises(TimeoutError):
            socket.create_connection(('127.0.0.1', self.relay.port), timeout=0.2)


class SilentAddress(moves.MoveCase):
    AUTO_RECOVER = True

    def test_a_second_address_is_found_though_the_first_one_never_answers(self):
        self.pair(append=moves.STILL)
        second = self.closing(relay.Relay(self.relay.target))
        self.slowly_in_postcopy(x_towline_alternates=[second.uri])
        self.relay.drop()
        waiting.until(lambda: self.source.qmp.migration()['x-towline']['recoveries'], 'a recovery')
        self.assertGreater(second.bytes_through('control'), 0)
        self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=0)
        self.completed()
        self.verdict()


if __name__ == '__main__':
    unittest.main()
