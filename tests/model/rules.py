"""Compares the rules that the model takes with the tables of the sessions and of the gate.

The model takes a rule by s_step(), t_step() or g_step(), with the table's own names: S_Ordered is
SourceState::kOrdered, E_LinkLost the event kLinkLost.
"""

import re

# A rule of the model: its inline, the prefix of its states, the header and its rules' type.
TABLES = (
    ('s_step', 'S_', 'core/source_session.h', 'SourceRule'),
    ('t_step', 'T_', 'core/target_session.h', 'TargetRule'),
    ('g_step', 'G_', 'run_gate.h', 'OwnershipRule'),
)

# Rules of the tables that the model does not have, as (state, event), None being any; and why.
LEFT_OUT = {
    ('Connecting', None): 'the model begins with an accepted description',
    ('Describing', None): 'the model begins with an accepted description',
    ('Listening', None): 'the model begins with an accepted description',
    (None, 'Cancel'): 'before the order it does what a lost link does',
    (None, 'Cancelled'): 'before the order it does what a lost link does',
    (None, 'SwitchFailed'): 'before the order it does what a lost link does',
    ('Passing', 'TargetNever'): 'before the order it does what a lost link does',
    ('Syncing', 'TargetNever'): 'before the order it does what a lost link does',
    ('Switching', 'TargetNever'): 'before the order it does what a lost link does',
    ('OrderedPaused', 'TargetRunning'): 'what is unread when the link is given up stays unread',
    (None, 'SourceGivenUp'): 'it ends the protocol: nobody is let in or heard after it',
    ('Abandoning', None): 'it ends the protocol: nobody is let in or heard after it',
    ('Incoming', 'Take'): "the target's gate is t_runs in the model",
}

def calls_of_model(here):
    """Every call that takes a rule, as the model writes it."""
    text = ''.join(path.read_text() for path in here.glob('*.pml'))
    return set(re.findall(r'\b[stg]_step\([STG]_\w+, E_\w+, [STG]_\w+\)', text))


def rules_of_model(text, inline, prefix):
    call = rf'\b{inline}\({prefix}(\w+), E_(\w+), {prefix}(\w+)\)'
    return set(re.findall(call, text))


def rules_of_table(text, name):
    rule = rf'{name}\{{\w+::k(\w+),\s*\w+::k(\w+),\s*\w+::k(\w+)'
    return set(re.findall(rule, text))


def left_out(rule):
    state, event, _ = rule
    return any(key in LEFT_OUT for key in ((state, None), (None, event), (state, event)))


def compare(here):
    """Returns the complaints and the number of rules that both have."""
    runtime = here.parent.parent / 'runtime'
    model = ''.join(path.read_text() for path in sorted(here.glob('*.pml')))
    complaints = []
    both = 0
    for inline, prefix, header, name in TABLES:
        taken = rules_of_model(model, inline, prefix)
        listed = rules_of_table((runtime / header).read_text(), name)
        both += len(taken & listed)
        for rule in sorted(taken - listed):
            complaints.append(f'{header} has no rule {" ".join(rule)}, the model takes it')
        for rule in sorted(listed - taken):
            if not left_out(rule):
                complaints.append(f'the model never takes {" ".join(rule)} of {header}')
        if not taken or not listed:
            complaints.append(f'no rules are found for {header}: this comparison is broken')
    return complaints, both
