"""The release of open_clip whose interface this package has; Diptych's own version is ``diptych.__version__``."""

__version__ = "3.3.0"
