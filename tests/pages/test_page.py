"""Pages: every text is text, and nothing is fetched."""

import html.parser
import re

import numpy as np
import pytest

from vit_jax.pages import plots
from vit_jax.pages.page import Page, picture, plot

HARM = [
    '<script>alert("x")</script>',
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}",
    "&",
]


class Elements(html.parser.HTMLParser):
    """Collects the elements of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def page_of(text):
    page = Page(text, [text])
    section = page.section(text).text(text).code(text).table([[text]], [text])
    pixels = np.zeros((4, 6, 3), np.uint8)
    lines = plots.lines(
        {text: ([0, 1], [0, 1]), "b": ([0], [1])}, title=text, x=text, y=text
    )
    section.figures(picture(pixels, text), plot(lines, text))
    return page.html()


@pytest.mark.parametrize("text", HARM)
def test_every_text_is_text(text):
    found = Elements(page_of(text))
    tags = [tag for tag, _ in found.found]
    assert "script" not in tags
    assert tags.count("img") == 1
    assert not [a for _, a in found.found if any(name.startswith("on") for name in a)]
    # Title, heading, paragraphs, table, captions; title, axes and legend of the plot.
    assert found.text.count(text) >= 12


def test_nothing_is_fetched():
    found = Elements(page_of("name")).found
    addresses = [
        a[n] for _, a in found for n in ("src", "href", "xlink:href") if n in a
    ]
    assert addresses
    for address in addresses:
        assert address.startswith(("data:image/png;base64,", "#")), address
    styles = re.findall(r"url\(([^)]*)\)", page_of("name"))
    assert all(style.startswith("#") for style in styles)
    assert "@import" not in page_of("name")


def test_links_come_first_on_a_long_page():
    page = Page("title")
    for name in "abc":
        page.section(name)
    assert [a["href"] for tag, a in Elements(page.html()).found if tag == "a"] == [
        *("#s1", "#s2", "#s3")
    ]
    assert "<nav>" not in page_of("short")


def test_plots_are_the_same_at_every_call():
    def all_of_them():
        values = np.arange(12.0).reshape(4, 3)
        return [
            plots.lines({"a": ([1, 2], [1, 10])}, title="t", x="x", y="y", log_y=True),
            plots.heads(values, title="t", y="px"),
            plots.matrix(values, title="t", x="x", y="y"),
            plots.histogram(values, title="t", x="x"),
        ]

    first = all_of_them()
    assert first == all_of_them()
    for svg in first:
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")
        assert len(svg) < 60_000
        assert " height=" not in svg[: svg.index(">")]
