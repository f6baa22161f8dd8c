"""Why something cannot be certified, and the remedies that are named with it."""

FEWER_BITS = "give its weights fewer bits there, or a larger step to them or to what it reads"
ANOTHER_STEP = "give its weights fewer bits there, or a smaller step"
POOL_AS_LAYER = "write the pool as a convolution with an odd bias"
ANOTHER_FORM = "export it again with pipeline, which writes the form that is understood"


class RefusedError(Exception):
    """A node that cannot be certified; the caller knows its name."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy
