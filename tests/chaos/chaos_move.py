"""One move under chaos: attempt after attempt, fault after fault, until the guest is over there.

What must hold is checked here: before the order a move that breaks leaves the guest at the source,
after it the move ends well whatever happened, and the guest is never at two places.
"""
import datetime
import re

import chaos_plan as plan
import waiting
from chaos_attempt import LIMIT_S, MISSED, OVER, Attempt, Trouble

RECOVERED = re.compile(r'(\S+) .*source\.recovered .*\bms=([\d.]+)')


class Move:
    """The guest's way from one process to the next."""

    def __init__(self, chain, the_plan):
        self.chain, self.plan = chain, the_plan
        self.pages = chain.pages
        self.met, self.missed = [], []
        self.attempts = 0
        self.policies = []  # Of each attempt.
        self.double = []
        self.recoveries = []

    @property
    def source(self):
        return self.chain.source

    def run(self):
        """Until the guest is at the target. Raises Trouble."""
        pending = list(self.plan.faults)
        while True:
            self.attempts += 1
            if self.attempts > len(self.plan.faults) + 2:
                raise Trouble('wrong', 'too many attempts')
            target, address = self.chain.new_target()
            self.policies.append(self.policy(pending))
            attempt = Attempt(self, target, address, self.policies[-1])
            try:
                answer = self.go(attempt, pending)
                if answer['status'] == 'completed':
                    return answer
                self.check_source_runs_on(attempt, answer)
            finally:
                self.double += attempt.owner.double
                attempt.close()
            self.chain.discard(target)

    def policy(self, pending):
        """Immediately and after the pass: the move waits for nobody, and would miss faults."""
        early = any(fault.phase in plan.BEFORE for fault in pending)
        short = self.plan.policy == 'after-pass' and self.is_long()
        return 'manual' if early or short or self.plan.hurried else self.plan.policy

    def is_long(self):
        """Faults are to come that need pages which are still missing."""
        return any(fault.place in plan.POSTCOPY for fault in self.plan.faults)

    def least_missing(self):
        """Pages: with fewer, the parts of post-copy could not be told apart."""
        return min(2000, self.pages // 8)

    def go(self, attempt, pending):
        """The faults that are still to come, then the rest of the move."""
        while pending:
            fault = pending[0]
            outcome = attempt.inflict(fault)
            self.met += attempt.met
            attempt.injured += len(attempt.met)
            attempt.met = []
            if outcome is OVER:
                break
            del pending[0]
            if outcome is MISSED:
                self.missed.append(fault)
            elif fault.phase not in plan.BEFORE and not (pending and pending[0].chained):
                attempt.settle()
        answer = attempt.finish()
        self.recoveries += recoveries_of(attempt.source)
        return answer

    def check_source_runs_on(self, attempt, answer):
        """The move failed cleanly: for a reason, with the guest at the source, and only there."""
        if not attempt.injured:
            raise Trouble('wrong', f'the move failed without a fault: {answer}')
        if not answer.get('error-desc'):
            raise Trouble('wrong', f'the move failed without a reason: {answer}')
        try:
            self.source.qmp.wait_run_state('running', limit=LIMIT_S)
            self.chain.guest.wait_reports(1)
        except waiting.NeverHappened as never:
            raise Trouble('lost', f'the guest does not run on at the source: {never}') from None
        if attempt.target.alive():
            if attempt.target.qmp.run_state() == 'running':
                raise Trouble('double', 'the target runs after a move that failed')
        if b'guest.' in attempt.target.serial.raw():
            raise Trouble('double', 'the guest spoke at the target of a move that failed')


def recoveries_of(machine):
    """(wall clock, milliseconds since the loss) of each."""
    found = []
    for line in machine.err.snapshot():
        if match := RECOVERED.match(line):
            at = datetime.datetime.fromisoformat(match[1]).timestamp()
            found.append((at, float(match[2])))
    return found
