"""Which cells there are."""

from studies.connectors.settings import HEADLINE, SEEDS, SIZES, VARIANTS, all_cells, chosen

from alignvlm.connectors.configs import connector_config


def test_the_headline_comes_first_with_all_seeds():
    reported = [cell for cell in all_cells() if cell.rate is None]
    count = len(HEADLINE) * len(SEEDS)
    adapted, frozen = reported[:count], reported[count : 2 * count]
    assert {c.variant for c in adapted} == {f"{name}-low-rank" for name in HEADLINE}
    assert {c.variant for c in frozen} == set(HEADLINE)
    for first in (adapted, frozen):
        assert {c.seed for c in first} == set(SEEDS) and {c.size for c in first} == {max(SIZES)}


def test_every_cell_once_and_after_what_it_needs():
    names = [cell.name for cell in all_cells()]
    assert len(set(names)) == len(names)
    for cell in all_cells():
        assert all(names.index(need) < names.index(cell.name) for need in cell.needs)


def test_choosing_takes_along_what_is_needed():
    names = [cell.name for cell in chosen(all_cells(), "ovis-256-0")]
    assert names[-1] == "ovis-256-0" and len(names) == 5


def test_connector_keys_are_the_package_s():
    for variant in VARIANTS.values():
        if variant.connector["type"] != "text":
            connector_config(variant.connector)
