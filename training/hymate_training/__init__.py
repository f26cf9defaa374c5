"""From raw health records to a trained, evaluated HyMaTE checkpoint: readers, training, evaluation, prediction."""
