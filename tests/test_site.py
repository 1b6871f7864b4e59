"""The page of results: everything is in one file, nothing in a table can become markup, a browser sorts and filters."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser

from medadv.benchmarks.card_drafts import draft
from medadv.benchmarks.cli import main
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.leaderboard_rows import COLUMNS
from medadv.benchmarks.site import Site, collect, page, write_site
from medadv.benchmarks.site_data import MADE, as_json, budget_label, payload
from medadv.benchmarks.sources import Source
from medadv.benchmarks.store import read_run
from medadv.diagnostics import CHECKS

EVIL = "</script><script>window.bad=1</script><img src=x onerror=window.bad=1>\u2028'\"&amp;"
COMPLETE = {"licence": "Apache-2.0", "contact": "https://example.org/contact", "data_licence": "CC0-1.0"}
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")


class Parsed(HTMLParser):
    """Elements of a page with their attributes, its text, and the JSON of its data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.data = [], "", ""
        self._in = []
        self.feed(text)
        self.data = json.loads(self.data)
        self.rows = [dict(zip(self.data["columns"], row, strict=True)) for row in self.data["rows"]]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._in.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if self._in and self._in[-1][0] == tag:
            self._in.pop()

    def handle_data(self, text):
        if self._in and self._in[-1][1].get("id") == "data":
            self.data += text
        elif not self._in:
            self.text += f" {text}"

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def results(finished, tmp_path):
    """A folder of results: a run and a model card."""
    folder = tmp_path / "results"
    shutil.copytree(finished, folder / "tiny")
    card = draft(finished, "discs-unet-pgd-at-0", name="disc finder", **COMPLETE)
    (folder / "disc.card.json").write_text(json.dumps(card))
    return folder


def rewrite(folder, **columns):
    """Sets columns of the leaderboard of a run."""
    table = pd.read_csv(folder / "leaderboard.csv", keep_default_na=False, dtype=str)
    table.assign(**columns).to_csv(folder / "leaderboard.csv", index=False)


def test_the_page_holds_every_number_of_the_table(results):
    parsed = Parsed(page(collect(results)))
    frame = read_run(results / "tiny").frame
    assert len(parsed.rows) == len(frame)
    for column in ("adversarial", "ci_low", "eps", "attack", "model", "n_cases"):
        assert [row[column] for row in parsed.rows] == frame[column].tolist()
    assert [row["kind"] for row in parsed.rows] == [
        "image-blind", *["clean", "noise", "attack", "worst case"] * 2
    ]  # fmt: skip
    blind, worst = parsed.rows[0], parsed.rows[4]
    assert worst["budget"] == "8/255" and worst["run"] == "tiny"
    assert worst["above_blind"] == pytest.approx(worst["adversarial"] - blind["adversarial"])
    assert worst["lost"] == pytest.approx(worst["clean"] - worst["adversarial"])


