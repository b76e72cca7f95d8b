"""A QR code for a terminal: two modules to a character, dark on light whatever the colours are."""

from typing import Final

_DARK_ON_LIGHT: Final = "\x1b[30;107m"
_PLAIN: Final = "\x1b[0m"
#: Modules of light around it; the norm wants four, readers are content with two.
_BORDER: Final = 2
#: By whether the upper and the lower module are dark.
_HALVES: Final = {
    (False, False): " ",
    (True, False): "▀",
    (False, True): "▄",
    (True, True): "█",
}


def lines(text: str) -> list[str]:
    """The code's lines, without colour."""
    import segno

    modules = segno.make_qr(text, error="l", boost_error=False).matrix_iter(border=_BORDER)
    rows = [[bool(module) for module in row] for row in modules]
    if len(rows) % 2:
        rows.append([False] * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return ["".join(_HALVES[pair] for pair in zip(*both, strict=True)) for both in pairs]


def coloured(line: str) -> str:
    return f"{_DARK_ON_LIGHT}{line}{_PLAIN}"
