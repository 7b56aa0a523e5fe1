"""SVG: the elements of a picture.

It is built with ElementTree, so whatever a class is called is escaped.
"""

from __future__ import annotations

from xml.etree import ElementTree

from markupsafe import Markup


def svg_root(label: str, width: float, height: float, kind: str) -> ElementTree.Element:
    """A picture with words for those who do not see it."""
    return ElementTree.Element(
        "svg",
        {
            "class": kind,
            "viewBox": f"0 0 {width:.0f} {height:.0f}",
            "width": f"{width:.0f}",
            "height": f"{height:.0f}",
            "role": "img",
            "aria-label": label,
        },
    )


def add(
    parent: ElementTree.Element,
    tag: str,
    text: str | None = None,
    *,
    cls: str | None = None,
    **attributes: float | str,
) -> ElementTree.Element:
    """Add a child; numbers are written with two decimals at most."""
    child = ElementTree.SubElement(parent, tag)
    child.text = text
    if cls is not None:
        child.set("class", cls)
    for name, value in attributes.items():
        child.set(name, value if isinstance(value, str) else f"{round(value, 2):g}")
    return child


def as_markup(svg: ElementTree.Element) -> Markup:
    """What a template writes as it is."""
    return Markup(ElementTree.tostring(svg, encoding="unicode"))  # noqa: S704 (escaped just here)
