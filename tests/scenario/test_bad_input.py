"""What a user can get wrong: each is refused with the thing, its value and the remedy named."""
import json
import os
import socket
import struct
import subprocess
import unittest

import vm
import waiting

NOBODY = 65534


class RefusalCase(vm.ScenarioCase):
    """Statuses are 1 (could not) or 2 (asked wrongly); nothing ends by a signal."""

    def refused(self, process, *words):
        status = process.wait()
        said = process.err.text()
        self.assertIn(status, (1, 2), said)
        for word in words:
            self.assertRegex(said, f'(?i){word}')
        return said


class BadInput(RefusalCase):
    def refused_run(self, *words, **options):
        return self.refused(self.run_vm(**options), *words)

    def elf(self, name, change):
        """The bare guest with something changed."""
        data = bytearray(vm.BARE_GUEST.read_bytes())
        change(data)
        path = self.folder / name
        path.write_bytes(data)
        return path

    def test_an_unknown_option_is_named(self):
        self.refused_run('--colour', extra=['--colour', 'red'])

    def test_words_that_cannot_be_written_end_nothing_by_a_signal(self):
        for words in (['status', 'nosuch'], ['qmp', 'nosuch', 'query-status'],
                      ['migrate', 'nosuch', 'nobody'], ['run', '--kernel', '/nosuch'],
                      ['run', '--colour']):
            with open('/dev/full', 'w', encoding='utf-8') as full:
                done = subprocess.run([vm.TOWLINE, *words], stderr=full, check=False,
                                      stdin=subprocess.DEVNULL, timeout=waiting.LIMIT_S)
            self.assertIn(done.returncode, (1, 2), words)

    def test_a_result_that_cannot_be_written_is_no_success(self):
        machine = self.run_vm()
        machine.qmp.run_state()
        with open('/dev/full', 'w', encoding='utf-8') as full:
            done = subprocess.run([vm.TOWLINE, 'status', machine.qmp_path], stdout=full, text=True,
                                  stderr=subprocess.PIPE, check=False, timeout=waiting.LIMIT_S)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, 'No space left')

    def test_a_program_reads_that_nothing_was_begun(self):
        mover = self.towline('migrate', 'nosuch', 'nobody', '--json')
        self.refused(mover, "'nosuch'")
        said = json.loads(mover.out.text())
        self.assertEqual((said['status'], said['exit-status']), ('failed', 1))
        self.assertIn("'nosuch'", said['reason'])

    def test_a_descriptor_that_is_no_socket_is_named(self):
        self.refused(self.towline('page-server', '--socket-fd', '99'), '--socket-fd 99')

    def test_an_unknown_subcommand_is_refused(self):
        self.refused(self.towline('fly'), 'subcommand')

    def test_an_option_without_its_value_is_named(self):
        self.refused_run('--initrd', extra=['--initrd'])

    def test_a_kernel_that_is_not_there_is_named(self):
        self.refused_run('/nowhere/kernel', 'no such file', kernel='/nowhere/kernel')

    def test_a_kernel_that_may_not_be_read_is_named(self):
        # A directory cannot be read as a file by anybody, root included.
        self.refused_run(str(self.folder), kernel=self.folder)

    @unittest.skipUnless(os.geteuid() == 0, 'needs root, to run as somebody else')
    def test_a_kernel_without_read_permission_is_named(self):
        kernel = self.elf('private.elf', lambda data: None)
        kernel.chmod(0o000)
        self.folder.chmod(0o755)
        said = self.refused_run('private.elf|/dev/kvm', kernel=kernel, prefix=as_nobody())
        self.assertRegex(said, '(?i)permission denied')

    def test_a_kernel_that_is_no_elf_is_refused(self):
        text = self.folder / 'kernel.txt'
        text.write_text('not a kernel\n' * 100)
        self.refused_run('kernel.txt', 'ELF', kernel=text)

    def test_an_empty_kernel_is_refused(self):
        empty = self.folder / 'empty'
        empty.touch()
        self.refused_run('empty', kernel=empty)

    def test_an_elf_cut_short_is_refused(self):
        def cut(data):
            # In the middle of the last bytes that are to be loaded.
            ends = [struct.unpack_from('<Q', data, at + 8)[0] + struct.unpack_from('<Q', data,
                                                                                   at + 32)[0]
                    for at in program_headers(data)
                    if struct.unpack_from('<I', data, at)[0] == 1]  # PT_LOAD
            del data[max(ends) - 1:]
        self.refused_run('short.elf', kernel=self.elf('short.elf', cut))

    def test_an_elf_without_a_pvh_note_is_refused(self):
        def forget_notes(data):
            for at in program_headers(data):
                if struct.unpack_from('<I', data, at)[0] == 4:  # PT_NOTE
                    struct.pack_into('<I', data, at, 0)         # PT_NULL
        self.refused_run('note.elf', 'PVH', kernel=self.elf('note.elf', forget_notes))

    def test_an_elf_that_loads_outside_of_memory_is_refused(self):
        def load_high(data):
            for at in program_headers(data):
                if struct.unpack_from('<I', data, at)[0] == 1:  # PT_LOAD
                    struct.pack_into('<Q', data, at + 24, 1 << 40)
        self.refused_run('high.elf', kernel=self.elf('high.elf', load_high))

    @unittest.skipUnless(os.geteuid() == 0, 'needs root, to run as somebody else')
    def test_kvm_without_permission_names_the_device_and_the_way_out(self):
        self.folder.chmod(0o777)
        hide = ['unshare', '-m', 'sh', '-c',
                'mount -t tmpfs none /dev && mknod -m 600 /dev/kvm c 10 232 && '
                'mknod -m 666 /dev/null c 1 3 && exec "$@"', 'sh', *as_nobody()]
        self.refused_run('/dev/kvm', 'permission denied', prefix=hide)

    @unittest.skipUnless(os.geteuid() == 0, 'needs root, to hide the device')
    def test_a_host_without_kvm_names_the_device(self):
        hide = ['unshare', '-m', 'sh', '-c',
                'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"', 'sh']
        self.refused_run('/dev/kvm', 'no such file', prefix=hide)

    def test_memory_that_cannot_be_mapped_is_refused_with_its_size(self):
        self.refused_run('memory', memory='200T')

    def test_memory_that_is_no_number_is_refused(self):
        for size in ('lots', '-1', '0', '12Q', '1000000000000000000000G', '5000'):
            with self.subTest(size=size):
                self.refused_run('memory', name=f'vm-{size}', memory=size)

    def test_too_many_vcpus_are_refused(self):
        for count in (0, -1, 100000, 'two'):
            with self.subTest(count=count):
                self.refused_run('vcpus', name=f'vm-{count}', vcpus=count)

    def test_a_bad_uri_is_refused_with_the_forms_that_are_good(self):
        for at, uri in enumerate(('tcp:', 'tcp:host', 'tcp:host:port', 'tcp:127.0.0.1:65536',
                                  'http://x', 'unix:', 'tcp:[::1:99', '')):
            with self.subTest(uri=uri):
                said = self.refused_run(name=f'vm-{at}', extra=['--incoming', uri])
                if uri:
                    self.assertRegex(said, 'tcp:HOST:PORT')

    def test_a_port_in_use_is_named(self):
        with socket.create_server(('127.0.0.1', 0)) as taken:
            port = taken.getsockname()[1]
            self.refused_run(str(port), 'address already in use',
                             incoming=f'tcp:127.0.0.1:{port}')

    def test_listening_beyond_this_host_needs_a_secret_or_the_users_word(self):
        self.refused_run('--secret', '--allow-unprotected', incoming='tcp:0.0.0.0:0')

    def test_a_serial_place_that_cannot_be_is_named(self):
        self.refused(self.towline('run', '--kernel', vm.BARE_GUEST, '--memory', '128M',
                                  '--serial', 'file:/nowhere/serial'), '/nowhere/serial')

    def test_a_monitor_place_that_cannot_be_is_named(self):
        self.refused(self.towline('run', '--kernel', vm.BARE_GUEST, '--memory', '128M',
                                  '--serial', 'none', '--qmp', 'unix:/nowhere/monitor'),
                     '/nowhere/monitor')

    def test_a_monitor_socket_of_a_running_machine_is_not_taken_over(self):
        first = self.run_vm('first')
        first.qmp.run_state()
        second = self.towline('run', '--kernel', vm.BARE_GUEST, '--memory', '128M',
                              '--serial', 'none', '--qmp', f'unix:{first.qmp_path}')
        self.refused(second, 'first.qmp')
        self.assertEqual(first.new_client().run_state(), 'running')

    def test_a_file_at_a_migration_address_is_left_alone(self):
        victim = self.folder / 'victim'
        victim.write_text('precious')
        self.refused(self.towline('run', '--kernel', vm.BARE_GUEST, '--memory', '128M', '--serial',
                                  'none', '--incoming', f'unix:{victim}'),
                     'no socket', str(victim))
        self.assertEqual(victim.read_text(), 'precious')

    def test_moving_machines_that_are_not_there_names_the_socket(self):
        self.refused(self.towline('migrate', self.folder / 'a', self.folder / 'b'),
                     str(self.folder / 'a'))

    def test_a_disk_full_for_logs_changes_nothing(self):
        with open('/dev/full', 'wb') as full:
            process = subprocess.Popen(
                [vm.TOWLINE, 'run', '--kernel', vm.BARE_GUEST, '--memory', '128M', '--serial',
                 f'file:{self.folder}/serial', '--qmp', f'unix:{self.folder}/qmp'],
                stdin=subprocess.DEVNULL, stdout=full, stderr=full,
                preexec_fn=vm.die_with_parent)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        client = self.closing(vm.qmp.Qmp(self.folder / 'qmp',
                                         lambda: process.poll() is None))
        with self.assertRaises(vm.qmp.QmpError):
            client('migrate', uri='nonsense')  # Something to log.
        client.set_capabilities(postcopy_ram=True)
        client('migrate', uri='tcp:127.0.0.1:1')
        client.wait_status_of_failure()
        self.assertEqual(client.run_state(), 'running')

    def test_a_serial_file_on_a_full_disk_does_not_stop_the_guest(self):
        process = self.towline('run', '--kernel', vm.BARE_GUEST, '--memory', '128M', '--serial',
                               'file:/dev/full', '--qmp', f'unix:{self.folder}/qmp')
        client = self.closing(vm.qmp.Qmp(self.folder / 'qmp', process.alive))
        self.assertEqual(client.run_state(), 'running')


