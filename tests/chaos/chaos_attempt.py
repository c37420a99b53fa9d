"""One attempt of a move under chaos: it is led to a phase, a fault begins there, and it goes on."""
import time

import chaos_faults
import chaos_plan as plan
import waiting

# For what must happen, with every fault over. Only a hang reaches it.
LIMIT_S = waiting.LIMIT_S / 2
IMPATIENT_S = 0.5    # A frame that does not come: any other one of the phase will do.
POLL_S = 0.003
WINDOWS = {'postcopy-early': (0.6, 9.9), 'postcopy-mid': (0.25, 0.6), 'postcopy-late': (0.0, 0.1)}
FILL_S = 0.25        # The way from one window to the next takes about so long.
TIED = 'postcopy-active'
PAUSED = 'postcopy-paused'
PAUSED_STATES = (PAUSED, 'postcopy-recover-setup', 'postcopy-recover')
ENDED = ('failed', 'cancelled', 'completed')
AFTER_ORDER = ('postcopy-device', TIED, *PAUSED_STATES, 'completed')
MET, MISSED, OVER = 'met', 'missed', 'over'


class Trouble(Exception):
    """Something that must not be. `kind`: lost, double or wrong."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


class Attempt:
    """One pair of processes: from the source's `migrate` to its end, one way or the other."""

    def __init__(self, move, target, address, policy):
        self.move, self.plan, self.policy = move, move.plan, policy
        self.source, self.target = move.source, target
        self.link = chaos_faults.Link(address, self.plan.second_address)
        self.link.narrow(self.plan.delay_s, self.plan.rate, self.plan.loss)
        self.asking = {machine: machine.new_client() for machine in (self.source, target)}
        self.owner = chaos_faults.OneOwner(self.source.new_client(), target.new_client())
        self.owner.start()
        self.started = self.told = False
        self.missing = None  # What the target missed when it began.
        self.bandwidth = None
        self.injured = 0
        self.recoveries = 0  # When the fault that is waited for was armed.
        self.met = []

    def close(self):
        self.link.close()
        self.owner.close()
        for client in self.asking.values():
            client.close()

    # ---- the move itself -----------------------------------------------------------------------

    def begin(self):
        self.started = True
        source = self.source.qmp
        source.set_capabilities(events=True, postcopy_ram=True)
        source('migrate-set-parameters', max_bandwidth=0, max_postcopy_bandwidth=self.slow(),
               x_towline_switch=self.policy, x_towline_alternates=self.link.alternates,
               x_towline_heartbeat_ms=plan.HEARTBEAT_MS, x_towline_patience_ms=plan.PATIENCE_MS,
               x_towline_frozen_patience_ms=plan.FROZEN_PATIENCE_MS,
               x_towline_paused_after_ms=0)  # A fault waits for what the session is in.
        source('migrate', uri=self.link.uri)

    def nudge(self, phase):
        """Whatever the move needs to come to a phase. Returns the source's answer."""
        if not self.started:
            self.begin()
        answer = self.source.qmp.migration()
        before = phase in plan.BEFORE
        if not before and not self.told and self.policy == 'manual' and self.may_switch(answer):
            self.told = True
            self.source.qmp('migrate-start-postcopy')
        if answer.get('status') == TIED and not before:
            self.steer(phase)
        return answer

    def may_switch(self, answer):
        if answer.get('status') != 'active':
            return False
        if self.plan.hurried:
            return True
        enough = self.move.least_missing() if self.move.is_long() else 0
        return answer['ram']['dirty-sync-count'] >= 2 and \
            answer['ram']['remaining'] >= enough * 4096

    # ---- how much is missing -------------------------------------------------------------------

    def slow(self):
        """Bytes a second that hardly change what is missing while a fault is waited for."""
        pages = self.missing or self.move.least_missing()
        return max(64 << 10, pages * 4096 // 20)

    def fraction(self, client=None):
        """What the target still misses, of what it missed when it began; None: not yet known."""
        answer = (client or self.target.qmp).migration()
        if answer.get('status') not in (TIED, *PAUSED_STATES, 'completed'):
            return None
        left = answer['x-towline']['remaining-pages']
        if self.missing is None:
            self.missing = max(1, min(left, self.move.pages))
        return left / self.missing

    def steer(self, phase):
        """Opens or closes the tap, so that the phase's window is reached and not passed."""
        wanted = 0
        low, high = WINDOWS.get(phase, (0.0, 0.0))
        if high:
            left = self.fraction()
            if left is None:
                return
            middle = max((low + min(high, 1.0)) / 2, 0.08)
            speed = max(0.0, left - middle) * self.missing * 4096 / FILL_S
            wanted = int(max(self.slow(), speed)) if left > high else self.slow()
        if self.bandwidth is None or not self.close_to(wanted):
            self.bandwidth = wanted
            self.source.qmp('migrate-set-parameters', max_postcopy_bandwidth=wanted)

    def close_to(self, wanted):
        """Near enough: each new limit forgives what was sent under the old one."""
        return wanted == self.bandwidth or \
            (wanted and self.bandwidth and 0.4 < wanted / self.bandwidth < 2.5)

    # ---- phases --------------------------------------------------------------------------------

    def in_phase(self, phase):
        """Asked while the relay holds a frame. Frames tell most phases; these not."""
        if phase not in plan.POSTCOPY:
            return True
        low, high = WINDOWS[phase]
        left = self.fraction(self.asking[self.target])
        return left is not None and low < left <= high and \
            self.asking[self.target].status() == TIED and \
            self.asking[self.source].status() == TIED

    def is_past(self, phase, answer):
        """The phase will not come any more in this attempt."""
        status = answer.get('status')
        if phase == 'setup':
            return status not in (None, 'none', 'setup')
        if phase == 'pass':
            return status in AFTER_ORDER or answer.get('ram', {}).get('dirty-sync-count', 0) >= 2
        if phase == 'sync':
            return status in AFTER_ORDER
        if phase in plan.SWITCHING:
            return status == TIED
        if phase in plan.POSTCOPY and status == TIED:
            left = self.fraction()
            return left is not None and left <= WINDOWS[phase][0]
        if phase == 'recovering' and status == TIED:
            return answer['x-towline']['recoveries'] > self.recoveries
        return status == 'completed'

    # ---- faults --------------------------------------------------------------------------------

    def injection(self, fault, opens=False):
        machines = {'freeze-source': self.source, 'freeze-target': self.target}
        return chaos_faults.Injection(fault, self.link, machines,
                                      lambda: self.in_phase(fault.phase), opens)

    def inflict(self, fault):
        """MET, MISSED: its phase went by, or OVER: the attempt ended before it."""
        if not fault.opener:
            return self.inflict_alone(fault, self.injection(fault))
        state = self.await_recoverable(fault)
        if state in (MISSED, OVER):
            return state
        injection = self.injection(fault)
        self.recoveries = self.count_recoveries()
        injection.arm(fault.trigger)  # Before there is something to recover from.
        try:
            if state == TIED:
                opened = self.inflict_alone(fault.opener, self.injection(fault.opener, opens=True))
                if opened is not MET:
                    return opened
            return self.inflict_alone(fault, injection, armed=True)
        finally:
            injection.end()

    def await_recoverable(self, fault):
        """TIED: a link is there to be lost. PAUSED: one was lost, and that is to be made worse."""
        def state():
            answer = self.nudge(fault.place)
            status = answer.get('status')
            if status in ('failed', 'cancelled'):
                return OVER
            if status == 'completed':
                return MISSED
            if fault.chained and status in PAUSED_STATES:
                return PAUSED
            return TIED if self.tied() else None
        return self.waiting_for(state, 'a link')

    def inflict_alone(self, fault, injection, armed=False):
        if not armed:
            injection.arm(fault.trigger)
        try:
            outcome = self.await_frame(fault, injection)
            if outcome is MET:
                injection.finish()
                self.met.append(injection)
            return outcome
        finally:
            injection.end()

    def await_frame(self, fault, injection):
        began = time.monotonic()
        while True:
            if injection.met.wait(POLL_S):
                return MET
            if injection.order_held.is_set():
                self.strike_when_loading(injection)
                continue
            answer = self.nudge(fault.place)
            if injection.was_met():
                return MET
            if answer.get('status') in ('failed', 'cancelled'):
                return OVER
            if self.is_past(fault.phase, answer):
                return MISSED
            waited = time.monotonic() - began
            if waited > LIMIT_S:
                raise Trouble('lost', f'{fault}: stuck, the source says {answer}')
            if waited > IMPATIENT_S and fault.phase in plan.POSTCOPY and self.may_be_any(fault):
                injection.arm(plan.ANYWHERE)
                began = time.monotonic()

    def may_be_any(self, fault):
        left = self.fraction()
        return left is not None and left <= WINDOWS[fault.phase][1] and fault.kind != 'flip'

    def strike_when_loading(self, injection):
        """The order is held: the target is to have read the state before the fault."""
        self.waiting_for(lambda: self.target.qmp.status() == 'postcopy-device' or
                         self.source.qmp.status() == 'failed', 'the target to load')
        injection.strike_at_held_order()

    # ---- what follows --------------------------------------------------------------------------

    def count_recoveries(self):
        return self.source.qmp.migration().get('x-towline', {}).get('recoveries', 0)

    def tied(self):
        return self.started and self.source.qmp.status() == TIED and \
            self.target.qmp.status() == TIED

    def settle(self):
        """After the order: until both ends are tied again, or the move has ended."""
        def settled():
            here, there = self.source.qmp.status(), self.target.qmp.status()
            return here in ENDED or here == there == TIED
        self.waiting_for(settled, 'both ends to be tied again')

    def finish(self):
        """Lets the move end. Returns the source's last answer."""
        answer = self.waiting_for(self.ended, 'the move to end')
        if answer['status'] == 'completed':
            self.waiting_for(lambda: self.target.qmp.status() == 'completed',
                             'the target to be complete')
        return answer

    def ended(self):
        answer = self.nudge('completing')
        return answer if answer.get('status') in ENDED else None

    def waiting_for(self, condition, what):
        try:
            return waiting.until(condition, what, LIMIT_S, POLL_S)
        except waiting.NeverHappened as never:
            raise Trouble('lost', f'{never}; the source says {self.source.qmp.migration()}, '
                          f'the target {self.target.qmp.migration()}') from None
