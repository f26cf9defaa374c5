"""Readers, a module a source: raw files -> the prepared folder of `hymate_training.records`.

Each offers `prepare(...) -> DatasetInfo` and `add_arguments(parser)`, whose options carry the names of `prepare`'s
parameters. `hymate prepare` adds `output`, `seed` and `overwrite` itself.
"""

from hymate_training.readers import mimic_iv, physionet2012, physionet2019, synthetic

READERS = {
    "mimic-iv": mimic_iv,
    "physionet2012": physionet2012,
    "physionet2019": physionet2019,
    "synthetic": synthetic,
}
