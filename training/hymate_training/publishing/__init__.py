"""Model cards, and what may be pushed to the Hugging Face Hub."""
