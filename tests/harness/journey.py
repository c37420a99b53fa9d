"""One guest that is moved from process to process, again and again: for demos and soak runs.

Each move is driven by `towline migrate`, and judged by the guest itself: a sweep over all of its
memory that begins when the source process has ended.
"""
import json
import time

import moves
import qmp
import vm
import waiting

MIB = 1 << 20
PAGE = 4096
LIMIT_S = 900  # For what depends on the size of the guest.


class JourneyFailed(Exception):
    """Something went wrong that is no page: a process ended, a command was refused."""


class Journey:
    """`say` is told of steps, `progress` of what changes all the time."""

    def __init__(self, folder, memory, vcpus=1, say=lambda text: None,
                 progress=lambda **facts: None, **guest_options):
        self.folder, self.memory, self.vcpus = folder, memory, vcpus
        self.say, self.progress = say, progress
        self.guest_options = {'report_ms': 100, 'write_percent': 100, 'vcpus': vcpus,
                              **guest_options}
        self.processes = []
        self.count = 0

    def close(self):
        for process in self.processes:
            process.kill()

    # ---- machines -----------------------------------------------------------------------------

    def machine(self, name, **options):
        machine = vm.Vm(self.folder, name, memory=f'{self.memory // MIB}M', vcpus=self.vcpus,
                        **options)
        self.processes.append(machine)
        return machine

    def start(self):
        """The guest, with its memory filled and its workload running."""
        self.source = self.machine('source', append=moves.guest_command_line(
            **self.guest_options))
        self.guest = moves.Guest(self.source)
        self.wait('the guest to fill its memory', 'filling',
                  lambda: self.guest.transcript().last('guest.start'))

    def prepare_target(self, name):
        self.target = self.machine(name, incoming='defer')
        self.target.qmp.run_state()

    def wait(self, what, phase, condition):
        def ask():
            for machine in self.processes:
                if not machine.alive():
                    raise JourneyFailed(f'{machine.name} ended while waiting for {what}:\n'
                                        f'{machine.err.text()[-2000:]}')
            self.progress(phase=phase)
            return condition()

        return waiting.until(ask, what, LIMIT_S, pause=0.1)

    def speed(self, reports=5):
        """Bytes a second that the guest works on now."""
        first = self.guest.wait_reports(1)
        last = self.guest.wait_reports(reports)
        elapsed = max(last['uptime_us'] - first['uptime_us'], 1)
        return (last['accesses'] - first['accesses']) * PAGE * 1e6 / elapsed

    # ---- one move ------------------------------------------------------------------------------

    def move(self):
        """Moves the guest to the prepared target. The source is still there afterwards."""
        self.guest.tell('G')  # Its longest gap counts from here.
        self.guest.wait_for('guest.reset')
        mover = vm.Process([vm.TOWLINE, 'migrate', self.source.qmp_path, self.target.qmp_path,
                            '--json'], self.folder, f'migrate{self.count}')
        self.processes.append(mover)
        while mover.alive():
            self.look()
            time.sleep(0.05)
        self.processes.remove(mover)
        if mover.wait() != 0:
            raise JourneyFailed(f'towline migrate ended with {mover.wait()}: {mover.err.text()}')
        self.count += 1
        self.guest.moved_to(self.target)
        self.mover_said = json.loads(mover.out.text())

    def look(self):
        try:
            self.progress(phase='moving', source=self.source.qmp.migration(),
                          target=self.target.qmp.migration())
        except (qmp.QmpClosed, qmp.QmpError):
            pass  # It will be told by `towline migrate`.

    def settle(self):
        """Ends the source; returns what both sides and the guest say about the move."""
        source, target = self.source.qmp.migration(), self.target.qmp.migration()
        gap = self.guest.wait_reports(1)
        self.source.qmp('quit')
        status = self.source.wait()
        if status != 0:
            raise JourneyFailed(f'the source ended with {status}: {self.source.err.text()}')
        self.source.close()
        self.processes.remove(self.source)
        self.source = self.target
        return facts_of(source, target, gap)

    def confirm(self):
        """The guest's own word on all of its memory, and that it runs on."""
        since = self.guest.wait_reports(1)
        self.guest.tell('S')

        def verdict():
            found = self.guest.transcript().last('guest.verdict')
            return found if found and found['uptime_us'] > since['uptime_us'] else None

        found = self.wait('the guest to check its memory', 'checking', verdict)
        before = self.guest.wait_reports(1)
        after = self.guest.wait_reports(1)
        complaints = self.guest.judge(since['uptime_us'])
        if after['accesses'] <= before['accesses']:
            complaints.append('the guest does not run on')
        return {
            'complaints': complaints,
            'pages_verified': found['pages'],
            'untouched_pages_checked': found['untouched'],
            'corrupt_pages': found['corrupt_pages'] + found['untouched_bad'],
            'corrupt_accesses': found['corrupt'],
        }

    def whole_move(self, name):
        """Prepares, moves, ends the source, has the guest confirm. All the facts."""
        self.prepare_target(name)
        self.move()
        facts = self.settle()
        facts.update(self.confirm())
        if facts['pages_after_switch'] == 0:
            facts['complaints'].append(
                'no page crossed after the switch: this was no post-copy move')
        if facts['recoveries']:
            facts['complaints'].append(
                'the link was called lost, and nobody had harmed it: '
                f'{facts["recoveries"]} recoveries')
        facts['ok'] = not facts['complaints']
        return facts


def facts_of(source, target, gap):
    """What query-migrate on both sides and the guest's report say about one move."""
    here, there = source['x-towline'], target['x-towline']
    return {
        'blackout_ms': there.get('blackout-ms', here.get('blackout-ms')),
        'longest_guest_gap_ms': gap['gap_max_us'] / 1000,
        'faults': there['faults'],
        'transferred_bytes': source['ram']['transferred'],
        'bytes_before_switch': source['ram']['precopy-bytes'],
        'bytes_after_switch': source['ram']['postcopy-bytes'],
        'pages_after_switch': max(there['pages-after-switch'], here['pages-after-switch']),
        'duplicate_frames': there.get('duplicate-frames', 0),
        'total_ms': source['total-time'],
        'recoveries': here.get('recoveries', 0),
    }
