#!/usr/bin/env python3
"""Fails when docs/state-machines.md and the rule tables in the headers differ, in either direction.

    state_tables.py ROOT [--write]

Each table and diagram of the document stands behind a comment that names what it shows:
`<!-- states SourceState -->`, `<!-- rules kSourceRules -->`, `<!-- diagram kSourceRules -->`.
--write renders them anew from the headers.
"""
import pathlib
import re
import sys

HEADERS = ('runtime/core/source_session.h', 'runtime/core/target_session.h', 'runtime/run_gate.h',
           'runtime/core/page_map.h')
MARK = re.compile(r'<!-- (states|rules|diagram) (\w+) -->')


def dashed(name):
    """kOrderSent -> order-sent"""
    return re.sub(r'(?<!^)([A-Z])', r'-\1', name.removeprefix('k')).lower()


def sentence(comment):
    joined = re.sub(r'\s*///< ', ' ', comment)
    return re.sub(r'\bk[A-Z]\w+', lambda found: f'*{dashed(found[0])}*', joined)


def states_of(text):
    """Enumeration -> [(name, sentence)]"""
    found = {}
    for enum, body in re.findall(r'enum class (\w+) : [\w:]+ \{(.*?)\n\};', text, re.S):
        lines = re.findall(r'^\s*(k\w+)(?: = \d+)?,?\s*(?:///< (.*(?:\n\s*///< .*)*))?', body, re.M)
        found[enum] = [(dashed(name), sentence(said)) for name, said in lines]
    return found


def rules_of(text):
    """Table -> [[from, event, to, action?]]"""
    found = {}
    for table, body in re.findall(r'inline constexpr std::array (k\w+Rules)\{(.*?)\n\};', text, re.S):
        found[table] = [[dashed(value) for value in re.findall(r'\w+::(k\w+)', row)]
                        for row in re.findall(r'Rule\{(.*?)\}', body)]
    return found


def render_states(states):
    return ['| state | meaning |', '| --- | --- |'] + [f'| {name} | {said} |'
                                                       for name, said in states]


def render_rules(rules):
    columns = ['from', 'event', 'to', 'action'][:len(rules[0])]
    head = ['| ' + ' | '.join(columns) + ' |', '| ' + ' | '.join('---' for _ in columns) + ' |']
    return head + ['| ' + ' | '.join(rule) + ' |' for rule in rules]


def render_diagram(rules):
    edges = {}
    for rule in rules:
        edges.setdefault((rule[0], rule[2]), []).append(rule[1])
    lines = ['```mermaid', 'stateDiagram-v2']
    for (source, target), events in edges.items():
        names = [name.replace('-', '_') for name in (source, target)]
        lines.append(f'  {names[0]} --> {names[1]}: {", ".join(events)}')
    return lines + ['```']


def block_after(lines, start):
    """End of the table or fenced block that begins at `start`."""
    end = start
    if end < len(lines) and lines[end].startswith('```'):
        return lines.index('```', end + 1) + 1
    while end < len(lines) and lines[end].startswith('|'):
        end += 1
    return end


def main():
    root = pathlib.Path(sys.argv[1])
    document = root / 'docs' / 'state-machines.md'
    states, rules = {}, {}
    for header in HEADERS:
        text = (root / header).read_text()
        states.update(states_of(text))
        rules.update(rules_of(text))
    wanted = {('rules', name) for name in rules} | {('diagram', name) for name in rules}
    wanted |= {('states', name) for name in ('SourceState', 'TargetState', 'Ownership', 'PageState')}
    lines = document.read_text().split('\n')
    rendered, bad, at = [], [], 0
    while at < len(lines):
        rendered.append(lines[at])
        mark = MARK.fullmatch(lines[at])
        at += 1
        if not mark:
            continue
        kind, name = mark.groups()
        table = states if kind == 'states' else rules
        if name not in table:
            bad.append(f'docs/state-machines.md:{at}: no header holds {name}')
            continue
        wanted.discard((kind, name))
        expected = {'states': render_states, 'rules': render_rules,
                    'diagram': render_diagram}[kind](table[name])
        end = block_after(lines, at)
        shown = lines[at:end]
        bad += [f'docs/state-machines.md:{at}: {kind} {name}: not in the headers: {line}'
                for line in shown if line not in expected]
        bad += [f'docs/state-machines.md:{at}: {kind} {name}: not in the document: {line}'
                for line in expected if line not in shown]
        if not bad and shown != expected:
            bad.append(f'docs/state-machines.md:{at}: {kind} {name}: in another order')
        rendered += expected
        at = end
    bad += [f'docs/state-machines.md: nothing shows {kind} {name}' for kind, name in sorted(wanted)]
    if '--write' in sys.argv:
        document.write_text('\n'.join(rendered))
        return 0
    print('\n'.join(bad) or 'state_tables: ok')
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
