"""The judge of the guest's reports: each sign of a torn life has a case."""
import unittest

from tests.harness.guest.reports import Transcript, judge, parse_line

PAGES = 100
HELLO = f'guest.hello version=1 working_set_pages={PAGES} fill_pages=0 seed=1\r\n'


def report(number, **changes):
    fields = {
        'seq': number, 'uptime_us': number * 1000, 'accesses': number * 10,
        'writes': number * 5, 'verified': number * 10, 'corrupt': 0, 'gap_max_us': 1,
        'generation_sum': PAGES + number * 5, 'digest': number * 7, 'tsc_went_back': 0, 'lost_lines': 0, **changes}
    return 'guest.report ' + ' '.join(f'{key}={value}' for key, value in fields.items()) + '\r\n'


def verdict(**changes):
    fields = {'result': 'ok', 'seq': 3, 'pages': PAGES, 'uptime_us': 4000, 'sweep_us': 500,
              **changes}
    return 'guest.verdict ' + ' '.join(f'{key}={value}' for key, value in fields.items()) + '\r\n'


def complaints(*lines, **arguments):
    return judge(Transcript((HELLO + ''.join(lines)).encode()), **arguments)


class ParsingTest(unittest.TestCase):
    def test_a_line_becomes_numbers_and_words(self):
        event = parse_line('guest.corrupt kind=zero page=7 address=0x1000')
        self.assertEqual(event.name, 'guest.corrupt')
        self.assertEqual(event.fields, {'kind': 'zero', 'page': 7, 'address': 0x1000})

    def test_what_the_firmware_says_is_noise(self):
        transcript = Transcript(b'Booting from ROM..\r\nguest.start uptime_us=1\r\n')
        self.assertEqual(transcript.noise, ['Booting from ROM..'])
        self.assertEqual([event.name for event in transcript.events], ['guest.start'])

    def test_a_line_cut_by_the_switch_is_read_whole(self):
        transcript = Transcript(b'guest.report seq=1 upti')
        self.assertEqual(transcript.events, [])
        transcript.feed(b'me_us=5\r\n')
        self.assertEqual(transcript.last('guest.report').fields, {'seq': 1, 'uptime_us': 5})

    def test_bytes_that_are_no_text_do_not_stop_the_reader(self):
        transcript = Transcript(b'\xff\x00guest\r\nguest.start uptime_us=1\r\n')
        self.assertEqual(len(transcript.events), 1)


class JudgeTest(unittest.TestCase):
    def test_a_guest_that_runs_on_is_right(self):
        self.assertEqual(complaints(report(1), report(2), report(3)), [])

    def test_a_counter_that_goes_back_is_noticed(self):
        for key in ('seq', 'uptime_us', 'accesses', 'writes', 'verified', 'generation_sum'):
            with self.subTest(key):
                found = complaints(report(1), report(5), report(6, **{key: 4}), report(9))
                self.assertTrue(any(f'{key} went back' in text for text in found), found)

    def test_a_guest_that_runs_twice_is_noticed(self):
        found = complaints(report(1), report(2), report(2), report(3))
        self.assertTrue(any('told twice' in text for text in found), found)

    def test_a_missing_report_is_noticed(self):
        found = complaints(report(1), report(3))
        self.assertTrue(any('missing' in text for text in found), found)

    def test_a_report_that_the_guest_itself_dropped_is_no_complaint(self):
        self.assertEqual(complaints(report(1), report(3, lost_lines=1)), [])

    def test_a_digest_that_changes_without_a_write_is_noticed(self):
        found = complaints(report(1), report(2, writes=5, generation_sum=PAGES + 5))
        self.assertTrue(any('digest changed' in text for text in found), found)

    def test_a_sum_of_generations_that_does_not_fit_the_writes_is_noticed(self):
        found = complaints(report(1), report(2, generation_sum=PAGES + 11))
        self.assertTrue(any('generations sum up' in text for text in found), found)

    def test_a_corrupt_page_is_noticed(self):
        self.assertTrue(complaints(report(1), report(2, corrupt=1)))
        self.assertTrue(complaints(report(1), 'guest.corrupt kind=zero page=3\r\n', report(2)))

    def test_a_tsc_that_goes_back_is_noticed(self):
        self.assertTrue(complaints(report(1), report(2, tsc_went_back=1)))

    def test_a_guest_that_stands_still_is_noticed(self):
        found = complaints(report(1), report(2, accesses=10))
        self.assertIn('the guest made no progress', found)
        self.assertTrue(complaints(report(1)))

    def test_a_guest_that_booted_again_is_noticed(self):
        self.assertTrue(complaints(report(1), report(2), HELLO, report(3)))

    def test_silence_is_no_success(self):
        self.assertEqual(judge(Transcript()), ['no guest.hello'])


class VerdictTest(unittest.TestCase):
    def judged(self, line, after=3000):
        return complaints(report(1), report(2), report(3), line, verdict_after_us=after)

    def test_a_clean_sweep_after_the_move_is_right(self):
        self.assertEqual(self.judged(verdict()), [])

    def test_a_missing_verdict_is_no_success(self):
        self.assertEqual(self.judged(''), ['no verdict'])

    def test_a_corrupt_verdict_is_noticed(self):
        self.assertTrue(self.judged(verdict(result='corrupt')))

    def test_a_sweep_that_left_pages_out_is_noticed(self):
        self.assertTrue(self.judged(verdict(pages=PAGES - 1)))

    def test_a_sweep_begun_before_the_move_was_complete_is_noticed(self):
        self.assertEqual(self.judged(verdict(), after=3501), ['verdict: begun too early'])


if __name__ == '__main__':
    unittest.main()
