"""A page on which to try a checkpoint, for a Space of the Hugging Face Hub or for this machine.

A Space has these files and no package of ours: they need Gradio, transformers, pandas and matplotlib alone, and the
model brings its own code. `hymate push --space` puts them there.
"""
