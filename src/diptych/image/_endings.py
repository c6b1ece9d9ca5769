"""Which endings of file names are pictures: those whose format Pillow can decode as it is installed here, HEIC with its plug-in.

Names only; what a file really holds is seen when it is decoded.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

from PIL import Image
from PIL.ImageFile import StubImageFile

# Formats that Pillow names but does not decode by itself (films, vector graphics by Ghostscript), or metadata only.
UNREADABLE_FORMATS = frozenset({"MPEG", "EPS", "IPTC", "PCD", "FITS"})
HEIC_PACKAGE = "pillow_heif"


@cache
def image_endings() -> frozenset[str]:
    """The endings, lower case with the dot: ".jpg", ".jfif", ".avif", ...; ".heic" where pillow-heif is installed."""
    register_heic()
    Image.init()
    readers = {name: factory for name, (factory, _) in Image.OPEN.items() if name not in UNREADABLE_FORMATS}
    stubs = {
        name for name, factory in readers.items() if isinstance(factory, type) and issubclass(factory, StubImageFile)
    }
    return frozenset(
        ending.lower()
        for ending, name in Image.registered_extensions().items()
        if name in readers and name not in stubs
    )


@cache
def register_heic() -> bool:
    """Let Pillow read HEIC if the plug-in is installed; whether it is."""
    if importlib.util.find_spec(HEIC_PACKAGE) is None:
        return False
    importlib.import_module(HEIC_PACKAGE).register_heif_opener()
    return True
