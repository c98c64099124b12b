"""What a model is trained on and for: text, tokens, models and scores of each objective."""
