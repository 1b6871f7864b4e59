"""Merged leaderboards hold every row of their sources once, and contradictions are never settled in silence."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from finished import tiny_run

from medadv.benchmarks.cli import main
from medadv.benchmarks.merge import merge, write_merged
from medadv.benchmarks.sources import distinct_names
from medadv.benchmarks.store import read_run


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run of the same task with another model."""
    model = {"name": "small", "network": "UNet", "args": {"spatial_dims": 2, "in_channels": 1, "out_channels": 2,
                                                          "channels": [2, 4], "strides": [2]}}  # fmt: skip
    return tiny_run(tmp_path_factory.mktemp("runs") / "other", models=[model], trainings={"natural": {"epochs": 1}})


@pytest.fixture
def changed(finished, tmp_path):
    """A copy of the finished run, changed by a function of its leaderboard or its provenance."""

    def copy(name, frame=None, meta=None):
        folder = tmp_path / name
        shutil.copytree(finished, folder)
        if frame is not None:
            table = pd.read_csv(folder / "leaderboard.csv", keep_default_na=False, dtype=str)
            frame(table).to_csv(folder / "leaderboard.csv", index=False)
        if meta is not None:
            path = folder / "leaderboard.meta.json"
            known = json.loads(path.read_text())
            meta(known)
            path.write_text(json.dumps(known))
        return folder

    return copy


def of_unet(table, training="natural"):
    return (table.model == "unet") & (table.training == training)


def raised(table, training="natural"):
    """The same rows with another score of one network."""
    hit = of_unet(table, training) & (table.attack == "worst-case")
    return table.assign(adversarial=table.adversarial.where(~hit, "0.875"))


def test_runs_of_other_models_stand_below_each_other_and_what_is_shared_once(finished, other, tmp_path):
    merged = merge([finished, other])
    frames = [read_run(folder).frame for folder in (finished, other)]
    assert len(merged.board.frame) == len(frames[0]) + len(frames[1]) - 1, "the image-blind row is shared"
    assert any(
        "1 rows of 'other' are those of 'tiny' and stand once: discs image-blind none" in n for n in merged.notes
    )
    out = write_merged(merged, tmp_path / "merged")
    read = read_run(out)
    pd.testing.assert_frame_equal(read.frame, merged.board.frame, check_dtype=False)
    for name in ("cases", "endpoints"):
        tables = [getattr(read_run(folder), name) for folder in (finished, other)]
        blind = (tables[1].model == "image-blind").sum()
        assert len(getattr(read, name)) == len(tables[0]) + len(tables[1]) - blind
    assert [part["name"] for part in read.meta["merged"]] == ["tiny", "other"]
    report = (out / "report.html").read_text()
    assert "small" in report and report.count("data:image/png") == 1 + 3 + 2
    assert set(read.meta["weights"]) == {f"discs-{n}-0" for n in ("unet-natural", "unet-pgd-at", "small-natural")}
    pairs = read.compare()
    pd.testing.assert_frame_equal(pairs, read_run(finished).compare())


def test_the_same_run_twice_is_that_run(finished, changed):
    slower = changed("slower", lambda table: table.assign(seconds="99"))
    merged = merge([finished, slower])
    pd.testing.assert_frame_equal(merged.board.frame, read_run(finished).frame)
    pd.testing.assert_frame_equal(merged.board.cases, read_run(finished).cases)
    assert len(merged.galleries) == 3 and "9 rows of 'slower' are those of 'tiny'" in merged.notes[-1]


def test_a_contradiction_is_refused_and_says_which_row(finished, changed):
    lucky = changed("lucky", raised)
    with pytest.raises(ValueError, match=(
        r"'tiny' and 'lucky' differ in 1 row of one network, such as discs unet natural, seed 0, worst-case at "
        r"0.03137: adversarial .* and 0.875 .*give --keep first"
    )):  # fmt: skip
        merge([finished, lucky])


