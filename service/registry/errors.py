"""What can go wrong with a model version."""

from __future__ import annotations

from service.errors import Corrupt, InvalidInput, NotFound


class BundleCorrupt(Corrupt):
    """A file of a bundle is missing, or is not what was published, or cannot be understood."""

    code = "bundle_corrupt"


class ModelNotFound(NotFound):
    code = "model_not_found"


class AliasNotFound(NotFound):
    code = "alias_not_found"


class BundleUnreadable(InvalidInput):
    """What was sent to be imported is no whole bundle."""

    code = "bundle_unreadable"


class BundleUnusable(InvalidInput):
    """A whole bundle that this service cannot serve."""

    code = "bundle_unusable"
