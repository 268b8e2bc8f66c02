"""Check that each link and picture of the built site leads somewhere, and that nothing is loaded from elsewhere.

    python docs/check_links.py site

mkdocs checks what is written in Markdown; this also sees what plugins, the theme and HTML in pages make.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
"""Attributes whose targets a browser fetches with the page."""
NOT_LOADED = {"canonical", "next", "prev", "alternate"}


class HtmlPage(HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element is called, and where it leads."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links += [given[name] for name in ("href", "src") if name in given]
        if tag in LOADS and given.get("rel") not in NOT_LOADED:
            self.loaded.append(given.get(LOADS[tag], ""))


def problems(site: Path) -> list[str]:
    """List what is wrong with the pages below `site`, one sentence each."""
    pages = {path.resolve(): HtmlPage(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"there are no pages in {site}"]
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        found += [f"{name} loads {link} from elsewhere" for link in page.loaded if urlsplit(link).netloc]
        wrong = {link: _wrong(link, path, site, pages) for link in page.links}
        found += [f"{name} links to {link}: {why}" for link, why in wrong.items() if why]
    return found


def _wrong(link: str, path: Path, site: Path, pages: dict[Path, HtmlPage]) -> str:
    url = urlsplit(link)
    if url.scheme or url.netloc:
        return ""
    parts = unquote(url.path)
    folder = site if parts.startswith("/") else path.parent
    target = (folder / parts.lstrip("/")).resolve() if parts else path
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return "there is no such file"
    anchor = unquote(url.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors and not anchor.startswith("__"):
        return "there is no such anchor"
    return ""


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    found = problems(Path(sys.argv[1]))
    print("\n".join(found) or "all links lead somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
