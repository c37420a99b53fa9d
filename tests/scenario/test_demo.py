"""The demo tells the truth: its exit status, its summary, and what it leaves behind."""
import json
import os
import pathlib
import signal
import unittest

import vm

DEMO = vm.ROOT / 'demos' / 'first-move'


class FirstMove(vm.ScenarioCase):
    def demo(self, *arguments, **options):
        # Its own folder lies in ours, so that its machines can be told from others.
        return self.start(vm.Process([DEMO, *arguments], self.folder, 'demo',
                                     environment={'TMPDIR': str(self.folder)}, **options))

    def test_a_person_reads_a_summary_with_every_number(self):
        demo = self.demo('--memory', '128M')
        self.assertEqual(demo.wait(), 0, demo.err.text())
        text = demo.out.text()
        for words in ('confirms every page', 'blackout', 'longest gap', 'faults served', 'p50',
                      'p99', 'max', 'sent', 'time', 'pages verified'):
            self.assertIn(words, text)
        self.assertRegex(text, r'corrupt pages +0\b')
        self.assertNotIn('\x1b', text)  # Plain lines: this is no terminal.

    def test_a_program_reads_the_same_as_json(self):
        demo = self.demo('--memory', '128M', '--json', '--vcpus', '2', '--pattern', 'zipf')
        self.assertEqual(demo.wait(), 0, demo.err.text())
        facts = json.loads(demo.out.text())
        self.assertTrue(facts['ok'])
        self.assertEqual(facts['complaints'], [])
        self.assertEqual(facts['corrupt_pages'], 0)
        self.assertEqual((facts['vcpus'], facts['pattern']), (2, 'zipf'))
        self.assertEqual(facts['pages_verified'], 128 * 256 * 3 // 4)
        for name in ('blackout_ms', 'longest_guest_gap_ms', 'total_ms', 'transferred_bytes',
                     'pages_after_switch', 'speed_after'):
            self.assertGreater(facts[name], 0, name)

    def test_an_unknown_option_is_named(self):
        demo = self.demo('--fast')
        self.assertEqual(demo.wait(), 2)
        self.assertIn('--fast', demo.err.text())

    def test_a_size_that_is_none_is_named(self):
        demo = self.demo('--memory', 'much')
        self.assertEqual(demo.wait(), 2)
        self.assertIn('much', demo.err.text())

    @unittest.skipUnless(os.geteuid() == 0, 'needs root, to hide the device')
    def test_a_machine_without_kvm_is_told_so(self):
        hide = 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && ' \
               'mknod -m 666 /dev/urandom c 1 9 && ln -s /proc/self/fd /dev/fd && exec "$@"'
        demo = self.start(vm.Process(['unshare', '-m', 'sh', '-c', hide, 'sh', DEMO, '--memory',
                                      '128M'], self.folder, 'demo'))
        self.assertEqual(demo.wait(), 2, demo.out.text())
        self.assertIn('/dev/kvm', demo.err.text())

    def test_an_interrupted_demo_leaves_no_machine_behind(self):
        demo = self.demo('--memory', '256M')
        demo.out.wait_for(lambda line: line.startswith('starting a guest'), 'the start')
        demo.signal(signal.SIGINT)
        self.assertEqual(demo.wait(), 130, demo.err.text())
        self.assertEqual(children_named('towline', self.folder), [])


def children_named(name, folder):
    """Processes of this name that were started for a demo of this test, by their sockets."""
    return [pid for pid in os.listdir('/proc') if pid.isdigit() and _command(pid, name, folder)]


def _command(pid, name, folder):
    try:
        words = pathlib.Path(f'/proc/{pid}/cmdline').read_text().split('\0')
    except (FileNotFoundError, ProcessLookupError):
        return False
    return words[0].endswith(name) and any(str(folder) in word for word in words)


if __name__ == '__main__':
    unittest.main()
