"""Accepted values of a stack's settings by release, and how a refusal is worded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stacks.base import Deployment, Setting

Release = tuple[int, int, int]


def release(text: str | None) -> Release | None:
    """``v0.33.0``, ``0.6.6.post1``, ``0.5.19-cu129``, ``1.4`` -> major, minor, patch; None for what is no version."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text or "")
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def image_tag(image: str | None) -> str | None:
    """The tag of an image reference, without its digest; a registry's port is no tag."""
    name = (image or "").partition("@")[0].rpartition("/")[2]
    return name.partition(":")[2] or None


def dotted(number: Release) -> str:
    return ".".join(map(str, number))


class Values(NamedTuple):
    """The values of one setting, release by release: each row holds from its release up to the next row's."""

    rows: tuple[tuple[Release, tuple[str, ...]], ...]

    @classmethod
    def growing(cls, *changes: tuple[str, str, str]) -> Values:
        """From (release, what it added, what it dropped), oldest first; values are separated by blanks."""
        rows: list[tuple[Release, tuple[str, ...]]] = []
        now: tuple[str, ...] = ()
        for since, added, dropped in changes:
            number = release(since)
            if number is None:
                raise ValueError(f"{since!r} is no release")
            gone = set(dropped.split())
            if unknown := gone - set(now):
                raise ValueError(f"{since} drops what was not there: {sorted(unknown)}")
            now = (*(value for value in now if value not in gone), *added.split())
            rows.append((number, now))
        return cls(tuple(rows))

    def at(self, number: Release | None) -> tuple[str, ...]:
        """Values of a release; of the newest known one if it is None, of the oldest one if it is older than all."""
        if number is None:
            return self.rows[-1][1]
        return next((values for since, values in reversed(self.rows) if since <= number), self.rows[0][1])

    def span(self, value: str) -> str:
        """Where a value that is not in every release can be found, in words; empty if it is nowhere."""
        having = [number for number, (_, values) in enumerate(self.rows) if value in values]
        if not having:
            return ""
        first, last = having[0], having[-1]
        since = f"from {dotted(self.rows[first][0])}" if first else ""
        until = f"before {dotted(self.rows[last + 1][0])}" if last + 1 < len(self.rows) else ""
        return " and ".join(part for part in (since, until) if part)


def nearest(wanted: str, allowed: Iterable[str]) -> str | None:
    """The likeliest spelling among the allowed ones."""
    by_lower = {value.lower(): value for value in allowed}
    found = difflib.get_close_matches(wanted.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def not_accepted(key: str, value: str, allowed: Sequence[str], title: str, elsewhere: str = "") -> Setting:
    """The refusal of a value that a stack does not have: with those that it has and the nearest of them."""
    near = nearest(value, allowed)
    hint = f' Nearest: "{near}".' if near else ""
    where = f" Releases {elsewhere} have it." if elsewhere else ""
    listed = ", ".join(allowed) if allowed else "none"
    return Setting(key, f'"{value}" is not something that {title} accepts.{where}', f"Accepted: {listed}.{hint}")


def release_of(deployment: Deployment, default_image: str | None) -> Release | None:
    """Release of a deployment: what the plan says, else the tag of its image; None = not known."""
    if deployment.version is not None:
        return release(deployment.version)
    if deployment.launch != "docker":
        return None
    return release(image_tag(deployment.image or default_image))
