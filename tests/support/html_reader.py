"""Reads a page the program wrote, strictly."""

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Fails on a tag that is not closed in its turn. Keeps the text of every cell, by table and row, every
    address the page names, the elements with their attributes, and the text in each language."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[tuple[str, str | None, str]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))
        self.addresses += [value for key, value in attributes if key in {"src", "href", "action", "srcset"}]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1][0] in {"td", "th"}:
            self.tables[-1][-1][-1] += data
        if self.open and {"dir", "lang"} <= self.open[-1][1].keys():
            own = self.open[-1][1]
            self.said.append((str(own["lang"]), own["dir"], data))
