"""What can go wrong in `detectors`."""


class DetectorError(Exception):
    """Root of every error that `detectors` raises on purpose."""


class SchemaError(DetectorError, ValueError):
    """A feature schema is malformed, or an array does not fit it."""


class MissingDetector(DetectorError):
    """No detector of that name is installed here.

    Attributes
    ----------
    name : str
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class FitError(DetectorError, ValueError):
    """The data cannot support what was asked of `fit`; the message says what would."""


class BundleError(DetectorError):
    """A bundle is damaged, of another version, or for another schema."""


class InquiryError(DetectorError, ValueError):
    """An inquiry can't judge these rows, or the model that it asks does not answer as it must."""
