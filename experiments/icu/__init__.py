"""One encoder for several sources of intensive care: its release, and whether it pays on a source it never saw."""
