"""A model card holds what a run measured, says what is missing, and is refused with a sentence per error."""

from __future__ import annotations

import json

import pytest

from medadv.benchmarks.card_drafts import draft, labels, results_of
from medadv.benchmarks.cli import main
from medadv.benchmarks.model_cards import ModelCard, contradictions, read_card, schema
from medadv.benchmarks.store import read_run

LABEL = "discs-unet-pgd-at-0"


@pytest.fixture
def card(finished):
    """A complete card, as JSON holds it."""
    words = {"licence": "Apache-2.0", "contact": "mailto:someone@example.org", "data_licence": "CC0-1.0"}
    return draft(finished, LABEL, name="disc finder", **words)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "disc.card.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_a_draft_holds_what_the_run_knows(finished, card, written):
    read = read_card(written(card))
    board = read_run(finished)
    assert (
        read.weights_sha256 == board.meta["weights"][LABEL]
        and read.data.sha256 == board.meta["data"]["discs"]["sha256"]
    )
    assert read.architecture.network == "UNet" and read.architecture.arguments["channels"] == [4, 8]
    assert read.architecture.parameters > 100
    assert (read.training.recipe, read.training.starts_from, read.training.epochs) == ("pgd-at", "natural", 2)
    rows = board.frame[board.frame.training == "pgd-at"].set_index("attack")
    (result,) = read.results
    assert result.clean.score == rows.adversarial["none"] and result.n_cases == 12
    (worst,) = result.worst_cases
    assert (worst.score, worst.eps_fraction) == (rows.adversarial["worst-case"], 8 / 255)
    assert worst.attacks == ["noise", "pgd-dice"] and worst.n_unscored == 2
    assert result.image_blind == board.frame[board.frame.model == "image-blind"].adversarial.item()
    assert not contradictions(read, results_of(board, LABEL))


def test_numbers_that_the_table_does_not_have_are_told(finished, card):
    results = results_of(read_run(finished), LABEL)
    score = card["results"][0]["worst_cases"][0]
    score.update(score=0.99, ci_high=1.0)
    (told,) = contradictions(ModelCard.model_validate_json(json.dumps(card)), results)
    assert told.startswith("discs, linf at 0.03137: the card says 0.99, the table 0.")


def change(card, path, value):
    *parents, last = path.split(".")
    place = card
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value


@pytest.mark.parametrize(("path", "value", "sentence"), [
    ("licence", "", "licence is empty; fill it in."),
    ("licence", None, "licence is missing."),
    ("contact", "javascript:alert(1)", "contact: 'javascript:alert(1)' is no link; write https://... or mailto:...."),
    ("contact", 'https://a" onclick="b', "is no link"),
    ("weights_sha256", "abc", "weights_sha256: 'abc' is no SHA-256; it has 64 digits of 0-9 and a-f."),
    ("results.0.clean.score", "0.86", "results.0.clean.score is no number (write it without quotes)."),
    ("results.0.clean.score", 1.5, "results.0.clean.score: Input should be less than or equal to 1."),
    ("results.0.n_cases", 12.5, "results.0.n_cases is no whole number"),
    ("results.0.worst_cases.0.ci_low", 0.999, "is outside its interval 0.999 to"),
    ("results.0.worst_cases.0.ci_low", None, "ci_low and ci_high go together; give both or neither."),
    ("results", [], "results is empty; give at least one."),
    ("robustness", 0.9, "robustness is no field of a card."),
    ("card_version", 2, "card_version: Input should be 1."),
])  # fmt: skip
def test_a_wrong_card_is_refused_with_a_sentence(card, written, path, value, sentence):
    change(card, path, value)
    with pytest.raises(ValueError) as error:
        read_card(written(card))
    assert sentence in str(error.value) and str(error.value).startswith("disc.card.json: ")


def test_every_error_has_a_sentence_of_its_own(card, written, capsys):
    for path, value in (("licence", ""), ("contact", "x"), ("data.name", None)):
        change(card, path, value)
    assert main(["card", "--check", str(written(card))]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and all(line.startswith("disc.card.json: ") and line.endswith(".") for line in printed)
    assert main(["card", "--check", str(written("{"))]) == 1
    assert "it can't be read as JSON" in capsys.readouterr().out


def test_the_command_drafts_and_says_what_is_still_to_be_done(finished, tmp_path, capsys):
    out = tmp_path / "unet.card.json"
    assert main(["card", str(finished), "--model", LABEL, "--out", str(out)]) == 0
    left = [line for line in capsys.readouterr().out.splitlines() if line.startswith("still to be done")]
    assert [line.split(": ")[2].split()[0] for line in left] == ["data.licence", "licence", "contact"]
    for arguments, message in (
        ([finished, "--model", "discs-unet-pgd-0", "--out", out], "did you mean 'discs-unet-pgd-at-0'"),
        ([finished, "--model", LABEL, "--out", tmp_path / "unet.json"], "end it with .card.json"),
        ([finished, "--model", LABEL], "a draft needs the folder of a run, --model and --out"),
    ):
        assert main(["card", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err


def test_the_schema_is_printed_and_has_typed_numbers(capsys):
    assert main(["card", "--schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == schema() and printed["additionalProperties"] is False
    assert printed["$defs"]["Result"]["properties"]["n_cases"] == {"minimum": 1, "title": "N Cases", "type": "integer"}
    assert {"maximum": 1, "minimum": 0, "type": "number"} in printed["$defs"]["Clean"]["properties"]["score"]["anyOf"]


def test_only_networks_with_weights_have_cards(finished):
    assert list(labels(read_run(finished))) == ["discs-unet-natural-0", LABEL]
