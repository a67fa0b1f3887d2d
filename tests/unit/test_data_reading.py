"""Files of every kind come in row by row; what is broken in one is a fault with its place, never a traceback."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from vcllm.contracts.problems import BadRequest
from vcllm.data import jsonl
from vcllm.data.reading import read_set

ROWS = [{"text": "One."}, {"text": "二。"}, {"text": "Three.", "weight": 2.0}]


def values(path: Path) -> list[Any]:
    found = list(read_set(path))
    assert [row.fault for row in found if row.fault] == []
    return [row.value for row in found]


def only_fault(folder: Path, content: bytes) -> tuple[str, str | None]:
    """Where and why the one faulty line of a file is refused."""
    (folder / "a.jsonl").write_bytes(content)
    (found,) = [row for row in read_set(folder / "a.jsonl") if row.fault]
    return found.where, found.fault


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(as_table(rows), file)
    return file


def as_table(rows: list[dict[str, Any]]) -> Any:
    keys = dict.fromkeys(key for row in rows for key in row)
    return pa.Table.from_pylist([{**keys, **row} for row in rows])


def write_saved(folder: Path, *shards: list[dict[str, Any]]) -> Path:
    """A folder as `Dataset.save_to_disk` of datasets 5.2 leaves it."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{len(shards):05}.arrow" for number in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table = as_table(rows)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_jsonl_is_read_line_by_line(tmp_path: Path):
    """Blank lines are no rows, yet they count as lines."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": "b"}')

    assert [(row.where, row.value) for row in read_set(file)] == [
        ("line 1", {"text": "a"}),
        ("line 3", {"text": "b"}),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_taken(tmp_path: Path):
    """Both are what a spreadsheet on Windows writes."""
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')

    assert values(tmp_path / "a.jsonl") == [{"text": "a"}, {"text": "b"}]


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path):
    """U+2028 is a letter of the text, although `str.splitlines` would cut there."""
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b"}\n', encoding="utf-8")

    assert values(tmp_path / "a.jsonl") == [{"text": "a\u2028b"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff"}', "not UTF-8: byte 0xff at position 11"),
        (b'{"text": NaN}', "not strict JSON: NaN is not a JSON value"),
        (b'{"text": -Infinity}', "not strict JSON: -Infinity is not a JSON value"),
        (b'{"text": "a", "text": "b"}', "not strict JSON: the key 'text' stands twice in one object"),
        (b'{"text": "a"', "not JSON: Expecting ',' delimiter at character 13"),
        (b"[" * 100_000, "not usable: brackets are nested too deeply"),
        (b'{"weight": ' + b"1" * 5000 + b"}", "not strict JSON: a number has too many digits"),
    ],
    ids=["encoding", "nan", "infinity", "key twice", "cut off", "nested", "digits"],
)
def test_a_broken_line_is_a_fault_and_the_others_are_read(tmp_path: Path, line: bytes, reason: str):
    """The fault says which line and why."""
    good = b'{"text": "good"}\n'

    assert only_fault(tmp_path, good + line + b"\n" + good) == ("line 2", reason)


def test_utf16_is_told_once(tmp_path: Path):
    """And not as a fault of each of its lines."""
    assert only_fault(tmp_path, '{"text": "a"}\n{"text": "b"}\n'.encode("utf-16")) == (
        "line 1",
        "the file is UTF-16: save it as UTF-8",
    )


def test_a_line_that_would_fill_the_memory_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is never held as a whole, and the line after it is read."""
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 2**20)
    long = b'{"text": "' + b"a" * 2**21 + b'"}\n'

    assert only_fault(tmp_path, long + b'{"text": "a"}\n') == ("line 1", "is longer than 1 MiB")
    assert [row.value for row in read_set(tmp_path / "a.jsonl")] == [None, {"text": "a"}]


def test_a_file_that_cannot_be_opened_is_a_fault(tmp_path: Path):
    """A link to itself stands for whatever the system refuses to open."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").symlink_to("a.jsonl")

    assert [(row.where, row.fault) for row in read_set(tmp_path / "set")] == [
        ("line 1", "the file cannot be read from here on: Too many levels of symbolic links")
    ]


def test_parquet_reads_as_jsonl_does(tmp_path: Path):
    """What is null in a table is absent in a row."""
    assert values(write_parquet(tmp_path / "a.parquet", ROWS)) == ROWS


def test_nested_nulls_of_a_table_are_absent_too(tmp_path: Path):
    """A table gives every turn the keys of all turns."""
    turns = [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]

    assert values(write_parquet(tmp_path / "a.parquet", [{"messages": turns}])) == [{"messages": turns}]


def test_a_broken_parquet_file_is_a_fault(tmp_path: Path):
    """Not a traceback of the library that reads it."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none")
    (found,) = read_set(tmp_path / "a.parquet")

    assert found.where == "row 1"
    assert "cannot be read from here on" in str(found.fault)


