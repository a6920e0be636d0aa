"""The page of a benchmark: one HTML file without scripts and without references to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmjax.benchmark.report import drawing, tables
from mmjax.benchmark.report.drawing import Figure, shortened
from mmjax.benchmark.report.markup import Markup, element, joined
from mmjax.benchmark.report.table import Table
from mmjax.benchmark.report.tables import Failure

_STYLE = Markup(
    f"""
:root{{color-scheme:light dark;{drawing.LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{drawing.DARK}}}}}
{drawing.STYLE}
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:16px;max-width:1240px;background:var(--page);color:var(--ink);
 font:15px/1.45 system-ui,'DejaVu Sans',sans-serif;overflow-wrap:anywhere}}
h1{{font-size:24px;margin:8px 0}} h2{{font-size:18px;margin:36px 0 4px}}
p{{margin:4px 0 12px;max-width:80ch}} a{{color:inherit}}
nav a{{display:inline-block;margin:0 14px 6px 0}}
.facts{{display:flex;flex-wrap:wrap;gap:4px 24px;padding:0;margin:8px 0;list-style:none}}
.scroll{{overflow-x:auto;max-width:100%}}
table{{border-collapse:separate;border-spacing:0;font-size:13px;
 font-variant-numeric:tabular-nums}}
th,td{{padding:4px 8px;text-align:right;border-bottom:1px solid
 color-mix(in srgb,var(--faint) 30%,transparent)}}
th{{font-weight:600;vertical-align:bottom}} thead th{{border-bottom-color:var(--faint)}}
small{{display:block;color:var(--ink);opacity:.75;font-size:11px;font-weight:400;
 white-space:nowrap}}
.matrix td{{min-width:72px;white-space:nowrap}}
.matrix tbody th{{vertical-align:middle}}
.matrix th div{{max-width:120px;overflow-wrap:break-word;display:-webkit-box;
 -webkit-line-clamp:3;-webkit-box-orient:vertical;overflow:hidden}}
.matrix th:first-child{{position:sticky;left:0;background:var(--page);text-align:left;
 min-width:150px;max-width:190px}}
.matrix th:first-child div{{max-width:190px}}
.matrix th small{{max-width:174px;overflow:hidden;text-overflow:ellipsis}}
.matrix .missing{{color:var(--faint)}} .matrix .total td{{font-weight:600}}
.list td,.list th{{text-align:left;vertical-align:top;min-width:70px}}
.list th{{white-space:nowrap}} .list td:nth-child(-n+2){{min-width:96px}}
.list td{{max-width:420px}}
.legend{{display:flex;flex-wrap:wrap;gap:2px 16px;margin:0 0 8px;padding:0;list-style:none;
 font-size:13px}}
.legend i{{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:6px}}
figure{{margin:0}} svg{{display:block}}
.panels{{display:flex;flex-wrap:wrap;gap:16px}}
.panels svg{{max-width:100%;height:auto}}
.frozen{{display:flex;overflow-x:auto}} .frozen svg{{flex:none}}
.frozen svg:first-child{{position:sticky;left:0;background:var(--page)}}
@media (max-width:600px){{.frozen text{{font-size:10px}}
 .matrix th:first-child{{min-width:112px;max-width:130px}}}}
summary{{cursor:pointer;margin:8px 0}}
"""
)


def render(
    table: Table, figures: Mapping[str, Figure], failures: Sequence[Failure], title: str
) -> str:
    """Returns the HTML of the page.

    Args:
      table: The results.
      figures: The figures by name.
      failures: (experiment, run, reason) of cells without a result.
      title: Title of the page.
    """
    sections = _sections(table, figures, failures)
    links = [element("a", name, href=f"#{key}") for key, (name, _) in sections.items()]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", _STYLE),
    )
    body = element(
        "body",
        element("h1", title),
        _facts(table, failures),
        *(element("p", note) for note in _notes(table)),
        element("nav", *links),
        *(
            element("section", element("h2", name), content, id=key)
            for key, (name, content) in sections.items()
        ),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _sections(
    table: Table, figures: Mapping[str, Figure], failures: Sequence[Failure]
) -> dict[str, tuple[str, Markup]]:
    """Returns {identifier: (title, content)} of the sections."""
    result: dict[str, tuple[str, Markup]] = {}
    if failures:
        text = "These cells have no result. Run the same command again to run them again."
        content = joined(element("p", text), tables.failed(failures))
        result["failures"] = ("Not finished", content)
    if table.columns:
        several = len(table.encoders) > 1
        text = "Metrics on test; ± is half of the 95 % confidence interval over seeds."
        if several:
            text += (
                " Encoders are ordered by their mean rank. Colors compare the encoders on one end "
                "task, and the best result is bold."
            )
        if not all(column.higher_is_better for column in table.columns):
            text += " ↓: lower is better."
        content = joined(element("p", text), tables.results(table, failures))
        result["results"] = ("Results", content)
        if several:
            result["scores"] = ("Normalized scores", _scores(table))
    for key, figure in figures.items():
        result[key] = (figure.title, _figure(figure))
    if table.columns:
        summary = element("summary", "How each result was made, with all metrics")
        result["details"] = ("Details", element("details", summary, tables.details(table)))
    return result


def _scores(table: Table) -> Markup:
    reference = table.reference or "the mean of the encoders"
    text = (
        f"The difference to {reference}, in standard deviations over encoders. Larger is better on "
        "every end task: errors are negated."
    )
    return joined(element("p", text), tables.scores(table))


def _facts(table: Table, failures: Sequence[Failure]) -> Markup:
    facts = [
        f"Encoders: {len(table.encoders)}",
        f"End tasks: {len(table.columns)}",
        f"Results: {len(table.cells)}",
    ]
    if count := tables.missing(table):
        facts.append(f"Missing: {count}")
    if failures:
        facts.append(f"Not finished: {len(failures)}")
    return element("ul", *(element("li", fact) for fact in facts), class_="facts")


def _notes(table: Table) -> list[str]:
    """Returns what a reader must know to not misread the results."""
    notes = []
    if not table.columns:
        notes.append("There are no results yet.")
    on_test = sum(cell.on == "test" for cell in table.cells.values())
    if on_test:
        notes.append(
            f"The configurations of {on_test} of {len(table.cells)} results were selected on test, "
            "which makes these results too optimistic."
        )
    if titles := tables.mixed_protocols(table):
        notes.append(
            f"Results of the protocols 'default' and 'paper' are compared for {', '.join(titles)}. "
            "They are not exactly comparable."
        )
    return notes


def _figure(figure: Figure) -> Markup:
    legend = [
        element("li", element("i", style=f"background:{color}"), shortened(name), title=name)
        for name, color in figure.legend.items()
    ]
    panels = [panel.svg(role="img") for panel in figure.panels]
    kind = dict(class_="frozen", tabindex=0) if figure.frozen else dict(class_="panels")
    return element(
        "figure",
        element("figcaption", element("p", figure.caption)),
        element("ul", *legend, class_="legend") if legend else "",
        element("div", *panels, **kind),
    )
