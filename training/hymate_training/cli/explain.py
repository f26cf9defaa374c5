from hymate_training.explanations.explain import add_arguments, run  # noqa: F401