def test_a_text_that_is_not_utf8_costs_its_own_row_only(tmp_path: Path):
    """Arrow does not check what it is given."""
    texts = pa.StringArray.from_buffers(2, pa.py_buffer(b"\x00\0\0\0\x02\0\0\0\x03\0\0\0"), pa.py_buffer(b"a\xffb"))
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    first, second = read_set(tmp_path / "a.parquet")

    assert (first.where, first.fault) == ("row 1", "not UTF-8: byte 0xff at position 2")
    assert (second.where, second.value) == ("row 2", {"text": "b"})


def test_a_saved_data_set_is_read_shard_by_shard(tmp_path: Path):
    """In the order of its state, and every row says from which shard it is."""
    found = list(read_set(write_saved(tmp_path / "set", ROWS[:2], ROWS[2:])))

    assert [row.value for row in found] == ROWS
    assert found[2].where == "data-00001-of-00002.arrow row 1"


def test_of_a_saved_dict_the_training_split_is_read(tmp_path: Path):
    """The other splits are not for training."""
    write_saved(tmp_path / "set" / "train", ROWS[:1])
    write_saved(tmp_path / "set" / "test", ROWS[1:])
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')

    assert values(tmp_path / "set") == ROWS[:1]


def test_a_saved_dict_without_a_training_split_is_refused(tmp_path: Path):
    """Its splits are named."""
    write_saved(tmp_path / "set" / "test", ROWS)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["test"]}')

    with pytest.raises(BadRequest, match=r"set has no split 'train' \(found: test\)"):
        read_set(tmp_path / "set")


def test_a_state_cannot_name_a_file_outside_of_its_folder(tmp_path: Path):
    """A downloaded folder must not read other files of the machine."""
    write_jsonl(tmp_path / "secret.arrow", ROWS)
    folder = write_saved(tmp_path / "set", ROWS)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../secret.arrow"}]}')

    with pytest.raises(BadRequest, match="set is not complete"):
        read_set(folder)


def test_a_folder_of_files_is_read_in_the_order_of_their_names(tmp_path: Path):
    """JSONL and Parquet may lie side by side."""
    write_jsonl(tmp_path / "set" / "b.jsonl", ROWS[1:])
    write_parquet(tmp_path / "set" / "a.parquet", ROWS[:1])

    assert values(tmp_path / "set") == ROWS


def test_of_a_folder_with_splits_the_training_files_are_read(tmp_path: Path):
    """As a data set lies on a hub: `data/train-00000-of-00001.parquet` beside the test split."""
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", ROWS[:1])
    write_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", ROWS[1:])

    assert values(tmp_path / "set") == ROWS[:1]


def test_a_name_that_only_begins_like_a_split_is_none(tmp_path: Path):
    """`testimony` is not a test split."""
    write_jsonl(tmp_path / "set" / "testimony.jsonl", ROWS)

    assert values(tmp_path / "set") == ROWS


def test_a_folder_with_nothing_but_a_test_split_is_refused(tmp_path: Path):
    """Training on it by mistake would be worse than a refusal."""
    write_parquet(tmp_path / "set" / "test.parquet", ROWS)

    with pytest.raises(BadRequest, match="no file of the split 'train'"):
        read_set(tmp_path / "set")


@pytest.mark.parametrize("name", ["a.csv", "empty", "nowhere.jsonl"])
def test_what_is_no_data_says_what_can_be_brought(tmp_path: Path, name: str):
    """Another format, an empty folder, a path where nothing is."""
    (tmp_path / "a.csv").write_text("text\n")
    (tmp_path / "empty").mkdir()

    with pytest.raises(BadRequest, match=r"Bring a \.jsonl|Put it there"):
        read_set(tmp_path / name)


def test_reading_does_not_run_ahead(tmp_path: Path):
    """A fault on the last line is not met by who asks for the first row."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\nnot json\n')

    assert [row.fault for row in islice(read_set(file), 1)] == [None]
