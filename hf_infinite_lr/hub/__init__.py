"""The Hub: model cards from a run's data, a queue of publications on disk, and what sends it."""

from .background import BackgroundSender
from .card import render_card
from .contents import BASE, CARD, RECIPE, NotPublishableError, without_paths
from .download import fetch_trunk, is_hub_revision
from .facts import release_facts
from .publisher import CARD_FACTS, Publisher, read_facts, releases_of
from .queue import Publication, PublicationQueue, check_repo_id, weights_digest
from .saved_model import model_facts
from .sending import Left, left_sentence, send_queue
from .settings import changed_settings

__all__ = [
    "BASE",
    "CARD",
    "CARD_FACTS",
    "RECIPE",
    "BackgroundSender",
    "Left",
    "NotPublishableError",
    "Publication",
    "PublicationQueue",
    "Publisher",
    "changed_settings",
    "check_repo_id",
    "fetch_trunk",
    "is_hub_revision",
    "left_sentence",
    "model_facts",
    "read_facts",
    "release_facts",
    "releases_of",
    "render_card",
    "send_queue",
    "weights_digest",
    "without_paths",
]
