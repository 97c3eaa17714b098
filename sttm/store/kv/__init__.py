"""The KV file: how the cache of one video is packed, written, read and verified."""
