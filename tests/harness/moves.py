"""A guest on its way between two machines, and what it says about it on its serial port."""
import re
import sys
import time

import qmp
import relay
import vm
import waiting
import wire

sys.path.insert(0, str(vm.ROOT))
from tests.harness.guest import host, reports  # noqa: E402

MIB = 1 << 20
# Small and busy: enough pages for faults in post-copy, few enough for a test of a second; and not
# so busy that two of them starve everything else on a small machine.
BUSY = 'working-set=32M untouched=2M rate=50000 report-ms=100'
# Most of its memory is touched by nobody after the start: what is missing of that in post-copy does
# not become less because the guest fetches it, on however fast a machine.
STILL = 'working-set=8M fill=32M untouched=2M rate=50000 report-ms=100'
SLOW = 256 << 10  # Bytes a second: a push of STILL's memory would take longer than any test waits.


def with_facts(append, vcpus=1):
    """A guest's command line with what it cannot find out by itself."""
    khz = host.tsc_khz()
    return f'{append} vcpus={vcpus}' + (f' tsc-khz={khz}' if khz else '')


def guest_command_line(vcpus=1, **options):
    """From options: working_set=1 << 30, pattern='zipf'."""
    return with_facts(' '.join(f'{name.replace("_", "-")}={value}'
                               for name, value in options.items()), vcpus)


class Guest:
    """What the bare guest says, wherever it runs."""

    def __init__(self, machine):
        self.machines = [machine]

    @property
    def machine(self):
        return self.machines[-1]

    def moved_to(self, machine):
        self.machines.append(machine)

    def transcript(self):
        """All it ever said. A line may begin at the source and end at the target."""
        return reports.Transcript(b''.join(machine.serial.raw() for machine in self.machines))

    def wait_for(self, name, first=0, limit=None):
        """The first event of this name from line number `first` of this machine on."""
        return self._next(name, first, limit)[1]

    def _next(self, name, first, limit=None):
        def accept(line):
            event = reports.parse_line(line)
            if event and event.name == 'guest.error':
                raise AssertionError(f'the guest stopped: {line}')
            return event if event and event.name == name else None
        return self.machine.serial.wait_for(accept, name, first, limit)

    def wait_reports(self, count=1):
        """Waits until the guest has said this many more reports; returns the last."""
        at = self.machine.serial.count()
        for _ in range(count):
            at, report = self._next('guest.report', at)
            at += 1
        return report

    def complaints(self):
        return [f'{event.name}: {event.fields}' for event in self.transcript().events
                if event.name in ('guest.corrupt', 'guest.error')]

    def tell(self, command):
        self.machine.write_serial(command.encode())

    def sweep(self, limit=None):
        """A full sweep that begins now; its verdict."""
        first = self.machine.serial.count()
        self.tell('S')
        return self.wait_for('guest.verdict', first, limit)

    def judge(self, since_us):
        """Everything that one guest, unbroken, could not have said. Empty: all is right."""
        return reports.judge(self.transcript(), since_us)

    def judge_after_kill(self, since_us):
        """As judge(): what the guest said and its killed process had not passed on is not heard."""
        return [complaint for complaint in self.judge(since_us)
                if 'reports between them are missing' not in complaint]


