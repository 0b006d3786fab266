"""Texts of files on a terminal."""


def printable(text: str) -> str:
    """Spell out what would command a terminal, such as the escape codes in a stranger's file."""
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )
