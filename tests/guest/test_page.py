"""The format of the guest's pages, seen from the host. test_bare_guest.py holds both against each
other."""
import unittest

from tests.harness.guest import page
from tests.harness.guest.page import Identity


class PageTest(unittest.TestCase):
    def test_a_page_knows_what_it_is(self):
        content = page.page_bytes(7, Identity(12, 3, 1))
        self.assertEqual(page.identify(content, 7), Identity(12, 3, 1))
        self.assertTrue(page.is_whole(content, 7))

    def test_a_page_of_another_seed_is_no_page(self):
        self.assertIsNone(page.identify(page.page_bytes(7, Identity(12, 3, 1)), 8))

    def test_memory_that_was_never_written_is_no_page(self):
        self.assertIsNone(page.identify(bytes(4096), 1))

    def test_every_word_depends_on_number_and_generation(self):
        first = page.page_bytes(1, Identity(5, 2, 0))
        for other in (Identity(5, 1, 0), Identity(4, 2, 0)):
            later = page.page_bytes(1, other)
            same = [i for i in range(0, 4096, 8) if first[i:i + 8] == later[i:i + 8]]
            self.assertEqual(same, [], other)

    def test_any_flipped_bit_is_noticed(self):
        content = page.page_bytes(1, Identity(5, 2, 0))
        for bit in range(0, 4096 * 8, 97):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            self.assertFalse(page.is_whole(bytes(damaged), 1), bit)

    def test_the_digest_tells_which_page_has_which_generation(self):
        swapped = page.digest_term(1, 5, 2) + page.digest_term(1, 6, 3)
        self.assertNotEqual(swapped, page.digest_term(1, 5, 3) + page.digest_term(1, 6, 2))


if __name__ == '__main__':
    unittest.main()
