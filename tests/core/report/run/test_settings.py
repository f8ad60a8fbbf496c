"""The settings in which runs differ: what is unset, what is chosen by name, what judges a run."""

from torchyard.core.report.run.settings import differing

AFFINE = '[{"name": "affine", "degrees": 10.0}]'
JUDGED = {
    "promote.model": "digits",
    "promote.gates": '[{"name": "beats_champion", "margin": 0.0}]',
    "promote.gate_seconds": "120.0",
}


def test_what_is_the_same_or_unset_in_all_is_left_out() -> None:
    first = {"train.ema": "null", "optimizer.lr": "0.1", "seed": "0"}
    second = {"optimizer.lr": "0.01", "seed": "0"}
    assert differing([first, second]) == {"optimizer.lr": ["0.1", "0.01"]}


def test_of_what_is_chosen_by_name_the_names_are_enough_where_they_differ() -> None:
    assert differing([{"augmentations": "[]"}, {"augmentations": AFFINE}]) == {
        "augmentations": [None, "affine"]
    }
    more = AFFINE.replace("10", "20")
    assert differing([{"augmentations": AFFINE}, {"augmentations": more}]) == {
        "augmentations": [AFFINE, more]
    }
    for odd in ('[{"degrees": 1}]', '[{"name": … 9000 characters', "[1, 2]"):
        assert differing([{"augmentations": odd}, {"augmentations": AFFINE}]) == {
            "augmentations": [odd, AFFINE]
        }


def test_the_promotion_is_one_row_unless_only_its_details_differ() -> None:
    assert differing([{"promote": "null"}, JUDGED]) == {"promote": [None, "digits: beats_champion"]}
    strict = JUDGED | {"promote.gates": JUDGED["promote.gates"].replace("0.0", "0.01")}
    assert list(differing([JUDGED, strict])) == ["promote.gates"]
    assert differing([JUDGED, JUDGED | {"promote.gates": "[]"}]) == {
        "promote": ["digits: beats_champion", "digits: no gate"]
    }
