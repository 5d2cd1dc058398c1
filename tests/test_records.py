"""A record is what was written, whatever its names are, and nothing else is taken for it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_experiments.manifest import read_record, write_record

NAMES = st.text(max_size=5) | st.integers(-20, 20_000)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_what_is_read_is_what_was_written(tmp_path_factory, content):
    """Names that are numbers become text in JSON, where 8192 comes before 512."""
    path = tmp_path_factory.mktemp("records") / "record.json"
    write_record(path, content)
    assert read_record(path) == json.loads(json.dumps(content))


def test_what_was_changed_is_not_taken_for_it(tmp_path):
    path = tmp_path / "record.json"
    write_record(path, {"cache": {512: 1, 8192: 2}})
    path.write_text(path.read_text().replace('"8192": 2', '"8192": 3'))
    with pytest.raises(ValueError, match="is not what was written there"):
        read_record(path)