def test_the_page_is_one_file_and_may_load_nothing(results):
    parsed = Parsed(page(collect(results)))
    assert not parsed.of("link") and not parsed.of("iframe")
    assert len(parsed.of("script")) == 2 and all("src" not in script for script in parsed.of("script"))
    pictures = [image["src"] for image in parsed.of("img") if "src" in image]
    assert len(pictures) == 3 and all(source.startswith("data:image/png;base64,") for source in pictures)
    (policy,) = [meta["content"] for meta in parsed.of("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:") and "script-src 'sha256-" in policy
    links = [link["href"] for link in parsed.of("a")]
    assert [link for link in links if not link.startswith("#")] == ["https://example.org/contact"]


def test_what_is_unscored_missing_or_unreadable_is_said(results):
    meta_path = results / "tiny" / "leaderboard.meta.json"
    meta = json.loads(meta_path.read_text())
    meta["suite"]["tasks"][0]["trainings"]["trades"] = {"recipe": "trades"}
    meta["suite"]["tasks"].append({"name": "never", "trainings": {}})
    meta_path.write_text(json.dumps(meta))
    shutil.copytree(results / "tiny", results / "old")
    old = {**meta, "schema_version": 1}
    (results / "old" / "leaderboard.meta.json").write_text(json.dumps(old))
    (results / "draft.card.json").write_text("{}")
    table = pd.read_csv(results / "tiny" / "leaderboard.csv", keep_default_na=False, dtype=str)
    table.loc[8, "adversarial"] = ""
    table.to_csv(results / "tiny" / "leaderboard.csv", index=False)
    site = collect(results)
    text = " ".join(Parsed(page(site)).text.split())
    for sentence in (
        "model 'unet' trained by 'trades' was planned for task 'discs' and is not in the table.",
        "task 'never' was planned and is not in the table.", "2 of 12 cases of task 'discs' have no score",
        "1 rows have no score at all", "old: 'old' has schema version 1", "draft.card.json: licence is missing.",
        "The card and the table of tiny differ. discs, linf at 0.03137: the card says",
    ):  # fmt: skip
        assert sentence in text, sentence
    assert Parsed(page(site)).rows[8]["adversarial"] is None


def test_rows_that_stand_twice_are_told(results):
    shutil.copytree(results / "tiny", results / "tiny again")
    text = " ".join(Parsed(page(collect(results))).text.split())
    assert "tiny again: 9 of its rows stand in 'tiny' too, and twice on this page" in text


def test_flags_are_explained_and_counted(results):
    rewrite(results / "tiny", flags="ci-bound;not-monotone=+0.100;newer=1")
    text = " ".join(Parsed(page(collect(results))).text.split())
    assert "not-monotone 9 rows " in text and CHECKS["monotone"].advice in text
    assert "newer 9 rows A flag of another version" in text


def test_what_failed_is_said_and_is_no_clean_row(results):
    rewrite(results / "tiny", error="RuntimeError: out of memory", adversarial=float("nan"))
    assert {row[payload_column("kind")] for row in payload(collect(results).runs)["rows"]} == {"failed"}
    assert "failed: RuntimeError: out of memory" in Parsed(page(collect(results))).text


def payload_column(name):
    return [*MADE, *COLUMNS].index(name)


def test_cards_stand_beside_the_run_that_has_their_weights(results, finished):
    text = " ".join(Parsed(page(collect(results))).text.split())
    assert "disc finder The table of tiny has these weights and these scores." in text and "Apache-2.0" in text
    card = draft(finished, "discs-unet-pgd-at-0", **COMPLETE)
    (results / "disc.card.json").write_text(json.dumps({**card, "weights_sha256": "0" * 64}))
    assert "No run on this page has these weights" in Parsed(page(collect(results))).text


def poison(results):
    """Markup in every place that others write."""
    rewrite(results / "tiny", model=EVIL, training=EVIL, task=EVIL, dataset=EVIL, attack=EVIL, flags=EVIL, suite=EVIL)
    path = results / "tiny" / "leaderboard.meta.json"
    meta = json.loads(path.read_text())
    meta["suite"].update(name=EVIL, description=EVIL)
    meta["hardware"]["processor"] = meta["git_revision"] = meta["command"] = EVIL
    meta["versions"][EVIL] = meta["weights"][EVIL] = EVIL
    meta["data"][EVIL] = {"name": EVIL, "source": EVIL, "notes": [EVIL], "sha256": EVIL}
    path.write_text(json.dumps(meta))
    pictures = json.loads((results / "tiny" / "pictures.json").read_text())
    pictures[0] = [pictures[0][0], EVIL, pictures[0][2], EVIL]
    (results / "tiny" / "pictures.json").write_text(json.dumps(pictures))
    card = json.loads((results / "disc.card.json").read_text())
    card.update(name=EVIL, licence=EVIL, notes=EVIL)
    card["training"].update(recipe=EVIL, options={EVIL: EVIL})
    (results / "disc.card.json").write_text(json.dumps(card))
    frame = pd.read_csv(results / "tiny" / "leaderboard.csv", keep_default_na=False, dtype=str)
    frame["eps"] = np.where(frame.threat == "none", "0", np.arange(len(frame)).astype(str))  # rows differ again
    frame["seed"] = [str(i) for i in range(len(frame))]
    frame["region"] = [f"r{i}" for i in range(len(frame))]
    frame.to_csv(results / "tiny" / "leaderboard.csv", index=False)


def test_nothing_that_a_table_holds_becomes_markup(results):
    poison(results)
    text = page(collect(results), title=EVIL)
    parsed = Parsed(text)
    assert len(parsed.of("script")) == 2 and text.count("</script>") == 2
    assert not [attributes for _, attributes in parsed.tags if any(name.startswith("on") for name in attributes)]
    assert all(image.get("src", "data:").startswith("data:") for image in parsed.of("img"))
    assert parsed.rows[0]["model"] == EVIL and EVIL.split("\u2028")[0] in parsed.text


def test_json_in_a_page_has_no_character_that_markup_or_a_script_could_end_at():
    text = as_json({"x": EVIL + "\u2029<!--"})
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == {"x": EVIL + "\u2029<!--"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json([float("nan")])


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, "8/255"), ({"unit": "HU", "eps": 13.333, "eps_fraction": 8 / 255}, "8/255 (13.3 HU)"),
    ({"attack": "none"}, "clean"), ({"threat": "l2", "eps": 0.5}, "0.5"), ({"eps": float("nan")}, "no bound"),
    ({"threat": "corruption:noise", "unit": "severity", "eps": 3.0}, "severity 3"),
    ({"unit": "HU", "eps": 10.0, "eps_fraction": float("nan")}, "10 HU"),
])  # fmt: skip
def test_budgets_are_written_as_people_do(changes, expected):
    row = {"attack": "pgd", "threat": "linf", "eps": 8 / 255, "eps_fraction": 8 / 255, "unit": "1", **changes}
    assert budget_label(pd.Series(row)) == expected


