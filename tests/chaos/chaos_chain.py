"""One guest that is moved under chaos again and again, and judged after every move."""
import os
import pathlib
import time

import chaos_attempt
import chaos_move
import chaos_plan
import moves
import qmp
import vm
import waiting
from tests.harness.guest import reports

MIB = 1 << 20
SWEEP_LIMIT_S = waiting.LIMIT_S * 3
# Each byte of a report leaves the guest: on a busy machine a report takes tenths of a second.
REPORT_MS = 400
TWICE = ('told twice', 'went back', 'more than once')


LOWEST = 19


def lower_vcpus(machine):
    """The guest has no idle: it waits busily for its next access. On a machine with few processors
    those who move its memory would wait for that half of the time."""
    for task in pathlib.Path(f'/proc/{machine.pid}/task').iterdir():
        if (task / 'comm').read_text().startswith('vcpu-'):
            os.setpriority(os.PRIO_PROCESS, int(task.name), LOWEST)


class Guest(moves.Guest):
    """Its transcript is read once, however long it becomes."""

    def __init__(self, machine):
        super().__init__(machine)
        self._transcript = reports.Transcript()
        self._fed = 0

    def moved_to(self, machine):
        """The machine that it left has ended: all that it wrote is here."""
        self.transcript()
        self.machines = [machine]
        self._fed = 0

    def transcript(self):
        raw = self.machine.serial.raw()
        self._transcript.feed(raw[self._fed:])
        self._fed = len(raw)
        return self._transcript


class Chain:
    """The guest and the processes that it goes through."""

    def __init__(self, folder, memory, working_set, vcpus=1, rate=0):
        self.folder, self.memory, self.vcpus = folder, memory, vcpus
        self.working_set = working_set
        self.pages = working_set // 4096
        # So slow that it does not fetch by itself in a moment what a fault is to be met with.
        self.rate = rate or max(1000, self.pages // 6)
        self.names = 0
        self.processes = []
        self.source = self.guest = None

    def close(self):
        for process in self.processes:
            process.close()
        self.processes = []

    def machine(self, name, **options):
        self.names += 1
        machine = vm.Vm(self.folder, f'{name}{self.names}', memory=f'{self.memory // MIB}M',
                        vcpus=self.vcpus, **options)
        self.processes.append(machine)
        return machine

    def start(self):
        """A new guest, its memory filled and its workload running."""
        self.close()
        self.source = self.machine('guest', append=moves.guest_command_line(
            vcpus=self.vcpus, working_set=self.working_set, rate=self.rate, write_percent=100,
            report_ms=REPORT_MS, untouched='2M'))
        self.guest = Guest(self.source)
        self.guest.wait_for('guest.start')
        lower_vcpus(self.source)

    def new_target(self):
        machine = self.machine('target', incoming='defer')
        machine.qmp('migrate-set-parameters',
                    x_towline_frozen_patience_ms=chaos_plan.FROZEN_PATIENCE_MS,
                    x_towline_paused_after_ms=0)
        machine.qmp.set_capabilities(events=True)
        lower_vcpus(machine)
        machine.qmp('migrate-incoming', uri='tcp:127.0.0.1:0', exit_on_error=False)
        at = machine.qmp.migration()['socket-address'][0]
        self.target = machine
        return machine, (at['host'], int(at['port']))

    def discard(self, machine):
        machine.close()
        self.processes.remove(machine)

    # ---- one move ------------------------------------------------------------------------------

    def whole_move(self, the_plan):
        """Moves the guest and has it judge itself. All the facts; trouble is among them."""
        began = time.monotonic()
        move = chaos_move.Move(self, the_plan)
        facts = {'seed': the_plan.name, 'background': the_plan.background(), 'corrupt': 0,
                 'lost': 0, 'double': 0, 'complaints': [], 'verified': 0}
        try:
            facts['moved_ms'] = move.run().get('total-time', 0)
            self.take_over()
            self.before_verdict()
            facts.update(self.verdict())
        except chaos_attempt.Trouble as trouble:
            self.note(facts, trouble.kind, str(trouble))
        except (qmp.QmpClosed, qmp.QmpError, AssertionError, OSError, ValueError) as trouble:
            # Among them: what nobody answers any more, and what cannot be told to a dead process.
            self.note(facts, 'lost', f'{type(trouble).__name__}: {trouble}')
        for text in move.double:
            self.note(facts, 'double', text)
        facts['move'] = move
        facts['attempts'] = move.attempts
        facts['total_ms'] = round((time.monotonic() - began) * 1000)
        return facts

    @staticmethod
    def note(facts, kind, text):
        if kind in facts:
            facts[kind] += 1
        facts['complaints'].append(f'{kind}: {text}')

    def take_over(self):
        """The source ends; the target is the source of the next move."""
        old = self.source
        old.qmp('quit')
        status = old.wait()
        if status != 0:
            raise chaos_attempt.Trouble('wrong', f'the source ended with {status}')
        self.guest.moved_to(self.target)
        self.discard(old)
        self.source = self.target

    def before_verdict(self):
        """For tests of this harness: whatever is done to the guest here must be found."""

    def verdict(self):
        """The guest's own word on all of its memory, and that it runs on."""
        # Asked for only now that the source has gone, and the only verdict that is on its way.
        found = self.guest.sweep(SWEEP_LIMIT_S)
        self.guest.wait_reports(1)
        complaints = self.guest.judge(found['uptime_us'] - found['sweep_us'])
        corrupt = found['corrupt_pages'] + found['untouched_bad']
        corrupt = corrupt or any('corrupt' in text or 'verdict' in text for text in complaints)
        return {'verified': found['pages'], 'corrupt': int(corrupt),
                'double': sum(any(word in text for word in TWICE) for text in complaints),
                'complaints': complaints}
