"""The columns of a manifest. Without pandas, for whoever only reads what is there."""

import pyarrow as pa

# A list of named texts, not an Arrow map, because Hugging Face datasets cannot read maps; in DuckDB:
# map_from_entries(text).
_NAMED = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("sha256", pa.string()),
        ("path", pa.string()),
        ("source", pa.string()),
        ("label", pa.string()),
        ("label_given", pa.string()),
        ("group", pa.string()),
        ("given_split", pa.string()),
        ("split", pa.string()),
        ("seconds", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        ("codec", pa.string()),
        ("audio", pa.bool_()),
        ("bytes", pa.int64()),
        ("playable_path", pa.string()),
        ("excluded", pa.string()),
        ("excluded_detail", pa.string()),
        ("also_at", pa.list_(pa.string())),
        ("text", _NAMED),
        ("notes", _NAMED),
        ("truncated", pa.bool_()),
    ]
)
