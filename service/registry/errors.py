"""What can go wrong with a model version."""

from __future__ import annotations

from service.errors import Corrupt, NotFound


class BundleCorrupt(Corrupt):
    """A file of a bundle is missing, or is not what was published, or cannot be understood."""

    code = "bundle_corrupt"


class ModelNotFound(NotFound):
    code = "model_not_found"


class AliasNotFound(NotFound):
    code = "alias_not_found"
