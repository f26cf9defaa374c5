"""The template of model cards, installed as `hymate_model_cards`; hymate_training.cards fills it."""
