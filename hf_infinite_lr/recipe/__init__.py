"""A recipe: the YAML that says what to train, and the trainer that it makes."""

from .document import parse_value
from .recipe import Recipe, load_recipe

__all__ = ["Recipe", "load_recipe", "parse_value"]
