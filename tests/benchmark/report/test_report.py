"""The files of a report: complete, escaped, and readable in a browser."""

import html.parser
import json
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mmjax.benchmark import report, results
from mmjax.benchmark.report import drawing, markup, page, table
from tests.benchmark import synthetic

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVIL = "<img src=x onerror=parent.owned=1>"
SCRIPT = "\"'></style></title></text><script>parent.owned=1</script>&\x1b[2J\uffff"


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def write(out, found, failures=()):
    for result in found:
        results.write(result, out)
    runs = {result.run: result.end_task for result in found if result.end_task in synthetic.TASKS}
    path = report.write(out, runs=runs, failures=failures)
    return path.read_text(), Tags(path.read_text())


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A report of results whose texts all try to leave their element."""
    out = tmp_path_factory.mktemp("evil")
    names = (EVIL, f"{'long' * 40}", "=1+1")
    found = synthetic.results(3, 20, names=names, seeds=2)
    found[3:4] = []
    evil = dict(config_name=EVIL, end_task=SCRIPT, metric=SCRIPT, metrics={SCRIPT: 0.5})
    found += [synthetic.make(experiment=name, run=EVIL + "2", **evil) for name in names]
    broken = out / "x" / "y" / "results.json"
    broken.parent.mkdir(parents=True)
    broken.write_text(json.dumps({SCRIPT: 1}))
    text, tags = write(out, found, [(EVIL, "CIFAR-100", SCRIPT)])
    return out, text, tags


def test_a_report_has_all_tables_and_figures(tmp_path):
    text, tags = write(tmp_path, synthetic.results(9, 20))
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    groups = {"groups_method", "groups_data"}
    assert figures == {"spearman", "pearson", "scatter", "levels"} | groups
    ids = {attributes.get("id") for tag, attributes in tags.tags if tag == "section"}
    assert ids == figures | {"results", "scores", "details"}
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 10
    content = json.loads((tmp_path / "summary.json").read_text())
    assert len(content["encoders"]) == 9 and len(content["end_tasks"]) == 20
    best = [e["name"] for e in content["encoders"] if e["mean_rank"] == 1]
    assert best == [synthetic.ENCODERS[0]]
    assert all(title in tags.text for title in ("NYU Depth", "KITTI Opt. Flow", "MoCov1_200"))


def test_a_single_cell_has_a_table_and_no_comparison(tmp_path):
    text, tags = write(tmp_path, [synthetic.make(test_accuracy=0.8125)])
    assert "0.812" in tags.text and "Pets Cls." in tags.text
    assert tags.count("svg") == 0 and "rank" not in tags.text
    assert list((tmp_path / "figures").iterdir()) == []


def test_a_report_without_results_shows_the_failures(tmp_path):
    path = report.write(tmp_path, runs={"Pets": "Pets"}, failures=[("mine", "Pets", "no images")])
    assert "no images" in Tags(path.read_text()).text


def test_figures_of_earlier_reports_are_removed(tmp_path):
    write(tmp_path, synthetic.results(3, 2))
    assert (tmp_path / "figures" / "spearman.svg").exists()
    shutil.rmtree(tmp_path / synthetic.ENCODERS[0])
    report.write(tmp_path, runs={})
    assert not (tmp_path / "figures" / "spearman.svg").exists()


def test_missing_and_failed_cells_are_marked(evil):
    _, _, tags = evil
    reasons = [a["title"] for tag, a in tags.tags if a.get("class") == "missing" and "title" in a]
    assert len(reasons) == 1 and "parent.owned" in reasons[0]


def test_runs_that_cannot_be_compared_are_listed_and_the_others_reported(tmp_path):
    found = [
        synthetic.make(),
        synthetic.make(experiment="a", run="x", end_task="dtd"),
        synthetic.make(experiment="b", run="x", end_task="Eurosat"),
    ]
    _, tags = write(tmp_path, found)
    assert "Pets Cls." in tags.text and "Eurosat" in tags.text
    assert json.loads((tmp_path / "summary.json").read_text())["failures"][0]["run"] == "x"


def test_mixed_protocols_and_selection_on_test_are_noted():
    found = [
        synthetic.make(experiment="a", protocol="paper", config_name="x"),
        synthetic.make(experiment="a", protocol="paper", config_name="y"),
        synthetic.make(experiment="b"),
    ]
    built = table.build(found, end_tasks=synthetic.TASKS)
    text = Tags(page.render(built, {}, [], "title")).text
    assert "1 of 2 results" in text and "'paper'" in text and "Pets Cls." in text


def test_text_from_files_never_becomes_an_element(evil):
    out, text, tags = evil
    allowed = set("html head meta title style body h1 h2 p nav a ul li i section div table thead "
                  "tbody tr th td b small wbr figure figcaption svg text rect circle line details "
                  "summary".split())  # fmt: skip
    assert {tag for tag, _ in tags.tags} <= allowed
    assert not [name for _, attributes in tags.tags for name in attributes if name[:2] == "on"]
    assert "\x1b" not in text and "\uffff" not in text
    assert "<script>parent.owned=1</script>" in tags.text  # as text


def test_a_page_refers_to_no_other_file(evil):
    _, text, tags = evil
    links = [a[key] for _, a in tags.tags for key in ("href", "src") if key in a]
    assert links and all(link.startswith("#") for link in links)
    assert "url(" not in text and "@import" not in text


def test_figure_files_are_valid_xml_with_names_as_text(evil):
    out, _, _ = evil
    paths = list((out / "figures").iterdir())
    assert {path.stem for path in paths} >= {"spearman", "pearson", "scatter", "levels"}
    for path in paths:
        root = ET.parse(path).getroot()
        tags = {node.tag.rpartition("}")[2] for node in root.iter()}
        assert tags <= {"svg", "style", "rect", "text", "title", "circle", "line"}, path
    assert EVIL in ET.tostring(ET.parse(out / "figures" / "scatter.svg").getroot(), "unicode",
                               "text")  # fmt: skip


def test_the_page_fits_phones_and_desktops_in_a_browser(evil, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    out, _, _ = evil
    shutil.copy(out / "report.html", tmp_path)
    frames = "".join(
        f'<iframe src="report.html" style="width:{w}px;height:900px"></iframe>' for w in (390, 1280)
    )
    (tmp_path / "frames.html").write_text(f"""{frames}<script>onload = () => {{
        const seen = [...document.querySelectorAll("iframe")].map(frame => {{
          const page = frame.contentDocument, root = page.documentElement;
          const label = page.querySelector(".matrix tbody th");
          page.querySelector(".matrix").parentNode.scrollLeft = 100;
          return {{
            overflow: root.scrollWidth - root.clientWidth,
            left: label.getBoundingClientRect().left,
            rows: page.querySelectorAll("#results tbody tr").length,
            figures: page.querySelectorAll("svg").length,
            small: [...page.querySelectorAll("svg text")].filter(
              text => text.getBoundingClientRect().height < 9).length,
          }};
        }});
        document.body.textContent = JSON.stringify({{seen, owned: window.owned || 0}});
      }}</script>""")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    content = json.loads(Tags(done.stdout).text)
    assert content["owned"] == 0
    for frame in content["seen"]:
        assert frame["overflow"] <= 0  # only tables and heat maps scroll sideways
        assert 0 <= frame["left"] < 40  # the names of end tasks stay visible
        assert frame["rows"] == 21 and frame["figures"] > 20 and frame["small"] == 0


def test_long_labels_are_shortened_to_their_ends():
    assert drawing.shortened("a" * 28) == "a" * 28
    short = drawing.shortened("first" + "x" * 100 + "last")
    assert len(short) == 28 and short.startswith("first") and short.endswith("last")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.87), (-3.9, 0.2), (1e-9, 3e-9)])
def test_ticks_are_round_numbers_in_the_range(low, high):
    found = np.array(drawing.ticks(low, high))
    step = (found[1:] - found[:-1]).mean()
    assert 2 <= len(found) <= 7 and found.min() >= low - 1e-12 and found.max() <= high + 1e-12
    assert round(step / 10 ** np.floor(np.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_ticks_of_one_value_do_not_fail():
    assert drawing.ticks(3.0, 3.0) == [3.0]


def test_elements_escape_content_and_attributes():
    made = markup.element("a", "<b>", markup.element("i", 1.005), title='"x"', x=0.125, class_="c")
    assert made == '<a title="&quot;x&quot;" x="0.12" class="c">&lt;b&gt;<i>1.005</i></a>'
