"""Folders of text and files of token ids are read by their content, and one line says how."""

import bz2
import gzip
import io
import lzma
import pickle
import zipfile

import numpy as np
import pytest

from experiments.app import data
from tests.experiments.running import finish

_RNG = np.random.default_rng(0)
_NOISE = _RNG.integers(0, 256, 3000).astype(np.uint8).tobytes()


def _load(path, **options):
    return data.load(data.Source(f"text:{path}", **{"text_length": 8, **options}))


def _text(name):
    """A text of 1,000 bytes that holds its name in every 10 of them."""
    return f"{name:<9}\n".encode() * 100


def _write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.tobytes())
    return folder


def _zipped(**files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def _npy(ids):
    made = io.BytesIO()
    np.save(made, ids)
    return made.getvalue()


def _ids(size=1000, most=500, dtype=np.uint16):
    ids = np.random.default_rng(size).integers(0, most, size).astype(dtype)
    ids[7] = most - 1
    return ids


def _tokens(split):
    return split.inputs.ravel()


def test_a_folder_with_everything_in_it(tmp_path):
    texts = {
        "a.txt": _text("a"),
        "notes/b": _text("b"),
        "c.txt.gz": gzip.compress(_text("c")),
        "d.md.bz2": bz2.compress(_text("d")),
        "e.xz": lzma.compress(_text("e")),
        "f.zip": _zipped(f=_text("f")),
        "mark.txt": b"\xef\xbb\xbf" + _text("g"),
        "wide.txt": _text("h").decode().encode("utf-16"),
        "wider.txt": b"\0\0\xfe\xff" + _text("i").decode().encode("utf-32-be"),
        "west.txt": ("ö" * 1000).encode("latin-1"),
    }
    others = {
        ".git/HEAD": _text("x"),
        ".ipynb_checkpoints/a.txt": _text("x"),
        "notes/__pycache__/x.txt": _text("x"),
        ".DS_Store": _NOISE,
        "Thumbs.db": _NOISE,
        "a.txt~": _text("x"),
        "photo.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF" + _NOISE,
        "photo.txt": b"\xff\xd8\xff\xe0\0\x10JFIF" + _NOISE,
        "model.pkl": pickle.dumps({"weights": [0.5] * 100}),
        "noise.gz": gzip.compress(_NOISE),
        "wide without a mark.txt": _text("x").decode().encode("utf-16-le"),
        "books.zip": _zipped(x=_text("x"), y=_text("x")),
        "y.zst": b"\x28\xb5\x2f\xfd" + _NOISE,
        "empty.txt": b"",
        "only a mark.txt": b"\xef\xbb\xbf",
        "stray.bin": _NOISE,
    }
    dataset = _load(_write(tmp_path, texts | others))
    assert dataset.num_classes == 256
    assert "10 files of text (a.txt, c.txt.gz, d.md.bz2 and 7 more); train 8,018, " in dataset.about
    assert "not in UTF-8, bytes as they are: west.txt; left out: " in dataset.about
    left_out = dataset.about.split("left out: ")[1]
    assert left_out == (
        "an archive of 2 files, to be unpacked first: books.zip; empty: empty.txt, only a mark.txt;"
        " not text: model.pkl, noise.gz, photo.jpg and 2 more; compressed by zstd, to be"
        " decompressed first: y.zst; token files beside text: stray.bin; hidden or of the system:"
        " .DS_Store, .git, .ipynb_checkpoints and 3 more."
    )
    for split, size in ((dataset.train, 800), (dataset.validation, 100), (dataset.test, 100)):
        whole = bytes(_tokens(split).astype(np.uint8))
        for name in "abcdefghi":
            assert abs(whole.count(f"{name:<9}".encode()) - size // 10) <= 1
        assert abs(whole.count(b"\xf6") - size) <= 8
        assert b"x  " not in whole
    with pytest.raises(ValueError, match=r"photo.jpg is not text\.$"):
        _load(tmp_path / "photo.jpg")


_SPLIT_LAYOUTS = {
    "files": ("train.txt", "val.txt", "test.txt"),
    "no test": ("train.txt", "valid.txt", None),
    "no validation": ("Train.md", None, "TEST.md"),
    "folders": ("training/a.txt", "dev/a", "eval/b/a.txt"),
    "mixed": ("train/a.txt", "validation.txt.gz", "test.json"),
    "words": ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
}


@pytest.mark.parametrize("layout", _SPLIT_LAYOUTS)
def test_files_and_folders_named_by_split_are_the_splits(tmp_path, layout):
    splits = zip(("train", "validation", "test"), _SPLIT_LAYOUTS[layout], strict=True)
    names = {split: name for split, name in splits if name is not None}
    contents = {name: _text(split[:5]) for split, name in names.items()}
    contents |= {
        name: gzip.compress(content) for name, content in contents.items() if name.endswith("gz")
    }
    _write(tmp_path, contents | {"more.txt": _text("more"), "prepare.py": _text("x")})
    dataset = _load(tmp_path)
    for split in ("train", "validation", "test"):
        read = bytes(_tokens(getattr(dataset, split)).astype(np.uint8))
        wanted = _text(split[:5] if split in names else "train")
        assert wanted.startswith(read)
    for name in names.values():
        place = name if "/" not in name else f"{name.split('/')[0]}/"
        assert f" ({place})" in dataset.about
    assert "left out: beside the splits: more.txt, prepare.py." in dataset.about
    assert {*dataset.held_out} == {"validation", "test"} - names.keys()
    sizes = [int(getattr(dataset, split).inputs.size) for split in ("validation", "test")]
    assert sizes == [992 if split in names else 96 for split in ("validation", "test")]


def test_programs_called_train_and_test_are_no_splits(tmp_path):
    _write(tmp_path, {name: _text(name) for name in ("train.py", "test.py", "model.py")})
    assert "3 files of text (model.py, test.py, train.py); train " in _load(tmp_path).about


@pytest.mark.parametrize(
    ("dtype", "most"),
    [
        *((dtype, most) for dtype in ("uint16", "uint32", "int64") for most in (4, 65, 50_257)),
        *(("uint32", 151_936), ("int64", 151_936), ("uint32", 4_000_000)),
    ],
)
def test_a_folder_as_nano_gpt_prepares_it(tmp_path, dtype, most):
    train, val = _ids(3000, most, dtype), _ids(1000, most, dtype)
    beside = {"input.txt": _text("raw"), "prepare.py": b"import os", "readme.md": b"# data"}
    meta = {"meta.pkl": b"cos\nsystem\n(S'false'\ntR."}  # would run a command when unpickled
    _write(tmp_path, {"train.bin": train, "val.bin": val} | beside | meta)
    dataset = _load(tmp_path)
    assert dataset.num_classes == most
    np.testing.assert_array_equal(_tokens(dataset.train), train[: dataset.train.inputs.size])
    np.testing.assert_array_equal(_tokens(dataset.validation), val[:992])
    np.testing.assert_array_equal(_tokens(dataset.test), train[2700:2996])
    assert dataset.about.startswith(
        f"text:{tmp_path}: 2 files of token ids (train.bin, val.bin); train 2,700 (train.bin),"
        f" validation 1,000 (val.bin), test 300 (held out of train) ids, {most:,} different at most"
    )
    assert dataset.about.endswith(
        "left out: beside the splits: input.txt, meta.pkl, prepare.py and 1 more."
    )


@pytest.mark.parametrize(
    ("magic", "dtype", "most"), [(20240520, "uint16", 50_257), (20240801, "uint32", 128_256)]
)
def test_headers_of_llm_c_are_no_ids(tmp_path, magic, dtype, most):
    header = np.zeros(256, np.int32)
    header[:3] = magic, 1, 1000
    shard = header.tobytes() + _ids(1000, most, dtype).tobytes()
    names = ("fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin")
    _write(tmp_path, dict.fromkeys(names, shard))
    dataset = _load(tmp_path)
    assert dataset.num_classes == most
    assert "train 1,800 (fineweb_train_000001.bin, fineweb_train_000002.bin)" in dataset.about
    np.testing.assert_array_equal(_tokens(dataset.validation), _ids(1000, most, dtype)[:992])
    _write(tmp_path, {names[0]: shard[:-1]})
    with pytest.raises(ValueError, match=r"01.bin is damaged: its header promises 1,000 ids"):
        _load(tmp_path)


def test_a_type_that_is_given_is_the_one_that_is_read(tmp_path):
    bytes_ids = _ids(1000, 200, np.uint8)
    _write(tmp_path, {"x.bin": bytes_ids})
    dataset = _load(tmp_path / "x.bin", token_dtype="uint8")
    np.testing.assert_array_equal(_tokens(dataset.train), bytes_ids[:792])
    assert dataset.num_classes == 200
    wide = np.zeros(1000, np.uint32)
    wide[::2] = 5
    _write(tmp_path, {"y.bin": wide})
    dataset = _load(tmp_path / "y.bin", token_dtype="uint16")
    np.testing.assert_array_equal(_tokens(dataset.train)[:6], [5, 0, 0, 0, 5, 0])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64", ">u2", ">i8"])
def test_arrays_know_their_type(tmp_path, dtype):
    ids = _ids(1000, 120, dtype)
    _write(tmp_path, {"x.npy": _npy(ids), "no_ending": _npy(ids), "y.npy.gz": _npy(ids)})
    for name in ("x.npy", "no_ending", "y.npy.gz"):
        dataset = _load(tmp_path / name)
        np.testing.assert_array_equal(_tokens(dataset.train), ids[:792])
        assert dataset.num_classes == 120


_ERRORS = {
    "x.npy": {
        "must hold token ids, integers from 0 to 2147483647; it has 2147483653": _npy(
            np.array([1, 2**31 + 5] * 500)
        ),
        r"must hold token ids, integers from 0 to 2147483647; it has -1, of int64": _npy(
            np.array([-1, 5] * 500)
        ),
        r"it has 18446744073709551615, of uint64": _npy(np.full(100, 2**64 - 1, np.uint64)),
        r"it has int64 of shape \(10, 10\)": _npy(np.zeros((10, 10), int)),
        r"it has float64 of shape \(100,\)": _npy(np.zeros(100)),
        r"it has bool of shape": _npy(np.zeros(100, bool)),
        r"x.npy is damaged or no array of numbers \(": _npy(np.arange(100))[:300],
        r"x.npy is damaged or no array of numbers \(EOF": _npy(np.arange(100))[:9],
        r"x.npy is damaged or no array .* pickled": b"abc" * 100,
        r"x.npy is damaged or no array .*Object arrays": _npy(np.array([{}, 1])),
        r"x.npy is empty\.": b"",
        r"npy is empty\.": _npy(np.zeros(0, int)),
    },
    "x.bin": {
        r"has 2,001 bytes, which is no whole number of uint16 ids; it was cut off, or --token": (
            _ids().tobytes() + b"\0"
        ),
        r"x.bin has big-endian ids; write them as little-endian": _ids(1000, 500, ">u4"),
        r"in has big-endian ids; write them": _ids(1000, 500, ">u2"),
        r"may have ids of uint16 or uint32; give --token-dtype": np.array([600, 20] * 50, "<u2"),
        r"may have ids of uint8 or uint16; give --token-dtype": _ids(1000, 65, np.uint8),
        r"has 4,002 bytes, which is no whole number of uint32 ids": (
            _ids(1001, 500, np.uint32).tobytes()[:-2]
        ),
        r"it has 4294967295, of uint32": np.append(
            _ids(1000, 70_000, np.uint32), np.uint32(2**32 - 1)
        ),
        r"x.bin is empty": b"",
    },
    "x.txt.gz": {
        r"gz is damaged and cannot be decompressed \(": gzip.compress(_text("a"))[:20],
        r"gz is damaged and cannot be decompressed \(CRC": gzip.compress(_text("a"))[:-8]
        + b"12345678",
        r"gz is empty": gzip.compress(b""),
        r"gz is not text": gzip.compress(_NOISE),
    },
    "x.bz2": {r"bz2 is damaged and cannot": bz2.compress(_text("a"))[:40]},
    "x.xz": {r"xz is damaged and cannot": lzma.compress(_text("a"))[:40]},
    "x.zip": {
        r"zip is damaged and cannot": _zipped(a=_text("a"))[:200],
        r"zip is an archive of 2 files, to be unpacked first\.": _zipped(a=b"a", b=b"b"),
    },
    "x.txt.zst": {r"zst is compressed by zstd, to be decompressed": b"\x28\xb5\x2f\xfd" + _NOISE},
    "x.txt": {
        r"x.txt is not text\.": _text("a").decode().encode("utf-16-be"),
        r"txt is not text\.": b"\xff\xfe" + _text("a").decode().encode("utf-16-le") + b"a",
        r"is empty\.": b"",
    },
}


@pytest.mark.parametrize(
    ("name", "error"), [(name, error) for name, errors in _ERRORS.items() for error in errors]
)
def test_files_that_cannot_be_read_are_named_in_one_sentence(tmp_path, name, error):
    _write(tmp_path, {name: _ERRORS[name][error]})
    with pytest.raises(ValueError, match=error) as raised:
        _load(tmp_path / name)
    assert str(raised.value).startswith(f"{tmp_path / name} ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"val.txt": b"a"}, r"has val.txt and no train file or folder beside it; rename one"),
        ({"test/a": b"a", "b.txt": b"b"}, r"has test/ and no train file or folder beside it"),
        ({"val.bin": b"ab"}, r"has val.bin and no train"),
        ({"train.txt": b"a", "train.csv": b"b"}, r"train.csv and train.txt both are names for tr"),
        ({"train.txt": b"\0"}, r"train.txt is not text"),
        ({"train/a.jpg": b"\0"}, r"train has no text; left out: not text: train/a.jpg\."),
        ({"a.jpg": b"\0", ".b": b""}, r"has no text; left out: not text: a.jpg\."),
        ({"train/a": b"a", "val/a.npy": _npy(_ids())}, r"mixes text and token ids in its splits"),
        ({"train.txt": _text("a"), "val.txt": b"abc"}, r"\(train 900, validation 3, test 100\)"),
    ],
)
def test_folders_that_cannot_be_meant_are_refused(tmp_path, files, error):
    _write(tmp_path, files)
    with pytest.raises(ValueError, match=error):
        _load(tmp_path)


def test_links_that_lead_round_in_circles_end_and_count_once(tmp_path):
    _write(tmp_path, {"a/a.txt": _text("a"), "b/b.txt": _text("b")})
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "b")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    about = _load(tmp_path).about
    assert "2 files of text" in about
    assert about.endswith("left out: links to nothing and devices: gone.txt.")


