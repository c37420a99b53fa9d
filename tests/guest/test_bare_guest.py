"""The bare guest under QEMU: it boots everywhere it should, and it notices damage.

Relied on by every migration test: a guest that notices nothing would call each move a success.
"""
import os
import struct
import unittest

from tests.harness.guest import damage, page, qemu
from tests.harness.guest.console import GuestSilent
from tests.harness.guest.qemu import QemuGuest
from tests.harness.guest.reports import judge, pages_of


# Where in its page the second copy of the counters has its digest (tests/guest/vcpu.h).
TWIN_DIGEST = 40


def setUpModule():  # pylint: disable=invalid-name
    if reason := qemu.why_not():
        raise unittest.SkipTest(reason)


def small_guest(**options):
    """Seldom in the middle of an access, yet over each page several times a second."""
    return QemuGuest(memory='64M', **{'working_set': '4M', 'rate': 20000, **options})


class LifeTest(unittest.TestCase):
    def live(self, memory='128M', vcpus=1, accel=None, **options):
        """Boot, two reports, a sweep, a report, power off: nothing to complain about."""
        with QemuGuest(memory, vcpus, accel, **options) as guest:
            guest.console.wait_for('guest.start', 300)
            before = guest.console.report()
            guest.console.report()
            verdict = guest.console.sweep()
            guest.console.report()
            self.assertEqual(guest.quit(), 0)
            self.assertEqual(judge(guest.transcript, before['uptime_us']), [])
            self.assertEqual(guest.transcript.noise, [])
            return guest.transcript, verdict

    def test_every_pattern_runs_and_verifies(self):
        for pattern in ('sequential', 'random', 'zipf', 'strided'):
            with self.subTest(pattern):
                transcript, _ = self.live(pattern=pattern, working_set='16M')
                self.assertEqual(transcript.last('guest.hello')['pattern'], pattern)

    def test_two_vcpus_share_the_work(self):
        transcript, verdict = self.live(vcpus=2, working_set='16M', fill='4M')
        self.assertEqual(verdict['pages'], 5120)
        self.assertEqual(transcript.last('guest.hello')['vcpus'], 2)

    def test_it_boots_without_virtualisation(self):
        self.live(accel='tcg', working_set='8M')
        self.live(accel='tcg', vcpus=2, working_set='8M')

    def test_memory_above_4_gib_is_used(self):
        for placement in ('high', 'spread'):
            with self.subTest(placement):
                transcript, _ = self.live(memory='6G', working_set='16M', placement=placement)
                pages = [event for event in transcript.all('guest.layout')
                         if event['what'] == 'pages']
                self.assertGreater(pages[-1]['address'], 4 << 30)

    def test_a_large_guest_that_touches_little_stays_small(self):
        with QemuGuest('64G', working_set='16M', placement='spread', untouched='1M') as guest:
            guest.console.wait_for('guest.start', 120)
            self.assertEqual(guest.console.sweep()['result'], 'ok')
            fd = damage.open_memfd(guest.pid, guest.memfd_name)
            self.addCleanup(os.close, fd)
            self.assertLess(os.fstat(fd).st_blocks * 512, 64 << 20)

    @unittest.skipUnless(os.environ.get('TOWLINE_GUEST_LARGE'), 'TOWLINE_GUEST_LARGE is not set')
    def test_a_large_working_set(self):
        _, verdict = self.live(memory='2G', working_set='1536M')
        self.assertEqual(verdict['pages'], 393216)

    def test_the_whole_of_memory_that_nobody_wrote_is_zero(self):
        _, verdict = self.live(memory='64M', working_set='4M', sweep_untouched='all')
        self.assertGreater(verdict['untouched'], 10000)
        self.assertEqual(verdict['untouched_bad'], 0)

    def test_the_rate_is_a_limit(self):
        transcript, _ = self.live(working_set='4M', rate=10000)
        reports = transcript.all('guest.report')
        for earlier, later in zip(reports, reports[1:]):
            # In cycles of the guest's own clock, so that a slow host cannot break it.
            due = (later['uptime_us'] - earlier['uptime_us']) // 100
            self.assertLessEqual(later['accesses'] - earlier['accesses'], due + 17)

    def test_a_guest_that_only_reads_changes_nothing(self):
        transcript, _ = self.live(working_set='4M', write_percent=0)
        reports = transcript.all('guest.report')
        self.assertEqual({report['writes'] for report in reports}, {0})
        self.assertEqual(len({report['digest'] for report in reports}), 1)

    def test_without_a_known_frequency_it_counts_cycles(self):
        transcript, _ = self.live(working_set='4M', tsc_khz=None)
        self.assertEqual(transcript.last('guest.hello')['tsc_khz'], 0)


class CommandTest(unittest.TestCase):
    def setUp(self):
        self.guest = small_guest(gap_log_us=20)
        self.addCleanup(self.guest.__exit__)
        self.console = self.guest.console
        self.console.wait_for('guest.start')

    def test_the_histogram_counts_every_access_since_the_reset(self):
        self.console.reset_statistics()
        before = self.console.report()
        buckets, gaps, _ = self.console.latency()
        after = self.console.report()
        counted = sum(bucket['count'] for bucket in buckets)
        self.assertLessEqual(counted, after['accesses'])
        self.assertGreater(counted, 0)
        self.assertLess(counted, after['accesses'] - before['accesses'] + 20000 * 60)
        for earlier, later in zip(buckets, buckets[1:]):
            self.assertLessEqual(earlier['to_ns'], later['from_ns'])
        self.assertTrue(all(gap['length_us'] >= 20 for gap in gaps))

    def test_the_longest_gap_is_told_when_asked(self):
        self.console.send('N')
        self.assertIn('gap_max_us', self.console.wait_for('guest.gap').fields)

    def test_a_stop_of_the_whole_process_is_a_gap(self):
        self.console.reset_statistics()
        begin = self.console.report()
        with damage.frozen(self.guest.pid):
            pass
        end = self.console.report()
        self.assertGreaterEqual(end['gap_max_us'], end['gap_recent_us'])
        self.assertGreater(end['uptime_us'], begin['uptime_us'])

    def test_an_unknown_command_is_named_and_changes_nothing(self):
        self.console.send('x')
        self.assertEqual(self.console.wait_for('guest.unknown')['command'], ord('x'))
        self.assertEqual(self.console.sweep()['result'], 'ok')


class RefusalTest(unittest.TestCase):
    def refused(self, **options):
        with QemuGuest(**{'memory': '64M', 'working_set': '4M', **options}) as guest:
            with self.assertRaises(GuestSilent):
                guest.console.wait_for('guest.start')
            return guest.transcript.last('guest.error').fields

    def test_what_the_command_line_does_not_know_is_refused(self):
        for key, value in (('worknig_set', '4M'), ('pattern', 'circular'), ('rate', 'fast'),
                           ('write_percent', '101'), ('working_set', '4X'), ('vcpus', '0')):
            with self.subTest(key):
                error = self.refused(**{key: value})
                self.assertEqual(error['option'].replace('-', '_'), f'{key}={value}')

    def test_a_working_set_that_does_not_fit_is_refused(self):
        self.assertEqual(self.refused(working_set='64M'), {'too-large': 'working-set'})

    def test_a_vcpu_that_is_not_there_is_missed(self):
        # A frequency far too low makes the guest's ten seconds short.
        with QemuGuest(memory='64M', working_set='4M', vcpus=2, smp=1, tsc_khz=20000) as guest:
            with self.assertRaises(GuestSilent):
                guest.console.wait_for('guest.start')
            self.assertEqual(guest.transcript.last('guest.error').fields,
                             {'vcpus': 'one-did-not-start'})

    def test_a_rate_needs_a_clock(self):
        self.assertEqual(self.refused(rate=1, tsc_khz=None), {'option': 'rate-needs-tsc-khz'})


