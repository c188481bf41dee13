"""The one error that bad input raises."""


class InputError(ValueError):
    """A setting, file or argument that cannot be used.

    Reads as one line: which field, what was found, what is allowed.

    Attributes:
      field: dotted name of the option, argument or file at fault.
      found: the offending value.
      allowed: what would be accepted, or what to do instead.
    """

    def __init__(self, field: str, found: object, allowed: str):
        """Put the three into one line."""
        self.field, self.found, self.allowed = field, found, allowed
        super().__init__(f"{field}: found {found!r}; allowed: {allowed}")