class Told(vm.ScenarioCase):
    """What is allowed, and better known."""

    def lines(self, machine, event):
        """Those of an event, of a machine that started and ended. Its log is on standard error."""
        machine.qmp('quit')
        self.assertEqual(machine.wait(), 0)
        return [line for line in machine.err.snapshot() if event in line]

    def test_memory_beyond_the_hosts_is_told_once_with_both_numbers(self):
        host_mib = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20
        machine = self.run_vm(memory=f'{host_mib + 1024}M')
        said = self.lines(machine, 'memory.beyond_host')
        self.assertEqual(len(said), 1, machine.err.text())
        self.assertIn(f'memory_mib={host_mib + 1024} host_mib={host_mib}', said[0])
        self.assertIn(' warning ', said[0])

    def test_a_secret_that_everybody_can_read_is_told_with_its_remedy(self):
        secret = self.folder / 'secret'
        secret.write_text('not any more')
        for mode, times in ((0o600, 0), (0o640, 0), (0o644, 1)):
            with self.subTest(mode=oct(mode)):
                secret.chmod(mode)
                machine = self.run_vm(f'vm-{mode:o}', extra=('--secret', secret))
                said = self.lines(machine, 'secret.exposed')
                self.assertEqual(len(said), times, machine.err.text())
        self.assertIn('mode=0644', said[0])
        self.assertIn(f'chmod 600 {secret}', said[0])

    def test_what_the_kernel_of_a_target_is_for_is_told(self):
        self.assertEqual(len(self.lines(self.run_vm('source'), 'vm.kernel_waits')), 0)
        said = self.lines(self.run_vm('target', incoming='defer'), 'vm.kernel_waits')
        self.assertEqual(len(said), 1)
        self.assertIn(f'kernel={vm.BARE_GUEST}', said[0])
        self.assertIn('system_reset', said[0])

    def test_a_name_that_would_break_lines_of_the_log_is_refused_in_one(self):
        for command in (('run', '--kernel', vm.BARE_GUEST),
                        ('page-server', '--listen', f'unix:{self.folder}/pages')):
            refused = self.towline(*command, '--name', 'a\n2026-01-01T00:00:00 vm info all is well')
            self.assertEqual(refused.wait(), 2)
            self.assertIn('--name', refused.err.text())
            self.assertFalse([line for line in refused.err.snapshot() if line.startswith('2026')])


def program_headers(elf):
    """Offsets of the program headers of a 64-bit ELF file."""
    first, = struct.unpack_from('<Q', elf, 32)
    size, count = struct.unpack_from('<HH', elf, 54)
    return range(first, first + size * count, size)


def as_nobody():
    """Runs the rest of a command as a user without rights."""
    return ['setpriv', f'--reuid={NOBODY}', f'--regid={NOBODY}', '--clear-groups']


class BadTarget(RefusalCase):
    """A target that cannot take the guest says why, and the source's guest runs on."""

    def failed_move(self, source, uri, *words):
        source.qmp.set_capabilities(postcopy_ram=True)
        source.qmp('migrate', uri=uri)
        answer = source.qmp.wait_status_of_failure()
        for word in words:
            self.assertRegex(answer['error-desc'], f'(?i){word}')
        self.assertEqual(source.qmp.run_state(), 'running')
        before = source.serial.count()
        source.serial.wait_for(lambda line: line, 'the guest to go on', before)
        return answer

    def waiting_target(self, **options):
        target = self.run_vm('target', incoming='defer', **options)
        target.qmp('migrate-incoming', uri='tcp:127.0.0.1:0', exit_on_error=False)
        address = target.qmp.migration()['socket-address'][0]
        return target, f'tcp:127.0.0.1:{address["port"]}'

    def test_a_target_that_is_not_there(self):
        self.failed_move(self.run_vm('source'), 'tcp:127.0.0.1:1', 'refused', '127.0.0.1:1')

    def test_a_unix_target_that_is_not_there(self):
        self.failed_move(self.run_vm('source'), f'unix:{self.folder}/none', 'none')

    def test_a_target_whose_name_means_nothing(self):
        self.failed_move(self.run_vm('source'), 'tcp:no-such-host.invalid:4', 'no-such-host')

    def test_a_target_with_other_memory_says_both_sizes(self):
        _, uri = self.waiting_target(memory='256M')
        answer = self.failed_move(self.run_vm('source', memory='128M'), uri, 'memory|ram')
        self.assertRegex(answer['error-desc'], '128|134217728')
        self.assertRegex(answer['error-desc'], '256|268435456')

    def test_a_target_with_fewer_vcpus_says_both_numbers(self):
        _, uri = self.waiting_target(vcpus=1)
        answer = self.failed_move(self.run_vm('source', vcpus=2), uri, 'vcpu')
        # Told at the source, whose machine 'this machine' would be.
        self.assertIn('the source has 2 vCPUs, the target has 1', answer['error-desc'])
        for word in ('this machine', 'this host', ' here'):
            self.assertNotIn(word, answer['error-desc'])

    def test_a_target_without_a_feature_of_the_processor_names_it(self):
        _, uri = self.waiting_target(extra=['--cpu', 'host,-cx16'])
        self.failed_move(self.run_vm('source'), uri, 'cx16')

    def test_a_source_that_never_used_a_feature_can_go_where_it_is_missing(self):
        hidden = ['--cpu', 'host,-cx16']
        target, uri = self.waiting_target(extra=hidden)
        source = self.run_vm('source', extra=hidden)
        source.qmp.set_capabilities(postcopy_ram=True)
        source.qmp('migrate-set-parameters', x_towline_switch='after-pass', max_bandwidth=0)
        source.qmp('migrate', uri=uri)
        source.qmp.wait_status('completed')
        self.assertEqual(target.qmp.run_state(), 'running')

    def test_a_feature_that_means_nothing_is_named(self):
        self.refused(self.towline('run', '--kernel', vm.BARE_GUEST, '--cpu', 'host,-warp-drive'),
                     'warp-drive')

    def test_every_reason_is_told_at_once(self):
        _, uri = self.waiting_target(vcpus=1, memory='256M')
        self.failed_move(self.run_vm('source', vcpus=2, memory='128M'), uri, 'vcpu', 'memory|ram')

    def test_a_target_that_refused_one_source_takes_the_next(self):
        target, uri = self.waiting_target()
        self.failed_move(self.run_vm('wrong', memory='256M'), uri)
        source = self.run_vm('source')
        source.qmp.set_capabilities(postcopy_ram=True)
        source.qmp('migrate-set-parameters', x_towline_switch='after-pass', max_bandwidth=0)
        source.qmp('migrate', uri=uri)
        source.qmp.wait_status('completed')
        self.assertEqual(target.qmp.run_state(), 'running')


if __name__ == '__main__':
    unittest.main()
