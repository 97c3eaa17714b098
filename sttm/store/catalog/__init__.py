"""The catalog: one row for each video and recipe of a store, in immutable parts and a log of snapshots."""