@pytest.mark.parametrize(("keep", "score"), [("first", None), ("last", 0.875)])
def test_a_contradicted_network_is_whole_of_the_source_chosen(finished, changed, keep, score):
    def other_run(meta):
        meta["weights"]["discs-unet-natural-0"] = "f" * 64

    lucky = changed(
        "lucky", lambda table: raised(table).assign(linf=table.linf.where(~of_unet(table), "0.5")), other_run
    )
    merged = merge([finished, lucky], keep=keep)
    frame = merged.board.frame
    assert len(frame) == len(read_run(finished).frame)
    rows = frame[of_unet(frame)]
    assert (rows.linf == 0.5).all() == (keep == "last")
    expected = read_run(finished).frame if score is None else None
    worst = rows[rows.attack == "worst-case"].adversarial.item()
    assert worst == (score if expected is None else expected[of_unet(expected)].adversarial.iloc[-1])
    assert (merged.board.meta["weights"]["discs-unet-natural-0"] == "f" * 64) == (keep == "last")
    chosen = "tiny" if keep == "first" else "lucky"
    assert any(f"those of {chosen!r} were kept" in note for note in merged.notes)
    assert any("weights of 'discs-unet-natural-0' differ" in note for note in merged.notes)


def test_both_are_kept_under_two_names(finished, changed):
    merged = merge([finished, changed("lucky", raised)], keep="all")
    frame, cases = merged.board.frame, merged.board.cases
    assert set(frame.model) == {"image-blind", "unet", "unet @ lucky"}
    assert frame[frame.model == "unet @ lucky"].training.unique().tolist() == ["natural"]
    assert (cases.model == "unet @ lucky").sum() == of_unet(read_run(finished).cases).sum()
    assert "discs-unet @ lucky-natural-0" in merged.board.meta["weights"]
    assert any(gallery.title.startswith("discs-unet @ lucky-natural-0, ") for gallery in merged.galleries)


def test_tasks_of_one_name_on_other_data_are_no_one_task(finished, changed):
    def other_data(meta):
        meta["data"]["discs"]["sha256"] = "e" * 64

    there = changed("there", meta=other_data)
    with pytest.raises(ValueError, match=r"task 'discs' of 'there' is of other data \(sha256 eeeeeeee, not "):
        merge([finished, there])
    both = merge([finished, there], keep="all").board
    assert set(both.frame.task) == {"discs", "discs @ there"} == set(both.meta["data"])
    assert len(both.frame) == 2 * len(read_run(finished).frame)
    fewer = changed("fewer", lambda table: table.assign(n_cases="5"))
    with pytest.raises(ValueError, match=r"has another n_cases \(5, not 12\)"):
        merge([finished, fewer])
    for keep, expected in (("first", 12), ("last", 5)):
        assert set(merge([finished, fewer], keep=keep).board.frame.n_cases) == {expected}


def test_a_leaderboard_alone_is_merged_and_what_is_not_known_is_told(finished, other, tmp_path):
    alone = tmp_path / "alone.csv"
    shutil.copy(other / "leaderboard.csv", alone)
    merged = merge([finished, alone])
    assert len(merged.board.frame) == len(merge([finished, other]).board.frame)
    assert any("'alone' is a leaderboard alone: its versions, hardware" in note for note in merged.notes)
    twice = tmp_path / "again.csv"
    shutil.copy(alone, twice)
    out = write_merged(merge([alone, twice]), tmp_path / "only tables")
    assert len(read_run(out).frame) == len(pd.read_csv(alone)) and not len(read_run(out).cases)
    assert main(["report", str(out)]) == 0
    # what the first has no scores per case of, the second has
    assert len(merge([alone, other]).board.cases) == len(read_run(other).cases)


