"""Pictures of the report: what they say is text, whatever it is."""

from __future__ import annotations

from xml.etree import ElementTree

from amc_compress.report.charts import Axis, Chart, LayerRows
from amc_compress.report.rendering import environment

EVIL = "<b>\"a\" & 'b'</b>"


def drawn(macro: str, picture: Chart | LayerRows) -> ElementTree.Element:
    page = f'{{% from "charts.svg" import {macro} %}}{{{{ {macro}(p) }}}}'
    return ElementTree.fromstring(environment().from_string(page).render(p=picture))


def test_a_chart_holds_its_marks_with_their_hints_as_text():
    chart = Chart(Axis(0, 1, EVIL), Axis(0, 1, "y", percent=True), EVIL)
    chart.dots([(0.5, 0.5)], "dot", [EVIL])
    chart.steps([(0, 0), (1, 1)], "best")
    chart.band(0.5, 1, "outside")
    svg = drawn("chart", chart)
    assert svg.get("aria-label") == EVIL
    assert svg.findtext("circle/title") == EVIL
    assert svg.find("text[@class='label']").text == EVIL
    assert svg.find("circle").get("cx") == f"{(chart.left + chart.right) / 2:.1f}"
    assert len(svg.find("polyline").get("points").split()) == 3
    assert "40%" in [t.text for t in svg.iter("text")]


def test_rows_of_layers_are_as_long_as_what_stays():
    svg = drawn("layers", LayerRows("kept", [(EVIL, 4, 8), ("b", 16, 16)], "kept"))
    whole, kept = (
        [float(r.get("width")) for r in svg.iter("rect") if r.get("class") == css]
        for css in ("whole", "kept")
    )
    assert kept == [whole[0] / 2, whole[1]]
    assert svg.findtext("text") == EVIL
    svg = drawn("layers", LayerRows("bits", [("a", 4, None)], "bits"))
    assert [t.text for t in svg.iter("text")][2:] == ["a", "4", "float32"]
