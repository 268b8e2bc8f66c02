"""Put pages from outside of docs/ on the site, and lead links where their files are there.

    docs/clusters.md: ../SECURITY.md#clusters ──> security.md#clusters
    CONTRIBUTING.md:  docs/glossary.md        ──> glossary.md
    to a file that is not on the site, such as code: the words of the link alone

mkdocs calls the functions whose names begin with `on_` (`hooks` in mkdocs.yml). On GitHub, pages work as they are.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FROM_ROOT = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
"""Pages that lie in the root of the repository, and what they are called on the site."""
ON_SITE = {**FROM_ROOT, "README.md": "index.md"}

CODE = r"(?s:```.*?```)|`[^`\n]+`"
LINK = r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)"
CODE_OR_LINK = re.compile(f"{LINK}|{CODE}")  # what begins first: code in the text of a link is a part of the link
ELSEWHERE = re.compile(r"[a-z]+:|#")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `FROM_ROOT`."""
    for source, name in FROM_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    return rewritten(markdown, page.file.src_uri, {file.src_uri for file in files})


def rewritten(markdown: str, page: str, on_site: set[str]) -> str:
    """Rewrite links in the text of `page` to what is `on_site`; both are relative to docs/. Code stays as it is."""
    return CODE_OR_LINK.sub(lambda found: _rewritten(found, page, on_site) if found["target"] else found[0], markdown)


def _rewritten(link: re.Match[str], page: str, on_site: set[str]) -> str:
    target, _, anchor = link["target"].partition("#")
    if ELSEWHERE.match(link["target"]):
        return link[0]
    name = _name_on_site(target, page)
    if name not in on_site:
        return link["text"] if _exists(target, page) else link[0]
    path = posixpath.relpath(name, posixpath.dirname(page) or ".")
    return f"{link['image']}[{link['text']}]({path}{'#' if anchor else ''}{anchor})"


def _name_on_site(target: str, page: str) -> str:
    path = _in_repository(target, page)
    return ON_SITE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")


def _exists(target: str, page: str) -> bool:
    return (ROOT / _in_repository(target, page)).exists()


def _in_repository(target: str, page: str) -> str:
    folder = "." if page in FROM_ROOT.values() else posixpath.dirname(f"docs/{page}")
    return posixpath.normpath(posixpath.join(folder, target))
