"""Examples that are held out keep their split, whatever comes, goes, or changes its name."""

import hashlib
import json
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from experiments.app import data, data_record
from experiments.app.data import splits

_PARTS = st.sampled_from([("validation", "test"), ("validation",), ("test",)])
_FRACTIONS = st.sampled_from([0.05, 0.1, 0.3])


def _digest(content):
    return hashlib.sha256(bytes(content)).digest()


def _drawn(contents, parts, fraction):
    """The split of each content."""
    digests = [_digest(str(content).encode()) for content in contents]
    chosen = splits.hold_out_by_content(digests, parts, fraction)
    assert sorted(np.concatenate(list(chosen.values()))) == list(range(len(contents)))
    found = {}
    for part, indices in chosen.items():
        for index in indices:
            assert found.setdefault(contents[index], part) == part  # copies are together
    return found


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
    st.lists(st.integers(0, 60), min_size=1, max_size=40),
    st.lists(st.integers(0, 60), max_size=10),
    _PARTS,
    _FRACTIONS,
)
def test_examples_that_are_added_move_none_into_what_is_held_out(old, new, parts, fraction):
    before = _drawn(old, parts, fraction)
    places = np.array([splits.place(_digest(str(content).encode())) for content in before])
    middle = ((places >= fraction) & (places < 1 - fraction)).sum()
    # Each part takes an image from training at most; what leaves none to train on is refused.
    hypothesis.assume(middle > len(parts))
    assert {*before.values()} == {"train", *parts}
    after = _drawn(old + new, parts, fraction)
    for content, part in before.items():
        assert after[content] in (part, "train")
    assert _drawn((old + new)[::-1], parts, fraction) == after


def test_shares_of_many_examples_are_those_asked_for():
    found = list(_drawn(range(4000), ("validation", "test"), 0.1).values())
    for part in ("validation", "test"):
        # Four standard deviations of a binomial count.
        assert abs(found.count(part) - 400) < 4 * np.sqrt(4000 * 0.1 * 0.9)


def test_the_split_of_a_content_is_the_same_on_every_machine():
    places = [splits.place(_digest(str(number).encode())) for number in range(3)]
    wanted = [int(hashlib.sha256(str(n).encode()).hexdigest()[:12], 16) / 16**12 for n in range(3)]
    assert places == wanted
    np.testing.assert_allclose(places, [0.374709, 0.420024, 0.829885], atol=1e-6)


def _add(folder, name, seed):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def _load(folder, **options):
    return data.load(data.Source(f"folder:{folder}", **options))


def _contents(folder, dataset):
    return {
        part: {(folder / file).read_bytes() for file in files}
        for part, files in dataset.files.items()
    }


@pytest.fixture
def pets(tmp_path):
    """Twelve images of two classes."""
    for number in range(12):
        _add(tmp_path / "pets", f"{('cat', 'dog')[number % 2]}/{number:02}.png", number)
    return tmp_path / "pets"


def test_images_keep_their_split_when_a_folder_changes(pets):
    old = _contents(pets, _load(pets))
    assert all(old.values())
    for number in range(100, 140):
        _add(pets, f"cat/é {number}.png", number)
    (pets / "dog" / "01.png").rename(pets / "cat" / "0 relabelled.png")
    shutil.copy(pets / "cat" / "02.png", pets / "dog" / "copy.png")
    moved = pets.rename(pets.parent / "elsewhere")
    dataset = _load(moved)
    new = _contents(moved, dataset)
    assert sum(map(len, dataset.files.values())) == 53  # with the copy
    for part, contents in new.items():
        for other in new.keys() - {part}:
            assert not contents & new[other]
            assert not contents & old[other] or part == "train"


def test_a_folder_that_is_too_small_is_refused(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/copy of 1.png"):
        _add(tmp_path, name, "12".index(name[-5]))
    with pytest.raises(ValueError, match=r"too few different images \(3 to train .* for train"):
        _load(tmp_path)


def test_a_link_to_nothing_is_left_out_with_skip_corrupt(pets):
    (pets / "cat" / "gone.png").symlink_to(pets / "nowhere.png")
    with pytest.raises(ValueError, match=r"gone.png is no readable image \(FileNotFoundError\)"):
        _load(pets)
    assert sum(map(len, _load(pets, skip_corrupt=True).files.values())) == 12


def test_sets_of_tfds_are_cut_as_before():
    chosen = splits.hold_out_at_random(20, ("validation", "test"), 0.1)
    order = np.random.default_rng(0).permutation(20)
    for part, wanted in (("validation", order[:2]), ("test", order[2:4]), ("train", order[4:])):
        np.testing.assert_array_equal(chosen[part], wanted)


def test_a_run_of_a_version_that_cut_differently_is_refused(pets, tmp_path):
    source = data.Source(f"folder:{pets}", validation_fraction=0.1)
    data_record.load_to_train(tmp_path, source)
    (tmp_path / "summary.json").write_text("{}")
    data_record.load_to_train(tmp_path, source)
    saved = json.loads((tmp_path / "data.json").read_text())
    assert saved.pop("rule") == "by content"
    (tmp_path / "data.json").write_text(json.dumps(saved))
    for check, read in ((data_record.load_to_train, source), (data_record.check_rule, _load(pets))):
        with pytest.raises(ValueError, match="of an earlier version, which held out other exam"):
            check(tmp_path, read)
    for name in ("train", "val", "test"):
        shutil.copytree(pets, tmp_path / "named" / name)
    data_record.check_rule(tmp_path, _load(tmp_path / "named"))
