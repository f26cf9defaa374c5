"""Dividing patients into train, validation and test."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from hymate_training.data.schema import SPLITS

RANDOM_SPLIT = {"train": 0.8, "validation": 0.1, "test": 0.1}
Name = TypeVar("Name", str, int)


def split_at_random(
    names: Iterable[Name], fractions: Mapping[str, float], seed: Any, strata: Mapping[Name, str] | None = None
) -> dict[Name, str]:
    """Divide patients, or records that are one each, at random.

    Args:
        names: of the patients; their order is without effect.
        fractions: of the patients in each split; they sum to one.
        seed: of the shuffling, whatever `numpy.random.default_rng` takes.
        strata: name -> stratum, such as an outcome. Each split then gets its fraction of each stratum, and one name at
            least where there are enough, so that what is rare is in every split.

    Returns:
        The split of each name.

    Raises:
        ValueError: if there are too few names for every split.
    """
    members: dict[str, list[Name]] = {}
    for name in sorted(set(names)):
        members.setdefault(strata[name] if strata else "", []).append(name)
    wanted = [split for split, fraction in fractions.items() if fraction > 0]
    shares = np.cumsum([fractions[split] for split in wanted])
    generator = np.random.default_rng(seed)
    assigned = {}
    for _, stratum in sorted(members.items()):
        ends = np.rint(shares * len(stratum)).astype(int)
        spare = max(len(stratum) - len(wanted), 0)
        for index in range(len(wanted)):
            ends[index] = min(np.clip(ends[index], index + 1, spare + index + 1), len(stratum))
        for rank, at in enumerate(generator.permutation(len(stratum))):
            assigned[stratum[at]] = wanted[np.searchsorted(ends, rank, side="right")]
    if empty := sorted(set(wanted) - set(assigned.values())):
        raise ValueError(f"{len(assigned)} patient(s) are too few: none is left for the split(s) {', '.join(empty)}")
    return assigned


def split_by_hash(names: Sequence[Name], seed: int) -> list[str]:
    """The split of each name by `RANDOM_SPLIT`, which depends on nothing but the name and the seed.

    So shards of a data set can be divided one by one; the fractions hold on average only.
    """
    ends = np.cumsum([RANDOM_SPLIT[split] for split in SPLITS])[:-1]
    digests = (hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names)
    shares = [int.from_bytes(digest) / 2**64 for digest in digests]
    return [SPLITS[index] for index in np.searchsorted(ends, shares, side="right")]
