"""The guest notices damage: what a faulty migration would do is planted from outside the product."""
import unittest

import moves
from tests.harness.guest import damage


class Planted(moves.MoveCase):
    def planted(self, kind):
        """A guest that was moved, and then harmed in its new place. What it says about that."""
        self.pair(relayed=False)
        self.move()
        self.guest.wait_reports(1)
        damage.plant(kind, self.target.pid, self.guest.transcript(), '')
        since = self.guest.wait_reports(1)
        verdict = self.guest.sweep()
        self.guest.wait_reports(1)
        self.assertEqual(verdict['result'], 'corrupt', verdict.fields)
        self.assertNotEqual(self.guest.judge(since['uptime_us']), [])
        named = {event['kind'] for event in self.guest.transcript().all('guest.corrupt')}
        expected = damage.KINDS[kind][1]
        if expected:
            self.assertIn(expected, named)


def add_cases():
    titles = {'flipped': 'a_flipped_bit', 'zero': 'a_page_of_zeros', 'stale': 'a_stale_page',
              'torn': 'a_torn_page', 'swapped': 'two_swapped_pages',
              'stale-table': 'a_stale_table', 'stale-together': 'a_page_stale_with_its_table',
              'untouched': 'a_bit_in_untouched_memory', 'image': 'a_changed_image'}
    for kind in damage.KINDS:
        title = titles.get(kind, kind.replace('-', '_'))
        setattr(Planted, f'test_{title}_is_noticed', lambda self, kind=kind: self.planted(kind))


add_cases()

if __name__ == '__main__':
    unittest.main()
