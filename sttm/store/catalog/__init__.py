"""The catalog: one row for each video and recipe of a store, in immutable parts and generations and a log."""
