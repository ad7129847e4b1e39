"""Text of others, fit for a terminal."""

__all__ = ["safe"]

# Control characters become visible ones: corpus text must not move the cursor or recolour the terminal.
_VISIBLE = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_VISIBLE |= dict.fromkeys(range(128, 160), 65533)


def safe(text: str) -> str:
    """The text, as long as it was, without control characters other than line feeds and tabs."""
    return text.translate(_VISIBLE)
