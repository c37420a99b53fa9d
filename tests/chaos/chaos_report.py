"""What a chaos run says: a line for each move, and in the end the table, the times and the sums."""
import statistics

import chaos_plan as plan

COLUMNS = {'seen_ms': 'from the fault to its being seen', 'ms': 'since the loss was seen',
           'free_ms': 'since nothing was in its way'}
DEAD, FROZEN, FURTHER = 'silent: dead link', 'silent: frozen end', 'under a further fault'
# No fault explains it: an end, or the relay that is the network here, had no processor for longer than
# the patience. On a machine with time to spare there are none of these.
LATE = 'long after any fault'
LATE_MS = 3500
GROUPS = ('hard', DEAD, FROZEN, 'refused', FURTHER, LATE)


def group_of(met, lost_at):
    """Which kind of fault a recovery is from. `met`: injections that had begun when it ended."""
    if any(one.began > lost_at + (-0.1 if one.fault.phase == 'recovering' else 0.01)
           for one in met):
        return FURTHER
    kind = met[-1].fault.kind if met else 'rst'
    if kind in plan.SILENT:
        return FROZEN if kind.startswith('freeze') else DEAD
    return 'refused' if kind == 'refuse' else 'hard'


def times_of(move):
    """For each recovery its group and, in milliseconds, what COLUMNS says."""
    rows = []
    for tied_at, ms in move.recoveries:
        lost_at = tied_at - ms / 1000
        met = [one for one in move.met if one.began <= tied_at]
        free = max([lost_at, *(one.ended for one in met)])
        cause = max((one.began for one in met if one.began <= lost_at + 0.01), default=lost_at)
        seen_ms = max(0.0, (lost_at - cause) * 1000)
        rows.append({'group': LATE if seen_ms > LATE_MS else group_of(met, lost_at),
                     'seen_ms': seen_ms, 'ms': ms, 'free_ms': max(0.0, (tied_at - free) * 1000)})
    return rows


def line_of(number, facts):
    move, times = facts['move'], facts['times']
    faults = ' '.join(str(one.fault) for one in move.met) or '-'
    missed = f' missed={",".join(str(one) for one in move.missed)}' if move.missed else ''
    background = ','.join([*move.policies[-1:], *facts['background']])
    spent = '/'.join(f'{row["ms"]:.0f}' for row in times) or '-'
    return (f'{number:4} seed={facts["seed"]} [{faults}]{missed} {background} '
            f'attempts={facts["attempts"]} recoveries={len(times)} recovery_ms={spent} '
            f'total={facts["total_ms"]}ms verified={facts["verified"]} '
            f'corrupt={facts["corrupt"]}')


def table(counts):
    left = max(len(phase) for phase in plan.PHASES)
    yield ' '.join([' ' * left, *plan.FAULTS])
    for phase in plan.PHASES:
        cells = (f'{counts[phase, kind]:>{len(kind)}}' for kind in plan.FAULTS)
        yield ' '.join([f'{phase:<{left}}', *cells])


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values):
    return {'count': len(values), 'p50': round(statistics.median(values), 1),
            'p99': round(percentile(values, 0.99), 1), 'max': round(max(values), 1)}


def times_by_group(rows):
    found = {}
    for group in GROUPS:
        of_group = [row for row in rows if row['group'] == group]
        if of_group:
            found[group] = {column: spread([row[column] for row in of_group])
                            for column in COLUMNS}
    return found


def sums(rows):
    return {'moves': len(rows), 'faults': sum(len(row['met']) for row in rows),
            'attempts': sum(row['attempts'] for row in rows),
            'recoveries': sum(len(row['times']) for row in rows),
            'missed': sum(len(row['missed']) for row in rows),
            'verified_pages': sum(row['verified'] for row in rows),
            'corrupt': sum(row['corrupt'] for row in rows),
            'lost': sum(row['lost'] for row in rows), 'double': sum(row['double'] for row in rows),
            'not_right': sum(bool(row['complaints']) for row in rows)}


def good(total):
    return not (total['corrupt'] or total['lost'] or total['double'] or total['not_right'])


def summary(counts, rows):
    """The lines at the end."""
    yield from table(counts)
    for group, columns in times_by_group([one for row in rows for one in row['times']]).items():
        for column, title in COLUMNS.items():
            values = columns[column]
            yield (f'recovery, {group:<21} {title:<32} n={values["count"]:<5} '
                   f'p50={values["p50"]:.1f} p99={values["p99"]:.1f} max={values["max"]:.1f} ms')
    yield ', '.join(f'{name.replace("_", " ")} {value}' for name, value in sums(rows).items())


def plain(facts):
    """For JSON."""
    move = facts['move']
    row = {key: value for key, value in facts.items() if key != 'move'}
    row['met'] = [str(one.fault) for one in move.met]
    row['missed'] = [str(one) for one in move.missed]
    return row


def everything(counts, rows):
    """For --json."""
    return {'sums': sums(rows),
            'table': {f'{phase}×{kind}': counts[phase, kind] for phase, kind in plan.CELLS},
            'recovery': times_by_group([one for row in rows for one in row['times']]),
            'moves': rows}