class MoveCase(vm.ScenarioCase):
    """Cases about a pair of machines and the link between them."""

    # What a lost link does to both ends can be looked at only while nobody re-ties it.
    AUTO_RECOVER = False
    # And the status says so at once.
    PAUSED_AFTER_MS = 0

    def pair(self, append=BUSY, memory='128M', vcpus=1, relayed=True, target_options=None):
        """Sets self.source, target, guest, relay and uri. The guest writes; nothing moves yet."""
        self.source = self.run_vm('source', append=with_facts(append, vcpus),
                                  memory=memory, vcpus=vcpus)
        self.guest = Guest(self.source)
        self.target, address = self.listening('target', memory=memory, vcpus=vcpus,
                                              **(target_options or {}))
        self.relay = self.closing(relay.Relay(address)) if relayed else None
        self.uri = self.relay.uri if relayed else f'tcp:{address[0]}:{address[1]}'
        self.guest.wait_for('guest.start')
        return self

    def listening(self, name, parameters=None, at='127.0.0.1', **options):
        """A machine that waits for a guest, and its address."""
        machine = self.run_vm(name, incoming='defer', **options)
        machine.qmp('migrate-set-parameters', **{
            'x_towline_paused_after_ms': self.PAUSED_AFTER_MS, **(parameters or {})})
        machine.qmp.set_capabilities(events=True)
        machine.qmp('migrate-incoming', uri=f'tcp:{at}:0', exit_on_error=False)
        at = machine.qmp.migration()['socket-address'][0]
        return machine, (at['host'], int(at['port']))

    def prepare(self, **parameters):
        self.source.qmp.set_capabilities(events=True, postcopy_ram=True)
        self.source.qmp('migrate-set-parameters', **{
            'max_bandwidth': 0, 'x_towline_auto_recover': self.AUTO_RECOVER,
            'x_towline_paused_after_ms': self.PAUSED_AFTER_MS, **parameters})

    def begin(self, uri=None, **parameters):
        """Starts the migration, with the switch left to the test."""
        self.prepare(**parameters)
        self.source.qmp('migrate', uri=uri or self.uri)

    def move(self, **parameters):
        """Moves all the way: the switch comes after one pass."""
        self.begin(x_towline_switch='after-pass', **parameters)
        self.completed()

    def switch(self):
        """After one pass, over to the target."""
        self.wait_synced()
        self.source.qmp('migrate-start-postcopy')
        self.target.qmp.wait_status('postcopy-active', 'completed')

    def wait_synced(self):
        """Until the pass is done: now migrate-start-postcopy takes effect at once."""
        waiting.until(lambda: self.source.qmp.migration().get('ram', {}).get(
            'dirty-sync-count', 0) >= 2 and self.source.qmp.status() == 'active', 'the first sync')

    def completed(self):
        answer = self.source.qmp.wait_status('completed')
        self.target.qmp.wait_status('completed')
        self.guest.moved_to(self.target)
        return answer

    def verdict(self, end_source=True):
        """The guest is right, all of it, in its new place, with the old process gone."""
        if end_source:
            self.source.qmp('quit')
            self.assertEqual(self.source.wait(), 0)
        since = self.guest.wait_reports(1)
        found = self.guest.sweep()
        self.guest.wait_reports(2)
        self.assertEqual(self.guest.judge(since['uptime_us']), [])
        return found

    def source_runs_on(self):
        """The guest runs at the source, and whole, and nowhere else."""
        self.source.qmp.wait_run_state('running')
        since = self.guest.wait_reports(1)
        self.guest.sweep()
        self.guest.wait_reports(2)
        self.assertEqual(self.guest.judge(since['uptime_us']), [])
        if self.target.alive():
            self.assertNotEqual(self.target.qmp.run_state(), 'running')

    def refused(self, machine, command, *words, **arguments):
        """The command is refused, with these words in the reason. Returns the reason."""
        with self.assertRaises(qmp.QmpError) as caught:
            machine.qmp(command, **arguments)
        for word in words:
            self.assertRegex(caught.exception.desc, f'(?i){word}')
        return caught.exception.desc

    def never_both_running(self):
        """Neither now nor in a moment does the guest advance in both places."""
        counts = [machine.serial.count() for machine in (self.source, self.target)]
        states = [machine.qmp.run_state() for machine in (self.source, self.target)]
        self.assertLessEqual(states.count('running'), 1, states)
        return counts

    # ---- stopping a move at a chosen place -----------------------------------------------------

    def stopped_in_setup(self):
        """The target's answer to the description never comes."""
        gate = self.relay.on('control', 'source', wire.ACCEPT, relay.Hold())
        self.begin()
        gate.wait()

    def stopped_in_pass(self):
        gate = self.relay.on('bulk', 'target', wire.PAGES, relay.Hold())
        self.begin()
        gate.wait()

    def stopped_in_sync(self):
        """Stale rounds: the target's acknowledgement never comes."""
        gate = self.relay.on('control', 'source', wire.STALE_APPLIED, relay.Hold())
        self.begin(x_towline_switch='after-pass')
        gate.wait()

    def stopped_after_order(self):
        """The order has left the source and is not at the target."""
        gate = self.relay.on('control', 'target', wire.STATE, relay.Hold())
        self.begin(x_towline_switch='after-pass')
        gate.wait()

    def stopped_in_postcopy(self):
        """The guest runs at the target, and no page comes."""
        # Before the order nothing is asked for, and before the word that it was obeyed nothing is
        # pushed. The bulk lanes' markers are to arrive: the order is not obeyed without them.
        self.relay.on('control', 'target', wire.RUN, relay.Call(
            lambda: self.relay.hold('urgent', 'target')))
        gate = self.relay.on('control', 'source', wire.RUNNING, relay.Call(self.starve))
        self.begin(x_towline_switch='immediate')
        gate.wait()
        self.target.qmp.wait_status('postcopy-active')
        self.source.qmp.wait_status('postcopy-active')
        self.guest.moved_to(self.target)

    def cut_behind_running_in_a_recovery(self):
        """The guest runs at the target. The source hears so, in a recovery that is cut before it has
        heard what is missing; and nobody answers it any more."""
        heard = self.relay.on('control', 'source', wire.RUNNING, relay.Cut(after=10))
        ends = self.cut_in_the_next_comparison()
        self.begin(x_towline_switch='after-pass', x_towline_auto_recover=True)
        heard.wait()
        self.relay.cut()
        ends.wait()
        self.wait_end_of_recovery()
        self.source.qmp.wait_status('postcopy-paused')

    def cut_in_the_next_comparison(self):
        """The next recovery ends before the target has said everything; nobody answers another."""
        def last_words(*_):
            self.relay.refuse()
            return relay.Cut(how='fin')  # What came before is read.

        return self.relay.on('control', 'source', wire.MISSING_END, relay.Decide(last_words))

    def wait_end_of_recovery(self):
        """Of one that had begun to compare; the source's, or its page server's."""
        self.source.err.wait_for(lambda line: re.search('source.ends state=.*-recovering', line),
                                 'the end of the recovery')

    def running_at(self):
        """The names of those machines that execute the guest."""
        return [machine.name for machine in (self.source, self.target)
                if machine.qmp.run_state() == 'running']

    def slowly_in_postcopy(self, **parameters):
        """The guest runs at the target, and most of its memory is at the source until the limit is
        lifted. The pair's guest is to be STILL."""
        self.begin(x_towline_switch='immediate', **{'max_postcopy_bandwidth': SLOW, **parameters})
        for machine in (self.source, self.target):
            machine.qmp.wait_status('postcopy-active')

    def starve(self):
        self.relay.hold('urgent', 'target')
        self.relay.hold('bulk', 'target')


def stopwatch():
    began = time.monotonic()
    return lambda: time.monotonic() - began
