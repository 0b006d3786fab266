from itertools import combinations

from tmapdiff.data._seeding import generator_for


def test_streams_depend_on_every_part_and_repeat():
    parts = [("a", 0, "b"), ("a", 1, "b"), ("c", 0, "b"), ("a", 0, "d"), ("a0", "b"), ("a", "0b")]
    draws = [generator_for(*part).random() for part in parts]
    assert draws == [generator_for(*part).random() for part in parts]
    assert all(one != other for one, other in combinations(draws, 2))
