"""What is done to a move: phases, faults, and how a seed becomes a plan.

Everything that is left to chance is drawn here, from the move's own seed, so that a move can be
repeated. What the machines make of it in time cannot: a repeated move meets the same faults at the
same frames, not at the same nanosecond.
"""
import collections
import dataclasses
import random

import relay
import wire

BEFORE = ('setup', 'pass', 'sync')             # The guest runs at the source.
SWITCHING = ('switch', 'loading')              # The order is on its way, or its answer.
POSTCOPY = ('postcopy-early', 'postcopy-mid', 'postcopy-late')
PHASES = (*BEFORE, *SWITCHING, *POSTCOPY, 'recovering', 'completing')

KILLS = ('kill-control', 'kill-urgent', 'kill-bulk')
SILENT = ('blackhole', 'half-open', 'freeze-source', 'freeze-target')
HARD = ('rst', 'fin', *KILLS, 'flip')
FAULTS = ('rst', 'fin', *KILLS, 'flip', *SILENT, 'refuse')
CELLS = tuple((phase, kind) for phase in PHASES for kind in FAULTS)

MOST_BEFORE = 3  # Most of them end an attempt, and each attempt takes its time.

# The options of a move that the lengths below refer to.
HEARTBEAT_MS = 100
PATIENCE_MS = 250
FROZEN_PATIENCE_MS = 600
SHORT_S = (0.03, 0.2)    # Nobody may lose patience.
LONG_S = {'blackhole': (0.4, 1.0), 'half-open': (0.4, 1.2), 'freeze-source': (0.75, 1.2),
          'freeze-target': (0.75, 1.2), 'refuse': (0.1, 0.8)}
BEYOND_HANDSHAKE_S = 5.4  # In setup, sometimes: longer than a silent peer is waited for.

PAST = 0xffffffff  # The round of pages after the switch.
FINAL = 2          # Flag of the last round's end.


@dataclasses.dataclass(frozen=True)
class Trigger:
    """The frame at which a fault begins."""
    lane: str
    direction: str
    kind: object
    nth: int = 1

    def __str__(self):
        return f'{self.lane or "any"}>{self.direction or "any"}:{self.kind}#{self.nth}'


@dataclasses.dataclass
class Fault:
    phase: str
    kind: str
    trigger: Trigger
    seconds: float = 0.0      # How long it lasts, of those that last.
    how: str = 'rst'          # How a connection ends.
    lane: str = 'control'     # Of a kill.
    direction: str = None     # Of a half-open link: what does not arrive.
    inside: int = 0           # A cut comes after so many bytes of the frame.
    offset: int = 0           # Of a flip.
    bit: int = 0
    one_address: bool = False  # The other address stays reachable.
    swallows: bool = False    # A dead network takes this frame too, and not only what follows.
    opener: object = None     # Of a fault while recovering: the fault that is recovered from.
    at: str = ''              # Of the same: the phase that it happens in.
    chained: bool = False     # Of the same: it follows the fault before, without an opener.
    order_first: bool = False  # While loading: the order goes on before the fault.

    @property
    def cell(self):
        return self.phase, self.kind

    @property
    def place(self):
        """The part of the move that it is met in."""
        return self.at or self.phase

    def __str__(self):
        length = f'({self.seconds * 1000:.0f}ms)' if self.seconds else ''
        return f'{self.phase}×{self.kind}{length}'


@dataclasses.dataclass
class Plan:
    seed: int
    faults: list
    policy: str            # When the vCPUs go over, if nothing is to happen before that.
    hurried: bool          # The word to switch comes in the middle of the pass.
    second_address: bool
    delay_s: float
    rate: int              # Bytes a second through the relay; 0: as fast as it can.
    loss: float            # The share of packets that is lost, of each direction.

    @property
    def name(self):
        """What --replay takes."""
        return f'{self.seed}.{len(self.faults)}'

    def cells(self):
        found = []
        for fault in self.faults:
            found.append(fault.cell)
            if fault.opener:
                found.append(fault.opener.cell)
        return found

    def background(self):
        words = ['two-addresses'] if self.second_address else []
        words += [f'delay={self.delay_s * 1000:.1f}ms'] if self.delay_s else []
        words += [f'rate={self.rate >> 20}MiB/s'] if self.rate else []
        words += [f'loss={self.loss * 100:.2f}%'] if self.loss else []
        return words