class DamageTest(unittest.TestCase):
    def planted(self, kind, **options):
        """A clean sweep, one damage, another sweep: the page, what the guest said, its verdict."""
        with small_guest(untouched='64M', **options) as guest:
            guest.console.wait_for('guest.start')
            guest.console.report()
            self.assertEqual(guest.console.sweep()['result'], 'ok')
            number = damage.plant(kind, guest.pid, guest.transcript, guest.memfd_name)
            guest.console.report()
            verdict = guest.console.sweep()
            self.assertNotEqual(judge(guest.transcript, 0), [])
            return number, guest.transcript.all('guest.corrupt'), verdict

    def test_damage_to_a_page_is_noticed_and_named(self):
        for kind in ('flipped', 'zero', 'stale', 'torn', 'stale-table'):
            with self.subTest(kind):
                number, said, verdict = self.planted(kind)
                self.assertEqual((said[0]['kind'], said[0]['page']),
                                 (damage.KINDS[kind][1], number))
                self.assertEqual(verdict['result'], 'corrupt')

    def test_swapped_pages_are_noticed_both(self):
        number, said, verdict = self.planted('swapped')
        self.assertEqual({event['kind'] for event in said}, {'foreign'})
        self.assertEqual(len(said), 2)
        self.assertIn(number, [event['page'] for event in said])
        self.assertEqual({event['page'] for event in said},
                         {event['found_page'] for event in said})
        self.assertEqual(verdict['corrupt'], 2)

    def test_a_page_and_its_table_entry_stale_together_are_noticed(self):
        _, said, verdict = self.planted('stale-together')
        self.assertEqual([event['kind'] for event in said], ['table'])
        self.assertEqual((verdict['result'], verdict['table']), ('corrupt', 'stale'))

    def test_damage_is_noticed_with_two_vcpus(self):
        _, said, verdict = self.planted('stale', vcpus=2)
        self.assertEqual(said[0]['kind'], 'stale')
        self.assertEqual(verdict['result'], 'corrupt')

    def test_memory_that_must_be_zero_and_is_not_is_noticed(self):
        _, _, verdict = self.planted('untouched')
        self.assertEqual((verdict['result'], verdict['untouched_bad']), ('corrupt', 1))

    def test_a_changed_image_is_noticed(self):
        _, _, verdict = self.planted('image')
        self.assertEqual((verdict['result'], verdict['image']), ('corrupt', 'corrupt'))


class MemoryTest(unittest.TestCase):
    def setUp(self):
        self.guest = small_guest(write_percent=0, fill='1M')
        self.addCleanup(self.guest.__exit__)
        self.guest.console.wait_for('guest.start')
        self.guest.console.report()
        self.fd = damage.open_memfd(self.guest.pid, self.guest.memfd_name)
        self.addCleanup(os.close, self.fd)
        self.memory = damage.GuestMemory(self.fd, self.guest.transcript)

    def test_host_and_guest_agree_on_every_byte_of_a_page(self):
        for number in range(0, pages_of(self.guest.transcript), 101):
            self.assertEqual(self.memory.read_page(number),
                             page.page_bytes(1, page.Identity(number, 1, 0)))

    def test_the_digest_is_the_sum_over_the_table(self):
        total = sum(page.digest_term(1, number, self.memory.generation(number))
                    for number in range(pages_of(self.guest.transcript)))
        self.assertEqual(self.guest.console.report()['digest'], total & page.MASK)

    def change_digest(self, chosen):
        """Changes the chosen ones of the places in the image where the guest keeps its digest."""
        digest = struct.pack('<Q', self.guest.transcript.last('guest.report')['digest'])
        with damage.frozen(self.guest.pid):
            image = self.memory.read(0x100000, 0x120000)
            found = [at for at in range(0, len(image), 8) if image[at:at + 8] == digest]
            self.assertGreaterEqual(len(found), 2)
            for at in filter(chosen, found):
                self.memory.write(0x100000 + at, bytes([digest[0] ^ 1]))
        return self.guest.console.wait_for('guest.corrupt')['kind']

    def test_a_page_of_counters_that_is_stale_alone_is_noticed(self):
        self.assertEqual(self.change_digest(lambda at: at % 4096 == TWIN_DIGEST), 'counters')

    def test_counters_that_disagree_with_the_registers_are_noticed(self):
        self.assertEqual(self.change_digest(lambda at: True), 'registers')

    def test_a_crash_is_told(self):
        with damage.frozen(self.guest.pid):
            text = self.memory.read(0x100000, 0x10000)
            # The first instruction of the loop's rdtsc becomes an undefined one, everywhere.
            self.memory.write(0x100000, text.replace(b'\x0f\x31', b'\x0f\x0b'))
        with self.assertRaises(GuestSilent):
            self.guest.console.wait_for('guest.never')
        self.assertEqual(self.guest.transcript.last('guest.error')['exception'], 6)


if __name__ == '__main__':
    unittest.main()
