"""Encoded images, as `datasets` hands them over undecoded: `{"bytes": ..., "path": ...}`."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from .source import place

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for data that is no whole image of a known format."""


def decode(image: Mapping[str, Any], mode: str) -> Image.Image:
    """
    Decodes an image.

    Args:
        image (`Mapping`): Its `bytes`, or the `path` of a local file.
        mode (`str`): Pillow's name of the mode to convert it to, such as `RGB`; an alpha channel is dropped.

    Raises:
        `ValueError`: If it cannot be read.
    """
    try:
        with Image.open(BytesIO(encoded(image))) as opened:
            return opened.convert(mode)
    except _UNREADABLE as error:
        raise ValueError(f"{_name(image)} cannot be read as an image ({error}).") from error


def fault_of(image: Mapping[str, Any]) -> str | None:
    """Why an image cannot be read, with its name; None if it can."""
    return inspect_image(image)["fault"] or None


def inspect_image(image: Mapping[str, Any]) -> dict[str, Any]:
    """
    Reads an image through, at the smallest scale that its format allows.

    Returns:
        `dict`: `fault` (empty for a whole image), `mode`, and `place`, that of its bytes in [0, 1).
    """
    data = b""
    try:
        data = encoded(image)
        with Image.open(BytesIO(data)) as opened:
            mode = opened.mode
            opened.draft("RGB", (1, 1))
            opened.load()
        fault = ""
    except _UNREADABLE as error:
        mode, fault = "", f"{_name(image)} ({error})"
    return {"fault": fault, "mode": mode, "place": place(data)}


def encoded(image: Mapping[str, Any]) -> bytes:
    """The bytes of an image's file."""
    data: bytes | None = image["bytes"]
    return Path(image["path"]).read_bytes() if data is None else data


def _name(image: Mapping[str, Any]) -> str:
    return repr(image["path"]) if image["path"] else f"an image of {len(image['bytes'] or b'')} bytes"
