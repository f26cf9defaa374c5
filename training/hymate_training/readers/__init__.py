"""Readers, one module per source: raw files -> the prepared folder of `hymate_training.data.schema`.

Each offers `prepare(...) -> DatasetInfo` (None where only a part of the work was asked for) and
`add_arguments(parser)`, whose options carry the names of `prepare`'s parameters. `hymate prepare` adds `output`,
`seed` and `overwrite` itself.
"""

from hymate_training.readers import (
    eicu,
    fhir,
    frame,
    meds,
    mimic_iii,
    mimic_iv,
    omop,
    physionet2012,
    physionet2019,
    synthetic,
)

READERS = {
    "eicu": eicu,
    "fhir": fhir,
    "frame": frame,
    "meds": meds,
    "mimic-iii": mimic_iii,
    "mimic-iv": mimic_iv,
    "omop": omop,
    "physionet2012": physionet2012,
    "physionet2019": physionet2019,
    "synthetic": synthetic,
}
