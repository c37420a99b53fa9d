"""Reads the guest's lines and judges whether one guest told them, unbroken.

The guest's console is one stream. A line may begin on the source's serial port and end on the
target's, because what is not yet sent lies in guest memory: join the bytes, then parse.
"""
import argparse
import dataclasses
import pathlib
import sys

# Of a report: these never go back as long as the guest lives.
RISING = ('seq', 'uptime_us', 'accesses', 'writes', 'verified', 'corrupt', 'generation_sum')


@dataclasses.dataclass(frozen=True)
class Event:
    """One line: `guest.report seq=1 ...`. Numbers are ints, everything else is text."""
    name: str
    fields: dict

    def __getitem__(self, key):
        return self.fields[key]

    def get(self, key, default=None):
        return self.fields.get(key, default)


def number_or_text(value):
    try:
        return int(value, 0)
    except ValueError:
        return value


def parse_line(line):
    """An Event, or None for a line that is none (firmware, noise, a torn line)."""
    words = line.split()
    if not words or not words[0].startswith('guest.'):
        return None
    fields = {}
    for word in words[1:]:
        key, equals, value = word.partition('=')
        if not equals:
            return None
        fields[key] = number_or_text(value)
    return Event(words[0], fields)


class Transcript:
    """Everything a guest has said, in order."""

    def __init__(self, content=b''):
        self.events = []
        self.noise = []
        self._rest = b''
        self.feed(content)

    def feed(self, content):
        """Adds bytes of the console and returns the events that they completed."""
        *lines, self._rest = (self._rest + content).split(b'\n')
        new = []
        for line in lines:
            text = line.decode('ascii', 'replace').strip()
            event = parse_line(text)
            if event:
                new.append(event)
            elif text:
                self.noise.append(text)
        self.events += new
        return new

    def all(self, name):
        return [event for event in self.events if event.name == name]

    def last(self, name):
        """The latest event of that name, or None."""
        found = self.all(name)
        return found[-1] if found else None


def complaints_about_pair(earlier, later):
    """What cannot be true of two reports of one guest, one after the other."""
    where = f'report {earlier["seq"]} to {later["seq"]}'
    for key in RISING:
        if later[key] < earlier[key]:
            yield f'{where}: {key} went back from {earlier[key]} to {later[key]}'
    if later['seq'] == earlier['seq']:
        yield f'{where}: told twice'
    if later['seq'] > earlier['seq'] + 1 and later['lost_lines'] == earlier['lost_lines']:
        yield f'{where}: reports between them are missing'
    if (later['generation_sum'] == earlier['generation_sum']
            and later['digest'] != earlier['digest']):
        yield f'{where}: nothing was written and the digest changed'


def complaints_about_report(report, pages):
    where = f'report {report["seq"]}'
    if report['corrupt']:
        yield f'{where}: {report["corrupt"]} corrupt'
    if report['tsc_went_back']:
        yield f'{where}: the TSC went back {report["tsc_went_back"]} times'
    # The fill writes each page once, an access at most once more.
    if report['generation_sum'] != pages + report['writes']:
        yield f'{where}: generations sum up to {report["generation_sum"]}, not pages + writes'


def complaints_about_verdict(verdict, pages):
    if verdict is None:
        yield 'no verdict'
        return
    if verdict['result'] != 'ok':
        yield f'verdict: {verdict.fields}'
    if verdict['pages'] != pages:
        yield f'verdict: {verdict["pages"]} of {pages} pages were swept'


def pages_of(transcript):
    """Pages that the guest keeps, from its first line; None if that is missing."""
    hello = transcript.last('guest.hello')
    return hello and hello['working_set_pages'] + hello['fill_pages']


def judge(transcript, verdict_after_us=None):
    """All complaints about a guest that must have lived through everything; empty if none.

    With `verdict_after_us` (guest uptime) the last verdict must be younger than that: use the
    uptime of a report that was told after the move was complete.
    """
    pages = pages_of(transcript)
    if pages is None:
        return ['no guest.hello']
    complaints = [f'{event.name}: {event.fields}' for event in transcript.events
                  if event.name in ('guest.error', 'guest.corrupt')]
    if len(transcript.all('guest.hello')) > 1:
        complaints.append('the guest started more than once')
    reports = transcript.all('guest.report')
    for report in reports:
        complaints += complaints_about_report(report, pages)
    for earlier, later in zip(reports, reports[1:]):
        complaints += complaints_about_pair(earlier, later)
    if verdict_after_us is not None:
        verdict = transcript.last('guest.verdict')
        complaints += complaints_about_verdict(verdict, pages)
        if verdict and verdict['uptime_us'] - verdict['sweep_us'] < verdict_after_us:
            complaints.append('verdict: begun too early')
    if len(reports) < 2 or reports[-1]['accesses'] <= reports[0]['accesses']:
        complaints.append('the guest made no progress')
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('console', nargs='+', type=pathlib.Path,
                        help='files with what the guest wrote, in order: source, target, ...')
    parser.add_argument('--verdict-after-us', type=int,
                        help='demand a verdict of a sweep begun after this uptime')
    arguments = parser.parse_args()
    transcript = Transcript(b''.join(path.read_bytes() for path in arguments.console))
    complaints = judge(transcript, arguments.verdict_after_us)
    print('\n'.join(complaints) or 'guest: ok')
    return 1 if complaints else 0


if __name__ == '__main__':
    sys.exit(main())