def test_the_command_writes_a_file_or_a_folder_and_says_what_it_left_out(results, tmp_path, capsys):
    assert main(["site", str(results), "--out", str(tmp_path / "web")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "web" / "index.html")
    (results / "bad.card.json").write_text("[]")
    assert main(["site", str(results / "tiny"), "--out", str(tmp_path / "one.html"), "--title", "Ours"]) == 0
    assert "<title>Ours</title>" in (tmp_path / "one.html").read_text()
    capsys.readouterr()
    assert main(["site", str(results), "--out", str(tmp_path / "one.html")]) == 1
    assert capsys.readouterr().err.startswith("medadv: not shown: bad.card.json: ")
    for arguments, message in (
        ([tmp_path / "web"], "holds no run that can be shown; give"), ([tmp_path / "none"], "is no folder; give"),
    ):  # fmt: skip
        assert main(["site", *map(str, arguments), "--out", str(tmp_path / "x.html")]) == 2
        assert message in capsys.readouterr().err


# ---- in a browser --------------------------------------------------------------------------------------------------
CELLS = "[...document.querySelectorAll('#table tbody tr')].map(r => r.querySelector('[data-label=\"{}\"]').textContent)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def opened(chromium, results, tmp_path):
    """The page of the results in a browser; at the end nothing was complained of or asked for."""
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.resize(1400, 900)
    chromium.open(write_site(collect(results), tmp_path / "site.html"))
    yield chromium
    assert not chromium.complaints
    assert {url.partition(":")[0] for url in chromium.requests} <= {"file", "data"}
    assert len([url for url in chromium.requests if url.startswith("file:")]) == 1


def cells(page, column):
    return page.run(CELLS.format(column))


def choose(page, name, value):
    page.run(f"(() => {{ const s = document.querySelector('[data-filter={name}]'); s.value = {json.dumps(value)};"
             "s.dispatchEvent(new Event('change')); })()")  # fmt: skip


@browser
def test_a_click_sorts_and_another_turns_it_around(opened):
    choose(opened, "kind", "")
    assert opened.run("document.querySelector('#count').textContent") == "9 of 9 rows"
    head = "document.querySelector('th[data-column=adversarial] button')"
    opened.run(f"{head}.click()")
    down = [float(text) for text in cells(opened, "Under attack")]
    assert down == sorted(down, reverse=True) and len(set(down)) > 3
    assert opened.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    opened.run(f"{head}.focus()")
    opened.press("Enter")
    assert [float(text) for text in cells(opened, "Under attack")] == sorted(down)
    assert opened.run("document.activeElement.textContent") == "Under attack", "the focus stays where it was"
    assert opened.run("[...document.querySelectorAll('th[aria-sort]')].map(h => h.getAttribute('aria-sort'))") == [
        "ascending"
    ]
    opened.run("document.querySelector('th[data-column=training] button').click()")
    assert cells(opened, "Training") == sorted(cells(opened, "Training"))


@browser
def test_filters_and_search_choose_rows_curves_and_pictures(opened):
    assert cells(opened, "Training") == ["natural", "pgd-at"], "at first the worst cases alone"
    assert opened.run("document.querySelectorAll('#panels .curve').length") == 2
    choose(opened, "training", "pgd-at")
    assert cells(opened, "Training") == ["pgd-at"]
    assert opened.run("document.querySelectorAll('#panels .curve').length") == 1
    assert opened.run("document.querySelector('#panels tbody').innerText").split()[0] == "pgd-at"
    choose(opened, "training", "")
    choose(opened, "kind", "")
    opened.run("(() => { const t = document.querySelector('#text'); t.value = 'PGD-dice natural';"
               "t.dispatchEvent(new Event('input')); })()")  # fmt: skip
    opened.run("new Promise(done => setTimeout(done, 250))")
    assert opened.run("document.querySelector('#count').textContent") == "1 of 9 rows"
    state = opened.run("location.hash")
    assert "text=pgd-dice+natural" in state
    opened.run("document.querySelector('#reset').click()")
    opened.run("new Promise(done => setTimeout(done, 50))")
    assert opened.run("document.querySelector('#count').textContent") == "9 of 9 rows"
    opened.run("document.querySelector('.zoom').click()")
    assert opened.run(
        "document.querySelector('dialog').open && document.querySelector('dialog img').naturalWidth > 100"
    )


@browser
def test_a_column_is_there_where_rows_differ_in_it_or_where_it_was_chosen(opened):
    heads = "[...document.querySelectorAll('#table th[data-column]')].map(h => h.dataset.column)"
    assert "attack" not in opened.run(heads), "all are worst cases"
    choose(opened, "kind", "")
    assert "attack" in opened.run(heads) and "run" not in opened.run(heads)
    for name in ("attack", "ssim"):
        opened.run(f"document.querySelector('#choose input[value={name}]').click()")
    assert "attack" not in opened.run(heads) and "ssim" in opened.run(heads)
    assert opened.run("document.querySelector('#choose input[value=ssim]').checked")


@browser
def test_an_address_holds_sort_and_filters(opened, tmp_path):
    opened.run("location.hash")
    opened.requests.clear()
    opened.call("Page.navigate", url="about:blank")
    opened.open(tmp_path / "site.html", "#kind=attack&sort=-adversarial&training=natural")
    assert cells(opened, "Training") == ["natural"]
    assert opened.run("document.querySelector('th[aria-sort]').dataset.column") == "adversarial"
    opened.requests[:] = [url for url in opened.requests if not url.startswith("about:")]


@browser
def test_curves_are_where_the_numbers_are(opened):
    points = opened.run("[...document.querySelectorAll('#panels circle title')].map(t => t.textContent)")
    rows = [dict(zip(*pair)) for pair in opened.run(
        "(() => { const d = JSON.parse(document.getElementById('data').textContent);"
        "return d.rows.map(r => [d.columns, r]); })()")]  # fmt: skip
    for row in rows:
        if row["kind"] in ("clean", "worst case"):
            assert f"{row['training']}, {row['budget']}: {row['adversarial']:.3f} (" in " ".join(points)
    high, low = opened.run(
        "[...document.querySelectorAll('.series')[0].querySelectorAll('circle')].map(c => +c.getAttribute('cy'))"
    )
    first = [
        row["adversarial"] for row in rows if row["training"] == "natural" and row["kind"] in ("clean", "worst case")
    ]
    assert (low - high) / 206 == pytest.approx(first[0] - first[1], abs=1e-3), "206 units are a score of 1"


@browser
@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_never_scrolls_sideways_and_can_sort(opened, width):
    opened.resize(width, 800)
    assert opened.run("document.documentElement.scrollWidth") == width
    assert opened.run("getComputedStyle(document.querySelector('#table tbody tr')).display") == "grid"
    opened.run("(() => { const s = document.querySelector('#sort-by'); s.value = 'adversarial';"
               "s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    scores = [float(text) for text in cells(opened, "Under attack")]
    assert scores == sorted(scores)
    small = "[...document.querySelectorAll('button, select, summary')].filter(b => b.offsetParent"
    assert opened.run(f"{small} && b.getBoundingClientRect().height < 24).length") == 0, "large enough for a finger"


@browser
def test_words_can_be_read_by_day_and_by_night(opened):
    script = """(() => {
      const parse = (c) => { const p = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        p.fillStyle = c; p.fillRect(0, 0, 1, 1); return [...p.getImageData(0, 0, 1, 1).data]; };
      const light = (rgb) => { const [r, g, b] = rgb.map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
      const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
        if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
      const worst = [...document.querySelectorAll('body *')].filter(e => e.offsetParent && !e.closest('svg')
        && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
        .map(e => { const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(ground(e).slice(0, 3))];
          return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.className || e.tagName]; });
      return worst.sort((a, b) => a[0] - b[0])[0]; })()"""
    for theme in ("light", "dark"):
        opened.run(f"document.documentElement.dataset.theme = '{theme}'")
        ratio, where = opened.run(script)
        assert ratio >= 4.5, (theme, where)


@browser
def test_markup_of_a_table_stays_text_in_a_browser(chromium, results, tmp_path):
    poison(results)
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.open(write_site(collect(results), tmp_path / "site.html"))
    choose(chromium, "kind", "")
    assert chromium.run("typeof window.bad") == "undefined"
    assert chromium.run("document.querySelector('#table tbody th').textContent") == EVIL
    assert chromium.run("document.querySelectorAll('#table img, #panels img').length") == 0
    assert not chromium.complaints and all(url.startswith(("file:", "data:")) for url in chromium.requests)


@browser
def test_ten_thousand_rows_are_sorted_at_once(chromium, results, tmp_path):
    frame = read_run(results / "tiny").frame
    rng = np.random.default_rng(0)
    many = pd.concat([frame.iloc[[4]]] * 10_000, ignore_index=True)
    many = many.assign(model=[f"net {i % 400}" for i in range(len(many))], train_seed=np.arange(len(many)) // 400,
                       adversarial=rng.random(len(many)), ci_low=0.0, ci_high=1.0)  # fmt: skip
    chromium.complaints.clear()
    chromium.open(write_site(Site([Source("many", Leaderboard(frame=many))], [], []), tmp_path / "site.html"))
    assert chromium.run("document.querySelector('#count').textContent") == "10,000 of 10,000 rows"
    took = chromium.run("""(() => { const took = [];
      const time = (act) => { const start = performance.now(); act(); document.body.offsetHeight;
        took.push(performance.now() - start); };
      for (const name of ['adversarial', 'model', 'adversarial'])
        time(() => document.querySelector(`th[data-column=${name}] button`).click());
      const kind = document.querySelector('[data-filter=kind]');
      kind.value = ''; time(() => kind.dispatchEvent(new Event('change')));
      return took; })()""")
    assert max(took) < 800, took
    assert chromium.run("document.querySelectorAll('#panels .curve').length") == 12
    assert "12 of 400 models: those that score highest" in chromium.run("document.querySelector('.panel').innerText")
    shown = [float(text) for text in cells(chromium, "Under attack")]
    assert len(shown) == 100 and shown == sorted(shown, reverse=True)
    assert shown[0] == pytest.approx(many.adversarial.max(), abs=5e-4)
    chromium.run("document.querySelector('#on').click()")
    assert float(cells(chromium, "Under attack")[0]) <= shown[-1]
    assert not chromium.complaints
    print("milliseconds per sort, the last of a filter:", took)
