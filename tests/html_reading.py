"""A page read back: its elements, its text, and everything that could reach out of it."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Parses a page and fails on elements that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += f" {' '.join(data.split())} "

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind, in order."""
        return [attributes for found, attributes in self.elements if found == tag]

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    def check_self_contained(self, links: Sequence[str] = ()) -> None:
        """Nothing that fetches, runs, or is missing for those who do not see; only these links."""
        tags = {tag for tag, _ in self.elements}
        assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
        assert [link["href"] for link in self.all("a")] == list(links)
        for tag, attributes in self.elements:
            if tag == "a":
                continue
            assert not [name for name in attributes if name.startswith("on")], tag
            for name in ("src", "href", "srcset", "poster", "action", "xlink:href"):
                assert attributes.get(name, "data:").startswith("data:"), (tag, name)
        for image in self.all("img"):
            assert image["src"].startswith("data:image/webp;base64,")
            assert image["alt"]
        (policy,) = [m["content"] for m in self.all("meta") if "http-equiv" in m]
        assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        assert self.all("html") == [{"lang": "en"}]
        assert "viewport" in [m.get("name") for m in self.all("meta")]
        assert len(self.all("title")) >= 1
        assert len(self.all("h1")) == 1
