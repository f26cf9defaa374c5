"""The `hymate` command: a thin module per command, options and recipes."""
