"""Faults at work: a link of one or two addresses, and an injection that waits for its frame."""
import functools
import threading
import time

import chaos_plan as plan
import qmp
import relay
import wire


class Link:
    """One or two relays to the same target: whatever is done to one is done to both."""

    def __init__(self, address, second):
        self.relays = [relay.Relay(address) for _ in range(2 if second else 1)]

    @property
    def uri(self):
        return self.relays[0].uri

    @property
    def alternates(self):
        return [one.uri for one in self.relays[1:]]

    def arm(self, trigger, function):
        """`function` is called with the relay too. Returns what disarm() takes."""
        return [(one, one.on(trigger.lane, trigger.direction, trigger.kind,
                             relay.Decide(functools.partial(function, one)), trigger.nth))
                for one in self.relays]

    @staticmethod
    def disarm(rules):
        for one, rule in rules:
            one.off(rule)

    def cut(self, lane=relay.ANY, how='rst'):
        return sum(one.cut(lane, how) for one in self.relays)

    def drop(self, direction, only=None):
        for one in [only] if only else self.relays:
            one.drop(direction)

    def refuse(self, only=None):
        for one in [only] if only else self.relays:
            one.refuse()

    def release(self):
        """Ends everything that lasts."""
        for one in self.relays:
            one.undrop()
            one.refuse(False)
            one.release()

    def narrow(self, delay_s, rate, loss):
        for one in self.relays:
            one.delay(delay_s)
            one.lose(loss)
            if rate:
                one.limit(rate)

    def close(self):
        for one in self.relays:
            one.close()


class Injection:
    """One fault, from the frame that it waits for to its end.

    The relay's thread calls at_frame() while it holds the frame: what is found there about the
    phase is true when the fault begins.
    """

    def __init__(self, fault, link, machines, in_phase, opens=False):
        """`opens`: another fault is to begin while this one is recovered from."""
        self.fault, self.link, self.machines = fault, link, machines
        self.in_phase, self.opens = in_phase, opens
        self.began = self.ended = None  # Wall clock, as the events of QMP have it.
        self.met = threading.Event()
        self.order_held = threading.Event()
        self.drifted = 0
        self._lock = threading.Lock()
        self._lifting = threading.Lock()
        self._over = threading.Event()
        self._timer = None
        self._rest = None
        self._at = None
        self._rules = []

    def arm(self, trigger):
        self._rules += self.link.arm(trigger, self.at_frame)

    def disarm(self):
        self.link.disarm(self._rules)
        self._rules = []

    def at_frame(self, at, lane, direction, header):
        """`at`: the relay that holds the frame."""
        with self._lock:
            if self.met.is_set():
                return None
            if not plan.is_of(self.fault.phase, header) or not self.in_phase():
                self.drifted += 1
                return relay.MISSED
            self._at = at
            if self.fault.phase == 'loading' and header.kind == wire.RUN and \
                    self.fault.kind != 'flip':
                self.order_held.set()  # It strikes when the target has read the state.
                return relay.Hold()
            return self.strike(lane, wire.HEADER_BYTES + header.length)

    def strike_at_held_order(self):
        with self._lock:
            if self.met.is_set():
                return
            if self.fault.order_first:
                self.link.release()
            self.strike(None, 0)

    def was_met(self):
        """Also when it is beginning just now."""
        with self._lock:
            return self.met.is_set()

    def strike(self, lane, size):
        """Begins, at a frame of this size. Returns what is to be done to the frame itself."""
        self.began = time.time()
        action = self.begin(lane, size)
        if action is not relay.MISSED:
            # Nobody else may have to: whoever waits for an answer of a frozen process cannot.
            self._timer = threading.Timer(self.fault.seconds, self.lift)
            self._timer.daemon = True
            self._timer.start()
            self.met.set()
        return action

    def begin(self, lane, size):
        fault = self.fault
        if fault.kind in ('rst', 'fin'):
            return self.cut(lane, size, relay.ANY)
        if fault.kind in plan.KILLS:
            return self.cut(lane, size, fault.lane)
        if fault.kind == 'flip':
            return relay.Flip(fault.offset, fault.bit)
        only = self._at if fault.one_address else None
        if fault.kind in ('blackhole', 'half-open'):
            self.link.drop(fault.direction, only)
            return relay.Hold() if fault.swallows else None
        if fault.kind == 'refuse':
            self.link.refuse(only)
            self.link.cut(relay.ANY, fault.how)
        else:
            self.machines[fault.kind].freeze()
        return None

    def cut(self, lane, size, victim):
        """At once, or in the middle of this frame and then whatever else is to go."""
        inside = min(self.fault.inside, size - 1)
        if inside > 0 and relay.lane_fits(victim, lane):
            self._rest = lambda: self.link.cut(victim, self.fault.how)
            return relay.Cut(inside, self.fault.how)
        if self.link.cut(victim, self.fault.how) == 0:
            self.drifted += 1
            return relay.MISSED
        return None

    def finish(self):
        """Called when it was met: waits until it has lasted as long as it is to."""
        self.disarm()
        if self._rest:
            self._rest()
        self._over.wait()

    def end(self):
        """Also of a fault that was never met."""
        self.disarm()
        if self._timer:
            self._timer.cancel()
        self.lift()

    def lift(self):
        with self._lifting:
            if self._over.is_set():
                return
            if not self.opens:
                self.link.release()
            for machine in self.machines.values():
                if machine.alive():
                    machine.thaw()
            self.ended = time.time()
            self._over.set()


class OneOwner(threading.Thread):
    """Asks both machines all the time who runs the guest.

    The target is asked first: a target that ran it, and a source that runs it afterwards, are two
    copies, however the answers were delayed.
    """

    PAUSE_S = 0.01

    def __init__(self, source, target):
        super().__init__(daemon=True)
        self.source, self.target = source, target
        self.double = []
        self.looks = 0
        self._end = threading.Event()

    def look(self):
        there = self.target('query-status')['status']
        here = self.source('query-status')['status']
        self.looks += 1
        if there == 'running' and here == 'running':
            self.double.append(f'both run at {time.time():.3f}')

    def run(self):
        try:
            while not self._end.wait(self.PAUSE_S):
                self.look()
        except (qmp.QmpClosed, qmp.QmpError):
            pass  # A machine ended; whoever ended it knows.

    def close(self):
        self._end.set()
        self.join()
        for client in (self.source, self.target):
            client.close()
