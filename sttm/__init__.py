"""sttm: read a video once, keep its merged tokens and KV cache, answer any number of questions."""
