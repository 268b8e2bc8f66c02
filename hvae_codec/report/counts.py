"""Numbers of things, as a person writes them."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """Write a number and what is counted.

    >>> count(1, "image"), count(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