def test_a_row_that_stands_twice_is_taken_once_and_told(finished, other, changed):
    twice = changed("twice", lambda table: pd.concat([table, table.iloc[[2]].assign(seconds="7")]))
    merged = merge([twice, other])
    assert len(merged.board.frame) == len(merge([finished, other]).board.frame)
    assert merged.notes[0] == "'twice' holds 1 row twice; once is enough."


def test_a_damaged_file_is_told_in_one_sentence(finished, changed, capsys, tmp_path):
    bad = changed("bad")
    (bad / "leaderboard.meta.json").write_text("{")
    assert main(["merge", str(finished), str(bad), "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "is damaged (Expecting property name" in error and error.count("\n") == 1


def test_versions_and_hardware_are_compared(finished, changed):
    def older(meta):
        meta["versions"]["torch"] = "1.0"
        meta["hardware"]["processor"] = "another"

    merged = merge([finished, changed("old", meta=older)])
    assert any(note.startswith("torch differs: 2.") and "1.0 in 'old'" in note for note in merged.notes)
    assert any(note.startswith("processor differs:") for note in merged.notes)
    assert merged.board.meta["versions"]["torch"].endswith(" / 1.0")


@pytest.mark.parametrize(("frame", "meta", "message"), [
    (None, lambda meta: meta.update(schema_version=1), "'bad' has schema version 1 and this medadv reads version"),
    (None, lambda meta: meta.update(data=["discs"]), "'data' in leaderboard.meta.json of 'bad' is no mapping"),
    (None, lambda meta: meta.pop("schema_version"), "'bad' has no schema version"),
    (lambda t: t.drop(columns="surrogate"), None, "'bad' lacks the columns surrogate"),
    (lambda t: t.assign(mine="1"), None, "'bad' has the unknown columns mine"),
    (lambda t: t.assign(clean="good"), None, "column 'clean' of 'bad' holds 'good'; it is a column of numbers"),
    (lambda t: t.assign(model=""), None, "column 'model' of 'bad' has empty cells"),
    (lambda t: pd.concat([t, raised(t)]), None, "'bad' itself holds two rows with different numbers of discs unet"),
])  # fmt: skip
def test_what_is_no_leaderboard_of_this_version_is_refused(finished, changed, frame, meta, message):
    bad = changed("bad", frame, meta)
    with pytest.raises(ValueError, match=message):
        merge([finished, bad])


def test_the_command_prints_what_it_did_and_refuses_in_one_sentence(finished, other, tmp_path, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(finished), str(other), "--out", str(out)]) == 0
    assert "stand once" in capsys.readouterr().out and "stand once" in (out / "merge.txt").read_text()
    for arguments, message in (
        ([finished, other, "--out", out], "holds results already"),
        ([finished, "--out", tmp_path / "x"], "1 source to merge; give at least two"),
        ([finished, tmp_path / "none", "--out", tmp_path / "x"], "does not exist; give folders of finished runs"),
        ([finished, tmp_path, "--out", tmp_path / "x"], "holds no leaderboard.csv"),
    ):
        assert main(["merge", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_a_report_is_written_again_as_the_run_wrote_it(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    after = (folder / "report.html").read_text()
    assert pictures(after) == pictures(before) and after == before
    (folder / "pictures.json").write_text("[[]]")
    assert main(["report", str(folder)]) == 2 and "is damaged" in capsys.readouterr().err
    for source in (
        "https://elsewhere.org/a.png",
        "data:image/png;base64,iVBORw0KGgo=<script>",
        "data:image/png;base64,AAAA",
    ):
        (folder / "pictures.json").write_text(json.dumps([["worst", "title", source, ""]]))
        assert main(["report", str(folder)]) == 2 and "no PNG of a run" in capsys.readouterr().err


def pictures(page):
    return [part.partition('"')[0] for part in page.split("data:image/png;base64,")[1:]]


def test_names_tell_sources_apart(tmp_path):
    assert distinct_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    twice = distinct_names([tmp_path / "run", tmp_path / "run"])
    assert twice[1] == f"{twice[0]} (2)"
