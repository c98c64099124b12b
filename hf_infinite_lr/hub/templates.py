"""Where the card templates lie: `model_cards/` of a checkout, or a shared folder of an installation."""

from __future__ import annotations

from importlib.metadata import files
from pathlib import Path

FOLDER = "model_cards"


def template_folder() -> Path:
    """The folder of the templates.

    Raises:
        FileNotFoundError: an installation without them.
    """
    checkout = Path(__file__).parents[2] / FOLDER
    if (checkout / "base.md").is_file():
        return checkout
    for file in files("hf_infinite_lr") or ():
        if file.name == "base.md" and file.parent.name == FOLDER:
            return Path(str(file.locate())).resolve().parent
    raise FileNotFoundError(f"The templates of {FOLDER}/ are missing from this installation of hf_infinite_lr.")
