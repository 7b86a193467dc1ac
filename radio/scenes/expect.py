"""The check of parameters that the generator's parts share."""


def expect(condition, message):
    """Raise a ValueError that begins with "expected" unless the condition holds."""
    if not condition:
        raise ValueError(f"expected {message}")
