"""From raw health records to a trained and evaluated HyMaTE: readers, the training loop, evaluation, prediction."""