# ---- frames that tell a phase -------------------------------------------------------------------

C, U, B0, B1 = 'control', 'urgent', 'bulk0', 'bulk1'
T, S = 'target', 'source'

LATER_LANES = [(U, S, wire.HELLO_REPLY), (U, T, wire.PROOF), (U, S, wire.LANE_READY),
               (B0, T, wire.HELLO), (B0, S, wire.LANE_READY), (B1, T, wire.HELLO),
               (B1, S, wire.HELLO_REPLY), (B1, S, wire.LANE_READY)]
FRAMES = {
    'setup': [(C, T, wire.HELLO), (C, S, wire.HELLO_REPLY), (C, S, wire.LANE_READY),
              (C, T, wire.DESCRIBE), (C, S, wire.ACCEPT), (C, T, wire.PING), (C, S, wire.PONG),
              *LATER_LANES],
    'pass': [(B0, T, wire.PAGES), (B1, T, wire.PAGES), ('bulk', T, wire.PAGES),
             (B0, T, wire.MARKER)],
    'sync': [(C, T, wire.STALE), (C, T, wire.ROUND_END), (C, S, wire.STALE_APPLIED)],
    'switch': [(C, T, wire.STATE), (C, T, wire.STATE), (C, T, wire.RUN), (C, T, wire.PAGES)],
    'loading': [(C, T, wire.RUN), (C, S, wire.RUNNING)],
    'recovering': [(C, T, wire.HELLO), (C, S, wire.HELLO_REPLY), (C, T, wire.PROOF),
                   (C, S, wire.LANE_READY), (C, S, wire.MISSING), (C, S, wire.RUNNING),
                   (C, S, wire.MISSING_END), (C, T, wire.RESUME), *LATER_LANES],
    'completing': [(C, S, wire.COMPLETE)],
}
FRAMES.update(dict.fromkeys(POSTCOPY, [
    ('bulk', T, wire.PAGES), (B0, T, wire.PAGES), (U, T, wire.PAGES), (U, S, wire.REQUEST),
    (C, S, wire.BEAT), (C, T, wire.PING), (C, S, wire.PONG)]))
# A lane can be killed when it is there.
WITH_LANE = {
    (U, 'setup'): LATER_LANES, (U, 'recovering'): [*LATER_LANES, (C, T, wire.RESUME)],
    ('bulk', 'setup'): [(B0, S, wire.LANE_READY), (B1, T, wire.HELLO), (B1, S, wire.LANE_READY)],
    ('bulk', 'recovering'): [(B0, S, wire.LANE_READY), (B1, T, wire.HELLO),
                             (B1, S, wire.LANE_READY), (C, T, wire.RESUME)],
}


def frames_for(phase, kind):
    if kind in KILLS:
        return WITH_LANE.get((kind.removeprefix('kill-'), phase), FRAMES[phase])
    return FRAMES[phase]


def is_of(phase, header):
    """Whether a frame of a phase's kind is one of this phase, where its kind does not say so."""
    if phase == 'pass':
        return header.round != PAST
    if phase == 'sync':
        return not (header.kind == wire.ROUND_END and header.flags & FINAL)
    if phase in POSTCOPY and header.kind == wire.PAGES:
        return header.round == PAST
    return True


# ---- drawing ------------------------------------------------------------------------------------

def length_of(dice, phase, kind):
    if kind not in LONG_S:
        return 0.0
    if phase == 'setup' and kind != 'refuse' and dice.random() < 0.05:
        return BEYOND_HANDSHAKE_S
    if kind != 'refuse' and dice.random() < 0.3:
        return dice.uniform(*SHORT_S)
    return dice.uniform(*LONG_S[kind])


def lane_of(dice, kind):
    lane = kind.removeprefix('kill-')
    return dice.choice((B0, B1)) if lane == 'bulk' else lane


