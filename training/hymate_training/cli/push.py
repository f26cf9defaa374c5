from hymate_training.publishing.push import add_arguments, run  # noqa: F401
