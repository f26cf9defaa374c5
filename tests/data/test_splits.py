"""Splits: by the fractions asked for, the same for the same seed, whatever the order of the names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hymate_training.data.splits import RANDOM_SPLIT, split_at_random, split_by_hash

NAMES = [f"p{number:03d}" for number in range(100)]


@given(st.permutations(NAMES[:30]), st.integers(0, 5))
def test_the_order_of_names_changes_nothing_and_the_fractions_hold(names, seed):
    assigned = split_at_random(names, RANDOM_SPLIT, seed)
    assert assigned == split_at_random(NAMES[:30], RANDOM_SPLIT, seed)
    assert [list(assigned.values()).count(split) for split in RANDOM_SPLIT] == [24, 3, 3]


def test_the_seed_decides():
    assert split_at_random(NAMES, RANDOM_SPLIT, 0) != split_at_random(NAMES, RANDOM_SPLIT, 1)
    assert split_by_hash(NAMES, 0) != split_by_hash(NAMES, 1)


def test_whole_numbers_are_ordered_as_numbers():
    numbers = list(range(8, 13))
    named = split_at_random([f"{number:02d}" for number in numbers], {"train": 0.6, "test": 0.4}, 0)
    assert split_at_random(numbers, {"train": 0.6, "test": 0.4}, 0) == {
        int(name): split for name, split in named.items()
    }


def test_what_is_rare_is_in_every_split():
    strata = {name: "rare" if number < 3 else "common" for number, name in enumerate(NAMES)}
    assigned = split_at_random(NAMES, RANDOM_SPLIT, 0, strata)
    assert {assigned[name] for name in NAMES[:3]} == set(RANDOM_SPLIT)


def test_every_split_has_a_name_or_the_split_is_refused():
    assert set(split_at_random(NAMES[:3], RANDOM_SPLIT, 0).values()) == set(RANDOM_SPLIT)
    assert set(split_at_random(NAMES[:2], {"train": 0.5, "validation": 0.5, "test": 0}, 0).values()) == {
        "train",
        "validation",
    }
    with pytest.raises(ValueError, match=r"2 patient\(s\) are too few: none is left for the split\(s\) test"):
        split_at_random(NAMES[:2], RANDOM_SPLIT, 0)


def test_a_hash_divides_each_name_for_itself():
    names = [str(number) for number in range(10_000)]
    assigned = split_by_hash(names, 3)
    assert split_by_hash(names[5000:], 3) == assigned[5000:]
    for split, fraction in RANDOM_SPLIT.items():
        assert assigned.count(split) / len(names) == pytest.approx(fraction, abs=0.02)