def draw_fault(dice, phase, kind, span):
    """`span`: frames of pages that a bulk lane surely carries in a pass."""
    lane, direction, frame = dice.choice(frames_for(phase, kind))
    nth = 1
    if phase == 'pass' and frame == wire.PAGES:
        nth = dice.randint(1, max(1, span))
    elif phase in ('sync', 'setup') and frame in (wire.STALE_APPLIED, wire.ROUND_END, wire.PING,
                                                  wire.PONG):
        nth = dice.randint(1, 3)
    victim = lane_of(dice, kind) if kind in KILLS else C
    if kind == 'kill-bulk' and lane in (B0, B1) and phase in ('setup', 'recovering'):
        victim = lane  # The other one may not be there yet.
    return Fault(
        phase, kind, Trigger(lane, direction, frame, nth), length_of(dice, phase, kind),
        how='fin' if kind == 'fin' or (kind in KILLS and dice.random() < 0.4) else 'rst',
        lane=victim, direction=dice.choice((T, S)) if kind == 'half-open' else None,
        inside=dice.choice((0, 0, 1, 20, 40, dice.randint(1, 4000))),
        offset=dice.randrange(1 << 16), bit=dice.randrange(8),
        one_address=dice.random() < 0.5, swallows=dice.random() < 0.5,
        order_first=dice.random() < 0.5)


def draw_recovering(dice, kind, span):
    fault = draw_fault(dice, 'recovering', kind, span)
    fault.at = dice.choice(POSTCOPY)
    fault.chained = dice.random() < 0.5
    fault.opener = draw_fault(dice, fault.at, dice.choice(('rst', 'fin', 'kill-control')), span)
    return fault


def may_follow(phase, chosen):
    """Some phases come but once in an attempt."""
    if phase in BEFORE:
        return sum(other in BEFORE for other in chosen) < MOST_BEFORE
    if phase in SWITCHING:
        return not any(other in SWITCHING for other in chosen)
    return phase != 'completing' or 'completing' not in chosen


def when(fault):
    """In this order they are met."""
    return PHASES.index(fault.place)


def draw(seed, count, span=20):
    """The plan of a move: of `count` faults, the openers of recoveries not among them."""
    dice = random.Random(seed)
    faults = []
    while len(faults) < count:
        phase, kind = dice.choice(CELLS)
        if may_follow(phase, [fault.phase for fault in faults]):
            faults.append(draw_recovering(dice, kind, span) if phase == 'recovering'
                          else draw_fault(dice, phase, kind, span))
    faults.sort(key=when)
    return Plan(seed, faults,
                policy=dice.choice(('immediate', 'immediate', 'manual', 'after-pass')),
                hurried=dice.random() < 0.2, second_address=dice.random() < 0.3,
                delay_s=dice.uniform(0.0005, 0.004) if dice.random() < 0.2 else 0.0,
                rate=dice.randint(40, 200) << 20 if dice.random() < 0.2 else 0,
                # A packet here has up to 64 KiB. Where every hundredth is lost, one in some ten
                # thousand is lost twice, which takes longer than the patience.
                loss=dice.uniform(0.0005, 0.01) if dice.random() < 0.2 else 0.0)


class Planner:
    """Chooses, among the plans that chance offers, one for the cells that were met least."""

    CHOICE = 40

    def __init__(self, seed, faults, span):
        self.dice = random.Random(seed)
        self.fewest, self.most = faults
        self.span = span
        self.counts = collections.Counter()

    def count(self, cell):
        self.counts[cell] += 1

    def next(self):
        number = self.dice.randint(self.fewest, self.most)
        offers = [draw(self.dice.randrange(1 << 32), number, self.span)
                  for _ in range(self.CHOICE)]
        return max(offers, key=self.worth)

    def worth(self, plan):
        least = min(self.counts[cell] for cell in CELLS)
        return sum(2.0 ** (least - self.counts[cell]) for cell in set(plan.cells()))

    def least(self):
        return min(self.counts[cell] for cell in CELLS)


ANYWHERE = Trigger(relay.ANY, relay.ANY, relay.ANY)