def test_no_text_is_tested_on_that_was_trained_on_when_files_are_added(tmp_path):
    # Every other one is too short to be cut.
    sizes = (1000, 30) * 30
    texts = {f"{n:02}.txt": _text(f"<{n}>")[:size] for n, size in enumerate(sizes)}
    old, new = dict(list(texts.items())[:40]), dict(list(texts.items())[40:])
    before = _load(_write(tmp_path, old), text_length=3)
    (tmp_path / "00.txt").rename(tmp_path / "zz.txt")
    after = _load(_write(tmp_path, new), text_length=3)

    def counts(number):
        """Count a text's name in each split, before and after."""
        return [
            bytes(_tokens(getattr(dataset, split)).astype(np.uint8)).count(b"<%d>" % number)
            for split in ("train", "validation", "test")
            for dataset in (before, after)
        ]

    for number in range(0, 40, 2):
        np.testing.assert_allclose(counts(number), [80, 80, 10, 10, 10, 10], atol=2)
    short = np.array([counts(number) for number in range(1, 40, 2)]).reshape(20, 3, 2) > 0
    np.testing.assert_array_equal(short[..., 0], short[..., 1])
    np.testing.assert_array_equal(short.sum(1), 1)
    assert 10 < short[:, 0, 0].sum() < 20


def test_home_directories_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path, {"books/a.txt": _text("a")})
    assert data.load(data.Source("text:~/books/a.txt", text_length=8)).about.startswith("text:~/bo")
    with pytest.raises(ValueError, match=f"data folder {tmp_path}/pets does not exist"):
        data.load(data.Source("folder:~/pets"))


def test_a_run_on_ids_of_32_bits(tmp_path):
    ids = np.random.default_rng(0).integers(0, 300, 1000).astype(np.uint32)
    _write(tmp_path / "ids", {"train.bin": ids, "val.bin": ids[:200], "meta.pkl": b"\x80"})
    sizes = ("--outputs", 1, "--width", 8, "--heads", 2, "--depth", 1, "--text-length", 16)
    printed = finish(
        *("train", "--data", f"text:{tmp_path / 'ids'}", "--net", "branched-transformer", *sizes),
        *("--batch-size", 8, "--epochs", 1, "--optimizer", "sgd", "--workdir", tmp_path / "run"),
    )
    assert "2 files of token ids (train.bin, val.bin)" in printed.replace("\n", " ")
    words = printed.split("output 1 writes: '")[1].split("'")[0].split()
    assert all(int(word) < 300 for word in words)
